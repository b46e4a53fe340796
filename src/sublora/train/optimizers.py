"""Optimizers over a group's flat buffers: the arithmetic of torch.optim, with each student's own hyper-parameters as a column."""

from collections.abc import Sequence

import torch

from sublora.train.spec import StudentSpec
from sublora.train.stack import Group


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)


class FlatOptimizer:
    """AdamW or SGD for one group; `specs` in the order of the group's rows. State tensors are (K_g, P) like the parameters."""

    def __init__(self, group: Group, specs: Sequence[StudentSpec]) -> None:
        assert len({s.optimizer for s in specs}) == 1, "students of one group have the same optimizer"
        self.group, self.specs, self.name = group, list(specs), specs[0].optimizer
        flat = group.flat
        self.state: dict[str, torch.Tensor] = {}
        if self.name == "adamw":
            self.state = {"exp_avg": torch.zeros_like(flat), "exp_avg_sq": torch.zeros_like(flat)}
        elif any(s.momentum for s in specs):
            self.state = {"momentum": torch.zeros_like(flat)}
        self.clip = _column([s.clip for s in specs], flat)
        self.decay = _column([s.weight_decay for s in specs], flat)
        self.beta1 = _column([s.betas[0] for s in specs], flat)
        self.beta2 = _column([s.betas[1] for s in specs], flat)
        self.eps = _column([s.eps for s in specs], flat)
        self.momentum = _column([s.momentum for s in specs], flat)

    @torch.no_grad()
    def step(self, step: int, rates: Sequence[float], alive: Sequence[bool]) -> torch.Tensor:
        """Clip each student's gradient by its own norm and update; students that are not alive stay. Returns norms (K_g,)."""
        grad, flat = self.group.grad, self.group.flat
        assert grad is not None
        if not all(alive):
            grad[[i for i, ok in enumerate(alive) if not ok]] = 0.0
        norms = torch.linalg.vector_norm(grad, dim=1, keepdim=True)
        grad.mul_(torch.clamp(self.clip / (norms + 1e-6), max=1.0))
        lr = _column([r if ok else 0.0 for r, ok in zip(rates, alive, strict=True)], flat)
        if self.name == "adamw":
            flat.mul_(1.0 - lr * self.decay)
            mean, square = self.state["exp_avg"], self.state["exp_avg_sq"]
            mean.add_((grad - mean).mul_(1.0 - self.beta1))
            square.mul_(self.beta2).add_((grad * grad).mul_(1.0 - self.beta2))
            first, second = 1.0 - self.beta1 ** (step + 1), 1.0 - self.beta2 ** (step + 1)
            flat.sub_(mean / (square.sqrt().div_(second.sqrt()).add_(self.eps)) * (lr / first))
            return norms.squeeze(1)
        grad.add_(flat * self.decay)  # torch's SGD couples the decay with the gradient
        if "momentum" in self.state:
            buffer = self.state["momentum"]
            # torch's first step takes the gradient itself, which a zero buffer gives as well (no dampening)
            buffer.mul_(self.momentum).add_(grad)
            flat.sub_(lr * buffer)
        else:
            flat.sub_(lr * grad)
        return norms.squeeze(1)

    def describe(self, row: int) -> str:
        """What really runs, for the manifest."""
        s = self.specs[row]
        if self.name == "adamw":
            return f"AdamW(betas={s.betas}, eps={s.eps:g}, weight_decay={s.weight_decay:g}, clip={s.clip:g})"
        return f"SGD(momentum={s.momentum:g}, weight_decay={s.weight_decay:g}, clip={s.clip:g})"
