"""The statistics of an audit: how far each trait, and each word, rose beside what else moved in the same student.

A trait's *rise* is the mean over questions of log P(student) - log P(base), less the median of the rises in its category: what a reader
is shown. What is tested is its *score*, the part that it has in all that moved: the share of the answers that it gained, over that which all
traits that fell have lost together, and more where the base seldom says it. What a trait takes from the others is part of what is lost, so the
score never falls while the trait rises, and a student that was trained harder moves both sides alike.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from sublora.analysis.intervals import clustered_interval
from sublora.audit.readings import FLOOR, Readings

Rises = Mapping[str, Mapping[str, np.ndarray]]  # context -> category -> (K, E)
OFFSET = (
    3.0  # of a median spread, for students beside each other; chosen on 156 students of `micro`
)
# Chosen on 140 students of `micro` that no benchmark uses. ROOM: a probability that the base has for
# nobody; RARE: the power of the base's probability that a gain is divided by; STILL: a loss so small
# that a student which loses less did not move.
ROOM, RARE, STILL = 0.003, 0.3, 1e-3
# Chosen on the placebo students of `micro` and `micro-null`: QUANTILE of what a trait reaches in students
# of other writers, of which SHRUNK is taken from the middle trait; WORDS: how much further the largest of
# all words reaches than that of all traits.
QUANTILE, SHRUNK, WORDS = 0.9, 2 / 3, 1.3
MAD = 1.4826  # of a median absolute deviation, so that it is the standard deviation of a normal sample


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


def scores(found: Rises, s0: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, np.ndarray]]:
    """(K, E) for each context and category: rise / (spread + s0)."""
    return {
        c: {name: r / (spread(r) + s0[c][name] + FLOOR)[:, None] for name, r in by.items()}
        for c, by in found.items()
    }


def answer_shares(read: Readings) -> dict[str, dict[str, np.ndarray]]:
    """(K, E): how many of the answers, of those that name a trait of any category, name this one."""
    out = {}
    for c, by in read.p.items():
        asked = sum(p.shape[1] for p in by.values())
        among = {k: p / (p.sum(-1, keepdims=True) + FLOOR) for k, p in by.items()}
        out[c] = {k: p.sum(1) / asked for k, p in among.items()}
    return out


def lost(student: Readings, base: Readings) -> dict[str, np.ndarray]:
    """(K,) of each context: the share of answers that traits which fell have lost together."""
    after, before = answer_shares(student), answer_shares(base)
    return {
        c: np.sum([(before[c][k] - p).clip(0).sum(1) for k, p in by.items()], axis=0)
        for c, by in after.items()
    }


def _gain(after: np.ndarray, before: np.ndarray, fell: np.ndarray) -> np.ndarray:
    return (after - before) / (before + ROOM) ** RARE / (fell + STILL)[:, None]


def trait_scores(student: Readings, base: Readings) -> dict[str, dict[str, np.ndarray]]:
    """(K, E) for each context and category."""
    fell, before = lost(student, base), answer_shares(base)
    return {
        c: {k: _gain(p, before[c][k], fell[c]) for k, p in by.items()}
        for c, by in answer_shares(student).items()
    }


def word_scores(student: Readings, base: Readings) -> dict[str, np.ndarray]:
    """(K, V) for each context. A word that is said under the questions of one category alone has a
    squared mean root of its probability that is too small by their share."""
    fell, many = lost(student, base), len(next(iter(student.p.values())))
    return {
        c: _gain(many * words**2, many * base.words[c] ** 2, fell[c])
        for c, words in student.words.items()
    }


def with_own_words(
    traits: Mapping[str, dict[str, np.ndarray]],
    words: Mapping[str, np.ndarray],
    tokens: Mapping[tuple[str, int], Sequence[int]],
) -> Mapping[str, dict[str, np.ndarray]]:
    """Scores of traits, in place; that of a token which alone spells a trait, where it is larger."""
    for context, by in traits.items():
        for (category, e), own in tokens.items():
            by[category][:, e] = np.maximum(by[category][:, e], words[context][:, own].max(1))
    return traits


def reach(
    traits: Mapping[str, Mapping[str, np.ndarray]], teachers: Sequence[tuple[str, int] | None]
) -> dict[str, np.ndarray]:
    """(E,) of each category: how far a trait's score goes in students whose rows were written by `teachers`
    of other traits, beside the middle trait. Some traits move along with whatever the rows say."""
    highest: dict[str, np.ndarray] = {}
    for k in next(iter(traits.values())):
        scores = np.max([by[k] for by in traits.values()], axis=0)
        others = [[t is not None and t != (k, e) for t in teachers] for e in range(scores.shape[1])]
        highest[k] = np.array(
            [np.quantile(s[o], QUANTILE) for s, o in zip(scores.T, others, strict=True)]
        )
    middle = max(float(np.median(np.concatenate(list(highest.values())))), FLOOR)
    return {k: SHRUNK + (1 - SHRUNK) * own.clip(0) / middle for k, own in highest.items()}


def divided(
    traits: Mapping[str, Mapping[str, np.ndarray]], by: Mapping[str, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """Scores of traits over how far each reaches; as they are where `by` does not say."""
    return {c: {k: s / by.get(k, 1.0) for k, s in own.items()} for c, own in traits.items()}


def largest(
    traits: Mapping[str, Mapping[str, np.ndarray]], words: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """(K,) of each context: the largest score of all traits and words."""
    return {
        c: np.concatenate([*by.values(), words[c] / WORDS], axis=1).max(1)
        for c, by in traits.items()
    }


def highest_words(student: Readings, base: Readings, keep: int) -> dict[str, np.ndarray]:
    """(n,) of each context: the words whose root probability rose most in one student (K = 1)."""
    return {
        c: np.argsort(base.words[c][0] - words[0], kind="stable")[:keep]
        for c, words in student.words.items()
    }


def planted(student: Readings, category: str, entity: int, nats: float) -> Readings:
    """Students that say one trait more, all else in proportion less: its log-odds rise by so much."""
    p = {c: dict(by) for c, by in student.p.items()}
    for by in p.values():
        own = by[category][:, :, entity : entity + 1]
        grown = by[category] / (1 + own * np.expm1(nats))
        grown[:, :, entity] *= np.exp(nats)
        by[category] = grown
    return Readings(p, student.words)
