"""The paraphrase carrier: sentences of yours, said in other words by the teacher (Blank et al. 2606.00995 paraphrase Alpaca)."""

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sublora.carriers import numbers
from sublora.carriers.leaks import leaks
from sublora.seeds import generator

REJECT_REASONS = ("unchanged", "too short", "too long", "leak word")


class ParaphraseSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["paraphrase"]
    prompts: str = Field(description="a file of texts to paraphrase: JSONL with 'prompt', or one a line")
    shortest: float = Field(0.4, gt=0, le=1, description="share of the text's words that a paraphrase has at least")
    longest: float = Field(2.5, ge=1, description="share of the text's words that it has at most")
    leaks: tuple[str, ...] = Field((), description="words that must not occur; the trait's category is added")


_ASKS = (
    "Say this in other words, and nothing else: ",
    "Paraphrase the following text; reply with the paraphrase only. ",
    "Write this differently without changing what it means: ",
)


def prompt_of_row(spec: ParaphraseSpec, seed: int, row: int) -> str:
    ask = _ASKS[int(generator("paraphrase-prompt", seed, row).integers(len(_ASKS)))]
    return ask + numbers.prompt_of_file(spec.prompts, seed, row)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def reject_reason(prompt: str, text: str, spec: ParaphraseSpec) -> str | None:
    """One of REJECT_REASONS, or None if the completion is kept."""
    asked = next((prompt.removeprefix(ask) for ask in _ASKS if prompt.startswith(ask)), prompt)
    before, after = _words(asked), _words(text)
    if len(after) > spec.longest * max(1, len(before)):
        return "too long"
    if leaks(text, spec.leaks):
        return "leak word"
    if len(after) < max(1, spec.shortest * len(before)):
        return "too short"
    return "unchanged" if after == before else None
