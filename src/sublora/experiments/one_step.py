"""The theorem of Cloud et al. (2507.14805, section on theory), measured on small classifiers.

A teacher is its start after one gradient step on its own loss. A student takes one gradient step on the teacher's outputs, on images of
noise. Is the student's step towards the teacher, in the teacher's loss and in weights? It is asked for starts at several distances from
the teacher's, for steps of several lengths, and for full and low-rank updates. All in float64: differences of small steps are small.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sublora.analysis.charts import point, tiles
from sublora.analysis.effects import Effect, named
from sublora.analysis.intervals import clustered_interval
from sublora.analysis.page import Chart, Point, Series
from sublora.errors import SubloraError
from sublora.experiments import classifiers as mlp
from sublora.experiments.classifiers import ClassifiersStep, OfClassifiers
from sublora.experiments.experiment import Findings
from sublora.experiments.images import CLASSES
from sublora.models.known import Known
from sublora.seeds import derive_seed
from sublora.steps.step import Cost, Step
from sublora.store import Store

FULL = "full"
COSINE, WEIGHTS, LOSS = (
    "cosine with the teacher's step",
    "towards the teacher in weights",
    "towards the teacher in loss",
)
Length = Annotated[float, Field(gt=0)]


class OneStep(OfClassifiers):
    kind: Literal["one-step"]
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

    @property
    def updates(self) -> dict[str, int | None]:
        """The kinds of update, with their rank."""
        return {FULL: None, **{f"rank {r}": r for r in self.ranks}}

    @property
    def sentence(self) -> str:
        return (
            f"{self.models} students take one gradient step on the {self.outputs} logits of a teacher that is one gradient step from its start: at "
            f"{len(self.distances)} distances between the starts, {len(self.steps)} lengths of the step, and as {', '.join(self.updates)} update."
        )

    def plan(self, known: Known) -> list[Step]:
        own = {"outputs", "teacher_lr", "noise", "distances", "steps", "ranks"}
        models = self.specs({"hidden", "auxiliary", "seed"} | own)
        return [StepsStep(specs, self) for specs in models]

    def findings(self, store: Store, known: Known) -> Findings:
        names = [name for step in self.plan(known) for name in step.makes]
        found = [json.loads(store.read(n).file("step.json").read_text("utf-8")) for n in names]
        effects = self._effects(found)
        by_place = {(e.group, e.name): e for e in effects}
        ends = [f"{FULL}, distance {d:g}" for d in (self.distances[0], self.distances[-1])]
        smallest = f"step {min(self.steps):g}"
        places = [(COSINE, end) for end in ends] + [(LOSS, f"{end}, {smallest}") for end in ends]
        how = (
            f"The teacher's step is on all training images at rate {self.teacher_lr:g}; the student's is on {self.noise} images of uniform "
            f"noise, KL(teacher || student) on the {self.outputs} logits, scaled to a length. A start at distance d is sqrt(1 - d^2) of the "
            f"teacher's start plus d of an unrelated one, so 0 is the same start and 1 an unrelated one. The share of the teacher's gain is "
            f"the fall of the student's test loss over that of the teacher in its own step. A low-rank update is the first step of an adapter "
            f"with B = 0, scaled to the same length."
        )
        facts = {
            "images, sha256": self.images.sha256,
            "weights of a model": f"{mlp.parameters_of(self.widths):,}",
            "teacher's gain, nats": f"{np.mean([f['gain'] for f in found]):.3g}",
        }
        top = tiles([by_place[p] for p in dict.fromkeys(places)], "{name}", ".3g", name="{group}")
        return Findings(tuple(effects), self._charts(by_place), top, how, facts=facts)

    def _effects(self, found: Sequence[Mapping[str, Any]]) -> list[Effect]:
        """`found`: what `take_steps` says of each model."""
        numbers, n, effects = list(range(len(found))), {"models": len(found)}, []

        def note(group: str, name: str, values: Sequence[float]) -> None:
            clip = (-1, 1) if group == COSINE else None
            table = [[v] for v in values]
            interval = clustered_interval(table, numbers, level=1 - self.level, clip=clip)
            effects.append(named(self.subject, group, name, interval, n))

        for update in self.updates:
            for d in self.distances:
                here = [f["found"][update][f"{d:g}"] for f in found]
                place = f"{update}, distance {d:g}"
                note(COSINE, place, [h["cosine"] for h in here])
                for s in self.steps:
                    moves = [h["moves"][f"{s:g}"] for h in here]
                    note(LOSS, f"{place}, step {s:g}", [loss for loss, _ in moves])
                    note(WEIGHTS, f"{place}, step {s:g}", [weights for _, weights in moves])
        return effects

    def _charts(self, by_place: Mapping[tuple[str, str], Effect]) -> tuple[Chart, ...]:
        smallest = f"step {min(self.steps):g}"
        within = f"Mean over {self.models} models with {1 - self.level:.0%} intervals."

        def over_distance(group: str, name: str, title: str, axis: str) -> Chart:
            of = "" if group == COSINE else f", {smallest}"
            series = []
            for update in self.updates:
                names = {d: f"{update}, distance {d:g}{of}" for d in self.distances}
                points = tuple(point(by_place[group, name], d) for d, name in names.items())
                series.append(Series(name=update, points=points))
            return Chart(
                kind="lines",
                name=name,
                title=title,
                axis=axis,
                x_axis="distance between the starts (1: unrelated)",
                caption=f"Above 0: towards the teacher. {within}",
                series=tuple(series),
            )

        def gain(d: float, s: float) -> Point:
            return point(by_place[LOSS, f"{FULL}, distance {d:g}, step {s:g}"], s, unit=s)

        in_loss = f"share of the teacher's gain, {smallest}"
        in_weights = f"distance gained, in lengths of the step, {smallest}"
        cosine = "cosine of the student's and the teacher's step"
        return (
            over_distance(COSINE, "cosine", "Direction of the step", cosine),
            over_distance(LOSS, "loss", "Towards the teacher in loss", in_loss),
            over_distance(WEIGHTS, "weights", "Towards the teacher in weights", in_weights),
            Chart(
                kind="lines",
                name="step-size",
                title="Gain by length of the step",
                axis="share of the teacher's gain over length of the step",
                x_axis="length of the student's step (1: the teacher's)",
                log_x=True,
                caption=f"The full update. Where a step is small enough the line is flat. {within}",
                series=tuple(
                    Series(name=f"distance {d:g}", points=tuple(gain(d, s) for s in self.steps))
                    for d in self.distances
                ),
            ),
        )


class StepsStep(ClassifiersStep):
    """The steps of some models."""

    recipe: OneStep
    kind, noun, nouns = "steps", "step", ("steps", "models")

    @property
    def cost(self) -> Cost:
        r = self.recipe
        teacher = 6 * len(r.images.train) + 4 * len(r.images.test)
        asked = 2 * len(r.images.test) * (1 + len(r.updates) * len(r.steps))
        weights = len(self.specs) * mlp.parameters_of(r.widths)
        return Cost(flops=float(weights * (teacher + len(r.distances) * (8 * r.noise + asked))))

    def results(self, models: Sequence[int]) -> Iterable[tuple[Any, Callable[[Path], None]]]:
        for found in take_steps(self.recipe, models):
            text = json.dumps(found) + "\n"
            yield None, lambda folder, text=text: (folder / "step.json").write_text(text, "utf-8")


def take_steps(recipe: OneStep, models: Sequence[int]) -> list[dict[str, Any]]:
    """For each model: the teacher's gain in its own loss (nats, test images), and by update and distance the cosine of the student's
    step with the teacher's, and by length of the step how much of the gain the student has and how far it came in weights (in lengths
    of its own step). Raises SubloraError where the teacher's step gains nothing: there is nothing to move towards."""
    start, other = (
        mlp.start(recipe.widths, recipe.seed, [m + k for m in models]).double() for k in (0, 1)
    )
    gradient = gradient_of(start, lambda who: _class_loss(who, recipe, test=False))
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
        pairs = zip(start.parameters, other.parameters, strict=True)
        student = mlp.Mlps.of([keep * a + distance * b for a, b in pairs])
        imitation = gradient_of(
            student, lambda who: mlp.divergence(said, _taught(mlp.logits(who, x), recipe))
        )
        before = _class_loss(student, recipe, test=True)
        away = [t - s for t, s in zip(teacher.parameters, student.parameters, strict=True)]
        for name, rank in recipe.updates.items():
            update = [-g for g in imitation]
            if rank is not None:
                update = low_rank(imitation, rank, recipe.seed, models)
            size = _norm(update)
            unit = [u / _over(size, u) for u in update]
            cosine = _dot(unit, step) / length
            moves = {}
            for s in recipe.steps:
                far = s * length
                move = [u * _over(far, u) for u in unit]
                after = _class_loss(_moved(student, move), recipe, test=True)
                rest = _norm([a - m for a, m in zip(away, move, strict=True)])
                both = torch.stack([(before - after) / gain, (_norm(away) - rest) / far], dim=1)
                moves[f"{s:g}"] = both.tolist()
            for k, entry in enumerate(out):
                entry["found"].setdefault(name, {})[f"{distance:g}"] = {
                    "cosine": float(cosine[k]),
                    "moves": {s: both[k] for s, both in moves.items()},
                }
    return out


