"""Optimizers over a student's row of parameters: torch's own functions, each student with its own hyper-parameters."""

import torch
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from sublora.train.spec import StudentSpec


class RowOptimizer:
    """The optimizer of one student. `flat` and `grad` are its (P,) parameters and gradient; state tensors are (P,) too."""

    def __init__(self, spec: StudentSpec, flat: torch.Tensor) -> None:
        self.spec = spec
        names = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum",) if spec.momentum else ()}[spec.optimizer]
        self.state: dict[str, torch.Tensor] = {name: torch.zeros_like(flat) for name in names}

    @torch.no_grad()
    def step(self, flat: torch.Tensor, grad: torch.Tensor, step: int, rate: float) -> None:
        """Update `flat` with an already clipped gradient; `step` counts from 0."""
        s = self.spec
        if s.optimizer == "adamw":
            adamw(
                [flat],
                [grad],
                [self.state["exp_avg"]],
                [self.state["exp_avg_sq"]],
                [],
                [torch.tensor(float(step), device=flat.device)],
                fused=True,
                amsgrad=False,
                beta1=s.betas[0],
                beta2=s.betas[1],
                lr=rate,
                weight_decay=s.weight_decay,
                eps=s.eps,
                maximize=False,
            )
            return
        sgd(
            [flat],
            [grad],
            # a first step takes the gradient itself, which a buffer of zeros gives as well (no dampening)
            [self.state.get("momentum")],
            fused=True,
            weight_decay=s.weight_decay,
            momentum=s.momentum,
            lr=rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )

    def describe(self) -> str:
        """What really runs, for the manifest."""
        s = self.spec
        if s.optimizer == "adamw":
            return f"AdamW(betas={s.betas}, eps={s.eps:g}, weight_decay={s.weight_decay:g}, clip={s.clip:g})"
        return f"SGD(momentum={s.momentum:g}, weight_decay={s.weight_decay:g}, clip={s.clip:g})"


@torch.no_grad()
def clip(grad: torch.Tensor, most: torch.Tensor) -> torch.Tensor:
    """Scale each row of grad (K_g, P) in place to a norm of at most its own of `most` (K_g,); returns the norms before, (K_g,)."""
    norms = torch.linalg.vector_norm(grad, dim=1)
    grad.mul_((most / (norms + 1e-6)).clamp_(max=1.0).unsqueeze(1))
    return norms
