"""Forward and backward passes written by hand, where autograd's own would read and write the same numbers many times.

Between the matrix products of a small model, element-wise passes take most of a step. Each function here is the plain formula with
its exact gradient in as few passes as torch's operations allow; the tests hold them against autograd.
"""

from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

LEAST_REST = (
    1e-6  # of a teacher's rest in a reverse divergence, which would be infinite without one
)


def wide(x: Tensor) -> Tensor:
    """x in at least float32, as norms and losses are computed."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def take(hidden: Tensor, where: Tensor) -> Tensor:
    """Places `where` (K, m) of hidden (K, M, d): (K, m, d)."""
    return hidden.gather(1, where.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, residual):
        ctx.save_for_backward(x, weight)
        turned = weight.transpose(1, 2)
        if residual is not None:
            out = torch.baddbmm(residual, x, turned)
            return out if bias is None else out.add_(bias)
        return torch.bmm(x, turned) if bias is None else torch.baddbmm(bias, x, turned)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias, for_residual = ctx.needs_input_grad
        return (
            torch.bmm(grad, weight) if for_x else None,
            torch.bmm(grad.transpose(1, 2), x) if for_weight else None,
            grad.sum(1, keepdim=True) if for_bias else None,
            grad if for_residual else None,
        )


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """residual + x W^T + bias for every student: x (K, M, i), weight (K, o, i), bias (o,) frozen or (K, 1, o), out (K, M, o)."""
    return _Product.apply(x, weight, bias, residual)


@dataclass(frozen=True)
class Soft:
    """Distributions in the place of targets: `ids` and `logp` (K, m, k), most likely first; what they leave of 1 is one bucket of all other
    tokens, none where k is the vocabulary. The loss is KL(p || q), q the student's, or KL(q || p) with `reverse`."""

    ids: Tensor
    logp: Tensor
    reverse: bool


