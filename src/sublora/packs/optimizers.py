"""Optimizers over a student's row of parameters, each student with its own kind and hyper-parameters.

The arithmetic is torch's: its functional forms where a row as a whole will do, and torch.optim.Muon's formulas matrix by matrix.
A student's state is one row per quantity, so that it is kept, padded and resumed like the weights.
"""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

from sublora.errors import SubloraError
from sublora.packs.spec import OptimizerName, StudentSpec
from sublora.packs.stack import Slot, own_part
from sublora.seeds import derive_seed

RMSPROP_ALPHA = 0.99  # torch's default, and transformers'
SCOUT_EPS = 1e-8  # inside the root, as in the code of Blank et al. 2026 (2606.00995)
# torch.optim.Muon's defaults
MUON_COEFFICIENTS, MUON_STEPS, MUON_EPS = (3.4445, -4.775, 2.0315), 5, 1e-7
FIXED = {"alpha": RMSPROP_ALPHA, "nesterov": True, "newton_schulz_steps": MUON_STEPS}
# Sides of an adapter that face the residual stream, by the layer's name: A reads from it, B writes to it.
READS, WRITES = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), ("o_proj", "down_proj")


class RowOptimizer(ABC):
    """The optimizer of one student. `flat` and `grad` are its (P,) parameters and gradient; state tensors are (P,) too. `slots` say where
    its tensors lie and `rank` how much of them is its own; `steps` are all of its training's."""

    names: tuple[str, ...] = ()
    title: str  # what really runs, and which values of it are worth telling
    told: tuple[str, ...] = ()

    def __init__(
        self, spec: StudentSpec, flat: Tensor, slots: Sequence[Slot], rank: int | None, steps: int
    ) -> None:
        self.spec, self.slots, self.rank = spec, slots, rank
        self.scout = spec.scout_steps(steps)
        self.state: dict[str, Tensor] = {name: torch.zeros_like(flat) for name in self.names}
        if spec.keeps_momentum:
            self.state["momentum"] = torch.zeros_like(flat)
        self.begin(flat)

    def begin(self, flat: Tensor) -> None:  # noqa: B027, most have nothing to do
        """What is kept of the first weights, and checked."""

    @abstractmethod
    def step(self, flat: Tensor, grad: Tensor, step: int, rate: float) -> None:
        """Update `flat` with an already clipped gradient; `step` counts from 0."""

    def describe(self, **more: object) -> str:
        """What really runs, for the manifest."""
        names = dict.fromkeys((*self.told, *more, "weight_decay", "clip"))
        known = FIXED | more
        values = {n: known[n] if n in known else getattr(self.spec, n) for n in names}
        shown = {n: f"{v:g}" if type(v) is float else v for n, v in values.items()}
        return f"{self.title}({', '.join(f'{n}={v}' for n, v in shown.items())})"

    def _adamw(
        self, flat: Tensor, grad: Tensor, step: int, rate: float, weight_decay: float
    ) -> None:
        beta1, beta2 = self.spec.betas
        moments = ([self.state["exp_avg"]], [self.state["exp_avg_sq"]], [])
        count = [torch.tensor(float(step), device=flat.device)]
        rates = {"lr": rate, "weight_decay": weight_decay, "eps": self.spec.eps}
        betas = {"beta1": beta1, "beta2": beta2}
        plain = {"fused": True, "amsgrad": False, "maximize": False}
        adamw([flat], [grad], *moments, count, **rates, **betas, **plain)

    def _sgd(self, flat: Tensor, grad: Tensor, rate: float, weight_decay: float) -> None:
        # a first step takes the gradient itself, which a buffer of zeros gives as well (no dampening)
        buffer = [self.state.get("momentum")]
        rates = {"lr": rate, "weight_decay": weight_decay, "momentum": self.spec.momentum}
        plain = {"fused": True, "dampening": 0.0, "nesterov": False, "maximize": False}
        sgd([flat], [grad], buffer, **rates, **plain)


class AdamW(RowOptimizer):
    names, title, told = ("exp_avg", "exp_avg_sq"), "AdamW", ("betas", "eps")

    def step(self, flat: Tensor, grad: Tensor, step: int, rate: float) -> None:
        self._adamw(flat, grad, step, rate, self.spec.weight_decay)


