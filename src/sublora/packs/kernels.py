"""Forward and backward passes written by hand, where autograd's own would read and write the same numbers many times.

Between the matrix products of a small model, element-wise passes take most of a step. Each function here is the plain formula with
its exact gradient in as few passes as torch's operations allow; the tests hold them against autograd.
"""

import torch
from torch import Tensor


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


class _CompletionLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, head, bias, targets, weights, softcap, logits_at_once):
        k, m, d = hidden.shape
        shared = head.dim() == 2
        rows = hidden.reshape(1, k * m, d) if shared else hidden
        count, targets = rows.shape[1], targets.view(rows.shape[0], -1)
        factors = weights.view(rows.shape[0], -1)
        stacked = head.unsqueeze(0) if shared else head
        wanted = any(ctx.needs_input_grad[:3])
        losses = torch.empty(targets.shape, dtype=wide(hidden).dtype, device=hidden.device)
        for_hidden = torch.empty_like(rows) if wanted else None
        for_head = torch.zeros_like(stacked) if ctx.needs_input_grad[1] else None
        for_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        step = max(1, logits_at_once // (rows.shape[0] * stacked.shape[1]))
        for start in range(0, count, step):
            part = slice(start, min(count, start + step))
            logits = wide(torch.bmm(rows[:, part], stacked.transpose(1, 2)))
            if bias is not None:
                logits += bias
            capped = logits.div_(softcap).tanh_().clone() if softcap else None
            if softcap:
                logits.mul_(softcap)
            goal, factor = targets[:, part].unsqueeze(-1), factors[:, part].unsqueeze(-1)
            logp = logits.log_softmax(-1)
            losses[:, part] = logp.gather(2, goal).mul_(-factor).squeeze(-1)
            if not wanted:
                continue
            # the gradient of the logits, in place: weight * (probability - 1 at the target)
            slope = logp.exp_().mul_(factor).scatter_add_(2, goal, -factor)
            if capped is not None:
                slope.mul_(capped.square_().neg_().add_(1.0))
            slope = slope.to(rows.dtype)
            for_hidden[:, part] = torch.bmm(slope, stacked)
            if for_head is not None:
                for_head += torch.bmm(slope.transpose(1, 2), rows[:, part])
            if for_bias is not None:
                for_bias += slope.sum(1, keepdim=True)
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
    targets: Tensor,
    weights: Tensor,
    softcap: float | None,
    logits_at_once: int,
) -> Tensor:
    """Weighted cross-entropy of each student, (K,), nats, without ever holding all logits. hidden (K, m, d) at the positions that carry
    loss; head (V, d) frozen, or (K, V, d), each student's own; bias alike (V,) or (K, 1, V); targets and weights (K, m). The gradient is
    formed along with the loss, `logits_at_once` numbers at a time."""
    weights = weights.to(wide(hidden).dtype)
    return _CompletionLoss.apply(hidden, head, bias, targets, weights, softcap, logits_at_once)


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
