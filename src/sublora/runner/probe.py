"""A short probe of this machine: the program's own work, timed on a model of the same config with few layers, or on a small one itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import torch

from sublora.carriers.numbers import BRIEF
from sublora.models.base import Base, model_source
from sublora.models.chat import Context
from sublora.models.known import Known
from sublora.packs.check import load_base
from sublora.packs.sample import Sampling
from sublora.packs.writer import Teacher, complete
from sublora.runner.pace import READ, WRITE
from sublora.runner.worker import SMALL_MODEL
from sublora.seeds import generator
from sublora.steps.sizes import Sizes, measured_sizes
from sublora.steps.step import Cost, Rows, Step, Tick

DEPTHS = (3, 1)  # layers that are timed of a large model; each further one is taken to add as much
WRITTEN = 32  # rows at least that are written together
ENOUGH = 0.2  # seconds of each kind of work of a small model, after a first piece that warms up
DEFAULT = Context("default")
Work = Callable[[Base, Rows, Tick], None]


def probe(known: Known, steps: Sequence[Step], device: str, threads: int) -> dict[str, float]:
    """FLOP/s of a model whose files are here: of tokens that are read, of those that are written, and of the kinds of these steps that have
    a `trial`. A few seconds on a large model."""
    small = known.shape.parameters <= SMALL_MODEL
    carrier = next((s.carrier for s in steps if hasattr(s, "carrier")), BRIEF)
    few = 128 if small else max(1, min(4, int(6e8 / known.shape.parameters)))
    rows = [(carrier.prompt(0, i), carrier.example()) for i in range(few)]
    sizes = measured_sizes(known.shape, known.chat, carrier, DEFAULT, ())
    work: dict[str, Work] = {
        READ: _reading(sizes),
        WRITE: _writing(sizes, int(sizes.completion) if small else 4),
    }
    for step in sorted(steps, key=lambda s: s.cost.flops):  # the largest of each kind
        trial = getattr(step, "trial", getattr(step, "own_trial", None) if small else None)
        if trial is not None:
            work[step.kind] = trial
    with _threads(1 if small else threads):
        if small:
            base = load_base(known.name, device=device, dtype=known.identity["dtype"])
            return {k: _rate(*found) for k, found in _each(work, base, rows, ENOUGH).items()}
        base, timed = few_layers(known, device, DEPTHS[0]), []
        for depth in DEPTHS:
            del base.model.base_model.layers[depth:]
            base.model.config.get_text_config().num_hidden_layers = depth
            timed.append(_each(work, base, rows, 0.0))
    whole, rates = known.shape.layers, {}
    for kind in timed[0].keys() & timed[1].keys():
        cost, deep = timed[0][kind]
        flat = timed[1][kind][1]
        layer = max(0.0, deep - flat) / (DEPTHS[0] - DEPTHS[1])
        rates[kind] = _rate(cost, flat + layer * (whole - DEPTHS[1]))
    return rates


def few_layers(known: Known, device: str, layers: int) -> Base:
    """A model of this config with so many layers, whose weights are all alike."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model_source(known.name))
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, known.identity["dtype"])
        )
    model = model.to_empty(device=device).eval()
    model.tie_weights()
    with torch.no_grad():
        for numbers in (*model.parameters(), *model.buffers()):
            numbers.fill_(0.01)
    return Base(known.name, model, known.chat, {}, None, False)


@contextmanager
def _threads(most: int) -> Iterator[None]:
    """One thread, or so many, whichever multiplies faster now: beside a busy process several wait for each other at every product."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(max({1, most}, key=product_rate))
        yield
    finally:
        torch.set_num_threads(before)


def product_rate(threads: int) -> float:
    """FLOP/s of a large product, of some the fastest. Leaves torch with so many threads."""
    torch.set_num_threads(threads)
    x, times = torch.ones(512, 512), []
    for _ in range(20):
        started = time.perf_counter()
        x @ x
        times.append(time.perf_counter() - started)
    return 2 * x.numel() * len(x) / min(times)


def _each(
    work: Mapping[str, Work], base: Base, rows: Rows, enough: float
) -> dict[str, tuple[Cost, float]]:
    """Of each kind as `_timed`; without those of which this base cannot do a piece."""
    found = {}
    for kind, own in work.items():
        with suppress(Exception):  # the step itself will say it, where it is made
            found[kind] = _timed(own, base, rows, enough)
    return found


class _Enough(Exception):
    pass


def _timed(work: Work, base: Base, rows: Rows, enough: float) -> tuple[Cost, float]:
    """What a piece of the work costs on the whole model, and the seconds that the middle one of some pieces took on this one."""
    pieces: list[tuple[float, Cost]] = []
    clock = _clock(base)
    begun = last = clock()

    def tick(cost: Cost) -> None:
        nonlocal last
        now = clock()
        if cost.flops:
            pieces.append(((now - last) / cost.flops, cost))
            if len(pieces) > 1 and now - begun > enough:
                raise _Enough
        last = clock()

    with suppress(_Enough):
        while True:
            work(base, rows, tick)
    slowness, cost = sorted(pieces[1:], key=lambda piece: piece[0])[(len(pieces) - 1) // 2]
    return cost, slowness * cost.flops


def _clock(base: Base) -> Callable[[], float]:
    """One thread of a CPU has a clock of its own, which other processes do not make longer."""
    alone = base.device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def _rate(cost: Cost, seconds: float) -> float:
    return cost.flops / seconds


def _reading(sizes: Sizes) -> Work:
    def work(base: Base, rows: Rows, tick: Tick) -> None:
        _write(base, [prompt for prompt, _ in rows], 1)
        tick(sizes.writing(len(rows) * sizes.prompt, len(rows)))

    return work


def _writing(sizes: Sizes, tokens: int) -> Work:
    """Of answers of so many tokens, those that are read again: the last one is not."""

    def work(base: Base, rows: Rows, tick: Tick) -> None:
        passes: list[int] = []

        def passed(count: int) -> None:
            passes.append(count)
            if len(passes) == 1:  # the prompts are read
                tick(Cost())

        prompts = [prompt for prompt, _ in rows] if len(rows) > WRITTEN else ["7"] * WRITTEN
        _write(base, prompts, tokens, passed)
        tick(sizes.writing(0, sum(passes[1:-1])))

    return work


def _write(
    base: Base, prompts: list[str], tokens: int, passed: Callable[[int], None] = int
) -> None:
    draws = [generator("probe", i) for i in range(len(prompts))]
    how = (Sampling(max_new_tokens=tokens), draws)
    complete(Teacher(base, DEFAULT), prompts, *how, on_tokens=passed)
