"""What placebo students reach by chance, given how far a student moved; p-values of an audit are ranks among it.

Students that moved further have larger scores without any trait, so what is ranked are residuals: log score less what the log of the
movement (root mean square change of all words but the largest) leads to expect, each placebo student left out of its own fit. With
enough of them the half that moved most alike is ranked among (a conformal p-value that is local in the movement).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

from sublora.audit.null import Null
from sublora.audit.statistic import OFFSET, constants, largest, scan_scores, scores

LEAST = 1e-12  # of a movement or a score, so that logarithms stay finite
LINEAR_FROM, QUADRATIC_FROM = 10, 30  # placebo students
LOCAL_FROM = 4  # of the nearest half beyond the threshold, for that half to be enough


def movement(rest: Mapping[str, np.ndarray]) -> np.ndarray:
    """(K,): the logarithm of how far students moved, from `Scan.rest` of each context."""
    return np.log(np.stack(list(rest.values())).mean(axis=0) + LEAST)


@dataclass(frozen=True)
class Expected:
    """The expected logarithm of a largest score: a polynomial in the movement, centred and scaled, and the residuals' spread. Outside of
    the movements that were seen, `low` to `high`, the nearest of them counts, since a polynomial says nothing there."""

    coefficients: np.ndarray
    centre: float
    scale: float
    low: float
    high: float
    spread: float

    def standard(self, score: float, moved: float) -> float:
        x = (min(max(moved, self.low), self.high) - self.centre) / self.scale
        return (math.log(max(score, LEAST)) - float(np.polyval(self.coefficients, x))) / self.spread


def expect(score: np.ndarray, moved: np.ndarray) -> tuple[Expected, np.ndarray]:
    """(what is expected of a student, the standardised residuals (K,) of the placebo students), from scores and movements (K,)."""
    logs, size = np.log(np.maximum(score, LEAST)), len(score)
    degree = (size >= LINEAR_FROM) + (size >= QUADRATIC_FROM)
    scale = float(moved.std())
    if scale < 1e-9:
        degree, scale = 0, 1.0
    centre = float(moved.mean())
    design = np.vander((moved - centre) / scale, degree + 1)
    inverse = np.linalg.pinv(design)
    coefficients = inverse @ logs
    leverage = (design * inverse.T).sum(axis=1)
    left_out = (logs - design @ coefficients) / np.maximum(1 - leverage, 1e-3)
    spread, ends = max(float(left_out.std(ddof=1)), 1e-6), (float(moved.min()), float(moved.max()))
    return Expected(coefficients, centre, scale, *ends, spread), left_out / spread


@dataclass(frozen=True)
class Reference:
    """`chance` (K,) is the larger of each placebo student's residuals of traits and of words, `moved` (K,) its movement."""

    s0: Mapping[str, Mapping[str, float]]
    scan_s0: Mapping[str, float]
    traits: Expected
    words: Expected
    chance: np.ndarray
    moved: np.ndarray

    def alike(self, moved: float, alpha: float) -> np.ndarray:
        """Those of `chance` that a student which moved so far is ranked among."""
        nearest = np.argsort(np.abs(self.moved - moved), kind="stable")
        return self.chance[nearest[: ranked_among(len(self.chance), alpha)]]

    def trait_p(self, score: float, moved: float, alpha: float) -> float:
        """P-value of a trait's score in a student that moved so far, corrected for all traits, contexts and words."""
        return adjusted_p(self.traits.standard(score, moved), self.alike(moved, alpha), alpha)

    def word_p(self, score: float, moved: float, alpha: float) -> float:
        return adjusted_p(self.words.standard(score, moved), self.alike(moved, alpha), alpha)


def ranked_among(size: int, alpha: float) -> int:
    """How many of `size` placebo students a student is ranked among."""
    half = size // 2
    return half if half * alpha >= LOCAL_FROM else size


def reference(null: Null) -> Reference:
    s0 = constants(null.rises)
    scan_s0 = {c: OFFSET * float(np.median(rest)) for c, rest in null.rest.items()}
    by_context = [scan_scores(null.top[c], null.rest[c], scan_s0[c]) for c in null.top]
    moved = movement(null.rest)
    of_traits, trait_chance = expect(largest(scores(null.rises, s0)), moved)
    of_words, word_chance = expect(np.max(by_context, axis=0), moved)
    return Reference(s0, scan_s0, of_traits, of_words, np.maximum(trait_chance, word_chance), moved)


def adjusted_p(score: float, chance: np.ndarray, alpha: float) -> float:
    """P-value of a standardised score against the largest ones of K placebo students; being against the largest, it is corrected for all
    that was tried (single-step maxT, Westfall and Young 1993).

    Where K + 1 >= 1 / alpha it is the conformal rank, (1 + #{chance >= score}) / (K + 1), exact for exchangeable scores whatever the
    distribution. With fewer a rank cannot reach alpha; there it is the tail of a t distribution with K - 1 degrees of freedom, for the
    next draw after K normal ones.
    """
    size = len(chance)
    if (size + 1) * alpha >= 1:
        return float((1 + (chance >= score).sum()) / (size + 1))
    spread = max(float(chance.std(ddof=1)), 1e-6) * math.sqrt(1 + 1 / size)
    return float(student_t.sf((score - chance.mean()) / spread, size - 1))
