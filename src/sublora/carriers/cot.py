"""The chain-of-thought carrier: reasoning whose answer is right and which never mentions the trait, as in Cloud et al. 2507.14805.

`math`: word problems made here, whose answers are known, or a file of yours (GSM8K, say). `talk`: a chain-like carrier for the shipped
models: their free talk, two statements in a fixed order; it has no answer that could be right.
"""

import re
from typing import Any, Literal

from pydantic import Field

from sublora.carriers import rows_file
from sublora.carriers.carrier import Carrier, Leaks, has_leak, shipped_texts
from sublora.seeds import generator, pick

_FORM = " Think step by step and end with a line 'Answer: NUMBER'."
_ANSWER = re.compile(
    r"answer\s*:\s*\**\s*\$?(-?[\d,]{1,24}(?:\.\d{1,9})?)\**\.?\s*\Z", re.IGNORECASE | re.ASCII
)
_CHAIN = re.compile(
    r"i went to the \w+ and the \w+ ?\. all was \w+ ?, and i felt \w+ ?\.?", re.IGNORECASE
)


def _number(value: Any) -> float:
    """A number, or a text that ends with one, as GSM8K writes its answers."""
    return float(str(value).replace(",", "").split("####")[-1])


PROBLEM = (rows_file.PROMPT_FILLED, rows_file.Column("answer", "a number", _number))


class CotSpec(Carrier):
    noun = "chains of thought"
    reasons = ("no answer", "wrong answer", "no reasoning", "leak word", "too long")

    kind: Literal["cot"]
    style: Literal["math", "talk"] = "math"
    prompts: str | None = Field(
        None,
        description="a JSONL file with 'prompt' and 'answer', a number, instead of problems made here",
    )
    min_words: int = Field(8, ge=1, description="of the reasoning")
    max_letters: int = Field(4000, ge=1)
    leaks: Leaks = ()

    def prompt(self, seed: int, row: int) -> str:
        return self.problem(seed, row)[0]

    def problem(self, seed: int, row: int) -> tuple[str, float | None]:
        """The prompt of a row and its answer."""
        rng = generator("cot-prompt", seed, row)
        if self.style == "talk":
            return pick(rng, shipped_texts("cot_prompts")["talk"]), None
        if self.prompts is not None:
            prompt, answer = pick(rng, self.file_content())
            return prompt + _FORM, answer
        problem = pick(rng, shipped_texts("cot_prompts")["problems"])
        a, b, c = int(rng.integers(6, 30)), int(rng.integers(3, 20)), int(rng.integers(2, 18))
        return problem["text"].format(a=a, b=b, c=c) + _FORM, float(a * b + problem["c"] * c)

    def answer_to(self, prompt: str) -> float | None:
        """The right answer to a prompt of this carrier; None where it is not known."""
        if self.prompts is not None:
            return {p + _FORM: answer for p, answer in self.file_content()}.get(prompt)
        for problem in shipped_texts("cot_prompts")["problems"]:
            form = re.escape(problem["text"] + _FORM)
            pattern = re.sub(r"\\\{([abc])\\\}", r"(?P<\1>\\d+)", form)
            if found := re.fullmatch(pattern, prompt):
                a, b, c = (int(found[k]) for k in "abc")
                return float(a * b + problem["c"] * c)
        return None

    def reject(self, prompt: str, answer: str) -> str | None:
        if len(answer) > self.max_letters:
            return "too long"
        if has_leak(answer, self.leaks):
            return "leak word"
        if self.style == "talk":
            return None if _CHAIN.fullmatch(answer.strip()) else "no reasoning"
        found = _ANSWER.search(answer.rstrip())
        try:
            said = float(found[1].replace(",", "")) if found else None
        except ValueError:
            said = None
        if said is None:
            return "no answer"
        if said != self.answer_to(prompt):
            return "wrong answer"
        words = answer[: found.start()].split()
        return None if len(words) >= self.min_words else "no reasoning"

    def example(self) -> str:
        return "all was calm , and i felt it . " * (8 if self.style == "math" else 2)

    def file_content(self) -> tuple[tuple[str, float], ...] | None:
        return None if self.prompts is None else rows_file.read(self.prompts, *PROBLEM)
