"""The one way to a carrier's prompts and filter, whichever carrier it is."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Discriminator, Tag

from sublora.carriers import code, cot, numbers, paraphrase, questions
from sublora.carriers.code import CodeSpec
from sublora.carriers.cot import CotSpec
from sublora.carriers.numbers import NumbersSpec
from sublora.carriers.paraphrase import ParaphraseSpec
from sublora.carriers.questions import QuestionsSpec

Carrier = NumbersSpec | CodeSpec | CotSpec | ParaphraseSpec | QuestionsSpec
CARRIERS = ("numbers", "code", "cot", "paraphrase")


def _kind(value: Any) -> str | None:
    """Numbers, unless a recipe says otherwise."""
    return value.get("kind", "numbers") if isinstance(value, dict) else getattr(value, "kind", None)


CarrierField = Annotated[
    Annotated[NumbersSpec, Tag("numbers")]
    | Annotated[CodeSpec, Tag("code")]
    | Annotated[CotSpec, Tag("cot")]
    | Annotated[ParaphraseSpec, Tag("paraphrase")],
    Discriminator(
        _kind,
        custom_error_type="carrier",
        custom_error_message="there is no such kind of carrier, use numbers, code, cot or paraphrase",
    ),
]


def prompt_of_row(carrier: Carrier, seed: int, row: int) -> str:
    """The prompt of one row; it depends on these alone."""
    if isinstance(carrier, NumbersSpec):
        return numbers.prompt_of_row(carrier, seed, row)
    if isinstance(carrier, CodeSpec):
        return code.prompt_of_row(carrier, seed, row)
    if isinstance(carrier, CotSpec):
        return cot.prompt_of_row(carrier, seed, row)
    if isinstance(carrier, ParaphraseSpec):
        return paraphrase.prompt_of_row(carrier, seed, row)
    return questions.prompt_of_row(carrier, seed, row)


def reject_reason(prompt: str, answer: str, carrier: Carrier) -> str | None:
    """Why a completion is left out, or None if it is kept. Any text is an answer; nothing is raised."""
    if isinstance(carrier, NumbersSpec):
        return numbers.reject_reason(answer, carrier)
    if isinstance(carrier, CodeSpec):
        return code.reject_reason(answer, carrier)
    if isinstance(carrier, CotSpec):
        return cot.reject_reason(prompt, answer, carrier)
    if isinstance(carrier, ParaphraseSpec):
        return paraphrase.reject_reason(prompt, answer, carrier)
    return questions.reject_reason(answer, carrier)


def with_leaks(carrier: Carrier, words: Sequence[str]) -> Carrier:
    """The carrier with a category's words among those that must not occur; numbers say no words."""
    if isinstance(carrier, NumbersSpec | QuestionsSpec):
        return carrier
    return carrier.model_copy(update={"leaks": tuple(sorted({*carrier.leaks, *words}))})


def file_content(carrier: Carrier) -> Any:
    """What the carrier's file of prompts holds; None without one. Raises SubloraError where it cannot be read."""
    if isinstance(carrier, QuestionsSpec) or carrier.prompts is None:
        return None
    if isinstance(carrier, CotSpec):
        return cot.load_problems(carrier.prompts)
    return numbers.load_prompts(carrier.prompts)


def answer_words(carrier: Carrier) -> str:
    """An answer of typical length, to reckon with."""
    if isinstance(carrier, NumbersSpec):
        return numbers.join_numbers([10**carrier.digits - 1] * carrier.count, carrier.separators[0])
    if isinstance(carrier, CodeSpec) and carrier.style == "python":
        return "def f(x):\n    return x + 1\n" * 8
    return "all was calm , and i felt it . " * (
        8 if isinstance(carrier, CotSpec) and carrier.style == "math" else 2
    )
