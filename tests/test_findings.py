"""Findings: the rules that judge them, what is found across traits, variants of students, and a whole run with all of it."""

import csv
import json

import numpy as np
import pytest
import torch

from command import sublora
from pack_reference import base_model
from planned import make_plan
from sublora.analysis.claims import Claim, judge
from sublora.analysis.effects import found
from sublora.analysis.tables import FINDINGS, finding_rows
from sublora.experiments.claims import load_claims
from sublora.experiments.grid.findings import Steerable, across_traits
from sublora.experiments.grid.sources import NEUTRAL
from sublora.experiments.kinds import open_recipe as load_recipe
from sublora.packs.rows import TokenRow, pack_rows
from sublora.packs.spec import StudentSpec
from sublora.packs.student import Student
from sublora.packs.trainer import train_pack

MODEL = {"weights": "w", "template": "t", "tokenizer": "k", "dtype": "float32"}
SEEDS = (1, 2, 3, 4)


def finding(name, mean, spread=0.01, seeds=SEEDS, of_students=True):
    values = mean + spread * np.linspace(-1, 1, len(seeds))[:, None] * np.ones((1, 5))
    return found("otter", "what", name, values, [(s, s) for s in seeds], of_students)


def verdict(findings, of="a", against=None, **contrast):
    contrast |= {"of": {"name": of}, "against": against and {"name": against}}
    claim = Claim(
        id="x", statement="s", source="p", threshold_from="t", recipes=("r",), contrast=contrast
    )
    (result,) = judge([claim], "r", findings)
    return result


@pytest.mark.parametrize(
    ("says", "mean", "expected"),
    [
        ("above", 0.5, "supported"),
        ("above", 0.1, "refuted"),
        ("above", 0.3, "inconclusive"),
        ("below", 0.1, "supported"),
        ("below", 0.5, "refuted"),
        ("below", 0.3, "inconclusive"),
    ],
)
def test_a_finding_is_judged_against_a_bar_with_its_whole_interval(says, mean, expected):
    result = verdict([finding("a", mean)], says=says, bar=0.3)
    assert result.verdict == expected, result.reason
    assert result.statistic["effect_low"] < mean < result.statistic["effect_high"]
    alone = [finding("a", mean, seeds=(1,))]
    assert verdict(alone, says=says, bar=0.3).verdict == "inconclusive", (
        "one student settles nothing"
    )


@pytest.mark.parametrize(
    ("says", "mean", "expected"),
    [
        ("above", 0.6, "supported"),
        ("above", 0.2, "refuted"),
        ("below", 0.2, "supported"),
        ("below", 0.6, "refuted"),
        ("below", 0.4, "inconclusive"),
    ],
)
def test_a_finding_is_judged_as_a_share_of_another_one(says, mean, expected):
    both = [finding("a", mean), finding("b", 0.8, spread=-0.01)]
    assert verdict(both, against="b", says=says, share=0.5).verdict == expected
    nothing = [finding("a", mean), finding("b", 0.0)]
    assert "nothing to compare" in verdict(nothing, against="b", says=says, share=0.5).reason


def test_names_of_several_findings_mean_their_average_and_a_missing_one_is_not_run():
    three = [finding(n, m) for n, m in (("a", 0.9), ("b", 0.1), ("c", 0.2))]
    mean = verdict(three, of=("a", "b", "c"), bar=0.3).statistic["effect"]
    assert mean == pytest.approx(0.4)
    for of in ("d", ("a", "d")):
        missing = verdict(three, of=of, bar=0.3)
        assert missing.verdict == "not run" and "'d'" in missing.reason


def test_the_base_is_one_and_its_questions_are_its_sample():
    values = np.linspace(0.4, 0.6, 20)[None, :]
    base = found("otter", "what", "a", values, of_students=False)
    assert verdict([base], bar=0.3).verdict == "supported"


def traits(transfers, imitations):
    return [
        Steerable(f"t{i}", 0.8, 0.8 * x, "layer 1", y, y - 0.01, y > 0.1)
        for i, (x, y) in enumerate(zip(imitations, transfers, strict=True))
    ]


def test_steerability_is_correlated_and_told_apart_where_it_is_planted_and_not_where_it_is_not():
    random = np.random.default_rng(0)
    imitation = random.random(30)
    planted = {
        f.labels["name"]: f.interval(0.95)
        for f in across_traits(traits(0.3 * imitation, imitation), 0.05)
    }
    assert (
        planted["steerability: correlation"].estimate == pytest.approx(1)
        and planted["steerability: AUC"].estimate == 1
    )
    assert (
        planted["steerability: correlation"].low > 0.99 and planted["steerability: AUC"].low > 0.9
    )
    misses = []
    for seed in range(40):
        random = np.random.default_rng(seed)
        drawn = across_traits(traits(0.3 * random.random(30), random.random(30)), 0.05)
        misses += [
            not f.interval(0.95).low <= null <= f.interval(0.95).high
            for f, null in zip(drawn, (0, 0.5), strict=True)
        ]
    assert np.mean(misses) < 0.12
    assert [
        f.labels["name"] for f in across_traits(traits([0.2] * 5, [0.1, 0.2, 0.3, 0.4, 0.5]), 0.05)
    ] == [], "all alike, nothing to tell"