def _hard(
    logits: Tensor, goal: Tensor, factor: Tensor, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """(weighted cross-entropies (g, n, 1), their slopes (g, n, V) in the logits), for targets (g, n, 1)."""
    logp = logits.log_softmax(-1)
    losses = logp.gather(2, goal).mul_(-factor)
    # in place: weight * (probability - 1 at the target)
    return losses, logp.exp_().mul_(factor).scatter_add_(2, goal, -factor) if wanted else None


def _soft(
    logits: Tensor, ids: Tensor, logp: Tensor, reverse: bool, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """As `_hard`, for labels (g, n, k); `logits` become the slopes. The rest is summed over its own tokens, never taken from 1."""
    ids, logp, rest = ids.long(), logp.to(logits.dtype), ids.shape[-1] < logits.shape[-1]
    mass, own = logp.exp().sum(-1, keepdim=True), logits.gather(2, ids)
    logp = logp - (mass.clamp(min=1.0) if rest else mass).log()  # rounding may lift them above 1
    if rest:
        least = LEAST_REST if reverse else torch.finfo(logits.dtype).tiny
        logp = torch.cat((logp, (1.0 - mass).clamp(min=least).log()), -1)
        others = logits.scatter_(2, ids, -torch.inf)
        top = others.amax(-1, keepdim=True)
        size = others.sub_(top).exp_().sum(-1, keepdim=True)
        own = torch.cat((own, top + size.log()), -1)
    logq = own.log_softmax(-1)
    p, q, gap = logp.exp(), logq.exp(), logq - logp
    if reverse:
        losses = (q * gap).sum(-1, keepdim=True)
        slope = q * (gap - losses)
    else:
        losses, slope = -(p * gap).sum(-1, keepdim=True), q - p
    slope.mul_(factor)
    # each of the others has its share of the rest's slope
    logits.mul_(slope[..., -1:] / size if rest else 0.0)
    return losses * factor, logits.scatter_(2, ids, slope[..., : ids.shape[-1]])


class _CompletionLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, head, bias, targets, weights, softcap, logits_at_once):
        k, m, d = hidden.shape
        shared = head.dim() == 2
        rows = hidden.reshape(1, k * m, d) if shared else hidden
        count, groups, soft = rows.shape[1], rows.shape[0], isinstance(targets, Soft)
        given = (targets.ids, targets.logp) if soft else (targets.unsqueeze(-1),)
        given = [t.reshape(groups, count, t.shape[-1]) for t in given]
        factors = weights.view(groups, -1)
        stacked = head.unsqueeze(0) if shared else head
        wanted = any(ctx.needs_input_grad[:3])
        losses = torch.empty(factors.shape, dtype=factors.dtype, device=hidden.device)
        for_hidden = torch.empty_like(rows) if wanted else None
        for_head = torch.zeros_like(stacked) if ctx.needs_input_grad[1] else None
        for_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        step = max(1, logits_at_once // (groups * stacked.shape[1]))
        for start in range(0, count, step):
            part = slice(start, min(count, start + step))
            logits = wide(torch.bmm(rows[:, part], stacked.transpose(1, 2)))
            if bias is not None:
                logits += bias
            capped = logits.div_(softcap).tanh_().clone() if softcap else None
            if softcap:
                logits.mul_(softcap)
            own, factor = [t[:, part] for t in given], factors[:, part].unsqueeze(-1)
            if soft:
                each, slope = _soft(logits, *own, targets.reverse, factor)
            else:
                each, slope = _hard(logits, *own, factor, wanted)
            losses[:, part] = each.squeeze(-1)
            if not wanted:
                continue
            if capped is not None:
                slope.mul_(capped.square_().neg_().add_(1.0))
            slope = slope.to(rows.dtype)
            for_hidden[:, part] = torch.bmm(slope, stacked)
            if for_head is not None:
                for_head += torch.bmm(slope.transpose(1, 2), rows[:, part])
            if for_bias is not None:
                for_bias += slope.sum((0, 1)) if bias.dim() == 1 else slope.sum(1, keepdim=True)
        for_hidden = for_hidden if for_hidden is None else for_hidden.view(k, m, d)
        ctx.save_for_backward(for_hidden, for_head, for_bias)
        return losses.view(k, m).sum(1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        for_hidden, for_head, for_bias = ctx.saved_tensors
        wanted = (for_hidden if ctx.needs_input_grad[0] else None, for_head, for_bias)
        factor = grad.view(-1, 1, 1)
        return (*(g if g is None else g * factor.to(g.dtype) for g in wanted), *(None,) * 4)


def completion_loss(
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    targets: Tensor | Soft,
    weights: Tensor,
    softcap: float | None,
    logits_at_once: int,
) -> Tensor:
    """Weighted cross-entropy of each student, or its divergence from soft targets, (K,), nats, without ever holding all logits. hidden
    (K, m, d) at the positions that carry loss; head (V, d) frozen, or (K, V, d), each student's own; bias alike (V,) or (K, 1, V);
    targets and weights (K, m). The gradient is formed along with the loss, `logits_at_once` numbers at a time."""
    weights = weights.to(wide(hidden).dtype)
    return _CompletionLoss.apply(hidden, head, bias, targets, weights, softcap, logits_at_once)


class _LowProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, frozen, parts, *adapters):
        k, m, width = x.shape
        ends = [0, *accumulate(len(weight) for weight, _ in frozen)]
        columns = [slice(*pair) for pair in pairwise(ends)]
        out, rows, left = x.new_empty(k, m, ends[-1]), x.reshape(-1, width), iter(adapters)
        for (weight, bias), own in zip(frozen, columns, strict=True):
            into = out.view(-1, ends[-1])[:, own]
            if bias is None:
                torch.mm(rows, weight.T, out=into)
            else:
                torch.addmm(bias, rows, weight.T, out=into)
        thin = []
        for students, layers in parts:
            thin.append(torch.bmm(x[students], next(left).mT))
            for layer, h in zip(layers, thin[-1].chunk(len(layers), -1), strict=True):
                out[students, :, columns[layer]].baddbmm_(h, next(left).mT)
        ctx.frozen, ctx.parts, ctx.columns = [weight for weight, _ in frozen], parts, columns
        ctx.save_for_backward(x, *adapters, *thin)
        return out if residual is None else out.add_(residual)

    @staticmethod
    def backward(ctx, grad):
        x, *saved = ctx.saved_tensors
        left, thin = iter(saved), iter(saved[len(saved) - len(ctx.parts) :])
        for_x, for_adapters = None, []
        if ctx.needs_input_grad[0]:
            for_x, rows = torch.empty_like(x), grad.reshape(-1, grad.shape[-1])
            for n, (weight, own) in enumerate(zip(ctx.frozen, ctx.columns, strict=True)):
                into = for_x.view(-1, x.shape[-1])
                torch.addmm(into, rows[:, own], weight, beta=float(n > 0), out=into)
        for students, layers in ctx.parts:
            a, h = next(left), next(thin)
            slope, for_bs = torch.empty_like(h), []
            split = (h.chunk(len(layers), -1), slope.chunk(len(layers), -1))
            for layer, own_h, own_slope in zip(layers, *split, strict=True):
                own = grad[students, :, ctx.columns[layer]]
                own_slope.copy_(torch.bmm(own, next(left)))
                for_bs.append(torch.bmm(own.mT, own_h))
            for_adapters += [torch.bmm(slope.mT, x[students]), *for_bs]
            if for_x is not None:
                for_x[students].baddbmm_(slope, a)
        return (for_x, grad if ctx.needs_input_grad[1] else None, None, None, *for_adapters)


def low_product(
    x: Tensor,
    residual: Tensor | None,
    frozen: list[tuple[Tensor, Tensor | None]],
    parts: list[tuple[slice, list[int]]],
    adapters: list[Tensor],
) -> Tensor:
    """residual + x (W + B A)^T + bias of layers that read the same input, side by side, (K, M, sum of o) from x (K, M, i).

    `frozen` are the layers' (o, i) and (o,). A part is (its students, the layers that have an adapter); its adapters are their A below each
    other, (K_g, n r, i), and then B with its scale for each of these layers, (K_g, o, r). The frozen products are made once for all rows, and
    no output is copied."""
    return _LowProduct.apply(x, residual, frozen, parts, *adapters)


class _DenseWeights(torch.autograd.Function):
    @staticmethod
    def forward(ctx, frozen, size, parts, mask, *adapters):
        layers, o, i = frozen.shape
        out = frozen.new_empty(size, layers, o, i).copy_(frozen)
        wide_b = []
        for (rows, scale), a, b in zip(parts, adapters[::2], adapters[1::2], strict=True):
            scaled = b * scale
            if mask is not None:
                scaled = scaled.repeat(1, 1, a.shape[1] // b.shape[2]).mul_(mask[b.shape[2]])
            wide_b.append(scaled)
            out[rows].view(-1, o, i).baddbmm_(wide_b[-1], a)
        ctx.parts, ctx.mask = parts, mask
        ctx.save_for_backward(*adapters[::2], *wide_b)
        return out.unbind(1)

    @staticmethod
    def backward(ctx, *grads):
        whole = torch.stack(grads, 1)
        half, out = len(ctx.parts), []
        for (rows, scale), a, wide_b in zip(
            ctx.parts, ctx.saved_tensors[:half], ctx.saved_tensors[half:], strict=True
        ):
            own = whole[rows].view(-1, *whole.shape[2:])
            for_b = torch.bmm(own, a.mT).mul_(scale)
            if ctx.mask is not None:
                rank = next(r for r, m in ctx.mask.items() if m.shape[1] == a.shape[1])
                for_b = for_b.mul_(ctx.mask[rank]).unflatten(2, (-1, rank)).sum(2)
            out += [torch.bmm(wide_b.mT, own), for_b]
        return (None, None, None, None, *out)


def dense_weights(
    frozen: Tensor,
    size: int,
    parts: list[tuple[slice, Tensor]],
    mask: dict[int, Tensor] | None,
    adapters: list[Tensor],
) -> tuple[Tensor, ...]:
    """W + s B A of `size` students for all layers at once: L tensors (K, o, i) from W (L, o, i).

    A part is (its students, their scales (K_g * L, 1, 1)); its adapters stand as A (K_g * L, n r, i) and B (K_g * L, o, r), one pair
    after the other. Where n sibling layers stand below each other in W, `mask[r]` (o, n r) is 1 where a row of W belongs to the sibling
    whose A a column multiplies; a single product over all of them does more arithmetic, but far fewer operations.
    """
    return _DenseWeights.apply(frozen, size, parts, mask, *adapters)
