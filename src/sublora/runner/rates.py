"""Rates measured in finished runs, kept in the store, so that a plan can say hours for this machine.

A rate is the plan's own count of floating-point operations of whole steps, divided by the seconds
that one worker took for them; so whatever the count leaves out cancels. There is one for each
model, device and kind of step: that of the last run with enough of them.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from sublora.steps.step import Step
from sublora.store import Store, write_json_atomic

ENOUGH_SECONDS = 2.0  # of one worker on a kind; less is mostly warming up


@dataclass(frozen=True)
class Timing:
    """A step that one worker made as a whole, and how long it took."""

    step: Step
    seconds: float
    device: str


@dataclass(frozen=True)
class Rate:
    """`flops` a second of one worker on steps of a kind (`stage`); the run had `workers` of them."""

    model: str
    identity: Mapping[str, str]
    device: str
    stage: str
    flops: float
    workers: int
    seconds: float
    measured: str

    @property
    def key(self) -> tuple[object, ...]:
        return (tuple(sorted(self.identity.items())), self.device, self.stage)


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
    timings: Sequence[Timing], model: str | None, identity: Mapping[str, str], workers: int
) -> list[Rate]:
    """The rates that a run's steps with its main model give; kinds with little time are left out."""
    sums: dict[tuple[str, str], tuple[float, float]] = {}
    for t in timings:
        if t.step.model == model and t.step.cost.flops:  # others say nothing of the model
            flops, seconds = sums.get((t.device, t.step.kind), (0.0, 0.0))
            sums[t.device, t.step.kind] = (flops + t.step.cost.flops, seconds + t.seconds)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return [
        Rate(model or "", dict(identity), *key, flops / spent, workers, round(spent, 2), now)
        for key, (flops, spent) in sums.items()
        if spent >= ENOUGH_SECONDS
    ]


def keep_rates(store: Store, rates: Sequence[Rate]) -> None:
    """Add to `rates.json`; a rate of the same model, device and kind is replaced."""
    if not rates:
        return
    with FileLock(store.root / "locks" / "rates.lock"):
        kept = {r.key: r for r in (*read_rates(store), *rates)}
        write_json_atomic(store.root / "rates.json", [asdict(r) for r in kept.values()])


def read_rates(store: Store) -> list[Rate]:
    """All rates, oldest first. A file that cannot be read counts as empty: any run makes them anew."""
    try:
        body = json.loads((store.root / "rates.json").read_text("utf-8"))
        return sorted((Rate(**r) for r in body), key=lambda r: r.measured)
    except (OSError, TypeError, ValueError):
        return []


def known_identity(rates: Sequence[Rate], model: str | None, dtype: str) -> dict[str, str] | None:
    """The identity of a model that is not here as a folder, as the last run with it found it."""
    found = [r.identity for r in rates if r.model == model and r.identity.get("dtype") == dtype]
    return dict(found[-1]) if found else None


def rates_for(
    rates: Sequence[Rate], identity: Mapping[str, str], device: str | None
) -> dict[str, Rate]:
    """The rate of each kind for this model, on `device` if there is any of it, or else on the last one."""
    mine = [r for r in rates if dict(r.identity) == dict(identity)]
    if not mine:
        return {}
    chosen = device if any(r.device == device for r in mine) else mine[-1].device
    return {r.stage: r for r in mine if r.device == chosen}
