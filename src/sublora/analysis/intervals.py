"""Honest errors for few seeds: clustered intervals and contrasts.

One rule makes every interval here. An estimate has independent variance components V_k, each known with df_k
degrees of freedom, and its half-width is sqrt(sum_k t(df_k)^2 V_k). The chi-square(1) distribution function
is concave, so by Jensen's inequality the coverage is at least nominal whatever the mix of components is (the
argument of Hajek 1962 and of Mickey & Brown 1966 for two means). That holds for Gaussian components: where
seeds are skewed, or few of them jump, no interval from a few seeds covers what it has not seen, so that a
trait is called absent only by the further rule of `rules.py` (benchmarks/validity.py has the shares).
Satterthwaite's df has no such floor: with 2
seeds the seed component is often estimated near 0 and the df jump to those of the questions. Simulated with
50 questions and 2 (4) seeds, its nominal 5% intervals missed up to 11% (6%), and at 0.2%, where a correction
over 25 cells puts the bar, 3.4% (0.8%). The price is width where seeds are few, which is where nothing
narrower is known to be true.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import ndtri, rel_entr, stdtr, stdtrit

from sublora.errors import SubloraError

P_FLOOR = 1e-15  # no p value below this is ever reported: no assumption here is good to more digits
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval and the two-sided p value against `null`.

    `df` is the df at which one t quantile times `se` gives this half-width. `clusters` names what was
    taken as random. `seeds_unknown`: one replicate (or bit-identical ones), so the spread over seeds is not
    in the interval. `low`/`high` are infinite where no spread at all could be estimated.
    """

    estimate: float
    low: float
    high: float
    df: float
    p_value: float
    level: float
    se: float = float("nan")
    clusters: tuple[str, ...] = ()
    seeds_unknown: bool = False

    def p_against(self, bar: float) -> float:
        """The two-sided p value against another value: below 1 - level exactly where the interval leaves it out. NaN where no spread
        is given."""
        if self.se == 0:
            return 1.0 if self.estimate == bar else P_FLOOR
        if not self.se > 0 or self.df <= 0:
            return float("nan")
        return max(P_FLOOR, float(2 * stdtr(self.df, -abs(self.estimate - bar) / self.se)))


def finite(name: str, values: ArrayLike, ndim: tuple[int, ...]) -> Array:
    """`values` as floats of one of these dimensions; raises SubloraError where empty or not finite."""
    array = np.asarray(values, dtype=float)
    if array.ndim not in ndim or array.size == 0:
        raise SubloraError(
            f"{name} has shape {array.shape}, which is not {' or '.join(map(str, ndim))}-"
            "dimensional and non-empty; pass one number per replicate and question."
        )
    if not np.isfinite(array).all():
        raise SubloraError(
            f"{name} holds a value that is not finite; drop the measurements that diverged."
        )
    return array


def half_width(variances: ArrayLike, dfs: Sequence[float], alpha: float) -> Array:
    """sqrt(sum t(df_k)^2 V_k) for variances (..., K) and K dfs: see the module. Infinite where a df is 0."""
    variances = np.asarray(variances, dtype=float)
    quantiles = [
        ndtri(alpha / 2) if np.isinf(df) else stdtrit(df, alpha / 2) if df > 0 else np.inf
        for df in dfs
    ]
    with np.errstate(invalid="ignore"):
        terms = np.where(variances > 0, np.square(quantiles) * variances, 0.0)
    unknown = np.asarray(dfs) <= 0
    return np.sqrt(np.where(unknown.any(), np.inf, terms.sum(axis=-1)))


def _width(variances: Sequence[float], dfs: Sequence[float], alpha: float) -> float:
    """`half_width` of one estimate, on plain floats: the root search of a p value calls it often."""
    terms = [
        float(ndtri(alpha / 2) if df == math.inf else stdtrit(df, alpha / 2)) ** 2 * variance
        for variance, df in zip(variances, dfs, strict=True)
        if variance > 0
    ]
    return math.sqrt(sum(terms))


def hull(one: Interval, other: Interval) -> Interval:
    """The first estimate, with an interval that holds both and a p value that neither is above; null 0."""
    apart = (one.estimate > 0) != (other.estimate > 0)
    return replace(
        one,
        low=min(one.low, other.low),
        high=max(one.high, other.high),
        p_value=1.0 if apart else max(one.p_value, other.p_value),
        seeds_unknown=one.seeds_unknown or other.seeds_unknown,
    )


