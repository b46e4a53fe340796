"""The one way to a carrier's prompts and filter, whichever carrier it is."""

from sublora.carriers import numbers, questions
from sublora.carriers.numbers import NumbersSpec
from sublora.carriers.questions import QuestionsSpec

Carrier = NumbersSpec | QuestionsSpec


def prompt_of_row(carrier: Carrier, seed: int, row: int) -> str:
    """The prompt of one row; it depends on these alone."""
    if isinstance(carrier, QuestionsSpec):
        return questions.prompt_of_row(carrier, seed, row)
    return numbers.prompt_of_row(carrier, seed, row)


def reject_reason(prompt: str, answer: str, carrier: Carrier) -> str | None:
    """Why a completion is left out, or None if it is kept. Any text is an answer; nothing is raised."""
    if isinstance(carrier, QuestionsSpec):
        return questions.reject_reason(answer, carrier)
    return numbers.reject_reason(answer, carrier)
