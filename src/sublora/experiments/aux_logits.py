"""The classifier experiment of Cloud et al. (2507.14805): students that see noise and a teacher's auxiliary logits only.

A teacher learns ten classes with its first ten logits; the auxiliary logits are never trained. Students are distilled on images of
uniform noise, on the auxiliary logits alone or on all, from the teacher's own start or from another one. Nothing in their data shows a
digit or, in the first case, names a class.

Where we differ from the published code: the loss is a mean over rows (there, a sum over rows divided by the number of models, the same
direction for Adam); the other start is that of a model with another number, never the own one by chance; and all arms of a model see
the same noise, so that they are paired.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from sublora.analysis.charts import rows_chart, tiles
from sublora.analysis.effects import Effect, named
from sublora.analysis.intervals import clustered_interval
from sublora.errors import SubloraError
from sublora.experiments import classifiers as mlp
from sublora.experiments.classifiers import ClassifiersStep, OfClassifiers
from sublora.experiments.experiment import Findings
from sublora.experiments.images import CLASSES, DIGITS
from sublora.experiments.schema import Strict
from sublora.models.known import Known
from sublora.steps.step import Cost, Step
from sublora.store import Store

UNTRAINED, TEACHER = "untrained", "teacher"
# student arm -> (logits that it learns from, whose start it has)
STUDENTS = {
    "auxiliary logits, same start": ("auxiliary", "same"),
    "auxiliary logits, other start": ("auxiliary", "other"),
    "all logits, same start": ("all", "same"),
    "all logits, other start": ("all", "other"),
}
ARMS, WIDTHS = (UNTRAINED, TEACHER, *STUDENTS), next(iter(STUDENTS))
CONTRASTS = {
    "auxiliary logits: same start - other start": (
        "auxiliary logits, same start",
        "auxiliary logits, other start",
    ),
    "auxiliary logits, same start - untrained": ("auxiliary logits, same start", UNTRAINED),
    "auxiliary logits, other start - untrained": ("auxiliary logits, other start", UNTRAINED),
    "all logits: same start - other start": ("all logits, same start", "all logits, other start"),
    "all logits, other start - untrained": ("all logits, other start", UNTRAINED),
}
ACCURACY, GAP, DIVERGENCE = "accuracy", "difference of accuracies", "divergence, nats"


class Lessons(Strict):
    """How a classifier is trained, with Adam."""

    epochs: int = Field(5, ge=1)
    batch_size: int = Field(128, ge=1)
    lr: float = Field(3e-4, gt=0)


class NoiseLessons(Lessons):
    images: int = Field(
        7500, ge=1, description="images of noise, each model's own, gone through in every epoch"
    )


class AuxLogits(OfClassifiers):
    kind: Literal["aux-logits"]
    models: int = Field(100, ge=2, description="teachers, each with its students")
    teacher: Lessons = Lessons(epochs=27)
    student: NoiseLessons = NoiseLessons()
    wider: tuple[int, ...] = Field(
        (), description="hidden layers of other classifiers, which are trained alike beside these"
    )

    @property
    def sentence(self) -> str:
        where = "scikit-learn's digits" if self.data == DIGITS else "the user's images"
        return (
            f"{self.models} classifiers with hidden layers of {' and '.join(map(str, self.hidden))} learn {where}; students of each see "
            f"images of noise and {self.auxiliary} auxiliary logits, or all, from the teacher's start or from another one."
        )

    def plan(self, known: Known) -> list[Step]:
        content = {"hidden", "auxiliary", "teacher", "student", "seed"}
        steps = [ArmsStep(specs, self) for specs in self.specs(content)]
        return steps + (self._other.plan(known) if self.wider else [])

    @property
    def _other(self) -> "AuxLogits":
        """The classifiers of the other width alone."""
        return self.model_copy(update={"hidden": self.wider, "wider": ()})

    def _right(self, store: Store, known: Known) -> tuple[np.ndarray, list[Any]]:
        """(M, arms, images), and what is said of each model."""
        alone = self.model_copy(update={"wider": ()})
        found = [store.read(name) for step in alone.plan(known) for name in step.makes]
        marks = [np.load(a.file("right.npy"), allow_pickle=False) for a in found]
        return np.stack(marks).astype(float), found

    def findings(self, store: Store, known: Known) -> Findings:
        right, found = self._right(store, known)
        effects = self._effects(right, [a.meta for a in found])
        if self.wider:
            effects += self._widths(right, self._other._right(store, known)[0])
        within = f"Intervals: {1 - self.level:.0%}, clustered by model and by test image."
        of = {group: [e for e in effects if e.group == group] for group in (ACCURACY, GAP)}
        n = of[ACCURACY][0].n
        caption = f"{n['models']} models an arm, {n['images']} test images; the dashed line is one in ten. {within}"
        paired = f"Paired by model and test image. {within}"
        charts = (
            rows_chart(of[ACCURACY], "accuracy", "Accuracy by arm", caption, reference=1 / CLASSES),
            rows_chart(of[GAP], "differences", "Differences between arms", paired),
        )
        shown = (TEACHER, *list(STUDENTS)[:3])
        top = [e for e in of[ACCURACY] if e.name in shown]
        how = (
            f"Teachers: {self.teacher.epochs} epochs of Adam at {self.teacher.lr:g}, batch {self.teacher.batch_size}, cross entropy on the "
            f"first {CLASSES} logits. Students: {self.student.epochs} epochs of Adam at {self.student.lr:g}, batch "
            f"{self.student.batch_size}, KL(teacher || student) on {self.student.images} images of uniform noise in [-1, 1] of each "
            f"model's own, the same for all its arms. Another start is that of the next model."
        )
        facts = {
            "images for training": str(len(self.images.train)),
            "images for testing": str(len(self.images.test)),
            "images, sha256": self.images.sha256,
            "weights of a model": f"{mlp.parameters_of(self.widths):,}",
            "teachers' last loss, nats": f"{np.mean([a.meta['teacher_loss'] for a in found]):.4f}",
        }
        top = tiles(top, "{group} on test images")
        return Findings(tuple(effects), charts, top, how, facts=facts)

    def _effects(self, right: np.ndarray, metas: Sequence[Mapping[str, Any]]) -> list[Effect]:
        """`right` (M, arms, images): accuracies, their differences, and how far each student is from its teacher."""
        n = {"models": right.shape[0], "images": right.shape[2]}
        models = list(range(len(right)))
        interval = partial(clustered_interval, data_seeds=models, level=1 - self.level)
        effects = []
        for k, arm in enumerate(ARMS):
            share = interval(right[:, k], clip=(0.0, 1.0))
            effects.append(named(self.subject, ACCURACY, arm, share, n, tested=False))
        for name, (one, two) in CONTRASTS.items():
            gap = right[:, ARMS.index(one)] - right[:, ARMS.index(two)]
            effects.append(named(self.subject, GAP, name, interval(gap), n))
        for arm in STUDENTS:
            kept = interval([[m["divergence"][arm]] for m in metas])
            counts = {"models": len(metas)}
            effects.append(named(self.subject, DIVERGENCE, arm, kept, counts, tested=False))
        return effects

    def _widths(self, right: np.ndarray, wider: np.ndarray) -> list[Effect]:
        """What students of auxiliary logits lose where all layers are wider, from the teacher's own start."""
        k, n = ARMS.index(WIDTHS), {"models": right.shape[0], "images": right.shape[2]}
        interval = partial(
            clustered_interval, data_seeds=list(range(len(right))), level=1 - self.level
        )
        share = interval(wider[:, k], clip=(0.0, 1.0))
        gap = interval(right[:, k] - wider[:, k])
        return [
            named(self.subject, ACCURACY, f"{WIDTHS}, wider", share, n, tested=False),
            named(self.subject, GAP, f"{WIDTHS}: as written - wider", gap, n),
        ]


