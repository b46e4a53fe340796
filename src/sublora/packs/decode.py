"""Answers of a whole pack, token by token: rows of any lengths side by side, and where one ends, a waiting prompt takes its place.

Samples of a prompt that begin alike share one row of the cache until they part.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sublora.packs.cache import Part, RowCache, arranged
from sublora.packs.packed_model import PackedModel
from sublora.packs.prefill import Ids, Prefill, column_mask
from sublora.packs.sample import Sampling, draw_tokens

DEAD = 0.2  # rows that have ended are taken out when there are so many of them
CACHE_BYTES = {"cpu": 2**30, "cuda": 2**33}
OPERATIONS = (
    4e10  # of a step on a CPU, which more rows only make longer; 64 rows are never too many
)


class Sample(NamedTuple):
    """A finished answer: token ids without the stop token."""

    student: int
    row: int
    number: int
    ids: list[int]


@dataclass(frozen=True)
class _Node:
    """Samples of a student (in the stack's order) and a prompt that have drawn the same tokens so far, `count` of them, and where in the
    cache they stand; without samples it only keeps its place. `uniforms` (S, tokens)."""

    student: int
    row: int
    place: int
    samples: list[int]
    uniforms: np.ndarray
    count: int = 0
    token: int = 0


def sample_rows(
    packed: PackedModel,
    filled: Iterable[tuple[Prefill, np.ndarray]],
    sampling: Sampling,
    stop_ids: Ids,
    rows_at_once: int,
    on_tokens: Callable[[int], None] = lambda _: None,
) -> Iterator[Sample]:
    """Samples as they are finished, in no order that matters. Prompts come with uniform numbers (K, b, S, max_new_tokens); the next ones are
    read as soon as no more than `rows_at_once` rows, over all students, or as many as fit, would be at work with them.
    `on_tokens` is told after every step how many tokens were drawn."""
    answers = _Answers(packed, sampling, set(stop_ids))

    def step() -> Iterator[Sample]:
        drawn = sum(len(node.samples) for node in answers.nodes)
        yield from answers.step()
        on_tokens(drawn)

    for prompts, uniforms in filled:
        answers.add(prompts, uniforms)
        most = min(rows_at_once, rows_that_fit(packed, prompts, sampling.max_new_tokens))
        while answers.nodes and len(answers.nodes) + len(prompts.logits) > most:
            yield from step()
    while answers.nodes:
        yield from step()


def rows_that_fit(packed: PackedModel, filled: Prefill, new_tokens: int) -> int:
    """Rows that are answered at once, over all students."""
    device = filled.logits.device.type
    kept = [x[:1, :, :1] for layer in filled.cache.layers for x in (layer.keys, layer.values)]
    row = sum(x.numel() * x.element_size() for x in kept) * (filled.width + new_tokens)
    fit = CACHE_BYTES.get(device, CACHE_BYTES["cuda"]) // row
    if device == "cpu":
        parameters = sum(p.numel() for p in packed.model.parameters())
        fit = min(fit, max(64, int(OPERATIONS / (2 * parameters))))
    return max(1, fit)


@dataclass
class _Rows:
    """Rows that are read: of each the logits of what comes next, its cache, and the column it starts at; all end in column `width`."""

    logits: Tensor
    cache: RowCache
    starts: Tensor
    width: int


class _Answers:
    """The rows at work: `stride` of each student, one student's after the other's, each with its node."""

    def __init__(self, packed: PackedModel, sampling: Sampling, stops: set[int]) -> None:
        self.packed, self.sampling, self.stops = packed, sampling, stops
        self.nodes: list[_Node] = []
        self.drawn: dict[tuple[int, int, int], list[int]] = {}

    @property
    def stride(self) -> int:
        return len(self.nodes) // self.packed.size

    def add(self, filled: Prefill, uniforms: np.ndarray) -> None:
        """Put the rows of a prefill beside those at work."""
        k, b, samples, _ = uniforms.shape
        starts = (filled.width - filled.lengths).repeat(k)
        more = _Rows(filled.logits, filled.cache, starts, filled.width)
        new = [
            _Node(i, row, i * b + j, list(range(samples)), uniforms[i, j])
            for i in range(k)
            for j, row in enumerate(filled.rows)
        ]
        if not self.nodes:
            self.rows, self.nodes = more, new
            return
        old = [(self.rows, node) for node in self.nodes if node.samples]
        self._lay_out([*old, *((more, node) for node in new)], [(more, n) for n in new[::b]])

    def step(self) -> list[Sample]:
        """Draw a token in every row, and read it. Returns the samples that it ends."""
        grown, ended = self._grown([node for node in self.nodes if node.samples])
        if not grown:
            self.nodes = []
            return ended
        places = {node.place: node for node in grown}
        if len(places) == len(grown) >= (1 - DEAD) * len(self.nodes):  # each keeps its place
            self.nodes = [places.get(place, _dead(old)) for place, old in enumerate(self.nodes)]
        else:
            spare = [(self.rows, node) for node in self.nodes[:: self.stride]]
            self._lay_out([(self.rows, node) for node in grown], spare)
        rows, acting = self.rows, self.packed.interventions
        acting.write([node.row for node in self.nodes], 1)
        ids = torch.tensor([[node.token] for node in self.nodes], device=rows.starts.device)
        places = (rows.width - rows.starts).unsqueeze(1)
        rows.width += 1
        mask = column_mask(rows.starts, rows.width)
        hidden = self.packed.hidden(ids, rows.cache, places=places, mask=mask)
        rows.logits = self.packed.logits(hidden[:, -1])
        return ended

    def _grown(self, nodes: list[_Node]) -> tuple[list[_Node], list[Sample]]:
        """What the rows become by one more token, and the samples that end."""
        if not nodes:  # where no sample was asked for
            return [], []
        u = np.zeros((len(nodes), max(len(node.samples) for node in nodes)))
        for own, node in zip(u, nodes, strict=True):
            own[: len(node.samples)] = node.uniforms[node.samples, node.count]
        logits = self.rows.logits
        if len(nodes) < len(logits):
            logits = logits[torch.tensor([n.place for n in nodes], device=logits.device)]
        drawn = draw_tokens(logits, self.sampling, torch.from_numpy(u)).tolist()
        grown: dict[tuple[int, int], _Node] = {}
        ended = []
        for node, tokens in zip(nodes, drawn, strict=True):
            last = node.count + 1 == self.sampling.max_new_tokens
            for number, token in zip(node.samples, tokens, strict=False):
                key = (node.student, node.row, number)
                ids = self.drawn.setdefault(key, [])
                if token not in self.stops:
                    ids.append(token)
                if last or token in self.stops:
                    ended.append(Sample(*key, self.drawn.pop(key)))
                    continue
                fresh = replace(node, samples=[], count=node.count + 1, token=token)
                grown.setdefault((node.place, token), fresh).samples.append(number)
        return list(grown.values()), ended

    def _lay_out(self, taken: list[tuple[_Rows, _Node]], spare: list[tuple[_Rows, _Node]]) -> None:
        """Make rows of those that are taken, as many for each student: where there are fewer, a spare one of its own is repeated."""
        own = [[one for one in taken if one[1].student == i] for i in range(len(spare))]
        most = max(map(len, own))
        for mine, (rows, node) in zip(own, spare, strict=True):
            mine += [(rows, _dead(node))] * (most - len(mine))
        every = [one for mine in own for one in mine]
        lengths = [rows.width - rows.starts[node.place] for rows, node in every]
        starts = max(lengths) - torch.stack(lengths)
        width, parts = int(max(lengths)), []
        logits = self.rows.logits.new_empty(len(every), self.rows.logits.shape[-1])
        for source in {id(rows): rows for rows, _ in every}.values():
            at = [t for t, (rows, _) in enumerate(every) if rows is source]
            target, places = torch.tensor([at, [every[t][1].place for t in at]]).to(starts.device)
            first = max(0, source.width - width)
            parts.append(Part(source.cache, places, target, first, source.width))
            logits[target] = source.logits[places]
        left = self.sampling.max_new_tokens - min(node.count for _, node in every)
        self.rows = _Rows(logits, arranged(parts, len(every), width, left), starts, width)
        self.nodes = [replace(node, place=place) for place, (_, node) in enumerate(every)]


def _dead(node: _Node) -> _Node:
    return replace(node, samples=[], token=0)
