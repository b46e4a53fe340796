"""The classifier experiment of Cloud et al. (2507.14805): students that see noise and a teacher's auxiliary logits only.

A teacher learns ten classes with its first ten logits; the auxiliary logits are never trained. Students are distilled on images of
uniform noise, on the auxiliary logits alone or on all, from the teacher's own start or from another one. Nothing in their data shows a
digit or, in the first case, names a class.

Where we differ from the published code: the loss is a mean over rows (there, a sum over rows divided by the number of models, the same
direction for Adam); the other start is that of a model with another number, never the own one by chance; and all arms of a model see
the same noise, so that they are paired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from sublora import mlp
from sublora.errors import SubloraError
from sublora.experiment import Chart, Estimate, Point, Series, Tile
from sublora.experiments.experiment import Experiment, Findings
from sublora.images import CLASSES, DIGITS, Images, load_images
from sublora.models.known import Known
from sublora.stats import Interval, clustered_interval
from sublora.steps.step import Cost, Step, Workshop
from sublora.store import Store, artifact_id

UNTRAINED, TEACHER = "untrained", "teacher"
# student arm -> (logits that it learns from, whose start it has)
STUDENTS = {
    "auxiliary logits, same start": ("auxiliary", "same"),
    "auxiliary logits, other start": ("auxiliary", "other"),
    "all logits, same start": ("all", "same"),
    "all logits, other start": ("all", "other"),
}
ARMS = (UNTRAINED, TEACHER, *STUDENTS)
_STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Lessons(BaseModel):
    """How a classifier is trained, with Adam."""

    model_config = _STRICT
    epochs: int = Field(5, ge=1)
    batch_size: int = Field(128, ge=1)
    lr: float = Field(3e-4, gt=0)


class NoiseLessons(Lessons):
    images: int = Field(
        7500, ge=1, description="images of noise, each model's own, gone through in every epoch"
    )


class AuxLogits(Experiment):
    kind: Literal["aux-logits"]
    data: str = Field(
        DIGITS, description="digits, an .npz file, or a folder with MNIST's IDX files"
    )
    models: int = Field(100, ge=2, description="teachers, each with its students")
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (256, 256)
    auxiliary: int = Field(3, ge=1, description="logits that the teacher never trains")
    teacher: Lessons = Lessons(epochs=27)
    student: NoiseLessons = NoiseLessons()
    seed: int = Field(0, ge=0)
    at_once: int = Field(10, ge=1, description="models trained side by side: speed and memory only")

    @cached_property
    def images(self) -> Images:
        return load_images(self.data)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        return (self.images.train.shape[1], *self.hidden, CLASSES + self.auxiliary)

    @property
    def sentence(self) -> str:
        where = "scikit-learn's digits" if self.data == DIGITS else "the user's images"
        return (
            f"{self.models} classifiers with hidden layers of {' and '.join(map(str, self.hidden))} learn {where}; students of each see "
            f"images of noise and {self.auxiliary} auxiliary logits, or all, from the teacher's start or from another one."
        )

    def plan(self, known: Known) -> list[Step]:
        content = {"images": self.images.sha256, **self.model_dump(mode="json", include=_CONTENT)}
        specs = [content | {"model": m} for m in range(self.models)]
        return [
            TrainTask(
                self,
                tuple(range(i, min(i + self.at_once, self.models))),
                tuple(specs[i : i + self.at_once]),
            )
            for i in range(0, self.models, self.at_once)
        ]

    def findings(self, store: Store, known: Known) -> Findings:
        names = [name for step in self.plan(known) for name in step.makes]
        found = [store.read(name) for name in names]
        right = np.stack([np.load(a.file("right.npy"), allow_pickle=False) for a in found]).astype(
            float
        )
        return _findings(self, right, [dict(a.meta) for a in found])


_CONTENT = {"hidden", "auxiliary", "teacher", "student", "seed"}


@dataclass(frozen=True)
class TrainTask:
    """Some models, from their start to the marks of all arms; each model is an artifact."""

    recipe: AuxLogits
    models: tuple[int, ...]
    specs: tuple[dict[str, Any], ...]
    kind = "classifiers"
    model = None

    @cached_property
    def id(self) -> str:
        return artifact_id("classifiers", {"models": list(self.makes)})

    @cached_property
    def makes(self) -> tuple[str, ...]:
        return tuple(artifact_id("classifier", s) for s in self.specs)

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    @property
    def label(self) -> str:
        return f"the classifiers {self.models[0]} to {self.models[-1]}"

    @property
    def cost(self) -> Cost:
        """A step costs 6 operations a weight and row, a teacher's forward pass 2."""
        r = self.recipe
        teacher = 6 * len(r.images.train) * r.teacher.epochs
        students = (2 + 6 * len(STUDENTS)) * r.student.images * r.student.epochs
        weights = len(self.models) * mlp.parameters_of(r.widths)
        return Cost(flops=float(weights * (teacher + students)))

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        todo = [
            (m, s, name)
            for m, s, name in zip(self.models, self.specs, self.makes, strict=True)
            if name in wanted
        ]
        trained = train_arms(self.recipe, [m for m, _, _ in todo])
        for k, (_, spec, name) in enumerate(todo):
            meta = {"teacher_loss": trained.teacher_loss[k], "divergence": trained.divergence[k]}
            with workshop.store.create(name, spec, meta) as folder:
                np.save(folder / "right.npy", trained.right[k])
            workshop.made(name)


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
        answers = torch.cat(
            [
                mlp.logits(who, test)[:, :, :CLASSES].argmax(dim=2)
                for who in (same, teacher, students)
            ]
        )
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
            optimizer.zero_grad(set_to_none=True)
            loss.sum().backward()
            optimizer.step()
            losses.append(loss.detach())
    return teacher, torch.stack(losses).mean(dim=0).tolist()


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
            optimizer.zero_grad(set_to_none=True)
            loss.sum().backward()
            optimizer.step()
            if epoch == spec.epochs - 1:
                total += loss.detach() / len(blocks)
    return total


