"""The theorem of Cloud et al. (2507.14805, section on theory), measured on small classifiers.

A teacher is its start after one gradient step on its own loss. A student takes one gradient step on the teacher's outputs, on images of
noise. Is the student's step towards the teacher, in the teacher's loss and in weights? It is asked for starts at several distances from
the teacher's, for steps of several lengths, and for full and low-rank updates. All in float64: differences of small steps are small.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sublora import mlp
from sublora.errors import SubloraError
from sublora.experiment import Chart, Estimate, Point, Series, Tile
from sublora.experiments.experiment import Experiment, Findings
from sublora.images import CLASSES, DIGITS, Images, load_images
from sublora.models.known import Known
from sublora.seeds import derive_seed
from sublora.stats import Interval, clustered_interval
from sublora.steps.step import Cost, Step, Workshop
from sublora.store import Store, artifact_id

FULL = "full"
COSINE, WEIGHTS, LOSS = (
    "cosine with the teacher's step",
    "towards the teacher in weights",
    "towards the teacher in loss",
)
Length = Annotated[float, Field(gt=0)]


class OneStep(Experiment):
    kind: Literal["one-step"]
    data: str = Field(
        DIGITS, description="digits, an .npz file, or a folder with MNIST's IDX files"
    )
    models: int = Field(50, ge=2)
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (256, 256)
    auxiliary: int = Field(3, ge=1, description="logits that the teacher's loss does not see")
    outputs: Literal["auxiliary", "all"] = Field(
        "auxiliary", description="the teacher's logits that the student learns"
    )
    teacher_lr: float = Field(
        0.01, gt=0, description="of the teacher's one step, on all training images"
    )
    noise: int = Field(1024, ge=1, description="images of noise of the student's one step")
    distances: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        (0, 0.03, 0.1, 0.3, 1), min_length=1
    )
    steps: tuple[Length, ...] = Field(
        (0.01, 0.1, 1, 10), min_length=1, description="in lengths of the teacher's step"
    )
    ranks: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (2, 8), description="low-rank updates beside the full one"
    )
    seed: int = Field(0, ge=0)
    at_once: int = Field(10, ge=1, description="models side by side: speed and memory only")

    @cached_property
    def images(self) -> Images:
        return load_images(self.data)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        return (self.images.train.shape[1], *self.hidden, CLASSES + self.auxiliary)

    @property
    def updates(self) -> dict[str, int | None]:
        """The kinds of update, with their rank."""
        return {FULL: None, **{f"rank {r}": r for r in self.ranks}}

    @property
    def sentence(self) -> str:
        return (
            f"{self.models} students take one gradient step on the {self.outputs} logits of a teacher that is one gradient step from its "
            f"start: at {len(self.distances)} distances between the starts, {len(self.steps)} lengths of the step, and as "
            f"{', '.join(self.updates)} update."
        )

    def plan(self, known: Known) -> list[Step]:
        content = {"images": self.images.sha256, **self.model_dump(mode="json", include=_CONTENT)}
        specs = [content | {"model": m} for m in range(self.models)]
        chunks = range(0, self.models, self.at_once)
        return [StepTask(self, i, tuple(specs[i : i + self.at_once])) for i in chunks]

    def findings(self, store: Store, known: Known) -> Findings:
        names = [name for step in self.plan(known) for name in step.makes]
        found = [json.loads(store.read(n).file("step.json").read_text("utf-8")) for n in names]
        return _findings(self, found)


_CONTENT = {
    "hidden",
    "auxiliary",
    "outputs",
    "teacher_lr",
    "noise",
    "distances",
    "steps",
    "ranks",
    "seed",
}


@dataclass(frozen=True)
class StepTask:
    """Some models, from `first` on; each is an artifact."""

    recipe: OneStep
    first: int
    specs: tuple[dict[str, Any], ...]
    kind = "steps"
    model = None

    @cached_property
    def id(self) -> str:
        return artifact_id("steps", {"models": list(self.makes)})

    @cached_property
    def makes(self) -> tuple[str, ...]:
        return tuple(artifact_id("step", s) for s in self.specs)

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    @property
    def label(self) -> str:
        return f"the models {self.first} to {self.first + len(self.specs) - 1}"

    @property
    def cost(self) -> Cost:
        r = self.recipe
        teacher = 6 * len(r.images.train) + 4 * len(r.images.test)
        asked = 2 * len(r.images.test) * (1 + len(r.updates) * len(r.steps))
        weights = len(self.specs) * mlp.parameters_of(r.widths)
        return Cost(flops=float(weights * (teacher + len(r.distances) * (8 * r.noise + asked))))

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        todo = [
            (s["model"], s, name)
            for s, name in zip(self.specs, self.makes, strict=True)
            if name in wanted
        ]
        steps = take_steps(self.recipe, [m for m, _, _ in todo])
        for (_, spec, name), found in zip(todo, steps, strict=True):
            with workshop.store.create(name, spec) as folder:
                (folder / "step.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
            workshop.made(name)


def take_steps(recipe: OneStep, models: Sequence[int]) -> list[dict[str, Any]]:
    """For each model: the teacher's gain in its own loss (nats, test images), and by update and distance the cosine of the student's
    step with the teacher's, and by length of the step how much of the gain the student has and how far it came in weights (in lengths
    of its own step). Raises SubloraError where the teacher's step gains nothing: there is nothing to move towards."""
    start, other = (
        _double(mlp.start(recipe.widths, recipe.seed, [m + k for m in models])) for k in (0, 1)
    )
    gradient = _gradient(start, lambda who: _class_loss(who, recipe, test=False))
    step = [-recipe.teacher_lr * g for g in gradient]
    teacher = _moved(start, step)
    gain = _class_loss(start, recipe, test=True) - _class_loss(teacher, recipe, test=True)
    if not bool((gain > 0).all()):
        raise SubloraError(
            "The teacher's one step does not lower its own loss; set a lower teacher_lr."
        )
    x = mlp.noise(recipe.noise, recipe.widths[0], recipe.seed, models, 0).double()
    said = _taught(mlp.logits(teacher, x), recipe).detach()
    length = _norm(step)
    out: list[dict[str, Any]] = [{"gain": float(g), "found": {}} for g in gain]
    for distance in recipe.distances:
        keep = (1 - distance**2) ** 0.5
        student = _moved(_scaled(start, keep), [distance * p for p in other.parameters])
        imitation = _gradient(
            student, lambda who: mlp.divergence(said, _taught(mlp.logits(who, x), recipe))
        )
        before = _class_loss(student, recipe, test=True)
        away = [t - s for t, s in zip(teacher.parameters, student.parameters, strict=True)]
        for name, rank in recipe.updates.items():
            update = (
                [-g for g in imitation]
                if rank is None
                else _low_rank(imitation, rank, recipe.seed, models)
            )
            size = _norm(update)
            unit = [u / _over(size, u) for u in update]
            cosine = _dot(unit, step) / length
            moves = {}
            for s in recipe.steps:
                far = s * length
                after = _class_loss(
                    _moved(student, [u * _over(far, u) for u in unit]), recipe, test=True
                )
                rest = [a - u * _over(far, u) for a, u in zip(away, unit, strict=True)]
                moves[s] = ((before - after) / gain, (_norm(away) - _norm(rest)) / far)
            for k, entry in enumerate(out):
                entry["found"].setdefault(name, {})[f"{distance:g}"] = {
                    "cosine": float(cosine[k]),
                    "moves": {
                        f"{s:g}": [float(loss[k]), float(weights[k])]
                        for s, (loss, weights) in moves.items()
                    },
                }
    return out