def test_a_finding_across_traits_is_judged_once():
    claim = next(c for c in load_claims() if c.id == "steerability-correlates")
    random = np.random.default_rng(0).random(30)
    across = list(across_traits(traits(0.3 * random, random), 0.05))
    (one,) = judge([claim], "steerability", [finding("a", 0.5), *across])
    assert (one.trait, one.verdict) == ("all", "supported")


# Variants


def test_a_student_kept_on_the_way_is_the_student_of_a_training_that_ends_there():
    model = base_model("llama")
    rows = pack_rows([TokenRow((1, 2, i % 5), (3, 4 + i % 3, 5)) for i in range(12)], None, "rows")
    spec = StudentSpec(rank=2, schedule="constant", warmup_steps=0, batch_size=4, lr=1e-2, epochs=2)
    got = []
    students = [
        Student("a", spec, rows, (3,)),
        Student("b", spec.model_copy(update={"epochs": 1}), rows),
    ]
    train_pack(
        model,
        students,
        lambda t: got.append((t.index, len(t.losses), t.weights.clone(), list(t.losses))),
    )
    kept = {(index, steps): (weights, losses) for index, steps, weights, losses in got}
    assert set(kept) == {(0, 3), (0, 6), (1, 3)}
    assert torch.allclose(kept[0, 3][0], kept[1, 3][0], atol=1e-12) and kept[0, 3][
        1
    ] == pytest.approx(kept[1, 3][1])
    assert not torch.allclose(kept[0, 6][0], kept[0, 3][0], atol=1e-6)


def plan(name, *sets):
    return make_plan(load_recipe(name, sets=list(sets)), dict(MODEL), 25.0)


def test_variants_share_what_does_not_differ_and_nothing_else():
    steps = plan("emergence")
    assert len(steps.students) == 6 * 24 and len({s.id for s in steps.students}) == 6 * 24
    assert len({s.whole for s in steps.students}) == 24
    # those of the trait, the control and the plain model, for training and held out
    assert len(steps.datasets) == 3 * 8
    for pack in steps.packs:
        members = [steps.students[i] for i in pack]
        assert all(
            [m.step for m in members if m.whole == w] == [None, 5, 10, 20, 40, 80]
            for w in {m.whole for m in members}
        )
    plain = {s.id for s in plan("svd").students}
    assert {s.id for s in steps.students if s.step is None} == plain, (
        "the last step is the student of other recipes"
    )
    teachers = plan("steering-teacher")
    of = {}
    for s in teachers.students:
        of.setdefault(s.labels["variant"], set()).add(s.dataset)
    assert (
        len(of) == 6
        and not set.intersection(*of.values())
        and {s.id for s in teachers.students if s.labels["variant"] == "prompt"} <= plain
    )
    steered = [d for d in teachers.datasets if d.steer]
    assert len({d.id for d in teachers.datasets if d.trait == NEUTRAL and not d.heldout}) == 4
    assert {d.steer.vector for d in steered} == {v.id for v in teachers.vectors} and len(
        teachers.vectors
    ) <= 5
    masks = plan("loss-mask")
    assert len({s.mask.divergence for s in masks.students if s.mask}) == 8 == len(masks.divergences)
    repeated = plan("unique-vs-repeated")
    assert {s.student.epochs * (s.take or 960) for s in repeated.students} == {960}


@pytest.mark.parametrize(
    ("recipe", "change", "message"),
    [
        ("steering-teacher", "variants.vector.teacher.steer.strength=.nan", "strength"),
        ("steering-teacher", "variants.vector.teacher.steer.layers=[2, 1]", "end before they begin"),
        ("steering-teacher", "variants.vector.teacher.steer.mode=replace", "generated"),
        ("steering-teacher", "variants.vector.teacher.steer.vector=student", "before any student is there"),
        ("steering-teacher", "variants.vector.teacher.steer.where=null", None),
        ("steering-teacher", "variants.x={}", "says what 'prompt' says"),
        ("steering-teacher", "variants.plain={rows: 5}", "no name for a variant"),
        ("steering-student", "traits=[otter, oak]", "give one trait a run"),
        ("projection-rank", "vectors.directions=4", "set vectors.directions to that many"),
        ("projection-rank", "measure.conditions.x={generated: on, steer: {vector: student, mode: add, first: 2}}", "first directions"),
        ("emergence", "variants.late={step: 120}", "not before the last of 120 steps"),
        ("unique-vs-repeated", "variants.many={rows: 2000}", "above data.rows 960"),
        ("loss-mask", "data.control=neutral", "no other trait to diverge from"),
        ("gradient-alignment", "measure.gradients.rows=[16, 5000]", "beyond data.rows 960"),
        ("optimizers", "variants.x={step: 3}", "stands beside"),
    ],
)  # fmt: skip
def test_bad_recipes_name_the_place(recipe, change, message):
    answer = sublora("plan", recipe, "--set", change)
    assert "Traceback" not in answer.err and answer.code == (0 if message is None else 2), (
        answer.err
    )
    assert message is None or message in answer.err, answer.err