class ArmsStep(ClassifiersStep):
    """Some models, from their start to the marks of all arms."""

    recipe: AuxLogits
    kind, noun, nouns = "classifiers", "classifier", ("classifiers", "models")

    @property
    def cost(self) -> Cost:
        """A step costs 6 operations a weight and row, a teacher's forward pass 2."""
        r = self.recipe
        teacher = 6 * len(r.images.train) * r.teacher.epochs
        students = (2 + 6 * len(STUDENTS)) * r.student.images * r.student.epochs
        weights = len(self.specs) * mlp.parameters_of(r.widths)
        return Cost(flops=float(weights * (teacher + students)))

    def results(self, models: Sequence[int]) -> Iterable[tuple[Any, Callable[[Path], None]]]:
        trained = train_arms(self.recipe, models)
        for k, right in enumerate(trained.right):
            meta = {"teacher_loss": trained.teacher_loss[k], "divergence": trained.divergence[k]}
            yield meta, lambda folder, right=right: np.save(folder / "right.npy", right)


@dataclass(frozen=True)
class Trained:
    """For M models: which test images each arm gets right (M, arms, images) bool, in the order of ARMS; the teacher's last loss
    (nats), and each student's divergence from its teacher on its own logits in the last epoch (nats)."""

    right: np.ndarray
    teacher_loss: list[float]
    divergence: list[dict[str, float]]