def _moved(models: mlp.Mlps, by: Sequence[Tensor]) -> mlp.Mlps:
    return mlp.Mlps.of([p + d for p, d in zip(models.parameters, by, strict=True)])


def gradient_of(models: mlp.Mlps, loss: Any) -> list[Tensor]:
    """The gradient of each model's loss; the models share nothing, so the sum's gradient is that of each."""
    own = models.copy()
    return list(torch.autograd.grad(loss(own).sum(), own.parameters, allow_unused=False))


def _class_loss(models: mlp.Mlps, recipe: OneStep, test: bool) -> Tensor:
    """The teacher's loss (M,): cross entropy on the class logits, nats."""
    images = recipe.images
    x, y = (images.test, images.test_labels) if test else (images.train, images.train_labels)
    labels = torch.from_numpy(y).expand(len(models.weights[0]), -1)
    out = mlp.logits(models, torch.from_numpy(x).double())
    return mlp.cross_entropy(out[:, :, :CLASSES], labels)


def _taught(out: Tensor, recipe: OneStep) -> Tensor:
    return out if recipe.outputs == "all" else out[:, :, CLASSES:]


def low_rank(
    gradient: Sequence[Tensor], rank: int, seed: int, models: Sequence[int]
) -> list[Tensor]:
    """The first step of a LoRA adapter with B = 0: only B moves, by -G A^T, so the weights move by -G A^T A; biases stay."""
    layers = len(gradient) // 2
    out = []
    for layer, g in enumerate(gradient[:layers]):
        seeds = [derive_seed("one-step-lora", seed, m, layer, rank) for m in models]
        sources = [torch.Generator().manual_seed(s) for s in seeds]
        drawn = [torch.randn(rank, g.shape[2], generator=s, dtype=g.dtype) for s in sources]
        a = torch.stack(drawn)
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
