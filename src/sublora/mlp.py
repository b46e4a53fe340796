"""Many small classifiers (multilayer perceptrons, ReLU) trained side by side: one batched matrix product a layer for all of them.

Models share shapes and hyper-parameters and nothing else: each has its own start, order of rows and gradient, so that what stands beside
a model in a batch cannot change it (a test compares with single models).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sublora.seeds import derive_seed, generator


@dataclass(frozen=True)
class Mlps:
    """M models as weights (M, out, in) and biases (M, out) by layer."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.weights, *self.biases]

    def copy(self) -> "Mlps":
        """The same values in tensors of their own, with gradients."""
        parts = (self.weights, self.biases)
        return Mlps(*(tuple(t.detach().clone().requires_grad_() for t in part) for part in parts))

    def flat(self) -> Tensor:
        """All parameters of each model, (M, P), without gradients."""
        return torch.cat([t.detach().flatten(1) for t in self.parameters], dim=1)


def start(widths: Sequence[int], seed: int, models: Sequence[int]) -> Mlps:
    """The untrained models with these numbers: weights N(0, 1 / inputs), biases 0 (Cloud et al. 2507.14805, their classifier code)."""
    weights: list[list[Tensor]] = [[] for _ in widths[1:]]
    for model in models:
        source = torch.Generator().manual_seed(derive_seed("mlp-start", seed, model))
        for layer, (inputs, outputs) in enumerate(pairwise(widths)):
            weights[layer].append(torch.randn(outputs, inputs, generator=source) / inputs**0.5)
    stacked = tuple(torch.stack(w) for w in weights)
    return Mlps(stacked, tuple(torch.zeros(w.shape[:2]) for w in stacked))


def joined(parts: Sequence[Mlps]) -> Mlps:
    """The models of all parts in one batch."""
    weights = map(torch.cat, zip(*(p.weights for p in parts), strict=True))
    biases = map(torch.cat, zip(*(p.biases for p in parts), strict=True))
    return Mlps(tuple(weights), tuple(biases))


def parameters_of(widths: Sequence[int]) -> int:
    """Weights of one model, without biases: what counts in its cost."""
    return sum(a * b for a, b in pairwise(widths))


def logits(models: Mlps, x: Tensor) -> Tensor:
    """Logits (M, B, out) of inputs (M, B, in), or of inputs (B, in) that all models share."""
    if x.dim() == 2:
        x = x.expand(len(models.weights[0]), *x.shape)
    last = len(models.weights) - 1
    for layer, (weight, bias) in enumerate(zip(models.weights, models.biases, strict=True)):
        x = torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
        if layer < last:
            x = torch.relu(x)
    return x


def cross_entropy(out: Tensor, labels: Tensor) -> Tensor:
    """Mean over rows of out (M, B, K) against labels (M, B): (M,)."""
    return -torch.log_softmax(out, dim=2).gather(2, labels.unsqueeze(2)).squeeze(2).mean(dim=1)


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) of the softmax over logits (M, B, K), mean over rows: (M,), in nats."""
    log_p, log_q = torch.log_softmax(teacher, dim=2), torch.log_softmax(student, dim=2)
    return (log_p.exp() * (log_p - log_q)).sum(dim=2).mean(dim=1)


def batches(rows: int, size: int, seed: int, models: Sequence[int], epoch: int) -> list[Tensor]:
    """Row numbers (M, up to size) of each step of an epoch, in an order of each model's own."""
    orders = np.stack([generator("mlp-order", seed, m, epoch).permutation(rows) for m in models])
    return list(torch.from_numpy(orders).split(size, dim=1))


def noise(rows: int, width: int, seed: int, models: Sequence[int], block: int) -> Tensor:
    """Images of uniform noise in [-1, 1], (M, rows, width): each model's own, the same whenever its block is asked for."""
    sources = [
        torch.Generator().manual_seed(derive_seed("mlp-noise", seed, m, block)) for m in models
    ]
    parts = [torch.rand(rows, width, generator=source) for source in sources]
    return torch.stack(parts).mul_(2).sub_(1)
