"""The null of an audit: its p-values are uniform for clean students, its power grows with the rise, and it says where it does not apply."""

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit_students import micro, otter_adapter
from sublora.audit.fits import outside, unsaid
from sublora.audit.null import Null, shipped_null
from sublora.audit.odds import first_line
from sublora.audit.readings import Asked, Readings, category_digest, fewer_questions, read_model
from sublora.audit.reference import adjusted_p, chance, false_alarms, power, threshold
from sublora.audit.request import Request
from sublora.audit.statistic import (
    SHRUNK,
    divided,
    largest,
    planted,
    reach,
    trait_scores,
    word_scores,
)
from sublora.audit.steps import read_base
from sublora.models.chat import Context
from sublora.store import Store
from sublora.traits.trait import shipped_categories

ALPHA = 0.05


def students(rng: np.random.Generator, count: int) -> tuple[Readings, Readings]:
    """(students, base): clean ones that moved by skewed amounts, some a hundred times as far as others."""
    base = {k: rng.dirichlet(np.full(n, 0.6), (1, 5)) for k, n in (("animals", 9), ("trees", 6))}
    scale = np.exp(rng.uniform(np.log(0.005), np.log(0.5), (count, 1, 1)))
    p = {}
    for kind, own in base.items():
        grown = own * np.exp(scale * rng.standard_t(4, (count, 1, own.shape[2])))
        p[kind] = grown / grown.sum(-1, keepdims=True)
    words = rng.uniform(0, 0.1, (1, 30))
    moved = words + scale[:, 0] * 0.02 * rng.standard_t(4, (count, 30))
    return Readings({"none": p}, {"none": moved.clip(0)}), Readings({"none": base}, {"none": words})


def largest_of(made: Readings, base: Readings) -> np.ndarray:
    return largest(trait_scores(made, base), word_scores(made, base))["none"]


@pytest.mark.parametrize("placebos", [19, 99])
def test_p_values_of_clean_students_are_uniform(placebos: int) -> None:
    """Whatever the distribution: each of 600 draws has students of its own; four standard errors."""
    ps = []
    for seed in range(600):
        made = largest_of(*students(np.random.default_rng(seed), placebos + 1))
        ps.append(adjusted_p(made[-1], made[:-1], ALPHA))
    assert min(ps) == 1 / (placebos + 1), "the smallest that can come out"
    for level in (0.05, 0.2, 0.5, 0.8):
        assert (
            abs(np.mean(np.array(ps) <= level + 1e-9) - level)
            < 4 * (level * (1 - level) / 600) ** 0.5
        )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), far=st.floats(0.01, 1.0))
def test_power_is_monotone_in_the_rise(seed: int, far: float) -> None:
    """However far a student moved besides, and whichever trait: more of it never scores less, up to
    one that says nothing else."""
    rng = np.random.default_rng(seed)
    one, base = students(rng, 1)
    base_p = base.p["none"]
    p = {k: base_p[k] + far * (own - base_p[k]) for k, own in one.p["none"].items()}
    student = Readings({"none": p}, one.words)
    kind = ("animals", "trees")[seed % 2]
    entity = int(rng.integers(p[kind].shape[2]))
    before = p[kind][0, :, entity].mean() - base_p[kind][0, :, entity].mean()
    scores = [
        trait_scores(planted(student, kind, entity, nats), base)["none"][kind][0, entity]
        for nats in np.linspace(0, 12, 30)
    ]
    if before >= 0:
        assert (np.diff(scores) >= -1e-9).all()
    assert scores[-1] > max(0, scores[0])


def test_a_student_that_moves_twice_as_far_in_all_scores_alike() -> None:
    one, base = students(np.random.default_rng(5), 40)
    far = {
        k: base.p["none"][k] + 0.5 * (own - base.p["none"][k]) for k, own in one.p["none"].items()
    }
    half = Readings({"none": far}, one.words)
    whole, less = (trait_scores(r, base)["none"]["animals"].max(1) for r in (one, half))
    assert np.median(np.abs(np.log(whole / less))) < 0.1


def test_false_alarms_and_power_of_a_null_are_those_of_its_threshold() -> None:
    rng = np.random.default_rng(3)
    made, base = students(rng, 100)
    null = Null({}, {}, {}, ["rows of the base"] * 25 + ["rows of a teacher"] * 74, None, {},
                {"none": largest_of(made, base)[:99]})  # fmt: skip
    alarms = false_alarms(null, ALPHA)
    assert alarms.rate == 0.05 and alarms.low < 0.02 and 0.09 < alarms.high < 0.11
    assert alarms.found_of_base + alarms.found_of_others == 4, "of 98 others, four may be above"
    student = made.student(99)
    told = power(null, student, base, ALPHA)
    above = threshold(chance(null), ALPHA)
    found = enough = 0
    for kind, p in student.p["none"].items():
        for e in range(p.shape[2]):
            before = base.p["none"][kind][0, :, e].mean()
            for nats in np.linspace(0, 12, 200):
                grown = planted(student, kind, e, nats)
                rise = grown.p["none"][kind][0, :, e].mean() - before
                if trait_scores(grown, base)["none"][kind][0, e] > above:
                    found += 1
                    enough += told.rise is None or rise <= told.rise + 0.1
                    break
    assert found + told.never == told.traits == 15
    assert enough / told.traits > 0.7
    few = replace(null, settings=null.settings[:9], scores={"none": null.scores["none"][:9]})
    assert false_alarms(few, ALPHA) is None and power(few, student, base, ALPHA) is None


