"""Rates measured in finished runs, kept in the store, so that a plan can say hours for this machine.

A rate is the plan's own count of floating-point operations of whole units, divided by the seconds that one worker took for them; so
whatever the count leaves out cancels. There is one for each model, device and stage: that of the last run with enough of them.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from sublora.cost import Costs
from sublora.store import Store, write_json_atomic
from sublora.units import Unit

ENOUGH_SECONDS = 2.0  # of one worker on a stage; less is mostly warming up


@dataclass(frozen=True)
class Timing:
    """A unit that one worker made as a whole, and how long it took."""

    unit: Unit
    seconds: float
    device: str


@dataclass(frozen=True)
class Rate:
    """`flops` a second of one worker on `stage` (a row of the plan); the run had `workers` of them."""

    model: str
    identity: Mapping[str, str]
    device: str
    stage: str
    flops: float
    workers: int
    seconds: float
    measured: str


def device_name(device: str, threads: int) -> str:
    """What computes: the GPU's name, or the CPU's with the threads of one worker."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(torch.device(device))
    return f"{_cpu()}, {threads} thread{'s' if threads > 1 else ''}"


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def rates_of(
    timings: Sequence[Timing], costs: Costs, model: str, identity: Mapping[str, str], workers: int
) -> list[Rate]:
    """The rates that a run's timings give; stages with less than ENOUGH_SECONDS are left out."""
    flops: dict[tuple[str, str], float] = {}
    seconds: dict[tuple[str, str], float] = {}
    for timing in timings:
        stage, work = costs.unit(timing.unit)
        if not work.flops:  # a transformation of rows says nothing of the model
            continue
        key = (timing.device, stage)
        flops[key] = flops.get(key, 0.0) + work.flops
        seconds[key] = seconds.get(key, 0.0) + timing.seconds
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return [
        Rate(
            model,
            dict(identity),
            device,
            stage,
            flops[device, stage] / spent,
            workers,
            round(spent, 2),
            now,
        )
        for (device, stage), spent in seconds.items()
        if spent >= ENOUGH_SECONDS
    ]


def keep_rates(store: Store, rates: Sequence[Rate]) -> None:
    """Add to `rates.json`; a rate of the same model, device and stage is replaced."""
    if not rates:
        return
    with FileLock(store.root / "locks" / "rates.lock"):
        kept = {_key(r): r for r in read_rates(store)} | {_key(r): r for r in rates}
        write_json_atomic(store.root / "rates.json", [asdict(r) for r in kept.values()])


def _key(rate: Rate) -> tuple[Any, ...]:
    return (tuple(sorted(rate.identity.items())), rate.device, rate.stage)


def read_rates(store: Store) -> list[Rate]:
    """All rates, oldest first. A file that cannot be read counts as empty: rates are an estimate's help and made anew by any run."""
    try:
        body = json.loads((store.root / "rates.json").read_text("utf-8"))
        return sorted((Rate(**r) for r in body), key=lambda r: r.measured)
    except (OSError, TypeError, ValueError):
        return []


def known_identity(rates: Sequence[Rate], model: str, dtype: str) -> dict[str, str] | None:
    """The identity of a model that is not here as a folder, as the last run with it found it."""
    found = [r.identity for r in rates if r.model == model and r.identity.get("dtype") == dtype]
    return dict(found[-1]) if found else None


def rates_for(
    rates: Sequence[Rate], identity: Mapping[str, str], device: str | None
) -> dict[str, Rate]:
    """The rate of each stage for this model, on `device` if there is any of it, or else on the device used last."""
    mine = [r for r in rates if dict(r.identity) == dict(identity)]
    if not mine:
        return {}
    chosen = device if any(r.device == device for r in mine) else mine[-1].device
    return {r.stage: r for r in mine if r.device == chosen}
