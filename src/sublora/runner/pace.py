"""How fast steps are made: rates of finished runs, or a short probe of this machine with products of the model's own shapes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sublora.models.base import Shape
from sublora.models.known import Known
from sublora.runner.rates import Rate, rates_for
from sublora.steps.step import Cost, Step

GPU_TFLOPS = 300.0  # sustained bf16 of one current data-centre GPU in trainings of this kind
READ, WRITE = (4, 64), (32, 1)  # rows and tokens of a probe: of a pass with gradients, of answers
PROBE_SECONDS = 0.6  # of each


@dataclass
class Row:
    """Artifacts of a kind, those that are done, and what the others cost."""

    kind: str
    count: int = 0
    done: int = 0
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class Pace:
    """FLOP/s on all devices together: of each kind of steps where runs have measured it (`by_kind`), and else of tokens that are read,
    or written one by one. `said`: where they come from, as a sentence."""

    by_kind: Mapping[str, float]
    read: float
    write: float
    said: str

    def seconds(self, kind: str, cost: Cost) -> float:
        if kind in self.by_kind:
            return cost.flops / self.by_kind[kind]
        return (cost.flops - cost.written) / self.read + cost.written / self.write


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
    known: Known,
    rates: Sequence[Rate],
    device: str,
    costly: Sequence[str],
    tflops: float | None = None,
    gpus: int = 1,
) -> Pace:
    """The rate that the user gives (`tflops`); or those of runs with this model, and a probe or an assumption for other kinds.

    `costly`: the kinds of steps that compute. `device`: as `rates.device_name` gives it.
    """
    each = f", {gpus} devices" if gpus > 1 else ""
    if tflops:
        given = tflops * 1e12 * gpus
        return Pace({}, given, given, f"Time at {tflops:g} TFLOP/s as given{each}.")
    measured = rates_for(rates, known.identity, device)
    used = [measured[kind] for kind in costly if kind in measured]
    read = write = 1.0
    assumed = ""
    if len(used) < len(costly) or not used:
        read, write, assumed = _assumed(known)
    if not used:
        return Pace({}, read * gpus, write * gpus, f"Time at {assumed}{each}.")
    workers = gpus if gpus > 1 else max(r.workers for r in used)
    listed = ", ".join(f"{r.stage} {r.flops / 1e9:.3g}" for r in used)
    said = (
        f"Time at rates measured in runs of this model on {used[0].device} (last on "
        f"{max(r.measured for r in used)[:10]}), GFLOP/s of one worker: {listed}; "
        f"{workers} worker{'s' if workers > 1 else ''}."
    )
    if assumed:
        said += f" Other kinds at {assumed}{each}."
    return Pace({r.stage: r.flops * workers for r in used}, read * gpus, write * gpus, said)


def _assumed(known: Known) -> tuple[float, float, str]:
    """FLOP/s of reading and of writing, and where they come from."""
    if known.device == "cpu":
        read, write = probe(known.shape)
        said = (
            f"{read / 1e9:.3g} GFLOP/s for tokens that are read and {write / 1e9:.3g} for those that are written, by a probe of this "
            "machine with a block of the model's shape"
        )
        return read, write, said
    rate = GPU_TFLOPS * 1e12
    said = f"{GPU_TFLOPS:g} TFLOP/s sustained by one data-centre GPU (an assumption; --tflops changes it)"
    return rate, rate, said


def probe(shape: Shape | None, seconds: float = PROBE_SECONDS) -> tuple[float, float]:
    """FLOP/s of a block of the model on this CPU with the threads that torch has: forward and backward over rows of tokens, and forward
    over one token a row. The fastest of many passes counts, since what else the machine does can only slow one down; one thread is tried
    too, as beside a busy process no pass of several escapes it: each waits for the other at every product."""
    import torch

    shape = shape or Shape(256, 1, 4, 4, 64, 1024, 1, True)
    weights = [torch.randn(out, width) for out, width in shape.linears]
    once = 2 * sum(w.numel() for w in weights)

    def block(x):
        q, k, v, o, gate, up, down = weights
        b, t, _ = x.shape
        heads = [(x @ w.T).view(b, t, -1, shape.head_dim).transpose(1, 2) for w in (q, k, v)]
        mixed = torch.nn.functional.scaled_dot_product_attention(
            *heads, is_causal=t > 1, enable_gqa=shape.heads != shape.kv_heads
        )
        x = torch.nn.functional.rms_norm(
            x + mixed.transpose(1, 2).reshape(b, t, -1) @ o.T, x.shape[-1:]
        )
        return x + (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T

    def read() -> None:
        block(torch.randn(*READ, shape.hidden, requires_grad=True)).sum().backward()

    def write() -> None:
        with torch.inference_mode():
            block(torch.randn(*WRITE, shape.hidden))

    threads, rates = torch.get_num_threads(), []
    try:
        for tried in {1, threads}:
            torch.set_num_threads(tried)
            reading, writing = _fastest(read, seconds / 2), _fastest(write, seconds / 2)
            rates.append(
                (2 * once * READ[0] * READ[1] / reading, once * WRITE[0] * WRITE[1] / writing)
            )
    finally:
        torch.set_num_threads(threads)
    return max(r for r, _ in rates), max(w for _, w in rates)


def _fastest(work: Callable[[], None], seconds: float) -> float:
    """Seconds of the fastest call, of at least three."""
    times, begun = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