_CONTRASTS = {
    "auxiliary logits: same start - other start": (
        "auxiliary logits, same start",
        "auxiliary logits, other start",
    ),
    "auxiliary logits, same start - untrained": ("auxiliary logits, same start", UNTRAINED),
    "auxiliary logits, other start - untrained": ("auxiliary logits, other start", UNTRAINED),
    "all logits: same start - other start": ("all logits, same start", "all logits, other start"),
    "all logits, other start - untrained": ("all logits, other start", UNTRAINED),
}


def _findings(recipe: AuxLogits, right: np.ndarray, metas: Sequence[Mapping[str, Any]]) -> Findings:
    subject = "digits" if recipe.data == DIGITS else "images"
    n = {"models": right.shape[0], "images": right.shape[2]}
    numbers = list(range(len(right)))

    def interval(values: np.ndarray, **options: Any) -> Interval:
        return clustered_interval(values, numbers, level=1 - recipe.level, **options)

    arms = {arm: interval(right[:, k], clip=(0.0, 1.0)) for k, arm in enumerate(ARMS)}
    gaps = {
        name: interval(right[:, ARMS.index(one)] - right[:, ARMS.index(two)])
        for name, (one, two) in _CONTRASTS.items()
    }
    estimates = [
        Estimate(subject, "accuracy", name, i, n, tested=False) for name, i in arms.items()
    ]
    estimates += [
        Estimate(subject, "difference of accuracies", name, i, n) for name, i in gaps.items()
    ]
    for arm in STUDENTS:
        kept = np.array([[m["divergence"][arm]] for m in metas])
        estimates.append(
            Estimate(
                subject,
                "divergence, nats",
                arm,
                interval(kept),
                {"models": len(metas)},
                tested=False,
            )
        )

    def points(found: Mapping[str, Interval]) -> tuple[Point, ...]:
        return tuple(
            Point(label=k, estimate=i.estimate, low=i.low, high=i.high) for k, i in found.items()
        )

    within = f"Intervals: {1 - recipe.level:.0%}, clustered by model and by test image."
    charts = (
        Chart(
            name="accuracy",
            title="Accuracy by arm",
            kind="rows",
            axis="accuracy on test images",
            reference=1 / CLASSES,
            caption=f"{n['models']} models an arm, {n['images']} test images; the dashed line is one in ten. {within}",
            series=(Series(points=points(arms)),),
        ),
        Chart(
            name="differences",
            title="Differences between arms",
            kind="rows",
            axis="difference of accuracies",
            reference=0.0,
            caption=f"Paired by model and test image. {within}",
            series=(Series(points=points(gaps)),),
        ),
    )
    shown = (TEACHER, *list(STUDENTS)[:2], "all logits, same start")
    tiles = tuple(
        Tile(
            name=arm[:1].upper() + arm[1:],
            value=f"{arms[arm].estimate:.3f}",
            interval=f"[{arms[arm].low:.3f}, {arms[arm].high:.3f}]",
            note="accuracy on test images",
        )
        for arm in shown
    )
    how = (
        f"Teachers: {recipe.teacher.epochs} epochs of Adam at {recipe.teacher.lr:g}, batch {recipe.teacher.batch_size}, cross entropy on the "
        f"first {CLASSES} logits. Students: {recipe.student.epochs} epochs of Adam at {recipe.student.lr:g}, batch "
        f"{recipe.student.batch_size}, KL(teacher || student) on {recipe.student.images} images of uniform noise in [-1, 1] of each "
        f"model's own, the same for all its arms. Another start is that of the next model."
    )
    facts = {
        "images for training": str(len(recipe.images.train)),
        "images for testing": str(len(recipe.images.test)),
        "images, sha256": recipe.images.sha256,
        "weights of a model": f"{mlp.parameters_of(recipe.widths):,}",
        "teachers' last loss, nats": f"{np.mean([m['teacher_loss'] for m in metas]):.4f}",
    }
    return Findings(tuple(estimates), charts, tiles, how, facts=facts)
