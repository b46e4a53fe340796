"""Keys and values of rows that all end in one column, so that rows of any lengths are read on together."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

ROOM = 32  # columns that are made at a time


class Part(NamedTuple):
    """Columns `first` to `last` of the rows `source` of a cache, for the rows `target` (ascending) of another one, where they stand at
    the end."""

    cache: "RowCache"
    source: Tensor
    target: Tensor
    first: int
    last: int


class _Layer(DynamicLayer):
    """Keeps columns to spare, so that what was read before is not copied at every token."""

    room: list[Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object):
        new, width = (key_states, value_states), self.get_seq_length()
        if not self.is_initialized:
            self.lazy_initialization(*new)
        end = width + key_states.shape[-2]
        if self.room is None or end > self.room[0].shape[-2]:
            held, self.room = (self.keys, self.values), [_empty(x, len(x), end + ROOM) for x in new]
            if width:
                self._write(held, 0)
        self._write(new, width)
        self.show(end)
        return self.keys, self.values

    def show(self, width: int) -> None:
        self.keys, self.values = (x[:, :, :width] for x in self.room)

    def _write(self, new: Sequence[Tensor], at: int) -> None:
        for room, x in zip(self.room, new, strict=True):
            room[:, :, at : at + x.shape[-2]] = x


class RowCache(Cache):
    """Every layer keeps all columns; where a layer looks back over a window only, its mask says so."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=_Layer)


def arranged(parts: Sequence[Part], rows: int, width: int, more: int = ROOM) -> RowCache:
    """A new cache of so many rows and columns made of parts of others, which stay as they are. Each row is in one part.
    There is room for the `more` columns that are still to be read, but for `ROOM` at most."""
    out = RowCache()
    for n, of in enumerate(parts[0].cache.layers):
        layer = _Layer()
        layer.lazy_initialization(of.keys, of.values)
        layer.room = [_empty(x, rows, width + min(more, ROOM)) for x in (of.keys, of.values)]
        for part in parts:
            held = part.cache.layers[n]
            start = width - (part.last - part.first)
            for room, x in zip(layer.room, (held.keys, held.values), strict=True):
                taken, at = x[:, :, part.first : part.last], room[:, :, start:width]
                if len(part.target) == rows:  # in one pass, which takes a third of the time
                    torch.index_select(taken, 0, part.source, out=at)
                else:
                    at.index_copy_(0, part.target, taken.index_select(0, part.source))
                if start:  # a masked column is still multiplied
                    room[:, :, :start].index_fill_(0, part.target, 0)
        layer.show(width)
        out.layers.append(layer)
    return out


def picked(cache: RowCache, rows: Tensor, first: int, last: int) -> RowCache:
    """A new cache of columns `first` to `last` of these rows."""
    whole = torch.arange(len(rows), device=rows.device)
    return arranged([Part(cache, rows, whole, first, last)], len(rows), last - first)


def _empty(like: Tensor, rows: int, width: int) -> Tensor:
    return like.new_empty(rows, like.shape[1], width, like.shape[-1])
