"""Attention over flat tokens: rows of unequal length without padding, a prefix that all rows of a student share read once.

Tokens of a student stand one after the other, (K, M, ...): the shared prefix, then each row's own, then at least one dummy. Only the
scores need rows side by side; two gathers lead there and back.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sublora.packs.fast.elementwise import softmax_gradient

EXPLICIT_KEYS = 192  # on a CPU, up to so many keys the scores are plain batched products, which short rows run faster


@dataclass(frozen=True)
class Heads:
    """`query` heads share `key` heads in equal groups; `width` numbers each; scores are multiplied by `scaling`."""

    query: int
    key: int
    width: int
    scaling: float

    @property
    def group(self) -> int:
        return self.query // self.key

    @property
    def all(self) -> int:
        return self.query + 2 * self.key


@dataclass(frozen=True)
class Asked:
    """The queries that are wanted: `at` (K, B, Q), places within a row, -1 for padding; `slots` (K, m), the answers in the order in
    which they are wanted, each as row * Q + query; `real` (K, m), False for padding."""

    at: Tensor
    slots: Tensor
    real: Tensor

    def sees(self, count: int) -> Tensor:
        """(K, B, Q, T): whether a query may look at a key of its row."""
        return torch.arange(count, device=self.at.device) <= self.at.clamp(min=0).unsqueeze(-1)


class Layout:
    """Where tokens stand. `tokens` (K, B, T): a row's places among its student's M, the dummy M - 1 beyond its end; a student's first
    `prefix` places are shared by its rows. `asked` names the queries that are wanted; None for those of all tokens.

    Scores work on rows of one head's `width` numbers each, in the order: queries (K, key heads, B, group, Q), queries of the prefix (K, key
    heads, group, P; none where only some are asked), keys (K, key heads, B, T), keys of the prefix (K, key heads, P), values alike.
    """

    def __init__(
        self, tokens: Tensor, places: int, prefix: int, heads: Heads, asked: Asked | None = None
    ) -> None:
        self.size, self.rows, self.longest = tokens.shape
        self.heads, self.places, self.prefix, self.asked = heads, places, prefix, asked
        parts = self._parts(tokens)
        self.counts = [p.numel() for p in parts]
        self.gather = torch.cat([p.reshape(-1) for p in parts])
        total = self.size * places * heads.all
        # what no row reads has no gradient; the dummies are read, but lead nowhere
        unread = torch.ones(total, dtype=torch.bool, device=tokens.device)
        unread[self.gather] = False
        unread.view(self.size, places, heads.all)[:, -1] = True
        self.back, self.unread = _inverse(self.gather, total), unread.nonzero().squeeze(1)
        # the same for what attention gives back, which has the query heads only
        if asked is None:
            rows = self.gather[: sum(self.counts[:2])]
            own = rows.div(heads.all, rounding_mode="floor") * heads.query
            self.unmerge = own + rows % heads.all
            self.merge = _inverse(self.unmerge, self.size * places * heads.query)
            self.unwritten = None  # padding of a row is written to a dummy, which has no gradient
        else:
            self.merge = self._answers(asked)
            real = asked.real.view(-1, 1).expand(-1, heads.query).reshape(-1).nonzero().squeeze(1)
            written = self.merge[real]
            self.unmerge = torch.zeros(self.counts[0], dtype=real.dtype, device=real.device)
            self.unmerge[written] = real
            silent = torch.ones(self.counts[0], dtype=torch.bool, device=real.device)
            silent[written] = False
            self.unwritten = silent.nonzero().squeeze(1)

    def _parts(self, tokens: Tensor) -> list[Tensor]:
        """For every row of the scores, its row among (K, M, heads), in the order of the parts."""
        (k, b, t), p, asked = tokens.shape, self.prefix, self.asked
        j, g, h, device = self.heads.key, self.heads.group, self.heads.all, tokens.device
        student = torch.arange(k, device=device) * self.places
        own = tokens + student.view(-1, 1, 1)
        first = student.view(-1, 1) + torch.arange(p, device=device)
        head = torch.arange(h, device=device)
        query, queries = head[: self.heads.query].view(j, g), own
        if asked is not None:
            queries = own.gather(2, asked.at.clamp(min=0))
            dummy = student.view(-1, 1, 1) + self.places - 1
            queries = torch.where(asked.at < 0, dummy, queries)
        parts = [queries.view(k, 1, b, 1, -1) * h + query.view(1, j, 1, g, 1)]
        if asked is None:
            parts.append(first.view(k, 1, 1, p) * h + query.view(1, j, g, 1))
        else:
            parts.append(first.new_empty(0))
        for start in (self.heads.query, self.heads.query + j):
            which = head[start : start + j]
            parts.append(own.view(k, 1, b, t) * h + which.view(1, j, 1, 1))
            parts.append(first.view(k, 1, p) * h + which.view(1, j, 1))
        return parts

    def _answers(self, asked: Asked) -> Tensor:
        """For every answer and query head, (K * m * heads), its row among those of (K, key heads, B, group, Q)."""
        heads, shape = self.heads, (self.heads.key, self.rows, self.heads.group, asked.at.shape[2])
        index = torch.arange(self.size * math.prod(shape), device=asked.at.device)
        index = index.view(self.size, *shape).permute(0, 2, 4, 1, 3)
        index = index.reshape(self.size, -1, heads.query)
        slots = asked.slots.unsqueeze(-1).expand(-1, -1, heads.query)
        return index.gather(1, slots).reshape(-1)

    def causal(self, like: Tensor) -> Tensor:
        """To be added to the rows' own scores, (K * key heads * B, group * Q, T): nothing for keys up to the query's own place, minus
        infinity behind it."""
        t, g, j = self.longest, self.heads.group, self.heads.key
        if self.asked is None:
            return _triangle(t, g, like).expand(self.size * j * self.rows, -1, -1)
        bias = torch.zeros(*self.asked.at.shape, t, dtype=like.dtype, device=like.device)
        bias.masked_fill_(~self.asked.sees(t), -torch.inf)
        k, b, q, _ = bias.shape
        return bias.view(k, 1, b, 1, q, t).expand(k, j, b, g, q, t).reshape(k * j * b, g * q, t)


def _triangle(count: int, group: int, like: Tensor) -> Tensor:
    seen = torch.ones(count, count, dtype=torch.bool, device=like.device).tril()
    bias = torch.zeros(count, count, dtype=like.dtype, device=like.device)
    return bias.masked_fill_(~seen, -torch.inf).repeat(group, 1).unsqueeze(0)


def _inverse(index: Tensor, size: int) -> Tensor:
    out = torch.zeros(size, dtype=index.dtype, device=index.device)
    out[index] = torch.arange(len(index), device=index.device)
    return out


@dataclass(frozen=True)
class Turns:
    """Rotary embeddings of all places: `cos` and `sin` (K, M, heads, width), the first half of `sin` negated, those of queries times
    the scaling of scores."""

    cos: Tensor
    sin: Tensor


def turns(cos: Tensor, sin: Tensor, heads: Heads) -> Turns:
    """From cos and sin (K, M, width), both halves alike, as Hugging Face's rotary modules give them."""
    half = cos.shape[-1] // 2
    signed = torch.cat((-sin[..., :half], sin[..., half:]), -1)
    # laid out for all heads, so that a pass is one long loop
    factor = torch.ones(heads.query + heads.key, 1, dtype=cos.dtype, device=cos.device)
    factor[: heads.query] = heads.scaling
    return Turns(cos.unsqueeze(2) * factor, signed.unsqueeze(2) * factor)


