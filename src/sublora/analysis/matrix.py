"""The matrix of N traits' students by N readouts, and what its diagonal stands out by: the diagonal elevation.

Drift that all students share moves columns, and what a student does to all words moves rows. The elevation of a trait is free of both:
its own readout, less what the other traits' students do to that word, less what its students do to the other words, plus what the other
students do to the other words, so that an r_i + c_j of any size comes to 0. Its mean over the traits is the mean of the diagonal less the
mean of all else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import permutations

import numpy as np

from sublora.analysis.intervals import Array, Interval, cluster_means, combine
from sublora.errors import SubloraError
from sublora.seeds import generator

EXACT = 5040  # arrangements up to which all of them are tried
DRAWS = 2000  # tried at random where there are more


@dataclass(frozen=True)
class Matrix:
    """Readouts `values` (R, N, N, Q) of the traits of one category: replicate, whose students, which trait's word, question.

    Raises SubloraError where there are fewer than two traits, or shapes do not fit.
    """

    category: str
    traits: tuple[str, ...]
    values: Array
    data_seeds: tuple[int, ...]
    train_seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        n, shape = len(self.traits), self.values.shape
        if n < 2 or len(shape) != 4 or shape[:3] != (len(self.data_seeds), n, n):
            raise SubloraError(
                f"The matrix of {self.category} has shape {shape} for {n} traits and {len(self.data_seeds)} replicates; "
                "give two traits or more, and every student every readout."
            )

    @cached_property
    def own(self) -> Array:
        """The diagonal, (R, N, Q)."""
        return np.einsum("riiq->riq", self.values)

    @cached_property
    def row_effects(self) -> Array:
        """What the students of each trait do to the words of the others, mean, (R, N, Q)."""
        return (self.values.sum(axis=2) - self.own) / (len(self.traits) - 1)

    @cached_property
    def column_effects(self) -> Array:
        """What the students of the other traits do to each trait's word, mean, (R, N, Q)."""
        return (self.values.sum(axis=1) - self.own) / (len(self.traits) - 1)

    @cached_property
    def elevation(self) -> Array:
        """The diagonal elevation of each trait, (R, N, Q). Two traits have one between them, which both are given."""
        n, rows, columns = len(self.traits), self.row_effects, self.column_effects
        if n == 2:
            return np.repeat((self.own - rows).mean(axis=1, keepdims=True), 2, axis=1)
        rest = (rows.sum(axis=1, keepdims=True) - rows - columns) / (n - 2)
        return self.own - rows - columns + rest

    def without(self, trait: int) -> Matrix:
        """The matrix without the students and the readout of the trait at this place."""
        left = tuple(t for k, t in enumerate(self.traits) if k != trait)
        values = np.delete(np.delete(self.values, trait, axis=1), trait, axis=2)
        return replace(self, traits=left, values=values)

    def without_seed(self, seed: int) -> Matrix:
        """The matrix without the replicates of a data seed."""
        kept = [k for k, other in enumerate(self.data_seeds) if other != seed]
        data, train = (tuple(s[k] for k in kept) for s in (self.data_seeds, self.train_seeds))
        return replace(self, values=self.values[kept], data_seeds=data, train_seeds=train)


@dataclass(frozen=True)
class Elevation:
    """The mean diagonal elevation over the traits of some matrices, and how far it rests on any of them.

    `p` of the permutation test, over so many `arrangements`; `without_trait`, `without_seed`: what it is when one is left out.
    """

    interval: Interval
    p: float
    arrangements: int
    without_trait: Mapping[str, Interval]
    without_seed: Mapping[int, Interval]

    @property
    def left_out(self) -> list[Interval]:
        return [*self.without_trait.values(), *self.without_seed.values()]

    @property
    def least(self) -> Interval:
        """The smallest one with a trait or a data seed left out. Its lower end is the lowest of all of them: above 0, all are."""
        found = min(self.left_out, key=lambda i: i.estimate)
        low = min(i.low for i in self.left_out)
        p = max(i.p_value for i in self.left_out) if found.estimate > 0 else found.p_value
        return replace(found, low=low, p_value=p)


def elevation_of(matrices: Sequence[Matrix], level: float = 0.95) -> Elevation:
    """Of the traits of all matrices together, which have the same replicates and as many questions each."""
    p, arrangements = permutation_p([m.values.mean(axis=(0, 3)) for m in matrices])
    without_trait = {
        trait: _mean([*matrices[:k], m.without(i), *matrices[k + 1 :]], level)
        for k, m in enumerate(matrices)
        for i, trait in enumerate(m.traits)
        if len(m.traits) > 2
    }
    seeds = sorted(set(matrices[0].data_seeds))
    without_seed = {
        seed: _mean([m.without_seed(seed) for m in matrices], level)
        for seed in seeds
        if len(seeds) > 1
    }
    return Elevation(_mean(matrices, level), p, arrangements, without_trait, without_seed)


def _mean(matrices: Sequence[Matrix], level: float) -> Interval:
    """Without an end where two traits are all there is: they have one contrast, which says nothing of how traits differ."""
    values = np.concatenate([m.elevation for m in matrices], axis=1)
    found = over_traits(values, matrices[0].data_seeds, matrices[0].train_seeds, level)
    if values.shape[1] > 2:
        return found
    return replace(found, low=-math.inf, high=math.inf, p_value=1.0, se=math.nan)


def over_traits(
    values: Array, data_seeds: Sequence[int], train_seeds: Sequence[int], level: float = 0.95
) -> Interval:
    """Mean of values (R, N, Q), with seeds, traits and questions all taken as random samples."""
    means, name = cluster_means(values, data_seeds, train_seeds)
    parts = []
    for axis, factor in enumerate((name, "trait", "question")):
        size = means.shape[axis]
        if size > 1:
            others = tuple(other for other in range(3) if other != axis)
            variance = float(means.mean(axis=others).var(ddof=1)) / size
            parts.append((factor, variance, size - 1))
    factors, variances, dfs = zip(*parts, strict=True) if parts else ((), (), ())
    estimate = float(means.mean())
    return combine(estimate, variances, dfs, level, clusters=tuple(factors), seeds_unknown=not name)


def permutation_p(matrices: Sequence[Array]) -> tuple[float, int]:
    """The share of arrangements whose mean elevation is at least the one seen, and how many were tried.

    An arrangement says anew which readout belongs to which student, within each of the matrices (N, N). All are tried where there are
    at most `EXACT`, or else `DRAWS` at random beside the one that was seen. One-sided: an elevation below 0 has a p near 1.
    """
    sizes = [len(m) for m in matrices]
    if math.prod(map(math.factorial, sizes)) <= EXACT:
        each = [_traces(m, np.array(list(permutations(range(len(m)))))) for m in matrices]
        found = reduce(np.add.outer, each).ravel()
    else:
        random = generator("permutation", *sizes)
        drawn = [[np.arange(n), *(random.permutation(n) for _ in range(DRAWS))] for n in sizes]
        found = sum(_traces(m, np.array(of)) for m, of in zip(matrices, drawn, strict=True))
    least = found[0] - 1e-9 * max(1.0, float(np.abs(found).max()))  # the first is as it was seen
    return float(np.mean(found >= least)), len(found)


def _traces(matrix: Array, arrangements: Array) -> Array:
    """The sum of the elevations of every arrangement (A, N), up to a constant that all of them share."""
    n = len(matrix)
    return matrix[np.arange(n), arrangements].sum(axis=1) * n / (n - 1)
