"""Claims about an experiment's estimates."""

import pytest

from sublora.analysis.effects import Effect, named
from sublora.analysis.tables import estimate_rows
from sublora.claims import Claim, judge_estimates, load_claims
from sublora.errors import SubloraError
from sublora.stats import Interval


def interval(low: float, high: float, p: float = 0.01, unknown: bool = False) -> Interval:
    return Interval((low + high) / 2, low, high, 9.0, p, 0.95, 0.1, ("data_seed",), unknown)


def verdict(test: str, low: float, high: float, bar: float, **options) -> str:
    claim = Claim(
        id="x", statement="s", source="p", recipes=("r",), view="estimates", test=test, threshold={"bar": bar}, estimate="g: gap"
    )  # fmt: skip
    estimates = [named("digits", "g", "gap", interval(low, high, **options), {"models": 9})]
    (found,) = judge_estimates([claim], estimates, "r")
    assert found.trait == "digits" and found.n == {"models": 9}
    return found.verdict


@pytest.mark.parametrize(
    ("test", "low", "high", "bar", "wanted"),
    [
        ("estimate_above", 0.2, 0.4, 0.1, "supported"),
        ("estimate_above", 0.0, 0.05, 0.1, "refuted"),
        ("estimate_above", 0.05, 0.4, 0.1, "inconclusive"),
        ("estimate_within", -0.05, 0.05, 0.1, "supported"),
        ("estimate_within", -0.4, -0.2, 0.1, "refuted"),
        ("estimate_within", 0.2, 0.4, 0.1, "refuted"),
        ("estimate_within", 0.05, 0.4, 0.1, "inconclusive"),
    ],
)
def test_an_interval_against_a_bar(test, low, high, bar, wanted):
    assert verdict(test, low, high, bar) == wanted


def test_one_replicate_settles_nothing_and_a_missing_estimate_is_not_run():
    assert verdict("estimate_above", 0.2, 0.4, 0.1, unknown=True) == "inconclusive"
    claim = load_claims()[0].model_copy(
        update={"view": "estimates", "test": "estimate_above", "estimate": "g: other"}
    )
    estimates = [named("digits", "g", "gap", interval(0, 1), {})]
    (found,) = judge_estimates([claim], estimates, claim.recipes[0])
    assert found.verdict == "not run" and "g: other" in found.reason


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


@pytest.mark.parametrize("change", [{"view": "all"}, {"test": "any_transfer"}, {"estimate": '""'}])
def test_claims_that_mix_views_are_refused(change, tmp_path):
    entry = {"view": "estimates", "test": "estimate_above", "estimate": "g"} | change
    path = tmp_path / "claims.yaml"
    lines = "".join(f"  {k}: {v}\n" for k, v in entry.items())
    path.write_text(f"- id: x\n  statement: s\n  source: p\n  recipes: [r]\n{lines}")
    with pytest.raises(SubloraError, match="belong together"):
        load_claims(path)
