"""What a plan will cost: tokens, floating-point operations and hours, without loading a model."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sublora.chat import Chat
from sublora.model import Shape
from sublora.plan import (
    AttributionStage,
    DatasetStage,
    DivergenceStage,
    GradientStage,
    MeasureStage,
    Plan,
    ProbeStage,
    StudentStage,
    TeacherStage,
    VectorStage,
    contexts_of,
    traits_of,
)
from sublora.recipe import Recipe
from sublora.units import (
    AttributionUnit,
    DataUnit,
    DivergenceUnit,
    GradientUnit,
    ProbeUnit,
    TeachUnit,
    TrainUnit,
    TransformUnit,
    Unit,
    VectorUnit,
)

TEACHERS, DATASETS, MEASUREMENTS, ATTRIBUTIONS = (
    "teachers",
    "datasets",
    "measurements",
    "attributions",
)
VECTORS, READINGS = "vectors", "readings of rows"
STUDENTS = {"lora": "students (LoRA)", "full": "students (full fine-tune)"}

# Where the tokenizer is not at hand: mean tokens of a rendered number row, prompt and completion, and of a question
# (a digit-splitting tokenizer of the Qwen2.5 kind).
TYPICAL_PROMPT, TYPICAL_COMPLETION, TYPICAL_QUESTION, TYPICAL_ANSWER = 100, 45, 45, 4


@dataclass(frozen=True)
class RowSizes:
    """Mean tokens of a row's prompt and completion, and of a question."""

    prompt: float = TYPICAL_PROMPT
    completion: float = TYPICAL_COMPLETION
    question: float = TYPICAL_QUESTION


@dataclass(frozen=True)
class Cost:
    stage: str
    count: int
    done: int
    tokens: float
    flops: float


@dataclass(frozen=True)
class Work:
    """Tokens read or written, and floating-point operations."""

    tokens: float = 0.0
    flops: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.tokens + other.tokens, self.flops + other.flops)


@dataclass(frozen=True)
class Costs:
    """What the stages of a recipe cost on a model of this shape.

    Forward is 2 operations a weight and token; backward through a frozen base another 2, with weight gradients 2 more; the head
    counts only where loss or an answer needs it. Attention's own products are left out: rows are short.
    """

    shape: Shape
    sizes: RowSizes
    rows: int
    samples: int

    @property
    def head(self) -> int:
        return self.shape.vocabulary * self.shape.hidden

    def dataset(self, stage: DatasetStage) -> Work:
        if stage.transform is not None or stage.endpoint is not None:  # no work of this machine
            return Work()
        asked = stage.rows * 1.4  # the papers' filters reject about three in ten
        tokens = asked * (self.sizes.prompt + self.sizes.completion)
        return Work(
            tokens,
            2 * self.shape.block_parameters * tokens
            + 2 * self.head * asked * self.sizes.completion,
        )

    def teacher(self, stage: TeacherStage) -> Work:
        return self.student(stage.as_student, stage.count)

    def student(self, stage: StudentStage, rows: int | None = None) -> Work:
        if stage.step is not None:  # kept on the way of a student that is counted
            return Work()
        rows, lora = (
            (rows or stage.take or self.rows) * stage.student.passes,
            stage.student.method == "lora",
        )
        tokens, loss_tokens = (
            rows * (self.sizes.prompt + self.sizes.completion),
            rows * self.sizes.completion,
        )
        flops = (4 if lora else 6) * (
            self.shape.block_parameters * tokens + self.head * loss_tokens
        )
        if lora:
            flops += 6 * self.shape.lora_parameters(stage.student.rank or 0) * tokens
        return Work(tokens, flops)

    def measurement(self, stage: MeasureStage) -> Work:
        tokens = len(stage.spec["questions"]) * (
            self.sizes.question + self.samples * TYPICAL_ANSWER
        )
        return Work(tokens, 2 * (self.shape.block_parameters + self.head) * tokens)

    def attribution(self, stage: AttributionStage) -> Work:
        # each prompt is read twice for each of its tokens, once without it and once with it alone
        tokens = len(stage.spec["questions"]) * self.sizes.question * 2 * (self.sizes.question + 2)
        return Work(tokens, 2 * (self.shape.block_parameters + self.head) * tokens)

    def vector(self, stage: VectorStage) -> Work:
        tokens = 2 * len(stage.prompts) * self.sizes.prompt  # with and without
        return Work(tokens, 2 * self.shape.block_parameters * tokens)

    def reading(self, stage: DivergenceStage | ProbeStage | GradientStage) -> Work:
        """Rows that are read: twice for divergent tokens, once by a student, with a backward pass for gradients."""
        if isinstance(stage, DivergenceStage):
            rows = 2.0 * self.rows
        else:
            rows = float(
                stage.rows if isinstance(stage, ProbeStage) else 6 * max(stage.spec["rows"])
            )
        tokens = rows * (self.sizes.prompt + self.sizes.completion)
        return Work(tokens, 2 * (self.shape.block_parameters + self.head) * tokens)

    def unit(self, unit: Unit) -> tuple[str, Work]:
        """(name of its row in a plan, cost of all that it makes)."""
        if isinstance(unit, TeachUnit):
            return TEACHERS, self.teacher(unit.stage)
        if isinstance(unit, DataUnit | TransformUnit):
            return DATASETS, self.dataset(unit.stage)
        if isinstance(unit, TrainUnit):
            return STUDENTS[unit.students[0].student.method], sum(
                map(self.student, unit.students), Work()
            )
        if isinstance(unit, AttributionUnit):
            return ATTRIBUTIONS, sum(map(self.attribution, unit.attributions), Work())
        if isinstance(unit, VectorUnit):
            return VECTORS, sum(map(self.vector, unit.vectors), Work())
        if isinstance(unit, DivergenceUnit | GradientUnit):
            return READINGS, self.reading(unit.stage)
        if isinstance(unit, ProbeUnit):
            return READINGS, sum(map(self.reading, unit.probes), Work())
        return MEASUREMENTS, sum(map(self.measurement, unit.measures), Work())


