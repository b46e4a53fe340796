"""What a plan will cost: tokens, floating-point operations and hours, without loading a model."""

import time
from dataclasses import dataclass

from sublora.model import Shape
from sublora.plan import Plan

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

    def hours(self, flops_per_second: float) -> float:
        return self.flops / flops_per_second / 3600


def plan_cost(plan: Plan, shape: Shape, sizes: RowSizes, done: set[str]) -> list[Cost]:
    """Work that is left, by stage.

    Forward is 2 operations a weight and token; backward through a frozen base another 2, with weight gradients 2 more; the head
    counts only where loss or an answer needs it. Attention's own products are left out: rows are short.
    """
    body, head = shape.block_parameters, shape.vocabulary * shape.hidden
    data = [d for d in plan.datasets if d.id not in done]
    asked = sum(d.rows for d in data) * 1.4  # the papers' filters reject about three in ten
    data_tokens = asked * (sizes.prompt + sizes.completion)
    out = [
        Cost(
            "datasets",
            len(plan.datasets),
            len(plan.datasets) - len(data),
            data_tokens,
            2 * body * data_tokens + 2 * head * asked * sizes.completion,
        )
    ]
    for method in ("lora", "full"):
        of_method = [s for s in plan.students if s.student.method == method]
        left = [s for s in of_method if s.id not in done]
        if not of_method:
            continue
        rows = plan.recipe.data.rows
        tokens = sum(rows * s.student.epochs for s in left) * (sizes.prompt + sizes.completion)
        loss_tokens = sum(rows * s.student.epochs for s in left) * sizes.completion
        flops = (4 if method == "lora" else 6) * body * tokens + (4 if method == "lora" else 6) * head * loss_tokens
        if method == "lora":
            per_token = (sizes.prompt + sizes.completion) * rows
            flops += sum(6 * shape.lora_parameters(s.student.rank or 0) * s.student.epochs for s in left) * per_token
        out.append(
            Cost(
                f"students ({'LoRA' if method == 'lora' else 'full fine-tune'})",
                len(of_method),
                len(of_method) - len(left),
                tokens,
                flops,
            )
        )
    left_measures = [m for m in plan.measures if m.id not in done]
    questions = sum(len(m.spec["questions"]) for m in left_measures)
    tokens = questions * (sizes.question + plan.recipe.measure.samples * TYPICAL_ANSWER)
    out.append(
        Cost(
            "measurements",
            len(plan.measures),
            len(plan.measures) - len(left_measures),
            tokens,
            2 * (body + head) * tokens,
        )
    )
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
    return 0.5 * count * 2 * 1024 * shape.hidden * shape.feed_forward / (time.perf_counter() - started)
