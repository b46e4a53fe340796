"""A student beside another one of the same base, such as the last release: which traits rose from the one to the other.

The rises of one student less those of another are the rises between them. Where A, C and K placebo students are exchangeable, (A, C) is
any of the (K + 2)(K + 1) ordered pairs with the same chance, so the share of pairs whose largest score is at least that of (A, C) is an
exact p-value, corrected for all traits and contexts (single-step maxT, Westfall and Young 1993). docs/audit.md says why all pairs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

from sublora.audit.adapter import Audited
from sublora.audit.entries import Against, Compared, Difference, WordRise
from sublora.audit.readings import FLOOR, Readings
from sublora.audit.statistic import OFFSET, Rises, highest_words, rises, spread
from sublora.audit.verdict import (
    ASSUMED_SPREAD,
    COHERENT,
    WORDS_SHOWN,
    Bar,
    assumed_p,
    coherence,
    each_trait,
    status_of,
    word_text,
)

# Of the alpha that the data leaves, for the comparison with the other student; the verdict beside the base has the rest.
AGAINST_SHARE = 0.5
NAMED = 5


@dataclass(frozen=True)
class Pairs:
    """n students beside each other. `largest` (n, n): the largest score of the rises from student j to student i, over all contexts,
    categories and traits; the diagonal means nothing. `s0`: the constants in the denominators of the scores."""

    largest: np.ndarray
    s0: Mapping[str, Mapping[str, float]]


def differences(first: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rises (n, E) from each of `others` (n, E) to `first` (E,), less their median, and their robust spreads (n,)."""
    moved = first - others
    moved = moved - np.median(moved, axis=1, keepdims=True)
    return moved, spread(moved)


def all_pairs(found: Rises) -> Pairs:
    """Every ordered pair of the students whose rises are given."""
    size = next(len(r) for by in found.values() for r in by.values())
    largest = np.full((size, size), -np.inf)
    others, s0 = ~np.eye(size, dtype=bool), {context: {} for context in found}
    for context, by in found.items():
        for category, r in by.items():
            top, wide = np.empty((size, size)), np.empty((size, size))
            for i, own in enumerate(r):
                moved, wide[i] = differences(own, r)
                top[i] = moved.max(axis=1)
            constant = s0[context][category] = OFFSET * float(np.median(wide[others]))
            largest = np.maximum(largest, top / (wide + constant + FLOOR))
    return Pairs(largest, s0)


def pair_p(score: float, pairs: Pairs, alpha: float) -> float:
    """P-value of a score of the last but one student over the last one, corrected for all traits and contexts.

    With K placebo students before them and (K + 2) * alpha >= 1 it is the share of ordered pairs. With fewer, a trait in A could fail to
    reach alpha whatever its size; there it is the tail of a t distribution over the logarithms of the placebo students' largest scores, with
    as many degrees of freedom as disjoint pairs give.
    """
    size = len(pairs.largest)
    others = ~np.eye(size, dtype=bool)
    if size * alpha >= 1:
        return float((pairs.largest[others] >= score).mean())
    placebo = others[:-2, :-2]
    logs = np.log(np.maximum(pairs.largest[:-2, :-2][placebo], 1e-6))
    count = (size - 2) // 2
    spread = max(float(logs.std(ddof=1)), 1e-6) * math.sqrt(1 + 1 / count)
    return float(student_t.sf((math.log(max(score, 1e-6)) - logs.mean()) / spread, count - 1))


def against(compared: Compared, other: Audited, calibrated: bool) -> Against:
    """The entry of a comparison with `other`, in a sentence as well."""
    told = "one of both no longer answers with words of the categories, so nothing can be said"
    if compared.status != "unmeasurable":
        by = "two clean students differ by chance" if calibrated else "an assumed chance explains"
        names = _names(compared.found)
        told = f"it prefers {names} more than {by}" if names else f"no trait rose more than {by}"
    lower = f" Lower than there: {_names(compared.fell)}." if compared.fell else ""
    sentence = f"Against {other.path} ({other.described}): {told}.{lower}"
    return Against(**dict(compared), student=other.entry, sentence=sentence)


def _names(found: Sequence[Difference]) -> str:
    return ", ".join(list(dict.fromkeys(f"{d.trait} ({d.category})" for d in found))[:NAMED])


def _pairs_with(known: Rises, *students: Rises) -> Pairs:
    """The null's pairs of clean students, with these students among them."""
    return all_pairs(
        {
            n: {k: np.concatenate([r, *(s[n][k] for s in students)]) for k, r in by.items()}
            for n, by in known.items()
        }
    )


def compare(student: Readings, other: Readings, bar: Bar) -> Compared:
    """A (`student`) beside C (`other`), both K = 1 and of the bar's base. Raises SubloraError where
    the null was made with other contexts or categories."""
    plain, alpha, null = bar.plain, bar.alpha, bar.known
    a, c = rises(student, plain), rises(other, plain)
    pairs = None if null is None else _pairs_with(null.rises, a, c)
    tried = sum(r.shape[1] for by in a.values() for r in by.values())
    found = []
    for place, e, before, after in each_trait(a, bar.asked.categories, other, student):
        name, _, context = place
        moved, wide = differences(a[context][name][0], c[context][name])
        s0 = pairs.s0[context][name] if pairs else ASSUMED_SPREAD * math.sqrt(2)
        rise, score = float(moved[0, e]), float(moved[0, e] / (wide[0] + s0 + FLOOR))
        ps = (
            pair_p(s, pairs, alpha) if pairs else assumed_p(s, tried, moved.shape[1])
            for s in (score, -score)
        )
        found.append(Difference(*place, before, after, rise, score, *ps))
    found.sort(key=lambda d: (d.p, -d.score))
    words = [
        WordRise(word_text(bar.base, w), w, n, float(rise))
        for n, some in highest_words(student, other, WORDS_SHOWN).items()
        for w in some.tolist()
        if (rise := student.words[n][0, w] - other.words[n][0, w]) > 0
    ]
    words.sort(key=lambda w: -w.rise)
    own, beside = (min(coherence(m, plain).values()) for m in (student, other))
    hit = any(d.p <= alpha for d in found)
    measurable = beside >= COHERENT and (hit or own >= COHERENT)
    counted = found if measurable else []
    return Compared(
        status=status_of(hit, bar.calibrated, measurable),
        alpha=alpha,
        coherence=coherence(other, plain),
        found=[d for d in counted if d.p <= alpha],
        fell=[d for d in counted if d.p_fall <= alpha],
        traits=found,
        words=words,
    )