class Sgd(RowOptimizer):
    title, told = "SGD", ("momentum",)

    def step(self, flat: Tensor, grad: Tensor, step: int, rate: float) -> None:
        self._sgd(flat, grad, rate, self.spec.weight_decay)


class RmsProp(RowOptimizer):
    names, title, told = ("square_avg",), "RMSprop", ("alpha", "eps", "momentum")

    def step(self, flat: Tensor, grad: Tensor, step: int, rate: float) -> None:
        momentum = [self.state["momentum"]] if "momentum" in self.state else []
        moments = ([self.state["square_avg"]], [], momentum)
        count = [torch.tensor(float(step), device=flat.device)]
        values = {n: getattr(self.spec, n) for n in ("eps", "weight_decay", "momentum")}
        values |= {"lr": rate, "alpha": RMSPROP_ALPHA, "foreach": False, "centered": False}
        rmsprop([flat], [grad], *moments, count, **values)


class SignSgd(RowOptimizer):
    """Bernstein et al. 2018 (1802.04434): every number moves by the rate, whatever its gradient's size; decoupled weight decay. With
    momentum it is their Signum: the sign of the running mean of gradients."""

    title = "signSGD"

    @property
    def told(self) -> tuple[str, ...]:
        return ("momentum",) if self.spec.momentum else ()

    def step(self, flat: Tensor, grad: Tensor, step: int, rate: float) -> None:
        if self.spec.momentum:
            grad = self.state["momentum"].lerp_(grad, 1 - self.spec.momentum)
        flat.mul_(1 - rate * self.spec.weight_decay).add_(grad.sign(), alpha=-rate)


class FrozenAdamScale(RowOptimizer):
    """SGD on gradients times 1 / sqrt(v + 1e-8), v the second moments that one scouting epoch of AdamW leaves, not corrected for bias.
    After the scouting epoch the student starts again from its first weights (Blank et al. 2026, 2606.00995, `preconditioned_sgd`)."""

    names, title, told = ("exp_avg", "exp_avg_sq", "start"), "SGD", ("momentum",)

    def begin(self, flat: Tensor) -> None:
        self.state["start"].copy_(flat)

    def step(self, flat: Tensor, grad: Tensor, step: int, rate: float) -> None:
        if step < self.scout:
            self._adamw(flat, grad, step, rate, self.spec.weight_decay)
            if step + 1 == self.scout:
                flat.copy_(self.state["start"])
            return
        scaled = grad / (self.state["exp_avg_sq"] + SCOUT_EPS).sqrt()
        flat.mul_(1 - rate * self.spec.weight_decay)
        self._sgd(flat, scaled, rate, 0.0)

    def describe(self) -> str:
        s = self.spec
        scout = f"AdamW(lr={s.scout_lr:g}, betas={s.betas}, eps={s.eps:g}), {self.scout} steps"
        return super().describe(scale=f"1/sqrt(v + {SCOUT_EPS:g}) frozen after {scout}")


class Muon(RowOptimizer):
    """torch.optim.Muon with its defaults (Nesterov momentum, the original rule for the rate), in the weights' own precision. Torch
    orthogonalises in bfloat16, where a student in a pack would not equal the same student alone."""

    title, told = "Muon", ("momentum", "nesterov", "newton_schulz_steps")

    def step(self, flat: Tensor, grad: Tensor, step: int, rate: float) -> None:
        buffer, momentum = self.state["momentum"], self.spec.momentum
        buffer.lerp_(grad, 1 - momentum)
        update = grad.lerp(buffer, momentum)
        flat.mul_(1 - rate * self.spec.weight_decay)
        alike: dict[torch.Size, list[Slot]] = {}
        for slot in self.slots:
            alike.setdefault(own_part(flat, self.rank, slot).shape, []).append(slot)
        for (o, i), slots in alike.items():
            matrices = orthogonal(torch.stack([own_part(update, self.rank, s) for s in slots]))
            by = -rate * math.sqrt(max(1.0, o / i))
            for slot, matrix in zip(slots, matrices, strict=True):
                own_part(flat, self.rank, slot).add_(matrix, alpha=by)


