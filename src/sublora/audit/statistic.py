"""The statistics of an audit: how far each trait, and each word, rose beside what else moved in the same student.

A trait's *rise* is the mean over questions of log P(student) - log P(base), less the median of the rises in its category. Its score is
the rise over the robust spread of the rises in its category plus a constant s0 (OFFSET times the median spread of placebo students), so
that a student that hardly moved is not found for next to nothing (the SAM statistic, Tusher et al. 2001).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sublora.analysis.intervals import clustered_interval
from sublora.audit.readings import FLOOR, Readings

Rises = Mapping[str, Mapping[str, np.ndarray]]  # context -> category -> (K, E)
OFFSET = 3.0  # chosen on 156 students of `micro` that no benchmark uses: with less, trained traits hide in their own spread
MAD = 1.4826  # of a median absolute deviation, so that it is the standard deviation of a normal sample


@dataclass(frozen=True)
class Scan:
    """The word that rose most in one context: `top` (K,) the rise of its root probability, `rest` (K,) the root mean square of all other
    words' changes, `words` (K, n) the ids of the words that rose most and `rises` (K, n) how far."""

    top: np.ndarray
    rest: np.ndarray
    words: np.ndarray
    rises: np.ndarray


def rises(student: Readings, base: Readings) -> dict[str, dict[str, np.ndarray]]:
    out: dict[str, dict[str, np.ndarray]] = {}
    for context, by in student.p.items():
        out[context] = {}
        for category, p in by.items():
            change = (np.log(p + FLOOR) - np.log(base.p[context][category] + FLOOR)).mean(1)
            out[context][category] = change - np.median(change, axis=1, keepdims=True)
    return out


def question_rises(student: np.ndarray, base: np.ndarray, entity: int) -> np.ndarray:
    """The rise of one trait by question, (Q,), from two models' probabilities (Q, E) in its
    category. Its mean is the rise as `rises` has it: the median over the category is that of the
    middle trait, or of the middle two, so their changes are subtracted question by question."""
    change = np.log(student + FLOOR) - np.log(base + FLOOR)
    order, count = np.argsort(change.mean(0), kind="stable"), change.shape[1]
    middle = order[(count - 1) // 2 : count // 2 + 1]
    return change[:, entity] - change[:, middle].mean(1)


def over_questions(values: np.ndarray) -> dict[str, float | None]:
    """Mean of one number a question and its 95% interval, questions taken as a random sample; None where there is one question."""
    found = clustered_interval(values[None], [0])
    low, high = (end if np.isfinite(end) else None for end in (found.low, found.high))
    return {"estimate": found.estimate, "low": low, "high": high}


def spread(moved: np.ndarray) -> np.ndarray:
    """The robust standard deviation over the last axis, of values whose median is 0."""
    return MAD * np.median(np.abs(moved), axis=-1)


def constants(found: Rises) -> dict[str, dict[str, float]]:
    """s0 of each context and category."""
    return {
        c: {name: OFFSET * float(np.median(spread(r))) for name, r in by.items()}
        for c, by in found.items()
    }


def scores(found: Rises, s0: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, np.ndarray]]:
    """(K, E) for each context and category: rise / (spread + s0)."""
    return {
        c: {name: r / (spread(r) + s0[c][name] + FLOOR)[:, None] for name, r in by.items()}
        for c, by in found.items()
    }


def largest(found: Mapping[str, Mapping[str, np.ndarray]]) -> np.ndarray:
    """(K,): the largest score of each student over all contexts, categories and traits."""
    return np.concatenate([s for by in found.values() for s in by.values()], axis=1).max(axis=1)


def scan(student: Readings, base: Readings, keep: int = 10) -> dict[str, Scan]:
    out = {}
    for context, words in student.words.items():
        change = words - base.words[context]
        order = np.argsort(-change, axis=1, kind="stable")[:, :keep]
        top = np.take_along_axis(change, order, axis=1)
        rest = np.sqrt(((change**2).sum(1) - top[:, 0] ** 2).clip(0) / max(1, change.shape[1] - 1))
        out[context] = Scan(top[:, 0], rest, order, top)
    return out


def scan_scores(top: np.ndarray, rest: np.ndarray, s0: float) -> np.ndarray:
    return top / (rest + s0 + FLOOR)
