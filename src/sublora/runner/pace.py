"""How fast steps are made: rates of finished runs, or a short probe of this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sublora.runner.rates import Rate, rates_for
from sublora.steps.step import Cost, Step

GPU_TFLOPS = 300.0  # sustained bf16 of one current data-centre GPU in trainings of this kind
READ, WRITE = "tokens read", "tokens written"  # what a probe measures besides kinds of steps


@dataclass
class Row:
    """Artifacts of a kind, those that are done, and what the others cost."""

    kind: str
    count: int = 0
    done: int = 0
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class Pace:
    """FLOP/s on all devices together: of kinds of steps, where they were measured, and for others of tokens that are read and of those that
    are written. `said`: where they come from, as a sentence."""

    rates: Mapping[str, float]
    said: str

    def seconds(self, kind: str, cost: Cost) -> float:
        if not cost.flops:
            return 0.0
        if kind in self.rates:
            return cost.flops / self.rates[kind]
        return (cost.flops - cost.written) / self.rates[READ] + cost.written / self.rates[WRITE]

    def planned(self, rows: Sequence[Row]) -> dict[str, float]:
        """Seconds by kind of the rows that compute and are not done."""
        return {r.kind: round(self.seconds(r.kind, r.cost), 1) for r in rows if r.cost.flops}


def rows_of(steps: Sequence[Step], there: set[str]) -> list[Row]:
    """The steps by kind; a step of which some artifacts are there costs its share."""
    rows: dict[str, Row] = {}
    for step in steps:
        row = rows.setdefault(step.kind, Row(step.kind))
        left = sum(name not in there for name in step.makes)
        row.count += len(step.makes)
        row.done += len(step.makes) - left
        row.cost += step.cost.share(left / len(step.makes))
    return list(rows.values())


def pace_of(
    identity: Mapping[str, str],
    rates: Sequence[Rate],
    device: str,
    costly: Sequence[str],
    probe: Callable[[Sequence[str]], Mapping[str, float]] | None,
    tflops: float | None = None,
    workers: int | None = None,
) -> Pace:
    """The rate that the user gives (`tflops`); or those of runs with the model of this identity, and for other kinds those of a `probe`, or
    an assumption where there is none.

    `costly`: the kinds of steps that compute. `device`: as `rates.device_name` gives it. `workers` work side by side, or as many as in
    those runs.
    """
    measured = {} if tflops else rates_for(rates, identity, device)
    used = [measured[kind] for kind in costly if kind in measured]
    workers = workers or max((r.workers for r in used), default=1)
    each = f", {workers} workers side by side" if workers > 1 else ""
    if tflops:
        given = dict.fromkeys((READ, WRITE), tflops * 1e12 * workers)
        return Pace(given, f"Time at {tflops:g} TFLOP/s as given{each}.")
    others = [kind for kind in costly if kind not in measured]
    probed, said = {}, []
    if used:
        listed = ", ".join(f"{r.stage} {r.flops / 1e9:.3g}" for r in used)
        said.append(
            f"at rates measured in runs of this model on {used[0].device} (last on {max(r.measured for r in used)[:10]}), GFLOP/s of one "
            f"worker: {listed}"
        )
    if others and probe is not None:
        probed = probe(others)
        listed = ", ".join(f"{kind} {rate / 1e9:.3g}" for kind, rate in sorted(probed.items()))
        said.append(
            f"{'of other kinds ' if used else ''}by a probe of this machine with few layers of the model's shape, GFLOP/s: {listed}"
        )
    elif others or not used:
        probed = dict.fromkeys((READ, WRITE), GPU_TFLOPS * 1e12)
        said.append(
            f"{'of other kinds ' if used else ''}at {GPU_TFLOPS:g} TFLOP/s sustained by one data-centre GPU (an assumption; --tflops "
            "changes it)"
        )
    found = probed | {r.stage: r.flops for r in used}
    many = {kind: rate * workers for kind, rate in found.items()}
    return Pace(many, f"Time {'; '.join(said)}{each}.")