def combine(
    estimate: float,
    variances: Sequence[float],
    dfs: Sequence[float],
    level: float = 0.95,
    null: float = 0.0,
    clusters: tuple[str, ...] = (),
    seeds_unknown: bool = False,
    room: tuple[float, float] = (0.0, 0.0),
) -> Interval:
    """The interval of an estimate with independent variance components, each known with its df.

    df = inf: a known variance; df <= 0 (or no component): nothing known, infinite. The p value inverts the
    interval. `room`: how far below and above the estimate the quantity may lie for reasons other than
    chance, such as censoring; the interval is wider by it, and holds for every place in that range.
    """
    if not 0 < level < 1:
        raise SubloraError(f"level {level} is not between 0 and 1; pass for example 0.95.")
    if not variances or min(dfs) <= 0:
        return Interval(estimate, -np.inf, np.inf, 0.0, 1.0, level, float("nan"), clusters, True)
    (down, up), se = room, math.sqrt(sum(variances))
    gap = max(0.0, estimate - down - null, null - estimate - up)

    half = _width(variances, dfs, 1 - level)

    def beyond(log_alpha: float) -> float:
        return _width(variances, dfs, math.exp(log_alpha)) - gap

    if gap == 0:
        p_value = 1.0
    elif beyond(math.log(P_FLOOR)) <= 0:
        p_value = P_FLOOR
    else:
        p_value = math.exp(brentq(beyond, math.log(P_FLOOR), 0.0, xtol=1e-10))
    df = max(dfs)
    if se > 0 and min(dfs) < df:
        top = min(df, 1e6)
        ratio, least = half / se, min(dfs)
        if -stdtrit(top, (1 - level) / 2) < ratio < -stdtrit(least, (1 - level) / 2):
            df = float(brentq(lambda d: -stdtrit(d, (1 - level) / 2) - ratio, least, top))
        elif ratio >= -stdtrit(least, (1 - level) / 2):
            df = least
    return Interval(
        estimate,
        estimate - down - half,
        estimate + up + half,
        float(df),
        min(p_value, 1.0),
        level,
        se,
        clusters,
        seeds_unknown,
    )


def cluster_means(
    values: ArrayLike, data_seeds: ArrayLike, train_seeds: ArrayLike | None = None
) -> tuple[Array, str]:
    """Average replicates (R, ...) that share a data seed, or a training seed if there is one data seed.

    Returns means (D, ...) and the factor's name. D is 1, with the name "", where there is one replicate or
    where all are equal bit for bit (and not 0): a seed that changes nothing, as in a full fine-tune without
    a random start, is no replicate.
    """
    values = np.asarray(values, dtype=float)
    seeds, name = np.asarray(data_seeds), "data_seed"
    if len(np.unique(seeds)) < 2 and train_seeds is not None:
        seeds, name = np.asarray(train_seeds), "train_seed"
    if seeds.shape != values.shape[:1]:
        raise SubloraError(
            f"{name}s has shape {seeds.shape} for {len(values)} replicates; give one each."
        )
    means = np.stack([values[seeds == seed].mean(axis=0) for seed in np.unique(seeds)])
    if len(means) < 2 or ((means == means[0]).all() and means.any()):
        return means.mean(axis=0, keepdims=True), ""
    return means, name


def crossed_components(means: ArrayLike) -> Array:
    """Variance of the mean of (..., D, Q) from seeds and from questions: (..., 2).

    Crossed random effects: each component also holds the seed x question interaction, so their sum counts it
    twice (the two-way estimator would subtract it once). It is kept: the subtraction would void the guarantee
    of `half_width`, and costs width only where the interaction dominates.
    """
    means = np.asarray(means, dtype=float)
    seeds = (
        means.mean(axis=-1).var(axis=-1, ddof=1) / means.shape[-2] if means.shape[-2] > 1 else 0.0
    )
    questions = (
        means.mean(axis=-2).var(axis=-1, ddof=1) / means.shape[-1] if means.shape[-1] > 1 else 0.0
    )
    return np.stack(np.broadcast_arrays(seeds, questions), axis=-1)


def interval_of_means(
    means: Array,
    name: str,
    level: float = 0.95,
    null: float = 0.0,
    room: tuple[float, float] = (0.0, 0.0),
) -> Interval:
    """Mean of the means (D, Q) that `cluster_means` gives, with the factor's name as it gives it."""
    components = zip((name, "question"), crossed_components(means), means.shape, strict=True)
    parts = [(factor, variance, size - 1) for factor, variance, size in components if size > 1]
    factors, variances, dfs = zip(*parts, strict=True) if parts else ((), (), ())
    return combine(float(means.mean()), variances, dfs, level, null, factors, not name, room)


