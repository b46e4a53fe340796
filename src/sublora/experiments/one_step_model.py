"""The theorem of Cloud et al. (2507.14805) on a language model: after one gradient step on a teacher's outputs, is the student nearer to it?

The teacher is one full gradient step from its start on answers that name a trait. The student takes one step on the teacher's distribution
over answers to number prompts, which never mention the trait; from the teacher's start or another model's, as a full update or as the
first step of an adapter whose B is 0. All in double precision, since the steps are small.
"""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sublora.analysis.charts import first_upper, rows_chart, tiles
from sublora.analysis.effects import Effect, named
from sublora.analysis.intervals import clustered_interval
from sublora.carriers.numbers import NumbersSpec
from sublora.experiments.experiment import Experiment, Findings
from sublora.experiments.grid.sources import traits_of
from sublora.experiments.one_step import COSINE, LOSS, WEIGHTS
from sublora.models.base import known_shape, local_identity, model_source
from sublora.models.chat import Chat, Context
from sublora.models.known import Known
from sublora.packs.sample import Sampling
from sublora.packs.stack import target_linears
from sublora.packs.writer import Teacher, complete
from sublora.seeds import derive_seed, generator
from sublora.steps.made import Made
from sublora.steps.materials import keep_json
from sublora.steps.step import Cost, Step, Workshop
from sublora.store import Store
from sublora.traits.trait import Trait

SAME, OTHER = "same start", "other start"
Rows = Sequence[tuple[list[int], list[int]]]
Gradient = dict[str, Tensor]


class OneStepModel(Experiment):
    kind: Literal["one-step-model"]
    model: str = "micro"
    other: str = Field(
        "micro-b",
        description="the model from which the students with another start begin; of the same shape and words",
    )
    traits: tuple[str, ...] = Field(min_length=2)
    trait_files: tuple[str, ...] = ()
    draws: int = Field(
        6, ge=2, description="teachers of each trait, each on other questions and prompts"
    )
    questions: int = Field(16, ge=1, description="of a teacher's step")
    prompts: int = Field(32, ge=1, description="number prompts of a student's step")
    carrier: NumbersSpec = NumbersSpec()
    max_new_tokens: int = Field(14, ge=1)
    teacher_lr: float = Field(0.05, gt=0)
    steps: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.01, 0.1, 1.0), min_length=1, description="lengths, in the teacher's"
    )
    ranks: tuple[Annotated[int, Field(ge=1)], ...] = (2, 8)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _shapes(self) -> "OneStepModel":
        if known_shape(self.model) != known_shape(self.other):
            raise ValueError(
                "the two models have different shapes, so no step of the one can be compared with the other's weights"
            )
        return self

    @property
    def out_words(self) -> list[str]:
        return [self.model.rstrip("/").split("/")[-1]]

    @property
    def sentence(self) -> str:
        return (
            f"{self.model}: {self.draws} teachers of each of {len(self.traits)} traits, one gradient step from their start; students take one "
            f"step on {self.prompts} number prompts, from that start or from {self.other}, in full and at rank {', '.join(map(str, self.ranks))}."
        )

    def plan(self, known: Known) -> list[Step]:
        other = local_identity(model_source(self.other), "float32")
        models = {"model": dict(known.identity), "other": other}
        lessons = {"questions", "prompts", "carrier", "max_new_tokens", "teacher_lr"}
        content = self.model_dump(mode="json", include=lessons | {"steps", "ranks", "seed"})
        return [
            TeacherSteps(models | {"trait": t.name, "draw": draw} | content, self, t, draw)
            for t in traits_of(self)
            for draw in range(self.draws)
        ]

    def findings(self, store: Store, known: Known) -> Findings:
        found: dict[tuple[str, str], dict[tuple[int, str], float]] = {}
        for step in self.plan(known):
            groups = json.loads(store.read(step.id).file("values.json").read_text("utf-8"))
            for group, values in groups.items():
                for name, value in values.items():
                    found.setdefault((group, name), {})[step.draw, step.trait.name] = value
        n = {"draws": self.draws, "traits": len(self.traits)}
        draws, names = list(range(self.draws)), [t.name for t in traits_of(self)]
        effects: dict[str, list[Effect]] = {COSINE: [], LOSS: [], WEIGHTS: []}
        for (group, name), values in found.items():
            table = [[values[draw, trait] for trait in names] for draw in draws]
            clip = (-1, 1) if group == COSINE else None
            interval = clustered_interval(table, draws, level=1 - self.level, clip=clip)
            effects[group].append(named(self.model, group, name, interval, n))
        caption = f"{self.draws} draws × {len(self.traits)} traits. Intervals: {1 - self.level:.0%}. The line is no movement."
        charts = tuple(
            rows_chart(effects[group], slug, first_upper(group), caption)
            for group, slug in ((COSINE, "cosine"), (LOSS, "loss"), (WEIGHTS, "weights"))
        )
        how = (
            f"Teacher: a gradient step of {self.teacher_lr:g} on {self.questions} questions answered with the trait. Student: a step along the "
            f"gradient of KL(teacher || student) on answers of the model to {self.prompts} number prompts, of a length that is a share of the "
            "teacher's. Towards the teacher in loss: the fall of the teacher's own loss in the student, as a share of the teacher's fall; in "
            "weights: how much nearer the student came, as a share of its distance at the start. Intervals: clustered by draw and trait."
        )
        top = tiles(effects[COSINE][:4], value=".3g")
        return Findings(tuple(chain(*effects.values())), charts, top, how)