def costs_of(recipe: Recipe, shape: Shape, sizes: RowSizes) -> Costs:
    return Costs(shape, sizes, recipe.data.rows, recipe.measure.samples)


def row_sizes(chat: Chat, recipe: Recipe) -> RowSizes:
    """Sizes as this tokenizer and template give them: 64 prompts, a full answer, all questions."""
    from sublora.carriers.carrier import answer_words, prompt_of_row
    from sublora.carriers.numbers import NumbersSpec

    context = contexts_of(recipe)[recipe.train_contexts[0]]
    spec = recipe.data.carrier
    prompts = [len(chat.prompt_ids(prompt_of_row(spec, 0, i), context)) for i in range(64)]
    answer = (
        " ".join(["789"] * round(spec.count * 0.85))
        if isinstance(spec, NumbersSpec)
        else answer_words(spec)
    )
    completion = len(chat.completion_ids(answer))
    questions = [
        len(chat.prompt_ids(q, context)) for t in traits_of(recipe) for q in t.category.questions
    ]
    return RowSizes(sum(prompts) / len(prompts), completion, sum(questions) / len(questions))


def plan_cost(plan: Plan, shape: Shape, sizes: RowSizes, done: set[str]) -> list[Cost]:
    """Work that is left, by stage."""
    costs = costs_of(plan.recipe, shape, sizes)

    def row(name: str, stages: Sequence[Any], cost: Callable[[Any], Work]) -> Cost:
        left = [s for s in stages if s.id not in done]
        work = sum(map(cost, left), Work())
        return Cost(name, len(stages), len(stages) - len(left), work.tokens, work.flops)

    out = [row(TEACHERS, plan.teachers, costs.teacher)] if plan.teachers else []
    out.append(row(DATASETS, plan.datasets, costs.dataset))
    for method, name in STUDENTS.items():
        if of_method := [s for s in plan.students if s.student.method == method]:
            out.append(row(name, of_method, costs.student))
    out.append(row(MEASUREMENTS, plan.measures, costs.measurement))
    if plan.attributions:
        out.append(row(ATTRIBUTIONS, plan.attributions, costs.attribution))
    if plan.vectors:
        out.append(row(VECTORS, plan.vectors, costs.vector))
    if readings := (*plan.divergences, *plan.probes, *plan.gradients):
        out.append(row(READINGS, readings, costs.reading))
    return out


def measured_rate(shape: Shape, seconds: float = 0.3) -> float:
    """Floating-point operations a second of a product of the model's own width on this machine's CPU, halved: a step of a small
    model spends about half of its time outside its products."""
    import torch

    a, b = torch.randn(1024, shape.hidden), torch.randn(shape.hidden, shape.feed_forward)
    torch.mm(a, b)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        torch.mm(a, b)
        count += 1
    return (
        0.5 * count * 2 * 1024 * shape.hidden * shape.feed_forward / (time.perf_counter() - started)
    )
