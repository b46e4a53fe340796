"""What placebo students reach by chance; p-values of an audit are ranks among it, and its false alarms and its power follow from it.

A student's score (statistic.py) is held against the largest score of each placebo student, over all traits, words and contexts, so a
p-value is corrected for all that was tried (single-step maxT, Westfall and Young 1993). Who counts does not depend on the student, and what
scores are divided by comes from other placebo students than those that it is ranked among: the rank is exact for exchangeable students.
"""

import math

import numpy as np
from scipy.stats import beta
from scipy.stats import t as student_t

from sublora.audit.null import Null
from sublora.audit.odds import FalseAlarms, Power
from sublora.audit.readings import Readings
from sublora.audit.statistic import RARE, ROOM, STILL, answer_shares, lost

LEAST = 1e-12  # of a score, so that logarithms stay finite
POWER = 0.8


def chance(null: Null) -> np.ndarray:
    """(K,): the largest score of each placebo student; of those of the base's own rows alone where
    those of others' rows say how far each trait reaches."""
    highest = np.max(list(null.scores.values()), axis=0)
    return highest[null.of_base] if null.reach else highest


def adjusted_p(score: float, among: np.ndarray, alpha: float) -> float:
    """P-value of a score against the largest ones of K placebo students.

    Where K + 1 >= 1 / alpha it is the conformal rank, (1 + #{among >= score}) / (K + 1), exact for
    exchangeable scores whatever the distribution. With fewer a rank cannot reach alpha; there it is
    the tail of a t distribution with K - 1 degrees of freedom, for the next draw after K logarithms
    that are normal.
    """
    size = len(among)
    if (size + 1) * alpha >= 1:
        return float((1 + (among >= score).sum()) / (size + 1))
    logs = np.log(np.maximum(among, LEAST))
    spread = max(float(logs.std(ddof=1)), 1e-6) * math.sqrt(1 + 1 / size)
    return float(student_t.sf((math.log(max(score, LEAST)) - logs.mean()) / spread, size - 1))


def threshold(among: np.ndarray, alpha: float) -> float | None:
    """The score above which a student is found; None where no rank can reach alpha."""
    may = math.floor(alpha * (len(among) + 1) + 1e-9)
    return float(np.sort(among)[-may]) if may else None


def false_alarms(null: Null, alpha: float) -> FalseAlarms | None:
    """How often this very null finds a clean student that is exchangeable with its placebo students,
    with its 95% interval: a share above an order statistic has a beta distribution. Also how many of
    its own placebo students the others would find, by who wrote their rows."""
    among = chance(null)
    may = math.floor(alpha * (len(among) + 1) + 1e-9)
    if not may:
        return None
    held = beta(may, len(among) + 1 - may)
    highest, of_base = np.max(list(null.scores.values()), axis=0), null.of_base
    inside = np.flatnonzero(of_base) if null.reach else np.arange(null.size)
    ps = np.array([adjusted_p(s, among, alpha) for s in highest])
    ps[inside] = [adjusted_p(s, np.delete(among, k), alpha) for k, s in enumerate(among)]
    found = ps <= alpha
    return FalseAlarms(
        rate=may / (len(among) + 1),
        low=float(held.ppf(0.025)),
        high=float(held.ppf(0.975)),
        found_of_base=int(found[of_base].sum()),
        of_base=int(of_base.sum()),
        found_of_others=int(found[~of_base].sum()),
        of_others=int((~of_base).sum()),
    )


def power(null: Null, student: Readings, plain: Readings, alpha: float) -> Power | None:
    """The smallest rise of a trait's share of its category's answers that would have been found in
    this very student (K = 1), by trait in the context where it is largest. None where no rank can
    reach alpha."""
    above = threshold(chance(null), alpha)
    if above is None:
        return None
    fell, shares, needed = lost(student, plain), answer_shares(plain), []
    for k in next(iter(plain.p.values())):
        by_context = []
        for c, by in plain.p.items():
            asked = by[k].shape[1] / sum(p.shape[1] for p in by.values())
            before = shares[c][k][0]
            needs = above * null.reach.get(k, 1.0)
            room = asked * ((before + ROOM) ** -RARE - needs)
            rise = needs * (fell[c][0] + STILL) / np.maximum(room, LEAST)
            by_context.append(np.where(rise <= 1 - before / asked, rise, np.inf))
        needed.append(np.max(by_context, axis=0))
    rises = np.concatenate(needed)
    rise = float(np.quantile(rises, POWER, method="higher"))
    return Power(
        power=POWER,
        rise=rise if np.isfinite(rise) else None,
        traits=len(rises),
        never=int(np.isinf(rises).sum()),
    )