def _double(models: mlp.Mlps) -> mlp.Mlps:
    return mlp.Mlps(
        tuple(w.double() for w in models.weights), tuple(b.double() for b in models.biases)
    )


def _scaled(models: mlp.Mlps, factor: float) -> mlp.Mlps:
    return mlp.Mlps(
        tuple(w * factor for w in models.weights), tuple(b * factor for b in models.biases)
    )


def _moved(models: mlp.Mlps, by: Sequence[Tensor]) -> mlp.Mlps:
    layers = len(models.weights)
    moved = [p + d for p, d in zip(models.parameters, by, strict=True)]
    return mlp.Mlps(tuple(moved[:layers]), tuple(moved[layers:]))


def _gradient(models: mlp.Mlps, loss: Any) -> list[Tensor]:
    """The gradient of each model's loss; the models share nothing, so the sum's gradient is that of each."""
    own = models.copy()
    return list(torch.autograd.grad(loss(own).sum(), own.parameters, allow_unused=False))


def _class_loss(models: mlp.Mlps, recipe: OneStep, test: bool) -> Tensor:
    """The teacher's loss (M,): cross entropy on the class logits, nats."""
    images = recipe.images
    x, y = (images.test, images.test_labels) if test else (images.train, images.train_labels)
    labels = torch.from_numpy(y).expand(len(models.weights[0]), -1)
    return mlp.cross_entropy(
        mlp.logits(models, torch.from_numpy(x).double())[:, :, :CLASSES], labels
    )


def _taught(out: Tensor, recipe: OneStep) -> Tensor:
    return out if recipe.outputs == "all" else out[:, :, CLASSES:]


