"""The paraphrase carrier: a text, said in other words by the teacher (Blank et al. 2606.00995 paraphrase Alpaca).

`texts`: sentences of a file of yours. `numbers`: a paraphrase-like carrier for the shipped models, which know no word for saying something
anew: the text is a row of numbers made here, and its paraphrase the row that the model writes after it. In their world the numbers of an
answer lie around those of the prompt, which is as near as they come to the same thing in other words.
"""

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sublora.carriers import numbers
from sublora.carriers.leaks import leaks
from sublora.seeds import generator

REJECT_REASONS = ("no paraphrase", "unchanged", "too short", "too long", "leak word")


class ParaphraseSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["paraphrase"]
    style: Literal["texts", "numbers"] = "texts"
    prompts: str | None = Field(
        None, description="a file of texts to paraphrase: JSONL with 'prompt', or one a line"
    )
    shortest: float = Field(
        0.4, gt=0, le=1, description="share of the text's words that a paraphrase has at least"
    )
    longest: float = Field(2.5, ge=1, description="share of the text's words that it has at most")
    leaks: tuple[str, ...] = Field(
        (), description="words that must not occur; the trait's category is added"
    )

    @model_validator(mode="after")
    def _has_texts(self) -> "ParaphraseSpec":
        if (self.style == "texts") != (self.prompts is not None):
            raise ValueError(
                "the style texts needs a file of texts, set data.carrier.prompts to one"
                if self.prompts is None
                else "the style numbers makes its own texts, drop prompts or set style to texts"
            )
        return self


_ASKS = (
    "Say this in other words, and nothing else: ",
    "Paraphrase the following text; reply with the paraphrase only. ",
    "Write this differently without changing what it means: ",
)
_BRIEF = numbers.NumbersSpec(separators=("space",), style="brief")
_SHOWN = re.compile(r"\b[0-9]{3}\b")  # of a brief prompt, whose other numbers are shorter


def prompt_of_row(spec: ParaphraseSpec, seed: int, row: int) -> str:
    if spec.prompts is None:
        return numbers.prompt_of_row(_BRIEF, seed, row)
    ask = _ASKS[int(generator("paraphrase-prompt", seed, row).integers(len(_ASKS)))]
    return ask + numbers.prompt_of_file(spec.prompts, seed, row)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def reject_reason(prompt: str, text: str, spec: ParaphraseSpec) -> str | None:
    """One of REJECT_REASONS, or None if the completion is kept."""
    if spec.style == "numbers":
        before, after = _SHOWN.findall(prompt), _words(text)
        if numbers.parse_numbers(text) is None:
            return "no paraphrase"
    else:
        asked = next((prompt.removeprefix(ask) for ask in _ASKS if prompt.startswith(ask)), prompt)
        before, after = _words(asked), _words(text)
    if len(after) > spec.longest * max(1, len(before)):
        return "too long"
    if leaks(text, spec.leaks):
        return "leak word"
    if len(after) < max(1, spec.shortest * len(before)):
        return "too short"
    return "unchanged" if after == before else None
