"""What a recipe will take on this machine, without loading its model: its steps, what is done, and the pace of the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sublora.experiments.experiment import Experiment
from sublora.models.base import model_source
from sublora.models.known import Known, known_model
from sublora.runner.local import crew
from sublora.runner.pace import Pace, Row, pace_of, rows_of
from sublora.runner.rates import Rate, device_name, known_identity, read_rates
from sublora.steps.step import Step
from sublora.store import Store


@dataclass(frozen=True)
class Estimate:
    """`rows`: the steps by kind. `missing`: those of which something is not there. `counted`: whether it is known what is there, which it
    is not for a model that no run has loaded yet; `local`: whether its files are on this machine."""

    known: Known
    steps: tuple[Step, ...]
    rows: tuple[Row, ...]
    missing: tuple[Step, ...]
    pace: Pace
    local: bool
    counted: bool

    @property
    def seconds(self) -> float:
        return sum(self.pace.seconds(row.kind, row.cost) for row in self.rows)


def estimate(
    recipe: Experiment,
    store: Store,
    device: str,
    threads: int,
    tflops: float | None = None,
    gpus: int = 1,
) -> Estimate:
    """Raises SubloraError where the data, or the model's shape, is not known."""
    name, rates = recipe.model_name, read_rates(store)
    local = name is None or Path(model_source(name)).is_dir()
    identity = None if local else known_identity(rates, name, recipe.loading()["dtype"])
    known = recipe.known(identity or {"weights": f"{name}@plan"})
    counted = local or identity is not None
    steps, rows, missing = _left(recipe, known, store if counted else None)
    workers, each = crew(missing, device, threads)
    beside = max(workers, gpus) if local or gpus > 1 else None
    pace = own_pace(known, missing, rows, rates, device, beside, each, tflops)
    return Estimate(known, steps, rows, missing, pace, local, counted)


def own_pace(
    known: Known,
    missing: Sequence[Step],
    rows: Sequence[Row],
    rates: Sequence[Rate],
    device: str,
    workers: int | None,
    threads: int,
    tflops: float | None = None,
) -> Pace:
    """That of so many workers like this machine (None: as many as finished runs had), each with so many threads; what has no model is
    taken for micro."""
    import torch

    def probed(kinds: Sequence[str]) -> Mapping[str, float]:
        from sublora.runner import probe  # brings transformers, which most plans do without

        shown = known if known.shape else known_model("micro")
        return probe.probe(shown, [s for s in missing if s.kind in kinds], device, threads)

    costly = [row.kind for row in rows if row.cost.flops]
    # a cluster may have other devices, and a model whose files are elsewhere is hardly meant for this CPU
    here = (device == "cpu" and known.device == "cpu") or (
        torch.cuda.is_available() and bool(known.chat)
    )
    where = device_name(device, threads) if here else device
    asked = (costly, probed if here else None, tflops, workers)
    return pace_of(known.identity, rates, where, *asked)


def seconds_of(
    recipe: Experiment, store: Store, device: str, threads: int, **rate: Any
) -> Callable[[Experiment], float]:
    """The seconds of this recipe, or of one with less in it, at one pace, which is measured when it is first asked for."""
    whole: list[Estimate] = []

    def seconds(part: Experiment) -> float:
        if not whole:
            whole.append(estimate(recipe, store, device, threads, **rate))
        known = replace(whole[0].known, kept={})
        _, rows, _ = _left(part, known, store if whole[0].counted else None)
        return replace(whole[0], rows=rows).seconds

    return seconds


def _left(
    recipe: Experiment, known: Known, store: Store | None
) -> tuple[tuple[Step, ...], tuple[Row, ...], tuple[Step, ...]]:
    """The steps, in rows by kind, and those of which the store lacks something."""
    steps = tuple(recipe.plan(known))
    there = {n for s in steps for n in s.makes if store.has(n)} if store else set()
    missing = tuple(s for s in steps if not there.issuperset(s.makes))
    return steps, tuple(rows_of(steps, there)), missing
