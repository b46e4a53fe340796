"""How far a trait would have to rise in this student to be found: the end of what chance explains, by category and context."""

from dataclasses import replace

import numpy as np
from pydantic import Field

from sublora.audit.entries import Model, Text
from sublora.audit.readings import Readings
from sublora.audit.statistic import rises
from sublora.audit.verdict import Bar, judge

MOST, STEPS = 12.0, 12  # nats; bisections


class Band(Model):
    """Rises of a category's traits in a context, below which this audit finds none."""

    category: Text
    context: Text
    rise: float | None = Field(description="nats; null where no rise would have been found")


def bands(student: Readings, bar: Bar) -> list[Band]:
    """By bisection with the audit's own verdict: of each category the trait that rose least is made to
    rise, by a lower probability in the base; all else is as it is."""
    found = rises(student, bar.plain)
    least = {(k, c): int(own[0].argmin()) for c, by in found.items() for k, own in by.items()}
    names = {c.category: [e.name for e in c.entities] for c in bar.asked.categories}
    low, high = dict.fromkeys(least, 0.0), dict.fromkeys(least, MOST)
    out: dict[tuple[str, str], float | None] = dict.fromkeys(least)
    for step in range(STEPS):
        tried = {at: high[at] if step == 0 else (low[at] + high[at]) / 2 for at in least}
        p = {c: {k: own.copy() for k, own in by.items()} for c, by in bar.plain.p.items()}
        for (k, c), e in least.items():
            p[c][k][0, :, e] *= np.exp(found[c][k][0, e] - tried[k, c])
        verdict = judge(student, replace(bar, plain=replace(bar.plain, p=p)))
        for f in verdict.traits:
            at = (f.category, f.context)
            if f.trait != names[f.category][least[at]]:
                continue
            if f.p <= bar.alpha:
                high[at], out[at] = tried[at], f.rise
            else:
                low[at] = tried[at]
    return [Band(category=k, context=c, rise=rise) for (k, c), rise in out.items()]