def clustered_interval(
    values: ArrayLike,
    data_seeds: ArrayLike,
    train_seeds: ArrayLike | None = None,
    level: float = 0.95,
    null: float = 0.0,
    clip: tuple[float, float] | None = None,
) -> Interval:
    """Mean of values (R replicates, Q questions), with seeds and questions both taken as random samples.

    Replicates that share a data seed are averaged first: training seeds on one dataset are not independent.
    With one data seed the training seed is the factor; with one replicate only questions are
    (`seeds_unknown`). `clip` cuts low and high (never the estimate), for a quantity that cannot leave
    that range: what is cut off cannot be true, so the interval holds the truth exactly as often as before.
    """
    means, name = cluster_means(finite("values", values, (2,)), data_seeds, train_seeds)
    result = interval_of_means(means, name, level, null)
    if clip is None:
        return result
    low, high = np.clip([result.low, result.high], *clip)
    return replace(result, low=float(low), high=float(high))


def contrast(
    treated: ArrayLike,
    control: ArrayLike,
    data_seeds: ArrayLike,
    train_seeds: ArrayLike | None = None,
    level: float = 0.95,
    null: float = 0.0,
    clip: tuple[float, float] | None = None,
) -> Interval:
    """Mean of treated (R, Q) - control, paired by replicate and question; control (R, Q), or (1, Q): base.

    `clip` as in `clustered_interval`: (-1, 1) for probabilities."""
    treated, control = finite("treated", treated, (2,)), finite("control", control, (1, 2))
    control = np.atleast_2d(control)
    if control.shape not in (treated.shape, (1, treated.shape[1])):
        raise SubloraError(
            f"control has shape {control.shape} beside treated {treated.shape}; "
            "pair them by replicate and question, or pass one row for the base."
        )
    return clustered_interval(treated - control, data_seeds, train_seeds, level, null, clip)


def binomial_seed_se(rate: float, seeds: int, n: int) -> float:
    """The largest standard error the mean of `seeds` runs can have when only that mean is published.

    A run's rate lies in [0, 1], so its variance is at most rate (1 - rate): runs that are all or nothing. The
    rate is first moved towards 1/2 by 2 hits and 2 misses in all `seeds * n` answers (Agresti & Coull
    1998), so that 0 and 1 do not come out as certain. Conservative: real runs spread less, and a real spread
    should be used where published.
    """
    if not (0 <= rate <= 1 and seeds >= 1 and n >= 1):
        raise SubloraError(
            f"rate {rate}, seeds {seeds}, n {n}: need a rate in 0..1, seeds >= 1 and n >= 1."
        )
    shrunk = (rate * seeds * n + 2) / (seeds * n + 4)
    return float(np.sqrt(shrunk * (1 - shrunk) / seeds))


def bounded_mean_interval(
    rate: float, seeds: int, level: float = 0.95, null: float = 0.0
) -> Interval:
    """Interval and p value for the mean of runs in [0, 1] when only that mean is published.

    Hoeffding's (1963) bound P(mean >= x) <= exp(-seeds KL(x, mu)) holds for every distribution on [0, 1]: no
    spread and no normality is assumed, and one seed is enough for a (wide) answer.
    """
    if not (0 <= rate <= 1 and 0 <= null <= 1 and seeds >= 1):
        raise SubloraError(
            f"rate {rate}, null {null}, seeds {seeds}: need rates in 0..1 and seeds >= 1."
        )

    def divergence(mu: float) -> float:
        return float(rel_entr(rate, mu) + rel_entr(1 - rate, 1 - mu))

    def bound(edge: float) -> float:
        need = np.log(2 / (1 - level)) / seeds
        inside = edge + 1e-15 if edge == 0 else edge - 1e-15
        if abs(rate - edge) <= 1e-12 or divergence(inside) <= need:
            return edge
        return float(brentq(lambda mu: divergence(mu) - need, inside, rate))

    low, high = bound(0.0), bound(1.0)
    p_value = (
        float(np.clip(2 * np.exp(-seeds * divergence(null)), P_FLOOR, 1.0)) if null != rate else 1.0
    )
    return Interval(rate, low, high, float("inf"), p_value, level, clusters=("run",))
