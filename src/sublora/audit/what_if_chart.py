"""The figure of an audit's --what-if: what each arm leaves of a trait's rise, and its held-out loss beside it."""

from sublora.analysis.page import Chart, Point, Series
from sublora.audit.entries import WhatIf
from sublora.report.figures import plate
from sublora.text import short

LOOKS = {
    "as trained": "ink",
    "trait stays": "student",
    "removes all": "full",
    "answers broken": "control",
    "base, untrained": "muted",
}


def what_if_chart(found: WhatIf) -> str | None:
    """An inline SVG of the arms, the smallest held-out loss first, by the first trait whose shares are known."""
    places = range(len(found.traits))
    place = next((k for k in places if any(arm.traits[k].share for arm in found.arms)), None)
    if place is None:
        return None
    trait = found.traits[place]
    share, loss = f"rise that stays, {short(trait.context, 12)}", "held-out loss, nats a token"
    base = Point(label="base", estimate=found.base_heldout_loss or 0)
    points = [("base, untrained", Point(label="base", estimate=0), base)]
    for i, arm in enumerate(found.arms):
        left = arm.traits[place].share
        losses = [value for value in arm.heldout_loss.seeds if value is not None]
        if left is None or len(losses) < len(arm.heldout_loss.seeds):
            continue
        kind = "as trained" if i == 0 else "removes all" if arm.removes else "trait stays"
        name = {"label": arm.name, "strong": arm.name == found.recommended}
        # an interval can be far wider than what it is about
        low, high = max(left.low, -0.5), min(left.high, 2.5)
        ends = {"low": low, "high": high} if high > low else {}
        mean = sum(losses) / len(losses)
        points.append(
            (
                kind if arm.sound else "answers broken",
                Point(**name, estimate=left.estimate, **ends),
                Point(**name, estimate=mean, low=min(losses), high=max(losses)),
            )
        )
    points.sort(key=lambda entry: entry[2].estimate)
    removing = ", ".join(found.removing) or "none"
    chart = Chart(
        kind="rows",
        beside=True,
        name="what-if",
        title=f"What is left of {short(trait.trait, 24)}, and the held-out loss",
        axis="",
        interval=f"{found.level:.0%} interval over seeds; range of the losses",
        series=tuple(
            Series(name=kind, panel=panel, look=LOOKS[kind], points=(entry[k],))
            for k, panel in enumerate((share, loss))
            for kind, *entry in points
        ),
        alt=f"{len(found.arms)} arms with the share of the rise that stays and the held-out loss; those that remove the trait: {removing}. "
        "Every number is in the table.",
        caption="",
    )
    return plate(chart)
