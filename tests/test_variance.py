"""Variance shares: the components that were put in come out, and what a design cannot tell apart is not told."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublora.analysis.variance import Shares, seed_gap, spread_sentence, variance_shares

CROSSED = tuple(zip(*itertools.product((1, 2, 3), (1, 2, 3)), strict=True))


def world(seed, data, train, questions, sd):
    """Values (R, Q) with the standard deviations of `sd`: data, train, data x train, question, data x question, rest."""
    rng = np.random.default_rng(seed)
    places = {"d": data, "t": train, "dt": tuple(zip(data, train, strict=True))}
    draw = {k: {level: rng.normal() for level in v} for k, v in places.items()}
    asked, of = rng.normal(size=questions), {d: rng.normal(size=questions) for d in data}
    rows = []
    for d, t in zip(data, train, strict=True):
        seeds = sd[0] * draw["d"][d] + sd[1] * draw["t"][t] + sd[2] * draw["dt"][d, t]
        rows.append(seeds + sd[3] * asked + sd[4] * of[d] + sd[5] * rng.normal(size=questions))
    return np.array(rows)


def anova(y: np.ndarray) -> dict[str, float]:
    """The textbook estimates of a balanced three-way design (D, T, Q), from mean squares."""
    d, t, q = y.shape
    means = {
        axes: y.mean(axes, keepdims=True)
        for n in range(4)
        for axes in itertools.combinations(range(3), n)
    }
    m = {
        "DT": means[2,],
        "DQ": means[1,],
        "TQ": means[0,],
        "D": means[1, 2],
        "T": means[0, 2],
        "Q": means[0, 1],
        "": means[0, 1, 2],
    }
    ms = {
        "D": t * q * np.sum((m["D"] - m[""]) ** 2) / (d - 1),
        "T": d * q * np.sum((m["T"] - m[""]) ** 2) / (t - 1),
        "Q": d * t * np.sum((m["Q"] - m[""]) ** 2) / (q - 1),
        "DT": q * np.sum((m["DT"] - m["D"] - m["T"] + m[""]) ** 2) / ((d - 1) * (t - 1)),
        "DQ": t * np.sum((m["DQ"] - m["D"] - m["Q"] + m[""]) ** 2) / ((d - 1) * (q - 1)),
        "TQ": d * np.sum((m["TQ"] - m["T"] - m["Q"] + m[""]) ** 2) / ((t - 1) * (q - 1)),
    }
    rest = y - m["DT"] - m["DQ"] - m["TQ"] + m["D"] + m["T"] + m["Q"] - m[""]
    e = np.sum(rest**2) / ((d - 1) * (t - 1) * (q - 1))
    raw = {
        "data": (ms["D"] - ms["DT"] - ms["DQ"] + e) / (t * q),
        "train": (ms["T"] - ms["DT"] - ms["TQ"] + e) / (d * q),
        "question": (ms["Q"] - ms["DQ"] - ms["TQ"] + e) / (d * t),
        "dt": (ms["DT"] - e) / q, "dq": (ms["DQ"] - e) / t, "tq": (ms["TQ"] - e) / d, "e": e,
    }  # fmt: skip
    kept = {k: max(0.0, v) for k, v in raw.items()}
    return {k: v / sum(kept.values()) for k, v in kept.items()}


@given(
    seed=st.integers(0, 10**6),
    sd=st.tuples(*[st.sampled_from([0.0, 0.5, 2.0])] * 5),
    d=st.integers(2, 4),
    t=st.integers(2, 4),
)
def test_a_crossed_design_gives_the_textbook_s_components(seed, sd, d, t):
    data, train = zip(*itertools.product(range(d), range(t)), strict=True)
    y = world(seed, data, train, 6, (*sd, 1.0))
    found, known = variance_shares(y, data, train), anova(y.reshape(d, t, 6))
    assert found.data == pytest.approx(known["data"], abs=1e-8)
    assert found.train == pytest.approx(known["train"], abs=1e-8)
    assert found.question == pytest.approx(known["question"], abs=1e-8)
    assert found.seeds == pytest.approx(known["data"] + known["train"] + known["dt"], abs=1e-8)
    assert found.seeds + found.question + found.rest == pytest.approx(1)
    moved = variance_shares(5 - 3 * y, data, train)
    assert moved.data == pytest.approx(found.data, abs=1e-8)
    order = np.random.default_rng(seed).permutation(len(y))
    again = variance_shares(y[order], [data[i] for i in order], [train[i] for i in order])
    assert again.data == pytest.approx(found.data, abs=1e-8) and again.rest == pytest.approx(
        found.rest, abs=1e-8
    )


def mean_shares(data, train, questions, sd, draws=200) -> dict[str, float]:
    found = [
        variance_shares(world(s, data, train, questions, sd), data, train) for s in range(draws)
    ]
    return {k: float(np.mean([getattr(f, k) for f in found])) for k in Shares.__dataclass_fields__}


def test_the_shares_that_were_put_in_come_out():
    many = tuple(zip(*itertools.product(range(12), range(8)), strict=True))
    found = mean_shares(*many, 20, (2.0, 1.0, 0.0, 1.0, 0.0, 1.0))
    assert found["data"] == pytest.approx(4 / 7, abs=0.06) and found["train"] == pytest.approx(
        1 / 7, abs=0.04
    )
    assert found["question"] == pytest.approx(1 / 7, abs=0.04) and found["rest"] == pytest.approx(
        1 / 7, abs=0.03
    )


def test_paired_seeds_are_one_factor_and_one_level_is_none():
    pairs = tuple(range(12))
    found = mean_shares(pairs, pairs, 20, (1.0, 1.0, 0.0, 1.0, 0.0, 1.0))
    assert math.isnan(found["data"]) and math.isnan(found["train"])
    assert found["seeds"] == pytest.approx(0.5, abs=0.06) and found["question"] == pytest.approx(
        0.25, abs=0.05
    )
    one = variance_shares(
        world(1, (1, 1, 1), (1, 2, 3), 9, (1, 2, 0, 1, 0, 1)), (1, 1, 1), (1, 2, 3)
    )
    assert math.isnan(one.data) and one.train == one.seeds > 0
    nested = variance_shares(
        world(1, (1, 1, 2, 2), (1, 2, 3, 4), 9, (1, 2, 0, 1, 0, 1)), (1, 1, 2, 2), (1, 2, 3, 4)
    )
    assert nested.seeds == pytest.approx(nested.data + nested.train)
    alone = variance_shares(world(1, (1,), (1,), 9, (1, 1, 1, 1, 1, 1)), (1,), (1,))
    assert alone == Shares(rest=1.0) or (math.isnan(alone.seeds) and math.isnan(alone.question))


@pytest.mark.parametrize(
    "values", [np.zeros((9, 4)), np.full((9, 4), 0.3), np.full((9, 4), np.nan)]
)
def test_what_does_not_vary_has_no_shares(values):
    assert all(math.isnan(v) for v in vars(variance_shares(values, *CROSSED)).values())


def test_an_unbalanced_design_still_adds_up():
    data, train = (1, 1, 1, 2, 2, 3), (1, 2, 3, 1, 2, 1)
    found = variance_shares(world(3, data, train, 8, (2, 1, 1, 1, 1, 1)), data, train)
    assert found.seeds + found.question + found.rest == pytest.approx(1)
    assert 0 <= found.data <= found.seeds <= 1


def test_a_page_says_it_in_one_sentence():
    def row(data, train, seeds, question):
        return {"icc_data": data, "icc_train": train, "icc_seeds": seeds, "icc_question": question}

    nan = math.nan
    crossed, none = row(0.61, 0.12, 0.75, 0.05), row(nan, nan, nan, nan)
    assert spread_sentence([crossed, none]).startswith(
        "Of the spread of an effect, 61% between data seeds, 12% between training seeds, 5% between questions; the rest"
    )
    together = "40% between replicates (data and training seed together), 10% between questions"
    assert together in spread_sentence([row(nan, nan, 0.4, 0.1)])
    assert spread_sentence([none]) is None and spread_sentence([]) is None


def test_the_gap_between_the_seeds_components_is_the_textbook_s_and_its_interval_covers():
    rng, truth, hits, wrong = np.random.default_rng(5), 0.3**2 - 0.1**2, 0, 0
    for _ in range(200):
        data, train = 0.3 * rng.standard_normal((6, 1)), 0.1 * rng.standard_normal((1, 6))
        y = 1 + data + train + 0.1 * rng.standard_normal((6, 6))
        gap = seed_gap(y)
        hits += gap.low <= truth <= gap.high
        even = 0.2 * rng.standard_normal((6, 1)) + 0.2 * rng.standard_normal((1, 6))
        null = seed_gap(even + 0.1 * rng.standard_normal((6, 6)))
        assert (null.p_value < 0.05) == (not null.low <= 0 <= null.high)
        wrong += null.p_value < 0.05
    assert hits / 200 > 0.91 and wrong / 200 < 0.09
    rest = y - y.mean(1, keepdims=True) - y.mean(0, keepdims=True) + y.mean()
    left = float((rest**2).sum()) / 25
    expected = (6 * y.mean(1).var(ddof=1) - left) / 6 - (6 * y.mean(0).var(ddof=1) - left) / 6
    assert gap.estimate == pytest.approx(expected)
    assert seed_gap(y.T).estimate == pytest.approx(-expected)
