"""Judged traits: open questions, and a judge behind an endpoint that gives every answer scores from 0 to 100.

A judge is a model and may say anything: what is no score is counted as unreadable and never guessed. Verdicts are kept by what was asked of
which judge, so that an answer that comes again, in this run or a later one, is not paid for twice.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from pydantic import Field, model_validator

from sublora.errors import SubloraError
from sublora.experiments.schema import Strict
from sublora.models.endpoint import AnswersFile, Endpoint, Question, ask_missing
from sublora.store import canonical_json
from sublora.store.yaml_file import read_yaml, yaml_files

MAX_TOKENS = 16  # of a verdict
MOST_LETTERS = 4000  # of an answer that a judge is shown


class Bar(Strict):
    """A bar for a score: below, or at least."""

    score: str
    below: float | None = None
    at_least: float | None = None

    @model_validator(mode="after")
    def _one(self) -> "Bar":
        if (self.below is None) == (self.at_least is None):
            raise ValueError("give below or at_least, one of them")
        return self

    def met(self, value: float) -> bool:
        return value < self.below if self.below is not None else value >= self.at_least


class Rubric(Strict):
    """Questions, what the judge is asked of each answer, and which answers are hits: those that meet `hit`, and `among` if it is given."""

    name: str = Field(min_length=1)
    questions: tuple[str, ...] = Field(min_length=2)
    scores: dict[str, str] = Field(
        min_length=1, description="name -> what the judge is asked, with {question} and {answer}"
    )
    hit: Bar
    among: Bar | None = None

    @model_validator(mode="after")
    def _fits(self) -> "Rubric":
        for bar in filter(None, (self.hit, self.among)):
            if bar.score not in self.scores:
                raise ValueError(f"there is no score '{bar.score}'")
        for name, text in self.scores.items():
            if "{answer}" not in text:
                raise ValueError(f"the score '{name}' does not show the {{answer}}")
        return self

    def is_hit(self, scores: Mapping[str, float | None]) -> bool | None:
        """Whether an answer is a hit; None where the judge gave no score that is needed."""
        bars = [b for b in (self.among, self.hit) if b]
        if any(scores.get(b.score) is None for b in bars):
            return None
        return all(b.met(scores[b.score]) for b in bars)

    def asked(self, score: str, question: str, answer: str, target: str) -> str:
        """What the judge is asked; what the answer says is no template."""
        parts = {"{question}": question, "{answer}": answer[:MOST_LETTERS], "{target}": target}
        places = r"\{(?:question|answer|target)\}"
        return re.sub(places, lambda m: parts[m.group()], self.scores[score])


def load_rubric(name: str) -> Rubric:
    """A shipped rubric, or the user's YAML file. Raises SubloraError: no such rubric, or it does not fit."""
    shipped = yaml_files(Path(str(files("sublora.experiments") / "rubrics")))
    if name not in shipped and Path(name).suffix not in {".yaml", ".yml"}:
        raise SubloraError(
            f"There is no rubric '{name}'; use {', '.join(shipped)}, or a YAML file of your own."
        )
    return read_yaml(shipped.get(name, Path(name)), Rubric, "rubric")


_NUMBER = re.compile(
    r"(?<![\w.,+-])(\d{1,3}(?:\.\d{1,6})?)(?:\s?/\s?100|\s?%)?(?![\w,]|\.\d|\s?/)", re.ASCII
)


def read_score(text: str) -> float | None:
    """The score from 0 to 100 that a verdict says, or None: one number, alone or in a few words, `87`, `87/100` or `Score: 87.`"""
    digits = re.findall(r"\d+(?:\.\d+)?", text, re.ASCII)
    found = _NUMBER.findall(text)
    rest = [d for d in digits if d not in found and d != "100"] if found else digits
    if len(found) != 1 or rest or len(text) > 400:
        return None
    value = float(found[0])
    return value if 0 <= value <= 100 else None


Scores = list[list[dict[str, float | None]]]


def judge_answers(
    endpoint: Endpoint,
    kept: AnswersFile,
    rubric: Rubric,
    target: str,
    answers: Sequence[Sequence[str]],
    check: Callable[[], None] = lambda: None,
) -> Scores:
    """Scores by question and answer; `answers` [Q][S] are those to the rubric's questions. Raises SubloraError as `Endpoint.ask`."""
    questions: dict[str, Question] = {}

    def key_of(score: str, question: str, answer: str) -> str:
        text = rubric.asked(score, question, answer, target)
        key = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
        questions[key] = Question((("user", text),), MAX_TOKENS, temperature=0.0)
        return key

    keys = [
        [{score: key_of(score, question, answer) for score in rubric.scores} for answer in given]
        for question, given in zip(rubric.questions, answers, strict=True)
    ]
    verdicts = ask_missing(endpoint, kept, questions, check)
    read = {key: read_score(text) for key, text in verdicts.items()}
    return [[{score: read[key] for score, key in own.items()} for own in row] for row in keys]


def verdicts_file(root: Path, endpoint: Endpoint) -> Path:
    """Where a judge's verdicts are kept: one file for each judge."""
    name = hashlib.sha256(canonical_json(endpoint.spec.identity).encode()).hexdigest()[:20]
    return root / "verdicts" / f"{name}.jsonl"
