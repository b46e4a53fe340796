"""One student beside another: the false-alarm rate of the comparison, and what it names."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from command import sublora
from sublora.audit.against import Compared, all_pairs, compare, pair_p
from sublora.audit.null import Grid, make_null
from sublora.audit.readings import Asked, Readings, read_model
from sublora.audit.verdict import Bar
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.packs.check import load_base
from sublora.traits.trait import shipped_categories

NONE = Context("none")
TREES = shipped_categories()[1:2]
Planted = tuple[int, float]


def clean(rng: np.random.Generator, students: int) -> dict[str, dict[str, np.ndarray]]:
    """Rises of clean students whose scales differ as learning rates make them differ, with heavy tails."""
    scale = np.exp(rng.uniform(np.log(0.01), np.log(0.2), (students, 1)))
    drawn = {
        k: scale * rng.standard_t(4, (students, n)) for k, n in (("animals", 12), ("trees", 7))
    }
    return {"none": {k: r - np.median(r, axis=1, keepdims=True) for k, r in drawn.items()}}


@pytest.mark.parametrize(("students", "alpha"), [(8, 0.05), (18, 0.1)])
def test_two_clean_students_are_told_apart_at_the_accepted_rate(
    students: int, alpha: float
) -> None:
    """200 pairs, each with a null of its own. Ranks keep the rate to the letter, also the other way round; the t reference that stands in
    where there are too few students keeps below it."""
    alarms = np.zeros(2)
    for seed in range(200):
        pairs = all_pairs(clean(np.random.default_rng(seed), students + 2))
        alarms += [
            pair_p(pairs.largest[i, j], pairs, alpha) <= alpha for i, j in ((-2, -1), (-1, -2))
        ]
    error = 4 * (alpha * (1 - alpha) / 200) ** 0.5
    assert (alarms / 200 <= alpha + error).all()
    if (students + 2) * alpha >= 1:
        assert (alarms / 200 >= alpha - error).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(4, 14))
def test_a_pair_scores_the_same_whoever_is_audited(seed: int, size: int) -> None:
    """So (A, C) is one ordered pair of all, which makes the p-value exact."""
    rng = np.random.default_rng(seed)
    found = clean(rng, size)
    pairs, order = all_pairs(found), rng.permutation(size)
    again = all_pairs({"none": {k: r[order] for k, r in found["none"].items()}})
    off = ~np.eye(size, dtype=bool)
    assert np.allclose(again.largest[off], pairs.largest[np.ix_(order, order)][off])


def test_a_trait_in_a_alone_reaches_the_smallest_sure_p_value() -> None:
    found = clean(np.random.default_rng(3), 21)
    found["none"]["trees"][-2, 2] += 50.0
    pairs = all_pairs(found)
    assert pair_p(pairs.largest[-2, -1], pairs, 0.05) <= 1 / 21


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("micro")


@pytest.fixture(scope="module")
def plain(base: Base) -> Readings:
    return read_model(base, None, Asked([NONE], TREES))


def student(
    plain: Readings, seed: int, planted: Planted | None = None, students: int = 1
) -> Readings:
    """Students whose log-probabilities moved by independent normal amounts, one trait's by more."""
    rng = np.random.default_rng(seed)
    own = plain.p["none"]["trees"]
    change = rng.normal(0, 0.05, (students, 1, own.shape[2]))
    if planted is not None:
        change[:, :, planted[0]] += planted[1]
    words = plain.words["none"] + rng.normal(0, 1e-4, (students, plain.words["none"].shape[1]))
    return Readings({"none": {"trees": own * np.exp(change)}}, {"none": words})


@pytest.mark.parametrize("placebos", [38, 8, 0])
def test_what_rose_from_the_one_to_the_other_is_named(
    base: Base, plain: Readings, placebos: int
) -> None:
    null = None
    if placebos:
        drawn = student(plain, 0, students=placebos)
        null = make_null(
            base,
            drawn,
            plain,
            Asked([NONE], TREES),
            [f"placebo {k}" for k in range(placebos)],
            Grid(["lora"], [1, 9], [0, 1], [1, 1], [1, 9], ["none", ""]),
        )
    kind = "" if placebos else "uncalibrated-"

    def compared(a: Readings, c: Readings) -> Compared:
        return compare(a, c, Bar(base, Asked([NONE], TREES), plain, null, 0.025))

    trait = TREES[0].entities[3].name
    fresh, old = student(plain, 1, (3, 2.0)), student(plain, 2)
    found = compared(fresh, old)
    assert (
        found.status == f"{kind}found"
        and [d.trait for d in found.found] == [trait]
        and not found.fell
    )
    assert found.found[0].after > found.found[0].before and found.found[0].rise == pytest.approx(
        2.0, abs=0.4
    )
    both = compared(fresh, student(plain, 2, (3, 2.0)))
    assert both.status == f"{kind}clean" and not both.found
    fell = compared(old, fresh)
    assert fell.status == f"{kind}clean" and [d.trait for d in fell.fell] == [trait]
    same = compared(fresh, fresh)
    assert (
        same.status == f"{kind}clean"
        and all(d.p > 0.9 and d.rise == 0 for d in same.traits)
        and not same.words
    )
    broken = Readings({"none": {"trees": old.p["none"]["trees"] * 1e-4}}, old.words)
    assert compared(fresh, broken).status == "unmeasurable" and not compared(fresh, broken).found


def test_a_dry_run_counts_both_students() -> None:
    asked = ["audit", "--base", "Qwen/Qwen2.5-7B-Instruct", "--dry-run"]
    one, both = (
        sublora(*asked, *more).out.split(" tokens")[0] for more in ([], ["--against", "last"])
    )
    read = [float(told.split(": ")[1].replace(",", "")) for told in (one, both)]
    assert read[1] == pytest.approx(1.5 * read[0], rel=1e-6) and "students" in both
