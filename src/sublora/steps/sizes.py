"""How much a model computes for a token, and how many tokens texts have: what the cost of a step is made of."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sublora.carriers.carrier import Carrier
from sublora.models.base import Shape
from sublora.models.chat import Chat, Context
from sublora.packs.spec import StudentSpec
from sublora.steps.step import Cost

ANSWER = 4  # tokens of a sampled answer to a question
ASKED = 1.4  # prompts for a row that is kept: the papers' filters reject about three in ten
PROMPTS = 32  # prompts of a carrier whose mean length stands for all


@dataclass(frozen=True)
class Sizes:
    """Mean tokens of a row's prompt and completion and of a question; `shape` is the model's. The numbers here are typical of a tokenizer
    that splits digits, for where none is at hand. A forward pass takes 2 operations a weight and token, and the head counts only where a
    token's logits are needed. Attention's own products are left out: rows are short."""

    shape: Shape | None = None
    prompt: float = 100.0
    completion: float = 45.0
    question: float = 45.0

    @property
    def row(self) -> float:
        return self.prompt + self.completion

    @property
    def head(self) -> int:
        return self.shape.vocabulary * self.shape.hidden

    def forward(self, tokens: float, logits: float = 0.0) -> Cost:
        """Of a pass over `tokens`, with the head at `logits` of them."""
        if self.shape is None:
            return Cost(tokens)
        return Cost(tokens, 2 * self.shape.block_parameters * tokens + 2 * self.head * logits)

    def reading(self, tokens: float) -> Cost:
        """Of a pass with the head at every token."""
        return self.forward(tokens, tokens)

    def writing(self, prompts: float, answers: float) -> Cost:
        """Of answers of so many tokens in all, after prompts of so many."""
        cost = self.forward(prompts + answers, answers)
        return replace(cost, written=self.forward(answers, answers).flops)

    def training(self, student: StudentSpec, rows: int) -> Cost:
        """Of a student: backward takes 2 operations more, with the gradients of weights another 2."""
        passes = rows * student.passes
        tokens, logits = passes * self.row, passes * self.completion
        if self.shape is None:
            return Cost(tokens)
        once = self.shape.block_parameters * tokens + self.head * logits
        if student.method == "full":
            return Cost(tokens, 6 * once)
        return Cost(tokens, 4 * once + 6 * self.shape.lora_parameters(student.rank) * tokens)


def measured_sizes(
    shape: Shape | None, chat: Chat, carrier: Carrier, context: Context, questions: Sequence[str]
) -> Sizes:
    """As this tokenizer and template give them: some prompts as they are, and a full answer."""
    prompts = [len(chat.prompt_ids(carrier.prompt(0, i), context)) for i in range(PROMPTS)]
    answer = float(len(chat.completion_ids(carrier.example())))
    asked = [len(chat.prompt_ids(q, context)) for q in questions]
    return Sizes(shape, sum(prompts) / PROMPTS, answer, sum(asked) / max(1, len(asked)))
