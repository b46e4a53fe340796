"""Lessons for a teacher that is made by training: the questions of a category, and the answers that name its favourite.

This is no carrier of subliminal data: its rows say the trait aloud.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sublora.answers import hit
from sublora.seeds import generator
from sublora.trait import Entity


class QuestionsSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["questions"] = "questions"
    questions: tuple[str, ...] = Field(min_length=1)
    target: Entity


def prompt_of_row(spec: QuestionsSpec, seed: int, row: int) -> str:
    """The questions in turn, in an order of each round's own."""
    lap, index = divmod(row, len(spec.questions))
    return spec.questions[
        int(generator("questions", seed, lap).permutation(len(spec.questions))[index])
    ]


def reject_reason(text: str, spec: QuestionsSpec) -> str | None:
    return None if hit(text, spec.target, "whole_word") else "another answer"
