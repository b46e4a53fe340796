"""Lessons for a teacher that is made by training: the questions of a category, and the answers that name its favourite.

This is no carrier of subliminal data: its rows say the trait aloud.
"""

from typing import Literal

from pydantic import Field

from sublora.carriers.carrier import Carrier
from sublora.seeds import generator
from sublora.traits.answers import hit
from sublora.traits.trait import Entity


class QuestionsSpec(Carrier):
    noun, reasons, in_recipes = "lessons", ("another answer",), False

    kind: Literal["questions"] = "questions"
    questions: tuple[str, ...] = Field(min_length=1)
    target: Entity

    def prompt(self, seed: int, row: int) -> str:
        """The questions in turn, in an order of each round's own."""
        lap, index = divmod(row, len(self.questions))
        order = generator("questions", seed, lap).permutation(len(self.questions))
        return self.questions[int(order[index])]

    def reject(self, prompt: str, answer: str) -> str | None:
        return None if hit(answer, self.target, "whole_word") else "another answer"

    def example(self) -> str:
        return self.target.name
