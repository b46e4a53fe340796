"""Element-wise parts of a layer with their gradients, in as few passes over the numbers as torch's operations allow.

Between the matrix products of a small model such passes take most of a step.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from sublora.packs.kernels import wide

softmax_gradient = torch.ops.aten._softmax_backward_data
silu_gradient = torch.ops.aten.silu_backward.grad_input


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        full = wide(x)
        norm = torch.linalg.vector_norm(full, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        scaled = full * inverse if full is x else full.mul_(inverse)
        return scaled.to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight, inverse = ctx.saved_tensors
        full, for_weight, for_x = wide(x), None, None
        if ctx.needs_input_grad[1]:
            for_weight = (wide(grad) * full).mul_(inverse).sum(-2, keepdim=True).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            scaled = wide(grad * weight)
            along = (scaled * full).sum(-1, keepdim=True).mul_(inverse.pow(3)).div_(-x.shape[-1])
            for_x = scaled.mul_(inverse).addcmul_(full, along).to(x.dtype)
        return for_x, for_weight, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (K, M, d) divided by its root mean square along d, times weight: (d,) frozen, or (K, 1, d), each student's own."""
    return _RmsNorm.apply(x, weight, eps)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, both: Tensor) -> Tensor:
        gate, up = both.chunk(2, -1)
        open_ = F.silu(gate)
        ctx.save_for_backward(both, open_)
        return open_ * up

    @staticmethod
    def backward(ctx, grad: Tensor):
        both, open_ = ctx.saved_tensors
        gate, up = both.chunk(2, -1)
        out = torch.empty_like(both)
        for_gate, for_up = out.chunk(2, -1)
        torch.mul(grad, open_, out=for_up)
        silu_gradient(grad * up, gate, grad_input=for_gate)
        return out


def gated(both: Tensor) -> Tensor:
    """silu(gate) * up of `both` (K, M, 2 f), which holds the two side by side: (K, M, f)."""
    return _Gated.apply(both)