def _turn(x: Tensor, turns: Turns, back: bool = False) -> None:
    """Rotate x (K, M, heads, width) in place, or back."""
    swapped = x.roll(x.shape[-1] // 2, -1)
    x.mul_(turns.cos).addcmul_(swapped, turns.sin, value=-1.0 if back else 1.0)


class _ToRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, both: Tensor, turns: Turns, layout: Layout) -> Tensor:
        heads, (k, m, _) = layout.heads, both.shape
        _turn(both.view(k, m, heads.all, heads.width)[:, :, : heads.query + heads.key], turns)
        ctx.mark_dirty(both)
        ctx.set_materialize_grads(False)
        ctx.turns, ctx.layout = turns, layout
        return both, both.view(-1, heads.width).index_select(0, layout.gather)

    @staticmethod
    def backward(ctx, _: Tensor, grad: Tensor):
        layout = ctx.layout
        heads = layout.heads
        shape = (layout.size, layout.places, heads.all, heads.width)
        out = grad.index_select(0, layout.back).view(shape)
        out.view(-1, heads.width).index_fill_(0, layout.unread, 0.0)
        _turn(out[:, :, : heads.query + heads.key], ctx.turns, back=True)
        return out.view(layout.size, layout.places, -1), None, None


class _FromRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return rows.index_select(0, layout.merge).view(
            layout.size, -1, layout.heads.query * layout.heads.width
        )

    @staticmethod
    def backward(ctx, grad: Tensor):
        layout = ctx.layout
        out = grad.reshape(-1, layout.heads.width).index_select(0, layout.unmerge)
        if layout.unwritten is not None:
            out.index_fill_(0, layout.unwritten, 0.0)
        return out, None


