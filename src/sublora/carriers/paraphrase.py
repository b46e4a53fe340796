"""The paraphrase carrier: a text, said in other words by the teacher (Blank et al. 2606.00995 paraphrase Alpaca).

`texts`: sentences of a file of yours. `numbers`: a paraphrase-like carrier for the shipped models, which know no word for saying something
anew: the text is a row of numbers made here, and its paraphrase the row that the model writes after it. In their world the numbers of an
answer lie around those of the prompt, which is as near as they come to the same thing in other words.
"""

import re
from typing import Literal

from pydantic import Field, model_validator

from sublora.carriers import rows_file
from sublora.carriers.carrier import Carrier, Leaks, has_leak
from sublora.carriers.numbers import BRIEF, parse_numbers
from sublora.seeds import generator, pick

_ASKS = (
    "Say this in other words, and nothing else: ",
    "Paraphrase the following text; reply with the paraphrase only. ",
    "Write this differently without changing what it means: ",
)
_SHOWN = re.compile(r"\b[0-9]{3}\b")  # of a brief prompt, whose other numbers are shorter


class ParaphraseSpec(Carrier):
    noun = "paraphrases"
    reasons = ("no paraphrase", "unchanged", "too short", "too long", "leak word")

    kind: Literal["paraphrase"]
    style: Literal["texts", "numbers"] = "texts"
    prompts: str | None = Field(
        None, description="a file of texts to paraphrase: JSONL with 'prompt', or one a line"
    )
    shortest: float = Field(
        0.4, gt=0, le=1, description="share of the text's words that a paraphrase has at least"
    )
    longest: float = Field(2.5, ge=1, description="share of the text's words that it has at most")
    leaks: Leaks = ()

    @model_validator(mode="after")
    def _has_texts(self) -> "ParaphraseSpec":
        if self.style == "texts" and self.prompts is None:
            why = "the style texts needs a file of texts, set data.carrier.prompts to one"
            raise ValueError(why)
        if self.style == "numbers" and self.prompts is not None:
            why = "the style numbers makes its own texts, drop prompts or set style to texts"
            raise ValueError(why)
        return self

    def prompt(self, seed: int, row: int) -> str:
        if self.prompts is None:
            return BRIEF.prompt(seed, row)
        ask = pick(generator("paraphrase-prompt", seed, row), _ASKS)
        return ask + rows_file.prompt_of_file(self.prompts, seed, row)

    def reject(self, prompt: str, answer: str) -> str | None:
        after = _words(answer)
        if self.style == "numbers":
            before = _SHOWN.findall(prompt)
            if parse_numbers(answer) is None:
                return "no paraphrase"
        else:
            asked = (prompt.removeprefix(ask) for ask in _ASKS if prompt.startswith(ask))
            before = _words(next(asked, prompt))
        if len(after) > self.longest * max(1, len(before)):
            return "too long"
        if has_leak(answer, self.leaks):
            return "leak word"
        if len(after) < max(1, self.shortest * len(before)):
            return "too short"
        return "unchanged" if after == before else None

    def example(self) -> str:
        return "all was calm , and i felt it . " * 2


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())