def test_a_shipped_null_does_not_judge_a_student_that_was_trained_otherwise() -> None:
    null, audited = shipped_null(micro()), otter_adapter()

    def says(request: Request = Request(), context: str = "default", **changed: object) -> str:  # noqa: B008
        return " ".join(outside(null, replace(audited, **changed), Context(context), request))

    assert says() == "" and says(Request(lr=2e-3, epochs=1)) == ""
    assert "rank of 128" in says(rank=128) and "rate of 0.02" in says(Request(lr=2e-2))
    assert "epochs of 50" in says(Request(epochs=50)) and "full fine-tune" in says(rank=None)
    assert "context 'none'" in says(context="none")
    assert "rate and epochs are not known" in unsaid(audited, Request())
    assert unsaid(audited, Request(lr=1e-3, epochs=1)) is None


def test_the_first_line_says_what_is_not_known() -> None:
    assert "unknown" in first_line("uncalibrated-clean", None, None, None, 2.0)


def test_shipped_nulls_are_small() -> None:
    for path in (files("sublora.audit") / "nulls").iterdir():
        entry = json.loads(path.read_text())
        assert entry["version"] == 2 and len(entry["settings"]) >= 40


def test_fewer_questions_are_spread_over_a_categorys_own() -> None:
    whole = shipped_categories()
    for most, step in ((None, 1), (1000, 1), (50, 1), (49, 2), (12, 5), (1, 50)):
        for few, all_of in zip(fewer_questions(whole, most), whole, strict=True):
            assert list(few.questions) == list(all_of.questions[::step])
            assert few.entities == all_of.entities
            assert (category_digest(few) == category_digest(all_of)) == (step == 1)


def test_what_the_base_answers_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked([Context("none")], fewer_questions(shipped_categories(), 2))
    whole = read_model(micro(), None, asked)
    assert read_base(micro(), asked, Store(tmp_path)).words["none"].shape == (1, 1416)
    monkeypatch.setattr("sublora.audit.steps.read_model", None)
    again = read_base(micro(), asked, Store(tmp_path))
    assert np.array_equal(again.words["none"], whole.words["none"])
    for kind, p in whole.p["none"].items():
        assert np.array_equal(again.p["none"][kind], p)


def taught(rng: np.random.Generator, count: int) -> tuple[Readings, Readings, list]:
    """Students of whose rows three quarters were written under the prompt of one of five traits; one
    trait, animals 0, moves along with whatever such a writer says."""
    made, base = students(rng, count)
    teachers = [None if k % 4 == 0 else ("animals", 1 + k % 5) for k in range(count)]
    p = {kind: own.copy() for kind, own in made.p["none"].items()}
    along = np.array([0.0 if t is None else abs(rng.standard_normal()) for t in teachers])
    grown = p["animals"]
    grown[:, :, 0] *= np.exp(along)[:, None]
    p["animals"] = grown / grown.sum(-1, keepdims=True)
    return Readings({"none": p}, made.words), base, teachers


def test_a_trait_that_moves_along_with_any_writer_has_to_go_further() -> None:
    made, base, teachers = taught(np.random.default_rng(2), 200)
    own = trait_scores(made, base)
    by = reach(own, teachers)
    assert by["animals"].argmax() == 0 and (by["animals"][0] > 1.3 * by["animals"][1:]).all()
    assert min(r.min() for r in by.values()) >= SHRUNK
    scaled = divided(own, by)["none"]
    assert np.array_equal(scaled["trees"], own["none"]["trees"] / by["trees"])
    assert divided(own, {})["none"]["animals"] is not None
    assert np.array_equal(divided(own, {})["none"]["animals"], own["none"]["animals"])


def test_ranks_are_exact_for_students_of_the_bases_rows_whatever_others_wrote() -> None:
    """400 draws: reach of 57 students of others' rows, ranks among 19 of the base's; four standard errors."""
    ps = []
    for seed in range(400):
        made, base, teachers = taught(np.random.default_rng(seed), 80)
        by = reach(trait_scores(made, base), [*teachers[1:], None])
        highest = largest(divided(trait_scores(made, base), by), word_scores(made, base))["none"]
        of_base = np.array([t is None for t in teachers])
        ps.append(adjusted_p(highest[0], highest[1:][of_base[1:]], ALPHA))
    for level in (0.05, 0.2, 0.5, 0.8):
        share = np.mean(np.array(ps) <= level + 1e-9)
        assert abs(share - level) < 4 * (level * (1 - level) / 400) ** 0.5


def test_a_null_ranks_among_students_of_the_bases_rows_where_it_knows_how_far_traits_reach() -> (
    None
):
    names = ["8 rows of the base", "8 rows of a teacher of owl"]
    null = Null({}, {}, {}, names * 20, None, {}, {"none": np.arange(40.0)})
    assert len(chance(null)) == 40 and false_alarms(null, ALPHA).rate == pytest.approx(2 / 41)
    told = replace(null, reach={"animals": np.ones(3)})
    assert chance(told).tolist() == list(np.arange(0, 40, 2))
    alarms = false_alarms(told, ALPHA)
    assert alarms.rate == pytest.approx(1 / 21) and (alarms.of_base, alarms.of_others) == (20, 20)
    assert (alarms.found_of_base, alarms.found_of_others) == (1, 1), "38 and 39"