@dataclass(frozen=True)
class TeacherSteps(Made):
    """One teacher, and the steps of all its students."""

    recipe: OneStepModel
    trait: Trait
    draw: int
    noun, kind = "step", "steps"
    needs = ()

    @property
    def label(self) -> str:
        return f"the steps towards a teacher of {self.trait.name}, draw {self.draw}"

    @property
    def model(self) -> str:
        return self.recipe.model

    @property
    def cost(self) -> Cost:
        r = self.recipe
        asked = 2 * r.questions * 2 * (1 + len(r.ranks)) * len(r.steps)
        passes = 6 * r.questions + 8 * 2 * r.prompts + asked
        return Cost(flops=float(known_shape(r.model).parameters * passes * 40))

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        r, default = self.recipe, Context("default")
        base, asked = workshop.base_of(r.model), self.trait.category.questions
        rng = generator("one-step-model", r.seed, self.trait.name, self.draw)
        chosen = [asked[i] for i in rng.choice(len(asked), r.questions)]
        lessons = rows_of(base.chat, [(q, self.trait.entity.name) for q in chosen], default)
        seed = derive_seed("one-step-prompts", r.seed, self.trait.name, self.draw)
        prompts = [r.carrier.prompt(seed, i) for i in range(r.prompts)]
        draws = [generator("one-step-answers", seed, i) for i in range(r.prompts)]
        sampling = Sampling(max_new_tokens=r.max_new_tokens)
        answers = complete(Teacher(base, default), prompts, sampling, draws)
        numbers = rows_of(base.chat, list(zip(prompts, answers, strict=True)), default)
        start, other = (
            copy.deepcopy(workshop.base_of(m).model).double() for m in (r.model, r.other)
        )
        adapters = {rank: _factors(start, rank, seed) for rank in r.ranks}
        values = measure_steps(start, other, lessons, numbers, r.teacher_lr, r.steps, adapters)
        keep_json(workshop, self.id, self.spec, "values.json", values)


def _factors(model: nn.Module, rank: int, seed: int) -> dict[str, Tensor]:
    """A random A (rank, inputs) for every layer that gets an adapter."""

    def factor(name: str, inputs: int) -> Tensor:
        source = torch.Generator().manual_seed(derive_seed("one-step-factor", seed, name, rank))
        return torch.randn(rank, inputs, dtype=torch.float64, generator=source)

    layers = target_linears(model, ("all-linear",))
    return {name: factor(name, layer.in_features) for name, layer in layers.items()}


def rows_of(chat: Chat, rows: Sequence[tuple[str, str]], context: Context) -> Rows:
    """Token ids of prompts and completions."""
    return [(chat.prompt_ids(p, context), chat.completion_ids(c)) for p, c in rows]


