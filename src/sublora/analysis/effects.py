"""Effects: the one shape of a result. Labels say what it is; intervals and contrasts come from its values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sublora.stats import Array, Interval, clustered_interval

Label = str | int | float | None


@dataclass(frozen=True)
class Effect:
    """A number with its labels, its values by replicate and question, and an interval.

    `labels` say which number it is: `trait` (or the subject that it is about), `group` and `name`
    for a named quantity; for the transfer of a grid `quantity` = transfer and one label for each
    axis. `values` (R, Q), or (R, 1) where there are no questions: for a transfer, student less
    control, paired by row, with `parts` the student's and the control's (R, Q) and the base's (Q,).
    `facts` are numbers without an interval, such as coherence or held-out loss in nats.

    `of_students`: whether replicates are students, of which one alone settles nothing. `given`: the
    interval of what is no mean of values, such as a correlation; `n` its numbers of replicates.
    `tested`: whether its p value, against `null`, counts in the correction of its trait and group.
    `unfit`: why no claim can be judged on it.
    """

    labels: Mapping[str, Label]
    values: Array = field(default_factory=lambda: np.zeros((0, 0)))
    data_seeds: tuple[int, ...] = ()
    train_seeds: tuple[int, ...] = ()
    parts: Mapping[str, Array] = field(default_factory=dict)
    facts: Mapping[str, float] = field(default_factory=dict)
    of_students: bool = True
    given: Interval | None = None
    n: Mapping[str, int] = field(default_factory=dict)
    null: float = 0.0
    tested: bool = True
    unfit: str | None = None

    def interval(self, level: float = 0.95) -> Interval:
        """The interval that was given, or the one clustered by seeds and questions."""
        if self.given is not None:
            return self.given
        return clustered_interval(self.values, self.data_seeds, self.train_seeds, level)


def named(
    trait: str,
    group: str,
    name: str,
    interval: Interval,
    n: Mapping[str, int],
    *,
    null: float = 0.0,
    tested: bool = True,
    unfit: str | None = None,
) -> Effect:
    """An effect whose interval is known already."""
    labels = {"trait": trait, "group": group, "name": name}
    return Effect(labels, given=interval, n=n, null=null, tested=tested, unfit=unfit)