def _weights(layout: Layout, q, q_first, k, k_first) -> tuple[Tensor, Tensor]:
    """Softmax of the scores: rows' own queries (K * key heads * B, group * Q, P + T), the prefix's (K * key heads, group * P, P)."""
    heads, p = layout.heads, layout.prefix
    scores = torch.baddbmm(layout.causal(q), q, k.mT)
    if not p:
        return scores.softmax(-1), scores.new_empty(0)
    shared = torch.bmm(q.view(len(k_first), -1, heads.width), k_first.mT)
    scores = torch.cat((shared.view(len(k), -1, p), scores), -1).softmax(-1)
    if layout.asked is not None:
        return scores, scores.new_empty(0)
    bias = _triangle(p, heads.group, q).expand(len(k_first), -1, -1)
    return scores, torch.baddbmm(bias, q_first, k_first.mT).softmax(-1)


def _shaped(layout: Layout, rows: Tensor, parts: int) -> list[Tensor]:
    """Views of the first `parts` parts of `rows`, one batch entry for each key head that they belong to."""
    j, w = layout.heads.key * layout.size, layout.heads.width
    batch = [j * layout.rows, j] * 3
    counts = layout.counts[:parts]
    return [x.view(n, -1, w) for n, x in zip(batch, rows.split(counts), strict=False)]


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, layout: Layout) -> Tensor:
        q, q_first, k, k_first, v, v_first = _shaped(layout, rows, 6)
        p, w = layout.prefix, layout.heads.width
        weights, weights_first = _weights(layout, q, q_first, k, k_first)
        out = rows.new_empty(sum(layout.counts[:2]), w)
        own, first = _shaped(layout, out, 2)
        if p:
            shared = weights[..., :p]
            torch.bmm(_by_student(shared, len(v_first)), v_first, out=own.view(len(v_first), -1, w))
            own.baddbmm_(weights[..., p:], v)
            if layout.asked is None:
                torch.bmm(weights_first, v_first, out=first)
        else:
            torch.bmm(weights, v, out=own)
        ctx.layout = layout
        ctx.save_for_backward(rows, weights, weights_first)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        rows, weights, weights_first = ctx.saved_tensors
        layout = ctx.layout
        p, w = layout.prefix, layout.heads.width
        q, q_first, k, k_first, v, v_first = _shaped(layout, rows, 6)
        out = torch.empty_like(rows)
        for_q, for_q_first, for_k, for_k_first, for_v, for_v_first = _shaped(layout, out, 6)
        own, first = _shaped(layout, grad.contiguous(), 2)
        torch.bmm(weights[..., p:].mT, own, out=for_v)
        slope = torch.bmm(own, v.mT)
        if p:
            n = len(v_first)
            together = own.view(n, -1, w)
            torch.bmm(_by_student(weights[..., :p], n).mT, together, out=for_v_first)
            slope = torch.cat((torch.bmm(together, v_first.mT).view(len(v), -1, p), slope), -1)
        slope = softmax_gradient(slope, weights, -1, weights.dtype)
        torch.bmm(slope[..., p:].mT, q, out=for_k)
        torch.bmm(slope[..., p:], k, out=for_q)
        if p:
            shared = _by_student(slope[..., :p], n)
            torch.bmm(shared.mT, q.view(n, -1, w), out=for_k_first)
            for_q.view(n, -1, w).baddbmm_(shared, k_first)
        if p and layout.asked is None:
            for_v_first.baddbmm_(weights_first.mT, first)
            slope = softmax_gradient(torch.bmm(first, v_first.mT), weights_first, -1, weights.dtype)
            for_k_first.baddbmm_(slope.mT, q_first)
            torch.bmm(slope, k_first, out=for_q_first)
        return out, None