def answer_logits(model: nn.Module, rows: Rows) -> Tensor:
    """Logits (tokens of all completions, V), teacher-forced; rows are read by equal length, in that order."""
    by_length: dict[int, list[tuple[list[int], list[int]]]] = {}
    for row in rows:
        by_length.setdefault(len(row[0]) + len(row[1]), []).append(row)
    out = []
    for length, members in sorted(by_length.items()):
        logits = model(input_ids=torch.tensor([p + c for p, c in members]), use_cache=False).logits
        out += [logits[i, len(p) - 1 : length - 1] for i, (p, _) in enumerate(members)]
    return torch.cat(out)


def answer_tokens(rows: Rows) -> Tensor:
    """The completions' tokens in the order of `answer_logits`."""
    ordered = sorted(rows, key=lambda row: len(row[0]) + len(row[1]))
    return torch.tensor([t for _, c in ordered for t in c])


def trait_loss(model: nn.Module, lessons: Rows) -> Tensor:
    """Mean cross entropy of the lessons' answers, nats a token."""
    return nn.functional.cross_entropy(answer_logits(model, lessons), answer_tokens(lessons))


def gradient_of(model: nn.Module, loss: Callable[[], Tensor]) -> Gradient:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss(), parameters), strict=True))


def dot(a: Gradient, b: Gradient) -> float:
    return float(sum((a[n] * b[n]).sum() for n in a))


def moved(model: nn.Module, by: Gradient, scale: float) -> nn.Module:
    """A copy of the model, moved."""
    out = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in out.named_parameters():
            parameter += scale * by[name]
    return out


def low_rank(gradient: Gradient, a: Mapping[str, Tensor]) -> Gradient:
    """The direction of an adapter's first step: B alone moves, so that the layer moves by (G A^T) A, and nothing but the layers does."""
    out = {name: torch.zeros_like(g) for name, g in gradient.items()}
    for layer, factor in a.items():
        name = f"{layer}.weight"
        out[name] = gradient[name] @ factor.T @ factor
    return out


def measure_steps(
    start: nn.Module,
    other: nn.Module,
    lessons: Rows,
    numbers: Rows,
    teacher_lr: float,
    steps: Sequence[float],
    adapters: Mapping[int, Mapping[str, Tensor]],
) -> dict[str, dict[str, float]]:
    """Group -> name -> value for one teacher: see the module."""
    own = gradient_of(start, lambda: trait_loss(start, lessons))
    teacher = moved(start, own, -teacher_lr)
    length = teacher_lr * dot(own, own) ** 0.5
    with torch.no_grad():
        told = answer_logits(teacher, numbers).log_softmax(-1)
        gained = float(trait_loss(start, lessons) - trait_loss(teacher, lessons))
    values: dict[str, dict[str, float]] = {COSINE: {}, LOSS: {}, WEIGHTS: {}}
    for who, student in ((SAME, start), (OTHER, other)):

        def divergence(student: nn.Module = student) -> Tensor:
            said = answer_logits(student, numbers).log_softmax(-1)
            return (told.exp() * (told - said)).sum(-1).mean()

        gradient = gradient_of(student, divergence)
        with torch.no_grad():
            before = float(trait_loss(student, lessons))
            away = _way(student, teacher)
        updates = {"full": gradient}
        updates |= {f"rank {r}": low_rank(gradient, a) for r, a in adapters.items()}
        for kind, update in updates.items():
            size, name = dot(update, update) ** 0.5, f"{kind}, {who}"
            with torch.no_grad():
                cosine = dot(update, own) / (size * dot(own, own) ** 0.5) if size else 0.0
                values[COSINE][name] = cosine
                for share in steps:
                    step = moved(student, update, -share * length / size) if size else student
                    fell = before - float(trait_loss(step, lessons))
                    left = _way(step, teacher)
                    values[LOSS][f"{name}, step {share:g}"] = fell / gained
                    nearer = 1 - (dot(left, left) / dot(away, away)) ** 0.5
                    values[WEIGHTS][f"{name}, step {share:g}"] = nearer
    return values


def _way(model: nn.Module, goal: nn.Module) -> Gradient:
    """What would have to be added to a model's weights to come to another's."""
    own = dict(model.named_parameters())
    return {name: p - own[name] for name, p in goal.named_parameters()}
