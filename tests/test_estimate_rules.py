"""Claims about an experiment's estimates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sublora.analysis.claims import Claim, judge
from sublora.analysis.effects import Effect, found, named
from sublora.analysis.intervals import Interval
from sublora.analysis.tables import estimate_rows


def interval(low: float, high: float, p: float = 0.01, unknown: bool = False) -> Interval:
    return Interval((low + high) / 2, low, high, 9.0, p, 0.95, 0.1, ("data_seed",), unknown)


def claim(name: str = "gap", says: str = "above", bar: float = 0.0) -> Claim:
    contrast = {"of": {"group": "g", "name": name}, "says": says, "bar": bar}
    return Claim(
        id="x", statement="s", source="p", threshold_from="t", recipes=("r",), contrast=contrast
    )


def verdict(says: str, low: float, high: float, bar: float, **options) -> str:
    effects = [named("digits", "g", "gap", interval(low, high, **options), {"models": 9})]
    (found,) = judge([claim(says=says, bar=bar)], "r", effects)
    assert found.trait == "digits" and found.n == {"models": 9} and effects[0].null == 0
    return found.verdict


@pytest.mark.parametrize(
    ("test", "low", "high", "bar", "wanted"),
    [
        ("above", 0.2, 0.4, 0.1, "supported"),
        ("above", 0.0, 0.05, 0.1, "refuted"),
        ("above", 0.05, 0.4, 0.1, "inconclusive"),
        ("within", -0.05, 0.05, 0.1, "supported"),
        ("within", -0.4, -0.2, 0.1, "refuted"),
        ("within", 0.2, 0.4, 0.1, "refuted"),
        ("within", 0.05, 0.4, 0.1, "inconclusive"),
    ],
)
def test_an_interval_against_a_bar(test, low, high, bar, wanted):
    assert verdict(test, low, high, bar) == wanted


def test_one_replicate_settles_nothing_and_a_missing_estimate_is_not_run():
    assert verdict("above", 0.2, 0.4, 0.1, unknown=True) == "inconclusive"
    effects = [named("digits", "g", "gap", interval(0, 1), {}, unfit="the model is broken")]
    (missing,), (unfit,) = (judge([claim(name)], "r", effects) for name in ("other", "gap"))
    assert (
        missing.verdict == unfit.verdict == "not run"
        and "group 'g', name 'other'" in missing.reason
    )
    assert unfit.reason == "The model is broken."


def test_p_values_are_corrected_over_the_tested_of_a_subject_and_group():
    def e(subject: str, group: str, p: float, tested: bool = True) -> Effect:
        return named(subject, group, f"{p}", interval(0, 1, p), {"rows": 3}, tested=tested)

    rows = estimate_rows(
        [e("a", "g", 0.01), e("a", "g", 0.02), e("a", "g", 0.001, False), e("b", "g", 0.03)], 0.05
    )
    assert [r["p_corrected"] for r in rows] == [
        pytest.approx(0.02),
        pytest.approx(0.02),
        None,
        pytest.approx(0.03),
    ]
    assert [r["called"] for r in rows] == [True, True, None, True]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1, 1), min_size=8, max_size=8),
    st.floats(-0.5, 0.5),
    st.floats(0, 1),
)
def test_above_and_below_mirror_each_other_and_the_order_of_replicates_is_nothing(
    values, bar, share
) -> None:
    shaped, replicates = np.array(values).reshape(4, 2), [(k, k) for k in range(4)]

    def judged(sign: float, says: str, order: slice = slice(None)) -> str:
        effects = [
            found("t", "g", "a", sign * shaped[order], replicates[order]),
            found("t", "g", "b", sign * (1 + shaped[::-1])[order], replicates[order]),
        ]
        contrast = {"of": {"name": "a"}, "against": {"name": "b"}, "says": says}
        contrast |= {"share": share, "bar": sign * bar}
        one = Claim(
            id="x", statement="s", source="p", threshold_from="t", recipes=("r",), contrast=contrast
        )
        return judge([one], "r", effects)[0].verdict

    assert judged(1, "above") == judged(1, "above", slice(None, None, -1))
    opposite = {"supported": "refuted", "refuted": "supported"}
    assert judged(1, "below") == opposite.get(judged(1, "above"), "inconclusive")
    assert judged(-1, "below") in (judged(1, "above"), "inconclusive"), (
        "no share of what is below 0"
    )
