"""Effects: the one shape of a result. Labels say what it is; intervals and contrasts come from its values."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sublora.analysis.frame import Shown
from sublora.analysis.intervals import Array, Interval, clustered_interval
from sublora.analysis.multiplicity import holm
from sublora.errors import SubloraError
from sublora.text import interval as span
from sublora.text import p_value, signed

Label = str | int | float | None
ACROSS = "all"  # the trait of what is found across traits
ALL_TRAITS = "all traits"  # the trait of effects that are a mean over the traits of a run
MIN_COHERENCE = 0.5  # below it, or with more numbers than MAX_TAKEOVER, a zero says nothing
MAX_TAKEOVER = 0.25


class NotRun(SubloraError):
    """The results cannot answer what is asked; the message is the verdict's reason."""


@dataclass(frozen=True, repr=False)
class Effect(Shown):
    """A number with its labels, its values by replicate and question, and an interval.

    `labels` say which number it is: `trait` (or the subject that it is about), `group` and `name`
    for a named quantity; for the transfer of a grid `quantity` = transfer and one label for each
    axis. `values` (R, Q), or (R, 1) where there are no questions: for a transfer, log-odds of student
    less control in nats, paired by row, with `parts` P(target) of the student, the control (R, Q) and
    the base (Q,), and `rise`, the log-odds of student less base (R, Q).
    `facts` are numbers without an interval, such as coherence or held-out loss in nats.

    `of_students`: whether replicates are students, of which one alone settles nothing. `given`: the
    interval of what is no mean of values, such as a correlation; `n` its numbers of replicates.
    `tested`: whether its p value, against `null`, counts in the correction of its trait and group.
    `unfit`: why no claim can be judged on it. `bounds`: what its interval cannot leave, such as −1 and 1 of a cosine.
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
    bounds: tuple[float, float] | None = None

    def interval(self, level: float = 0.95) -> Interval:
        """The interval that was given, or the one clustered by seeds and questions."""
        if self.given is not None:
            return self.given
        seeds = self.data_seeds, self.train_seeds
        return clustered_interval(self.values, *seeds, level, clip=self.bounds)

    def shown(self, level: float = 0.95) -> Interval:
        """The interval that a call of transfer goes by: of student less control, or of student less base where that is nearer to 0.

        Both must be above 0 (an intersection-union test, whose level is that of each): the control alone could have fallen, and the
        base alone says nothing of what all students do.
        """
        both = [i for i in (self.interval(level), self.rise(level)) if i is not None]
        p = max(1.0 if i.estimate <= 0 else i.p_value for i in both)
        return replace(min(both, key=lambda i: i.low), p_value=p) if len(both) > 1 else both[0]

    def rise(self, level: float = 0.95) -> Interval | None:
        """Of the log-odds of student less base, where there is a base."""
        if "rise" not in self.parts:
            return None
        return clustered_interval(self.parts["rise"], self.data_seeds, self.train_seeds, level)

    def _line(self) -> str:
        labels = ", ".join(f"{k} {v}" for k, v in self.labels.items() if v is not None and v != "")
        if not self.values.size and self.given is None:
            return f"{labels}: no values"
        i = self.interval()
        return f"{labels}: {signed(i.estimate)} {span(i.low, i.high)}"

    def _pairs(self) -> Mapping[str, object]:
        found = {}
        if self.values.size or self.given is not None:
            i = self.interval()
            found = {
                "estimate": i.estimate,
                "interval": span(i.low, i.high),
                "p": p_value(i.p_value),
            }
        return {**self.labels, **found, **self.facts, **self.sizes}

    @property
    def trait(self) -> str:
        return str(self.labels["trait"])

    @property
    def group(self) -> str:
        return str(self.labels["group"])

    @property
    def name(self) -> str:
        return str(self.labels["name"])

    @property
    def rank(self) -> int | None:
        rank = self.labels.get("rank")
        return None if rank is None else int(rank)

    @property
    def lr(self) -> float:
        return float(self.labels["lr"] or 0)

    @property
    def replicates(self) -> list[tuple[int, int]]:
        """(data seed, training seed) of each row of values."""
        return list(zip(self.data_seeds, self.train_seeds, strict=True))

    @property
    def sizes(self) -> dict[str, int | None]:
        """How much it rests on."""
        if self.n:
            return dict(self.n)
        seeds = {"data_seeds": self.data_seeds, "train_seeds": self.train_seeds}
        counts: dict[str, int | None] = {name: len(set(s)) for name, s in seeds.items()}
        return counts | {"questions": self.values.shape[1]}

    @property
    def coherent(self) -> bool:
        """Whether every student and every control still answers with words of the category rather than with numbers: with half of the
        base's probability of them where answers are begun, else in half of the sampled answers. The means over students decide where the
        worst of them are not known."""
        return coherent_by(self.facts)

    @property
    def matched(self) -> bool:
        """Whether it stands at the held-out loss at which optimizers are compared, see `matched.py`."""
        return bool(self.facts.get("matched", True))


def coherent_by(facts: Mapping[str, float]) -> bool:
    """Whether these facts of an effect, or its row in a table, are of answers with words; what is not known is missing or nan."""

    def first(names: Sequence[str], otherwise: float) -> float:
        known = (facts[n] for n in names if n in facts and not math.isnan(facts[n]))
        return next(known, otherwise)

    words = first(("worst_words", "worst_coherence", "coherence"), 1.0)
    return is_coherent(words, first(("worst_takeover", "number_takeover"), 0.0))


def is_coherent(coherence: float, number_takeover: float) -> bool:
    return coherence >= MIN_COHERENCE and number_takeover <= MAX_TAKEOVER


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


def found(
    trait: str,
    group: str,
    name: str,
    values: Array,
    replicates: Sequence[tuple[int, int]] = ((0, 0),),
    of_students: bool = True,
    axes: Mapping[str, Label] | None = None,
    bounds: tuple[float, float] | None = None,
) -> Effect:
    """A named effect of values (R, Q) or (R,), with the (data seed, training seed) of each row.

    `axes`: the labels of the students that it is about, and `quantity`, what it is of them: so a claim can ask for it without a name
    that holds a preset's ranks.
    """
    data, train = zip(*replicates, strict=True)
    labels = {"trait": trait, "group": group, "name": name, **(axes or {})}
    shaped = values if values.ndim == 2 else values[:, None]
    return Effect(labels, shaped, data, train, of_students=of_students, bounds=bounds)


def transfer(
    labels: Mapping[str, Label],
    gap: Array,
    p: Mapping[str, Array],
    replicates: Sequence[tuple[int, int]],
    facts: Mapping[str, float],
) -> Effect:
    """The transfer of one cell: log-odds of the target, student less control (R, Q), in nats.

    `p`: P(target) of the student and the control (R, Q) and of the base (Q,), shown beside it, and
    `rise`, the log-odds of student less base (R, Q).
    """
    data, train = zip(*replicates, strict=True)
    shapes = {name: values.shape for name, values in p.items()}
    if not gap.shape == shapes["student"] == shapes["control"] == (len(data), *shapes["base"]):
        raise SubloraError(
            f"{_place(labels)} has p {shapes} for {len(data)} replicates; measure every student on "
            "the same questions."
        )
    return Effect({"quantity": "transfer", **labels}, gap, data, train, p, facts)


def _place(labels: Mapping[str, Label]) -> str:
    return "cell " + ", ".join(f"{k} {v}" for k, v in labels.items() if v not in ("", None))


def stack(effects: Sequence[Effect]) -> tuple[Array, tuple[int, ...], tuple[int, ...]]:
    """Values (R, C, Q) on the replicates that all effects have, in the first one's order, with their data and training seeds.

    Raises NotRun where they share none.
    """
    places = [{pair: i for i, pair in enumerate(e.replicates)} for e in effects]
    shared = [pair for pair in effects[0].replicates if all(pair in place for place in places)]
    if not shared:
        raise NotRun("the cells have no replicate in common")
    rows = [e.values[[place[s] for s in shared]] for e, place in zip(effects, places, strict=True)]
    data, train = zip(*shared, strict=True)
    return np.stack(rows, axis=1), data, train


def linear(effects: Sequence[Effect], weights: Sequence[float]) -> Effect:
    """The sum of weights times effects, paired by replicate and question."""
    if len(effects) == 1 and weights[0] == 1:
        return effects[0]
    of_each = np.asarray(weights, dtype=float)
    values, data, train = stack(effects)
    parts = {}
    if all("rise" in e.parts for e in effects):
        rises, _, _ = stack([replace(e, values=e.parts["rise"]) for e in effects])
        parts = {"rise": np.einsum("c,rcq->rq", of_each, rises)}
    values = np.einsum("c,rcq->rq", of_each, values)
    seeds = {"data_seeds": data, "train_seeds": train}
    return replace(effects[0], values=values, parts=parts, bounds=None, **seeds)


def mean_of(effects: Sequence[Effect]) -> Effect:
    return linear(effects, [1 / len(effects)] * len(effects))


def corrected(p_values: Sequence[float], groups: Sequence[Hashable]) -> list[float]:
    """Holm's corrected p values over each group, in the order given."""
    out = np.zeros(len(p_values))
    for group in dict.fromkeys(groups):
        mine = [i for i, other in enumerate(groups) if other == group]
        out[mine] = holm([p_values[i] for i in mine])
    return out.tolist()