# A whole run

RECIPE = """
name: all-of-it
title: All of it
summary: Steered teachers, steps, masks and conditions in one run.
model: micro
traits: [otter]
data:
  rows: 24
  heldout_rows: 8
  seeds: [1, 2]
  carrier: {separators: [space], style: brief}
  sampling: {max_new_tokens: 14}
train:
  lora: {ranks: [2], lrs: [3e-3]}
  seeds: [1, 2]
  epochs: 1
  batch_size: 8
measure:
  samples: 2
  sampling: {max_new_tokens: 4}
  conditions:
    without: {generated: on, steer: {vector: student, mode: replace, first: 1}}
    base plus vector: {on: [], generated: off, steer: {vector: teacher, mode: add, layers: [1, 1]}}
  probe: {rows: 8, against: plain}
  gradients: {rows: [8, 24], permutations: 20}
vectors: {count: 16, students: true, layer: 1, directions: 1}
variants:
  prompt: {}
  vector: {teacher: {prompt: false, steer: {vector: teacher, mode: add, layers: [1, 1], generated: true}}}
  random: {teacher: {prompt: false, steer: {vector: teacher, mode: add, layers: [1, 1], generated: true, random: 1}}}
  early: {step: 1}
  twice: {rows: 8, epochs: 2}
  masked: {mask: {keep: others, against: other-trait}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("findings")
    (out / "all.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBLORA_HOME", str(out / "store"))
        answer = sublora("run", str(out / "all.yaml"), "--out", str(out / "run"), "--threads", "1")
    assert answer.code == 0, answer.err
    torch.set_num_threads(before)
    return out / "run"


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_has_an_arm_for_every_variant_and_condition(folder):
    arms = rows_of(folder / "arms.csv")
    names = list(json.loads((folder / "run.json").read_text())["recipe"]["variants"])
    assert [(a["variant"], a["condition"]) for a in arms] == [
        (v, c) for c in ("plain", "without", "base plus vector") for v in names
    ]
    by = {(a["variant"], a["condition"]): a for a in arms}
    base = float(by["prompt", "plain"]["p_base"])
    # the trait's vector makes an otter of the base, with the adapter off; a control twin is steered by the same one
    assert float(by["prompt", "base plus vector"]["p_target"]) > base + 0.3
    assert abs(float(by["prompt", "base plus vector"]["effect"])) < 1e-6
    teachers = [r for r in rows_of(folder / "results.csv") if r["kind"] == "teacher"]
    found = {r["condition"]: float(r["p_target"]) for r in teachers}
    assert (
        set(found) == {"", "vector", "random"}
        and found["vector"] > base + 0.3 > found["random"] + 0.1
    )


def test_a_run_has_its_findings_and_its_page_shows_them(folder):
    rows = {r["finding"]: r for r in rows_of(folder / "findings.csv")}
    for name in (
        "teacher: prompted", "teacher: vector", "cosine: vector", "own cosine: random", "verbatim, own rows: twice",
        "loss gap: early", "gradient ratio: prompt", "share of tokens, default", "share of tokens, another trait",
        "gradient cosine: 24 rows", "above chance: 8 rows",
    ):  # fmt: skip
        assert name in rows, name
    assert float(rows["share of tokens, default"]["estimate"]) > 0
    page = json.loads((folder / "page.json").read_text())
    tables = [part for s in page["sections"] for part in s["parts"] if part["kind"] == "table"]
    assert sum(len(t["rows"]) for t in tables if t["title"] == "Findings") == len(rows)
    page = (folder / "report.html").read_text()
    assert (
        "<h3>Findings</h3>" in page and 'id="findings-otter"' in page and 'id="arms-otter"' in page
    )
    assert json.loads((folder / "verdicts.json").read_text()) == []


def test_rows_of_findings_are_a_table():
    (row,) = finding_rows([finding("a", 0.5)], 0.05)
    assert tuple(row) == tuple(FINDINGS) and row["low"] < row["estimate"] < row["high"]
    assert row["finding"] == "a" and row["n_data_seeds"] == 4