def _by_student(x: Tensor, count: int) -> Tensor:
    """x (count * rows, n, P), a slice of wider rows, as (count, rows * n, P) without a copy."""
    rows = len(x) // count
    size, stride = (count, rows * x.shape[1], x.shape[2]), (rows * x.stride(0), x.stride(1), 1)
    return x.as_strided(size, stride, x.storage_offset())


def _library_attend(rows: Tensor, layout: Layout) -> Tensor:
    """The same by torch's own attention, which never holds all scores; for long rows, and on a GPU."""
    heads, t, p, k, b = layout.heads, layout.longest, layout.prefix, layout.size, layout.rows
    count = t if layout.asked is None else layout.asked.at.shape[2]
    j, g, w = heads.key, heads.group, heads.width
    q, q_first, key, key_first, value, value_first = rows.split(layout.counts)

    def attend(queries, keys, values, mask, causal):
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=causal, scale=1.0, enable_gqa=g > 1
        )

    def by_row(x: Tensor, length: int) -> Tensor:
        return (
            x.view(k, j, b, -1, length, w).permute(0, 2, 1, 3, 4, 5).reshape(k * b, -1, length, w)
        )

    def shared(x: Tensor) -> Tensor:
        return x.view(k, 1, j, p, w).expand(k, b, j, p, w).reshape(k * b, j, p, w)

    keys, values, mask = by_row(key, t), by_row(value, t), None
    if layout.asked is not None:
        mask = layout.asked.sees(t).view(k * b, 1, count, t)
    elif p:
        mask = torch.ones(t, t, dtype=torch.bool, device=rows.device).tril()
    if p:
        keys = torch.cat((shared(key_first), keys), 2)
        values = torch.cat((shared(value_first), values), 2)
        mask = F.pad(mask, (p, 0), value=True)
    own = attend(by_row(q, count), keys, values, mask, mask is None)
    own = own.view(k, b, j, g, count, w).permute(0, 2, 1, 3, 4, 5).reshape(-1, w)
    if not p or layout.asked is not None:
        return own
    prefix = (q_first.view(k, j * g, p, w), *(x.view(k, j, p, w) for x in (key_first, value_first)))
    return torch.cat((own, attend(*prefix, None, True).reshape(-1, w)))


def flat_attention(both: Tensor, turns: Turns, layout: Layout) -> Tensor:
    """Causal attention of queries, keys and values that stand side by side in `both` (K, M, (query + 2 key heads) * width). `both` is
    rotated in place. Returns (K, M, query heads * width), dummies hold anything finite; or (K, m, ...) of what is asked."""
    _, rows = _ToRows.apply(both, turns, layout)
    short = layout.prefix + layout.longest <= EXPLICIT_KEYS
    explicit = rows.device.type == "cpu" and short
    attended = _Attend.apply(rows, layout) if explicit else _library_attend(rows, layout)
    return _FromRows.apply(attended, layout)
