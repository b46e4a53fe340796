"""Many small classifiers (multilayer perceptrons, ReLU) trained side by side, and what their experiments share.

One batched matrix product a layer serves all. Models share shapes and hyper-parameters and nothing
else: each has its own start, order of rows and gradient, so that what stands beside a model in a
batch cannot change it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sublora.experiments.experiment import Experiment
from sublora.experiments.images import CLASSES, DIGITS, Images, load_images
from sublora.seeds import derive_seed, generator
from sublora.steps.made import Batch
from sublora.steps.step import Workshop


class OfClassifiers(Experiment):
    """A recipe over classifiers of images, with `auxiliary` logits that name no class."""

    data: str = Field(
        DIGITS, description="digits, an .npz file, or a folder with MNIST's IDX files"
    )
    models: int = Field(50, ge=2)
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (256, 256)
    auxiliary: int = Field(3, ge=1, description="logits that the teacher never trains")
    seed: int = Field(0, ge=0)
    at_once: int = Field(10, ge=1, description="models side by side: speed and memory only")

    @cached_property
    def images(self) -> Images:
        return load_images(self.data)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        return (self.images.train.shape[1], *self.hidden, CLASSES + self.auxiliary)

    @property
    def subject(self) -> str:
        return "digits" if self.data == DIGITS else "images"

    def specs(self, content: set[str]) -> list[tuple[dict[str, Any], ...]]:
        """The models' specs, `at_once` a step; `content` are the fields that change an artifact."""
        shared = {"images": self.images.sha256, **self.model_dump(mode="json", include=content)}
        specs = [shared | {"model": m} for m in range(self.models)]
        starts = range(0, self.models, self.at_once)
        return [tuple(specs[i : i + self.at_once]) for i in starts]


@dataclass(frozen=True)
class ClassifiersStep(Batch):
    """Some models."""

    recipe: OfClassifiers
    needs = ()
    model = None

    @property
    def label(self) -> str:
        return f"the models {self.specs[0]['model']} to {self.specs[-1]['model']}"

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        named = zip(self.makes, self.specs, strict=True)
        todo = [(name, spec) for name, spec in named if name in wanted]
        results = self.results([spec["model"] for _, spec in todo])
        for (name, spec), (meta, save) in zip(todo, results, strict=True):
            with workshop.store.create(name, spec, meta) as folder:
                save(folder)
            workshop.made(name)

    def results(self, models: Sequence[int]) -> Iterable[tuple[Any, Callable[[Path], None]]]:
        """What is said of each of these models, and how the rest is written."""
        raise NotImplementedError


@dataclass(frozen=True)
class Mlps:
    """M models as weights (M, out, in) and biases (M, out) by layer."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    @staticmethod
    def of(parameters: Sequence[Tensor]) -> "Mlps":
        layers = len(parameters) // 2
        return Mlps(tuple(parameters[:layers]), tuple(parameters[layers:]))

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.weights, *self.biases]

    def double(self) -> "Mlps":
        return Mlps.of([p.double() for p in self.parameters])

    def copy(self) -> "Mlps":
        """The same values in tensors of their own, with gradients."""
        return Mlps.of([p.detach().clone().requires_grad_() for p in self.parameters])


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
    return Mlps.of([torch.cat(same) for same in zip(*(p.parameters for p in parts), strict=True)])


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
    seeds = [derive_seed("mlp-noise", seed, m, block) for m in models]
    parts = [torch.rand(rows, width, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.stack(parts).mul_(2).sub_(1)
