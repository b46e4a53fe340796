"""The tables of a run as declarative columns: a name, and its value from an effect."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from sublora.analysis.effects import Effect
from sublora.stats import holm


def corrected(p_values: Iterable[float], groups: Iterable[Hashable]) -> list[float]:
    """Holm's corrected p values, over each group; in the order given."""
    members: dict[Hashable, list[int]] = {}
    values = list(p_values)
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    out = [0.0] * len(values)
    for mine in members.values():
        for i, p in zip(mine, holm([values[i] for i in mine]), strict=True):
            out[i] = float(p)
    return out


def estimate_rows(effects: Sequence[Effect], level: float) -> list[dict[str, Any]]:
    """The rows of an experiment's results.csv; p values are corrected over the tested of a subject and group."""
    tested = [e for e in effects if e.tested]
    of = dict(
        zip(
            map(id, tested),
            corrected(
                (e.interval().p_value for e in tested),
                ((e.labels["trait"], e.labels["group"]) for e in tested),
            ),
            strict=True,
        )
    )
    sizes = list(dict.fromkeys(k for e in effects for k in e.n))
    rows = []
    for e in effects:
        i = e.interval(1 - level)
        rows.append(
            {
                "subject": e.labels["trait"],
                "group": e.labels["group"],
                "name": e.labels["name"],
                "estimate": i.estimate,
                "low": float(i.low) if math.isfinite(i.low) else None,
                "high": float(i.high) if math.isfinite(i.high) else None,
                "null": e.null if e.tested else None,
                "p_value": i.p_value if e.tested else None,
                "p_corrected": of.get(id(e)),
                "called": of[id(e)] < level if e.tested else None,
                **{f"n_{k}": e.n.get(k) for k in sizes},
            }
        )
    return rows
