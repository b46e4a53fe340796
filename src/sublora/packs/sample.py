"""Answers of a whole pack: one prefill serves the scores of all candidates and all samples of a prompt.

Sampling is per row: every token is drawn by the inverse of the cumulative distribution at a uniform number that belongs to that
row and place, so the batch it stands in does not matter. Samples that begin alike share one row of the cache until they part.
Nothing is inherited from a checkpoint's generation_config.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from sublora.packs.packed_model import PackedModel

Ids = Sequence[int]


class Sampling(BaseModel):
    """How a token is drawn. The defaults are the plain distribution: temperature 1, no truncation."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="0 keeps all tokens")
    max_new_tokens: int = Field(16, ge=1)


def token_probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities (N, V), float64, after temperature, top_k and then top_p, in the order of Hugging Face's warpers."""
    scores = logits.double() / sampling.temperature
    if sampling.top_k and sampling.top_k < scores.shape[-1]:
        least = scores.topk(sampling.top_k).values[..., -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    p = scores.softmax(-1)
    if sampling.top_p < 1.0:
        ordered, index = p.sort(dim=-1, descending=True)
        drop = ordered.cumsum(-1) - ordered >= sampling.top_p
        p = p.masked_fill(torch.zeros_like(drop).scatter(-1, index, drop), 0.0)
        p = p / p.sum(-1, keepdim=True)
    return p


def draw(p: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens (N, S) at uniforms (N, S) in [0, 1) of the rows' cumulative distributions p (N, V)."""
    total = p.cumsum(-1)
    tokens = torch.searchsorted(total, uniforms.to(total) * total[:, -1:], right=True)
    # at the very end rounding may point behind the last token that has any probability
    last = (p > 0).to(torch.uint8).flip(-1).argmax(-1, keepdim=True)
    return torch.minimum(tokens, p.shape[-1] - 1 - last)


@dataclass
class Prefill:
    """Prompts `rows` of equal length L, read by all K students: next-token logits (K * b, V) and the cache behind them."""

    rows: list[int]
    length: int
    logits: Tensor
    cache: object


def branch(cache, indices: Tensor):
    """A new cache whose row i is row indices[i] of `cache`, which stays as it is."""
    out = copy.copy(cache)
    out.layers = [copy.copy(layer) for layer in cache.layers]
    out.batch_select_indices(indices)
    return out


def of_one_length(prompts: Sequence[Ids], most: int) -> Iterator[list[int]]:
    """Places of the prompts in batches of equal length, at least one and at most `most` in each."""
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(i)
    for _, members in sorted(by_length.items()):
        for at in range(0, len(members), max(1, most)):
            yield members[at : at + max(1, most)]


def prefill(packed: PackedModel, prompts: Sequence[Ids], rows_at_once: int) -> Iterator[Prefill]:
    """Read the prompts in batches of equal length (so that no padding can matter). A beginning that all prompts of a batch share, and at
    which the same is done, is read once."""
    acting, device = packed.interventions, next(packed.model.parameters()).device
    acting.check(prompts)
    for rows in of_one_length(prompts, rows_at_once // packed.size):
        ids = torch.tensor([list(prompts[i]) for i in rows], device=device)
        length = ids.shape[1]
        same = (ids[:, : length - 1] == ids[0, : length - 1]).all(0)
        shared = 0 if len(rows) == 1 else int(same.int().cumprod(0).sum())
        cache = packed.new_cache()
        if shared:
            first, kind = acting.alike(rows, shared)
            acting.read([rows[j] for j in first], packed.size, 0, shared)
            packed.hidden(ids[first, :shared].repeat(packed.size, 1), cache)
            start = torch.arange(packed.size, device=device).unsqueeze(1) * len(first)
            cache.batch_select_indices((start + torch.tensor(kind, device=device)).reshape(-1))
        acting.read(rows, packed.size, shared, length)
        hidden = packed.hidden(ids[:, shared:].repeat(packed.size, 1), cache, position=shared)
        yield Prefill(rows, length, packed.logits(hidden[:, -1]), cache)


@dataclass(frozen=True)
class _Node:
    """Samples (student, row, number) that have drawn the same tokens so far; `parent` is their row of the last cache."""

    student: int
    row: int
    parent: int
    token: int
    samples: list[int]


def sample_answers(
    packed: PackedModel, filled: Prefill, uniforms: np.ndarray, sampling: Sampling, stop_ids: Ids
) -> list[list[list[list[int]]]]:
    """Token ids without the stop token: [student][row of the prefill][sample]. `uniforms` is (K, b, S, max_new_tokens)."""
    k, b, s, _ = uniforms.shape
    device = filled.logits.device
    out: list = [[[[] for _ in range(s)] for _ in range(b)] for _ in range(k)]
    stops = set(stop_ids)
    nodes = [_Node(i, j, i * b + j, -1, list(range(s))) for i in range(k) for j in range(b)]
    logits, cache, places = filled.logits, filled.cache, list(range(k * b))
    for t in range(sampling.max_new_tokens):
        wide = max(len(n.samples) for n in nodes)
        u = np.zeros((len(nodes), wide))
        for i, node in enumerate(nodes):
            u[i, : len(node.samples)] = uniforms[node.student, node.row, node.samples, t]
        p = token_probabilities(logits[torch.tensor(places, device=device)], sampling)
        drawn = draw(p, torch.from_numpy(u)).tolist()
        grown: dict[tuple[int, int], _Node] = {}
        for i, node in enumerate(nodes):
            for sample, token in zip(node.samples, drawn[i], strict=False):
                if token in stops:
                    continue
                out[node.student][node.row][sample].append(token)
                fresh = _Node(node.student, node.row, places[i], token, [])
                grown.setdefault((i, token), fresh).samples.append(sample)
        nodes = list(grown.values())
        if not nodes or t + 1 == sampling.max_new_tokens:
            break
        rows = _filled_up(nodes, k, logits.shape[0] // k)
        places = [place for place, node in enumerate(rows) if node.samples]
        nodes = [rows[place] for place in places]
        cache = branch(cache, torch.tensor([n.parent for n in rows], device=device))
        packed.interventions.write([filled.rows[n.row] for n in rows], 1)
        tokens = torch.tensor([[n.token] for n in rows], device=device)
        hidden = packed.hidden(tokens, cache, position=filled.length + t)
        logits = packed.logits(hidden[:, -1])
    return out


def _filled_up(nodes: Sequence[_Node], students: int, stride: int) -> list[_Node]:
    """As many rows for every student as a pack needs: those without samples repeat a row of the last cache."""
    lists = [[n for n in nodes if n.student == i] for i in range(students)]
    most, out = max(map(len, lists)), []
    for i, members in enumerate(lists):
        parent = members[0].parent if members else i * stride
        out += members + [_Node(i, 0, parent, 0, [])] * (most - len(members))
    return out


def score_sequences(
    packed: PackedModel, filled: Prefill, sequences: Sequence[Ids], rows_at_once: int
) -> Tensor:
    """Log-probabilities (K, b, C), float64, that an answer begins with each of C token sequences, teacher-forced. Sequences that begin
    alike share their forward passes; beginnings of one length are read together, at most `rows_at_once` rows at a time."""
    k, device = packed.size, filled.logits.device
    b = filled.logits.shape[0] // k
    first = torch.tensor([s[0] for s in sequences], device=device)
    out = filled.logits.double().log_softmax(-1)[:, first].cpu().view(k, b, len(sequences))
    next_of: dict[tuple[int, ...], list[int]] = {}  # which sequences go on behind a prefix
    for c, sequence in enumerate(sequences):
        for n in range(1, len(sequence)):
            next_of.setdefault(tuple(sequence[:n]), []).append(c)
    per_pass = max(1, rows_at_once // k)
    for length, alike in groupby(sorted(next_of, key=lambda s: (len(s), s)), len):
        pairs = list(product(alike, range(b)))
        for at in range(0, len(pairs), per_pass):
            part = pairs[at : at + per_pass]
            ids = torch.tensor([prefix for prefix, _ in part], device=device).repeat(k, 1)
            rows = torch.tensor([row for _, row in part], device=device)
            index = (torch.arange(k, device=device).unsqueeze(1) * b + rows).reshape(-1)
            packed.interventions.write([filled.rows[row] for _, row in part] * k, length)
            hidden = packed.hidden(ids, branch(filled.cache, index), position=filled.length)
            after = packed.logits(hidden[:, -1]).double().log_softmax(-1).view(k, len(part), -1)
            to = [(i, row, c) for i, (prefix, row) in enumerate(part) for c in next_of[prefix]]
            places, to_rows, to_sequences = map(list, zip(*to, strict=True))
            tokens = [sequences[c][length] for c in to_sequences]
            out[:, to_rows, to_sequences] += after[:, places, tokens].cpu()
    return out