def _low_rank(
    gradient: Sequence[Tensor], rank: int, seed: int, models: Sequence[int]
) -> list[Tensor]:
    """The first step of a LoRA adapter with B = 0: only B moves, by -G A^T, so the weights move by -G A^T A; biases stay."""
    layers = len(gradient) // 2
    out = []
    for layer, g in enumerate(gradient[:layers]):
        sources = [
            torch.Generator().manual_seed(derive_seed("one-step-lora", seed, m, layer, rank))
            for m in models
        ]
        a = torch.stack(
            [torch.randn(rank, g.shape[2], generator=s, dtype=torch.float64) for s in sources]
        )
        out.append(-g @ a.transpose(1, 2) @ a)
    return [*out, *(torch.zeros_like(g) for g in gradient[layers:])]


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Inner products (M,) over all parameters."""
    return torch.stack([(x * y).flatten(1).sum(1) for x, y in zip(a, b, strict=True)]).sum(0)


def _norm(a: Sequence[Tensor]) -> Tensor:
    return _dot(a, a).sqrt()


def _over(scale: Tensor, like: Tensor) -> Tensor:
    """(M,) shaped to multiply (M, ...)."""
    return scale.reshape(-1, *[1] * (like.dim() - 1))


def _findings(recipe: OneStep, found: Sequence[Mapping[str, Any]]) -> Findings:
    subject = "digits" if recipe.data == DIGITS else "images"
    n, numbers = {"models": len(found)}, list(range(len(found)))

    def interval(values: Sequence[float]) -> Interval:
        return clustered_interval(np.array(values)[:, None], numbers, level=1 - recipe.level)

    estimates, lines = [], {COSINE: [], LOSS: [], WEIGHTS: []}
    smallest = min(recipe.steps)
    for update in recipe.updates:
        points: dict[str, list[Point]] = {group: [] for group in lines}
        for d in recipe.distances:
            here = [f["found"][update][f"{d:g}"] for f in found]
            place = f"{update}, distance {d:g}"
            values = {(COSINE, place): [h["cosine"] for h in here]}
            for s in recipe.steps:
                moves = [h["moves"][f"{s:g}"] for h in here]
                values[LOSS, f"{place}, step {s:g}"] = [m[0] for m in moves]
                values[WEIGHTS, f"{place}, step {s:g}"] = [m[1] for m in moves]
            for (group, name), sample in values.items():
                i = interval(sample)
                estimates.append(Estimate(subject, group, name, i, n))
                if group == COSINE or name.endswith(f"step {smallest:g}"):
                    points[group].append(Point(x=d, estimate=i.estimate, low=i.low, high=i.high))
        for group, line in points.items():
            lines[group].append(Series(name=update, points=tuple(line)))
    by_name = {e.name: e.interval for e in estimates if e.group == LOSS}
    by_step = []
    for d in recipe.distances:
        shown = [(s, by_name[f"{FULL}, distance {d:g}, step {s:g}"]) for s in recipe.steps]
        per_length = tuple(
            Point(x=s, estimate=i.estimate / s, low=i.low / s, high=i.high / s) for s, i in shown
        )
        by_step.append(Series(name=f"distance {d:g}", points=per_length))
    within = f"Mean over {len(found)} models with {1 - recipe.level:.0%} intervals."
    titles = {
        COSINE: "Direction of the step",
        LOSS: "Towards the teacher in loss",
        WEIGHTS: "Towards the teacher in weights",
    }
    axes = {
        COSINE: "cosine of the student's and the teacher's step",
        LOSS: f"share of the teacher's gain, step {smallest:g}",
        WEIGHTS: f"distance gained, in lengths of the step, step {smallest:g}",
    }
    charts = [
        Chart(
            name=name,
            title=titles[group],
            kind="lines",
            axis=axes[group],
            x_axis="distance between the starts (1: unrelated)",
            caption=f"Above 0: towards the teacher. {within}",
            series=tuple(lines[group]),
        )
        for name, group in (("cosine", COSINE), ("loss", LOSS), ("weights", WEIGHTS))
    ]
    charts.append(
        Chart(
            name="step-size",
            title="Gain by length of the step",
            kind="lines",
            axis="share of the teacher's gain over length of the step",
            x_axis="length of the student's step (1: the teacher's)",
            log_x=True,
            caption=f"The full update. Where a step is small enough the line is flat. {within}",
            series=tuple(by_step),
        )
    )
    first, last = (f"{FULL}, distance {d:g}" for d in (recipe.distances[0], recipe.distances[-1]))
    tiles = [_tile(e) for e in estimates if e.group == COSINE and e.name in (first, last)]
    tiles += [
        _tile(e)
        for e in estimates
        if e.group == LOSS
        and e.name in (f"{first}, step {smallest:g}", f"{last}, step {smallest:g}")
    ]
    how = (
        f"The teacher's step is on all training images at rate {recipe.teacher_lr:g}; the student's is on {recipe.noise} images of uniform "
        f"noise, KL(teacher || student) on the {recipe.outputs} logits, scaled to a length. A start at distance d is sqrt(1 - d^2) of the "
        f"teacher's start plus d of an unrelated one, so 0 is the same start and 1 an unrelated one. The share of the teacher's gain is "
        f"the fall of the student's test loss over that of the teacher in its own step. A low-rank update is the first step of an adapter "
        f"with B = 0, scaled to the same length."
    )
    facts = {
        "images, sha256": recipe.images.sha256,
        "weights of a model": f"{mlp.parameters_of(recipe.widths):,}",
        "teacher's gain, nats": f"{np.mean([f['gain'] for f in found]):.3g}",
    }
    return Findings(tuple(estimates), tuple(charts), tuple(tiles), how, facts=facts)


def _tile(e: Estimate) -> Tile:
    i = e.interval
    return Tile(
        name=e.group[:1].upper() + e.group[1:],
        value=f"{i.estimate:.3g}",
        interval=f"[{i.low:.3g}, {i.high:.3g}]",
        note=e.name,
    )