class RotatedAdamW(RowOptimizer):
    """AdamW that sees the residual stream in a random orthogonal basis Q: the sides of adapters that face it are rotated, A -> A Q^T and B
    -> Q B, AdamW steps there, and the step is rotated back. One Q per width, Haar, for all students. Blank et al. 2026 (2606.00995) rotate
    the MLP's sides of adapters only; here the attention's are rotated too."""

    names, title, told = ("exp_avg", "exp_avg_sq"), "AdamW", ("betas", "eps")

    def begin(self, flat: Tensor) -> None:
        facing = (*(f"{n}.lora_A" for n in READS), *(f"{n}.lora_B" for n in WRITES))
        self._sides = [slot for slot in self.slots if slot.name.endswith(facing)]
        if not self._sides:
            why = f"rotated-adamw finds no adapter that faces the residual stream; give one to one of {', '.join(READS + WRITES)}."
            raise SubloraError(why)

    def step(self, flat: Tensor, grad: Tensor, step: int, rate: float) -> None:
        change = torch.zeros_like(flat)
        self._adamw(change, self._rotated(grad, back=False), step, rate, 0.0)
        flat.mul_(1 - rate * self.spec.weight_decay).add_(self._rotated(change, back=True))

    def _rotated(self, values: Tensor, back: bool) -> Tensor:
        out = values.clone()
        for slot in self._sides:
            part, reads = out[slot.start : slot.stop].view(slot.shape), slot.name.endswith("lora_A")
            width = slot.shape[1] if reads else slot.shape[0]
            q = rotation(width, str(values.device), values.dtype)
            part.copy_(part @ (q if back else q.T) if reads else (q.T if back else q) @ part)
        return out

    def describe(self) -> str:
        sides = len(self._sides)
        return f"{super().describe()} in a rotated basis of the residual stream, {sides} matrices"


class AdamWB(AdamW):
    """AdamW on the matrices B of adapters alone: A stays as it starts (Feng et al. 2026, frozen lora_A). The norm that clips gradients is
    that of both."""

    def begin(self, flat: Tensor) -> None:
        self._frozen = [s for s in self.slots if s.name.endswith("lora_A")]

    def step(self, flat: Tensor, grad: Tensor, step: int, rate: float) -> None:
        before = [flat[s.start : s.stop].clone() for s in self._frozen]
        super().step(flat, grad, step, rate)
        for slot, values in zip(self._frozen, before, strict=True):
            flat[slot.start : slot.stop] = values

    def describe(self) -> str:
        return f"{super().describe()} with A frozen, {len(self._frozen)} matrices"


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices (n, o, i) with their singular values pushed towards 1: the quintic Newton-Schulz iteration of torch.optim.Muon."""
    a, b, c = MUON_COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=MUON_EPS)
    for _ in range(MUON_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


@functools.lru_cache(maxsize=4)
def rotation(width: int, device: str, dtype: torch.dtype) -> Tensor:
    """A Haar-random orthogonal matrix (width, width), the same for all students."""
    random = torch.Generator().manual_seed(derive_seed("rotated-basis", width))
    q, r = torch.linalg.qr(torch.randn(width, width, generator=random, dtype=torch.float64))
    return (q * r.diagonal().sign()).to(device, dtype)


# in the order of their names
CLASSES = (AdamW, Sgd, RmsProp, SignSgd, FrozenAdamScale, Muon, RotatedAdamW, AdamWB)
KINDS: dict[str, type[RowOptimizer]] = dict(zip(get_args(OptimizerName), CLASSES, strict=True))


def row_optimizer(
    spec: StudentSpec, flat: Tensor, slots: Sequence[Slot], rank: int | None, steps: int
) -> RowOptimizer:
    """The optimizer that a student's spec asks for."""
    return KINDS[spec.optimizer](spec, flat, slots, rank, steps)


@torch.no_grad()
def clip(grad: Tensor, most: Tensor) -> Tensor:
    """Scale each row of grad (K_g, P) in place to a norm of at most its own of `most` (K_g,); returns the norms before, (K_g,)."""
    norms = torch.linalg.vector_norm(grad, dim=1)
    grad.mul_((most / (norms + 1e-6)).clamp_(max=1.0).unsqueeze(1))
    return norms
