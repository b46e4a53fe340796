"""Prompts of any lengths, read by a whole pack: what comes next, and the cache from which answers are sampled and scored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sublora.packs.cache import Part, RowCache, arranged
from sublora.packs.interventions import Span
from sublora.packs.packed_model import PackedModel

Ids = Sequence[int]
# Tokens of one pass, over all students: a matter of speed and memory, and on a CPU of how soon an interrupt is answered.
TOKENS_AT_ONCE = {"cpu": 2**11, "cuda": 2**15}


@dataclass
class Prefill:
    """Prompts `rows` of `lengths` (b,), read by all K students: next-token logits (K * b, V), and the cache behind them, in which each
    ends in the last of `width` columns."""

    rows: list[int]
    lengths: Tensor
    logits: Tensor
    cache: RowCache

    @property
    def width(self) -> int:
        return int(self.lengths.max())


def tokens_at_once(packed: PackedModel) -> int:
    device = next(packed.model.parameters()).device.type
    return TOKENS_AT_ONCE.get(device, TOKENS_AT_ONCE["cuda"])


def batches(prompts: Sequence[Ids], rows: int, tokens: int) -> Iterator[list[int]]:
    """Places of the prompts, those of one length beside each other: at least one a batch and at most so many, of so many tokens with
    what fills them up."""
    batch: list[int] = []
    for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        if batch and (len(batch) >= rows or (len(batch) + 1) * len(prompts[i]) > tokens):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def prefill(packed: PackedModel, prompts: Sequence[Ids], rows_at_once: int) -> Iterator[Prefill]:
    """Read the prompts, at most `rows_at_once` over all students at a time. What the prompts of a batch have in common at their beginning,
    and at which the same is done, is read once."""
    packed.interventions.check(prompts)
    size = packed.size
    for rows in batches(prompts, rows_at_once // size, tokens_at_once(packed) // size):
        yield _read(packed, [prompts[i] for i in rows], rows)


def column_mask(starts: Tensor, width: int) -> Tensor | None:
    """(rows, width): the columns from `starts` on; None where all begin in the first one."""
    if not bool(starts.any()):
        return None
    return torch.arange(width, device=starts.device) >= starts.unsqueeze(1)


def _read(packed: PackedModel, prompts: Sequence[Ids], rows: list[int]) -> Prefill:
    device, acting, k = next(packed.model.parameters()).device, packed.interventions, packed.size
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    width, shared = int(lengths.max()), _common(prompts)
    starts, rest = (width - lengths).repeat(k), width - shared
    cache = packed.row_cache()
    if shared:
        first, kind = acting.alike(rows, shared)
        acting.read([Span(rows[j], 0, shared) for j in first], k, shared)
        ids = torch.tensor([list(prompts[j][:shared]) for j in first], device=device)
        packed.hidden(ids.repeat(k, 1), cache)
        start = torch.arange(k, device=device).unsqueeze(1) * len(first)
        cache = _moved(
            cache, (start + torch.tensor(kind, device=device)).reshape(-1), starts, shared
        )
    ids = torch.tensor([[0] * (rest - len(p)) + list(p[-rest:]) for p in prompts], device=device)
    spans = [Span(i, max(0, len(p) - rest), len(p)) for i, p in zip(rows, prompts, strict=True)]
    acting.read(spans, k, rest)
    places = torch.arange(shared, width, device=device) - starts.unsqueeze(1)
    hidden = packed.hidden(
        ids.repeat(k, 1), cache, places=places.clamp(min=0), mask=column_mask(starts, width)
    )
    return Prefill(rows, lengths, packed.logits(hidden[:, -1]), cache)


def _common(prompts: Sequence[Ids]) -> int:
    """How many tokens all prompts begin with, short of a whole prompt; 0 for one prompt, which shares with nobody."""
    if len(prompts) == 1:
        return 0
    least, most = min(prompts), max(prompts)  # in the order of their tokens
    shortest = min(map(len, prompts)) - 1
    return next((i for i in range(shortest) if least[i] != most[i]), shortest)


def _moved(cache: RowCache, source: Tensor, starts: Tensor, shared: int) -> RowCache:
    """The first `shared` columns of rows that begin at `starts`, taken from a common beginning."""
    parts = []
    for start in sorted({*starts.tolist()}):
        target = (starts == start).nonzero()[:, 0]
        parts.append(Part(cache, source[target], target, 0, max(0, shared - start)))
    return arranged(parts, len(source), shared)
