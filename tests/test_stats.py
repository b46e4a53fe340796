"""Intervals keep their level with few seeds; corrections, contrasts and tests of shape do what they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student_t
from scipy.stats import ttest_1samp

from sublora.analysis import intervals as stats
from sublora.analysis import multiplicity, shape
from sublora.errors import SubloraError

RANKS = [1, 2, 4, 8, 16, 32, 64]
HILL = np.array([0.05, 0.30, 0.50, 0.60, 0.40, 0.20, 0.05])
FALL = np.linspace(0.6, 0.0, 7)


def crossed(rng, runs, seeds, questions, parts):
    """runs x seeds x questions draws of seed, question and interaction; a part is a variance of the mean."""
    sd = np.sqrt(np.array(parts) * [seeds, questions, seeds * questions])
    shapes = [(runs, seeds, 1), (runs, 1, questions), (runs, seeds, questions)]
    return sum(size * rng.standard_normal(shape) for size, shape in zip(sd, shapes, strict=True))


@pytest.mark.parametrize("seeds", [2, 3, 4, 8])
@pytest.mark.parametrize("alpha", [0.05, 0.002])
def test_misses_stay_at_or_below_nominal_in_every_mix(seeds, alpha):
    rng, runs = np.random.default_rng(seeds), 6000
    for questions in (25, 50):
        for parts in [
            (1, 0, 0.01),
            (0, 1, 0.01),
            (0, 0, 1),
            (1, 1, 0.1),
            (0.05, 1, 0.3),
            (5, 1, 0.1),
        ]:
            values = crossed(rng, runs, seeds, questions, parts)
            half = stats.half_width(
                stats.crossed_components(values), (seeds - 1, questions - 1), alpha
            )
            missed = (np.abs(values.mean(axis=(1, 2))) > half).mean()
            assert missed < alpha + 3.5 * np.sqrt(alpha / runs), (questions, parts)


def test_where_one_component_rules_the_level_is_met_and_not_only_bounded():
    rng = np.random.default_rng(0)
    for seeds, parts in [(2, (1, 0, 0)), (4, (1, 0, 0)), (8, (0, 1, 1e-6))]:
        values = crossed(rng, 8000, seeds, 40, parts)
        half = stats.half_width(stats.crossed_components(values), (seeds - 1, 39), 0.05)
        assert (np.abs(values.mean(axis=(1, 2))) <= half).mean() == pytest.approx(0.95, abs=0.012)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 8),
    st.integers(0, 10**6),
    st.sampled_from([0.5, 0.9, 0.95, 0.999]),
)
def test_p_value_is_where_the_interval_touches_the_null(seeds, questions, draw, level):
    values = np.random.default_rng(draw).normal(0.3, 1, (seeds, questions))
    result = stats.clustered_interval(values, range(seeds), level=level)
    outside = result.low > 0 or result.high < 0
    assert outside == (result.p_value < 1 - level)
    if stats.P_FLOOR < result.p_value < 1:
        edge = stats.clustered_interval(values, range(seeds), level=1 - result.p_value)
        assert min(abs(edge.low), abs(edge.high)) < 1e-6 * max(1, result.se)


def test_seeds_alone_give_the_t_test_and_equal_t_half_width():
    column = np.array([[0.1], [0.4], [0.35], [0.2]])
    result = stats.clustered_interval(column, [1, 2, 3, 4])
    expected = ttest_1samp(column[:, 0], 0)
    low, high = expected.confidence_interval(0.95)
    got = (result.p_value, result.low, result.high, result.df)
    assert got == pytest.approx((expected.pvalue, low, high, 3))
    values = crossed(np.random.default_rng(1), 1, 3, 30, (1, 1, 0))[0]
    both = stats.clustered_interval(values, [1, 2, 3])
    assert 2 < both.df < 29
    assert both.high - both.estimate == pytest.approx(student_t.ppf(0.975, both.df) * both.se)


def test_training_seeds_of_one_dataset_are_no_extra_evidence():
    rng = np.random.default_rng(3)
    two = rng.normal(0.3, 0.1, (2, 30))
    copied = np.repeat(two, 5, axis=0) + rng.normal(0, 1e-9, (10, 30))
    pooled = stats.clustered_interval(copied, np.repeat([0, 1], 5), np.tile(range(5), 2))
    plain = stats.clustered_interval(two, [0, 1])
    assert (pooled.low, pooled.p_value) == pytest.approx((plain.low, plain.p_value), rel=1e-5)
    assert pooled.clusters == ("data_seed", "question")


def test_the_factor_falls_back_and_says_so():
    values = np.random.default_rng(4).normal(0.3, 0.1, (3, 20))
    train = stats.clustered_interval(values, [7, 7, 7], [1, 2, 3])
    assert train.clusters == ("train_seed", "question") and not train.seeds_unknown
    single = stats.clustered_interval(values[:1], [7], [1])
    assert single.clusters == ("question",) and single.seeds_unknown
    same = stats.clustered_interval(np.repeat(values[:1], 3, axis=0), [1, 2, 3])
    assert same.seeds_unknown, "bit-identical seeds were counted as replicates"
    nothing = stats.clustered_interval([[0.4]], [1])
    assert (nothing.low, nothing.high, nothing.p_value) == (-np.inf, np.inf, 1.0)
    assert nothing.df == 0
    flat = stats.clustered_interval(np.zeros((3, 5)), [1, 2, 3])
    assert (flat.low, flat.high, flat.p_value, flat.seeds_unknown) == (0, 0, 1, False)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_shuffling_replicates_and_questions_changes_nothing(draw, count):
    rng = np.random.default_rng(draw)
    values, seeds = rng.random((count, 6)), rng.integers(0, 3, count)
    rows, columns = rng.permutation(count), rng.permutation(6)
    one = stats.clustered_interval(values, seeds, range(count))
    two = stats.clustered_interval(values[rows][:, columns], seeds[rows], np.arange(count)[rows])
    expected = pytest.approx((two.low, two.high, two.p_value), rel=1e-6, abs=1e-12)
    assert (one.low, one.high, one.p_value) == expected


def test_clip_touches_the_bounds_only():
    values = np.array([[0.9, 1.0], [1.0, 0.2]])
    wide, cut = (stats.clustered_interval(values, [0, 1], clip=clip) for clip in (None, (0, 1)))
    assert wide.high > 1 and wide.low < 0
    assert (cut.low, cut.high, cut.estimate, cut.p_value) == (0, 1, wide.estimate, wide.p_value)


def test_contrast_is_paired_and_takes_the_base():
    rng = np.random.default_rng(5)
    control = rng.random((3, 30))
    shifted = control + 0.1 + rng.normal(0, 0.01, (3, 30))
    assert stats.contrast(shifted, control, [0, 1, 2]).p_value < 0.01
    assert stats.contrast(shifted, control[:, ::-1], [0, 1, 2]).p_value > 0.05
    base = stats.contrast(shifted, control[:1], [0, 1, 2])
    assert base.estimate == pytest.approx((shifted - control[0]).mean())
    with pytest.raises(SubloraError, match="pair them"):
        stats.contrast(shifted, control[:2], [0, 1, 2])


@settings(max_examples=100)
@given(st.lists(st.floats(0, 1), max_size=30))
def test_corrections_are_monotone_and_never_below_raw(p):
    order = np.argsort(p, kind="stable")
    corrected = multiplicity.holm(p)
    assert (corrected >= np.array(p) - 1e-12).all() and (corrected <= 1).all()
    assert (np.diff(corrected[order]) >= -1e-12).all()
    assert not p or multiplicity.holm(p).min() == pytest.approx(min(1, min(p) * len(p)))


def test_holm_by_hand():
    assert multiplicity.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@settings(max_examples=100)
@given(st.lists(st.floats(0, 1), max_size=30))
def test_q_values_are_monotone_and_between_the_raw_and_holms(p):
    q = multiplicity.benjamini_hochberg(p)
    assert (q >= np.array(p) - 1e-12).all() and (q <= multiplicity.holm(p) + 1e-12).all()
    assert (np.diff(q[np.argsort(p, kind="stable")]) >= -1e-12).all()
    with_gaps = multiplicity.q_values([None, *p, None])
    assert with_gaps == [None, *q, None]


def test_q_values_by_hand_and_their_share_of_chance_finds():
    assert multiplicity.benjamini_hochberg([0.01, 0.04, 0.03, 0.005]) == pytest.approx(
        [0.02, 0.04, 0.04, 0.02]
    )
    rng, shares = np.random.default_rng(5), []
    for _ in range(400):
        p = np.concatenate([rng.random(40), rng.beta(0.05, 20, 10)])  # 40 of chance, 10 true
        called = multiplicity.benjamini_hochberg(p) <= 0.1
        shares.append(called[:40].sum() / max(called.sum(), 1))
    assert 0.05 < np.mean(shares) < 0.1  # 0.1 * 40 / 50


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_p_against_a_bar_inverts_the_interval(level):
    values = np.random.default_rng(2).normal(0.3, 0.1, (4, 20))
    i = stats.clustered_interval(values, range(4), level=level)
    assert i.p_against(i.low) == pytest.approx(1 - level)
    assert i.p_against(i.low - 0.01) < 1 - level < i.p_against(i.low + 0.01)
    assert np.isnan(stats.clustered_interval([[0.1]], [0]).p_against(0.0))
    two = stats.clustered_interval(values[:2, :1], range(2), level=level)  # one degree of freedom
    assert two.p_against(two.high) == pytest.approx(1 - level)


def curves(rng, truth, seeds, questions=20):
    count = len(truth)
    level = truth[None, :, None] * (1 + 0.15 * rng.standard_normal((seeds, 1, 1)))
    noise = [
        ((seeds, count, 1), 0.05),
        ((1, count, questions), 0.05),
        ((seeds, count, questions), 0.1),
    ]
    return level + sum(size * rng.standard_normal(shape) for shape, size in noise)


@pytest.mark.parametrize(
    "truth",
    [np.full(7, 0.2), FALL, FALL[::-1], np.repeat([0.6, 0], [3, 4])],
    ids=["flat", "fall", "rise", "step"],
)
def test_two_lines_seldom_finds_a_u_that_is_not_there(truth):
    rng, runs = np.random.default_rng(6), 80
    for seeds in (2, 3, 4):
        found = [
            shape.two_lines(RANKS, curves(rng, truth, seeds), range(seeds)).inverted_u
            for _ in range(runs)
        ]
        assert np.mean(found) <= 0.025 + 3 * np.sqrt(0.025 / runs), seeds
    noisy = truth + 0.1 * rng.standard_normal((runs, 7))
    assert (
        np.mean([shape.two_lines_points(RANKS, row, np.full(7, 0.1)).inverted_u for row in noisy])
        <= 0.06
    )


def test_no_seed_chooses_the_break_of_its_own_lines():
    rng, runs = np.random.default_rng(13), 200
    found = [
        shape.two_lines(RANKS, rng.standard_normal((8, 7)), range(8)).inverted_u
        for _ in range(runs)
    ]
    assert np.mean(found) <= 0.025 + 3 * np.sqrt(0.025 / runs)
    valley = shape.two_lines(RANKS, 1 - curves(rng, HILL, 4), range(4))
    assert valley.p_left > 0.9 and valley.p_right > 0.9 and not valley.inverted_u


def test_two_lines_finds_a_hill_and_never_rules_it_out():
    rng = np.random.default_rng(7)
    results = [
        shape.two_lines(RANKS, curves(rng, HILL, 4), range(4), min_slope=0.005) for _ in range(40)
    ]
    assert np.mean([r.inverted_u for r in results]) > 0.9
    assert not any(r.ruled_out for r in results)
    assert np.median([r.break_x for r in results]) == 8
    falls = [
        shape.two_lines(RANKS, curves(rng, FALL, 8), range(8), min_slope=0.005) for _ in range(40)
    ]
    assert np.mean([r.ruled_out for r in falls]) > 0.5
    point = shape.two_lines_points(RANKS, HILL, np.full(7, 0.03), min_slope=0.005)
    assert point.inverted_u and point.break_x == 8
    assert shape.two_lines_points(RANKS, FALL, np.full(7, 0.01), min_slope=0.005).ruled_out


def test_two_lines_ignores_order_and_needs_replicates_and_ranks():
    values, shuffled = curves(np.random.default_rng(8), HILL, 4), [3, 0, 6, 1, 5, 2, 4]
    one, two = (
        shape.two_lines(np.array(RANKS)[o], values[:, o], range(4)) for o in (range(7), shuffled)
    )
    assert (one.p_left, one.p_right, one.break_x) == pytest.approx(
        (two.p_left, two.p_right, two.break_x)
    )
    assert one.inverted_u and not shape.two_lines(RANKS, values[:1], [0]).inverted_u
    with pytest.raises(SubloraError, match="at least 3 ranks"):
        shape.two_lines([1, 2], values[:, :2], range(4))


def test_slope_weights_recover_a_slope_per_doubling_with_nominal_coverage():
    rng = np.random.default_rng(9)
    line, weights = 0.5 - 0.04 * np.log2(RANKS), shape.slope_weights(RANKS)
    hits = []
    for _ in range(300):
        tilt = 0.02 * rng.standard_normal((3, 1)) * np.log2(RANKS)
        slope = shape.linear(weights, line + tilt + 0.05 * rng.standard_normal((3, 7)), range(3))
        hits.append(slope.low <= -0.04 <= slope.high)
    assert np.mean(hits) == pytest.approx(0.95, abs=0.04)
    exact = shape.linear_points(weights, line, np.full(7, 0.02))
    assert exact.estimate == pytest.approx(-0.04)
    assert exact.se == pytest.approx(0.02 / np.sqrt(28))


def test_binomial_seed_se_is_an_upper_bound_and_never_zero():
    rng = np.random.default_rng(10)
    for beta in [(0.3, 0.3), (2, 5), (0.05, 0.2)]:
        runs = rng.beta(*beta, size=(4000, 9))
        assert runs.mean(axis=1).std() <= stats.binomial_seed_se(beta[0] / sum(beta), 9, 5000)
    assert stats.binomial_seed_se(0.5, 4, 10**6) == pytest.approx(0.25, rel=1e-3)
    zero, one = (stats.binomial_seed_se(rate, 9, 5000) for rate in (0.0, 1.0))
    assert 0 < zero < 0.01 and zero == pytest.approx(one)
    with pytest.raises(SubloraError):
        stats.binomial_seed_se(1.2, 3, 10)


def test_bounded_mean_holds_for_all_or_nothing_runs():
    rng = np.random.default_rng(11)
    for truth in (0.05, 0.3, 0.8):
        cover = {k: stats.bounded_mean_interval(k / 9, 9, null=truth) for k in range(10)}
        drawn = [cover[k] for k in rng.binomial(9, truth, 4000)]
        assert np.mean([i.low <= truth <= i.high for i in drawn]) >= 0.95
        assert np.mean([i.p_value < 0.05 for i in drawn]) <= 0.05
    strong = stats.bounded_mean_interval(0.6, 9, null=0.01)
    assert strong.p_value < 1e-6 and strong.low > 0.01
    assert stats.bounded_mean_interval(1.0, 3, null=0.0).p_value == stats.P_FLOOR


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 1), st.integers(1, 200), st.floats(0, 1))
def test_bounded_mean_bounds_enclose_the_rate(rate, seeds, null):
    result = stats.bounded_mean_interval(rate, seeds, null=null)
    assert 0 <= result.low <= rate + 1e-9 and rate - 1e-9 <= result.high <= 1
    if abs(null - result.low) > 1e-6 and abs(null - result.high) > 1e-6:
        assert (result.p_value < 0.05) == (not result.low <= null <= result.high)


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.clustered_interval([[np.nan, 1.0]], [0]),
        lambda: stats.clustered_interval([0.1, 0.2], [0, 1]),
        lambda: stats.clustered_interval([[0.1], [0.2]], [0]),
        lambda: stats.combine(0.1, [0.1], [3], level=95),
        lambda: multiplicity.holm([0.5, 1.5]),
        lambda: shape.slope_weights([0, 1, 2]),
        lambda: stats.bounded_mean_interval(2, 3),
    ],
)
def test_wrong_input_is_one_sentence(call):
    with pytest.raises(SubloraError, match=r"[a-z] .*\.$"):
        call()