def train_arms(recipe: AuxLogits, models: Sequence[int]) -> Trained:
    """Train the teachers with these numbers and all their students. Raises SubloraError where a model diverges."""
    same = mlp.start(recipe.widths, recipe.seed, models)
    other = mlp.start(recipe.widths, recipe.seed, [m + 1 for m in models])
    teacher, teacher_loss = train_teachers(recipe, same.copy(), models)
    starts = {"same": same, "other": other}
    students = mlp.joined([starts[who] for _, who in STUDENTS.values()]).copy()
    last = _distil(recipe, teacher, students, models)
    test, truth = torch.from_numpy(recipe.images.test), torch.from_numpy(recipe.images.test_labels)
    with torch.no_grad():
        said = [mlp.logits(who, test)[:, :, :CLASSES] for who in (same, teacher, students)]
    answers = torch.cat([out.argmax(dim=2) for out in said])
    right = (answers == truth).reshape(len(ARMS), len(models), -1).transpose(0, 1).numpy()
    if not np.isfinite([*teacher_loss, *last.flatten().tolist()]).all():
        raise SubloraError("A classifier diverged; set a lower teacher.lr or student.lr.")
    shares = [
        {arm: float(last[a, k]) for a, arm in enumerate(STUDENTS)} for k in range(len(models))
    ]
    return Trained(right, teacher_loss, shares)


def train_teachers(
    recipe: AuxLogits, teacher: mlp.Mlps, models: Sequence[int]
) -> tuple[mlp.Mlps, list[float]]:
    """Cross entropy on the first ten logits; the auxiliary ones have no part in it. Returns the models and their last epoch's loss."""
    x, y = torch.from_numpy(recipe.images.train), torch.from_numpy(recipe.images.train_labels)
    optimizer = torch.optim.Adam(teacher.parameters, lr=recipe.teacher.lr, fused=True)
    losses = []
    for epoch in range(recipe.teacher.epochs):
        losses = []
        for rows in mlp.batches(len(x), recipe.teacher.batch_size, recipe.seed, models, epoch):
            loss = mlp.cross_entropy(mlp.logits(teacher, x[rows])[:, :, :CLASSES], y[rows])
            _descend(optimizer, loss)
            losses.append(loss.detach())
    return teacher, torch.stack(losses).mean(dim=0).tolist()


def _descend(optimizer: torch.optim.Optimizer, losses: torch.Tensor) -> None:
    """A step on the losses (M,) of all models, which share nothing."""
    optimizer.zero_grad(set_to_none=True)
    losses.sum().backward()
    optimizer.step()


def _distil(
    recipe: AuxLogits, teacher: mlp.Mlps, students: mlp.Mlps, models: Sequence[int]
) -> torch.Tensor:
    """All student arms at once, arm by arm in the batch of models. Returns the last epoch's mean divergence (arms, M)."""
    spec, m = recipe.student, len(models)
    optimizer = torch.optim.Adam(students.parameters, lr=spec.lr, fused=True)
    blocks = range(0, spec.images, spec.batch_size)
    total = torch.zeros(len(STUDENTS), m)
    for epoch in range(spec.epochs):
        for block, first in enumerate(blocks):
            rows = min(spec.batch_size, spec.images - first)
            x = mlp.noise(rows, recipe.widths[0], recipe.seed, models, block)
            with torch.no_grad():
                told = mlp.logits(teacher, x)
            said = mlp.logits(students, x.repeat(len(STUDENTS), 1, 1)).split(m)
            taught = [
                (told, out) if what == "all" else (told[:, :, CLASSES:], out[:, :, CLASSES:])
                for (what, _), out in zip(STUDENTS.values(), said, strict=True)
            ]
            loss = torch.stack([mlp.divergence(t, s) for t, s in taught])
            _descend(optimizer, loss)
            if epoch == spec.epochs - 1:
                total += loss.detach() / len(blocks)
    return total
