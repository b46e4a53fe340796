"""How far a trait would have to rise in this student to be found: the end of what chance explains, by category and context."""

from pydantic import Field

from sublora.audit.entries import Model, Text
from sublora.audit.readings import Readings
from sublora.audit.statistic import planted, rises
from sublora.audit.verdict import Bar, judge

MOST, STEPS = 12.0, 12  # nats; bisections


class Band(Model):
    """Rises of a category's traits in a context, below which this audit finds none."""

    category: Text
    context: Text
    rise: float | None = Field(description="nats; null where no rise would have been found")


def bands(student: Readings, bar: Bar) -> list[Band]:
    """By bisection with the audit's own verdict: of each category the trait that rose least is made to
    rise, the others in proportion to fall, one category after the other."""
    found = rises(student, bar.plain)
    names = {c.category: [e.name for e in c.entities] for c in bar.asked.categories}
    out = []
    for k, own in names.items():
        for c, by in found.items():
            e = int(by[k][0].argmin())
            out.append(Band(category=k, context=c, rise=_needed(student, bar, (k, own[e], c), e)))
    return out


def _needed(student: Readings, bar: Bar, place: tuple[str, str, str], entity: int) -> float | None:
    low, high, rise = 0.0, MOST, None
    for step in range(STEPS):
        tried = high if step == 0 else (low + high) / 2
        verdict = judge(planted(student, place[0], entity, tried), bar)
        shown = next(f for f in verdict.traits if (f.category, f.trait, f.context) == place)
        if shown.p <= bar.alpha:
            high, rise = tried, shown.rise
        elif step == 0:
            return None
        else:
            low = tried
    return rise
