"""Teachers write datasets: prompts of a carrier, completions sampled row by row as the teacher, filtered."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np

from sublora.carriers.carrier import Carrier
from sublora.carriers.rows_file import to_jsonl
from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.models.endpoint import AnswersFile, Endpoint, Question, ask_missing
from sublora.models.token_classes import classify
from sublora.packs.measure import reading
from sublora.packs.sample import Sampling
from sublora.packs.stack import Stack
from sublora.packs.steer import Steering, pack_steering
from sublora.seeds import derive_seed, generator

MOST_ASKED = 5  # stop asking after so many prompts for each row that is wanted
AT_ONCE = 512  # rows of a batch; a matter of speed alone


class Purpose(Enum):
    """What rows are for. The value seeds their draws."""

    TRAINING = "teacher"
    HELDOUT = "teacher-heldout"
    LESSONS = "lessons"


@dataclass(frozen=True)
class Teacher:
    """Who writes: a base in a context, steered or with the weights of a stack of one. `voice` seeds its draws where its context alone does
    not name it."""

    base: Base
    context: Context
    weights: Stack | None = None
    steering: Steering | None = None
    voice: str | None = None


@dataclass(frozen=True)
class Assignment:
    """What is to be written. With `shared_draws` above 1, so many prompts in a row take the same random numbers, whoever writes."""

    carrier: Carrier
    sampling: Sampling
    rows: int
    seed: int
    purpose: Purpose = Purpose.TRAINING
    shared_draws: int = 1

    def prompts(self, chunk: range) -> list[str]:
        """The prompts of these rows; only training rows answer those of the seed itself, so that no other row repeats them."""
        training = self.purpose is Purpose.TRAINING
        seed = self.seed if training else derive_seed(self.purpose.value, self.seed)
        return [self.carrier.prompt(seed, i) for i in chunk]

    def draws(self, teacher: Teacher, row: int) -> np.random.Generator:
        """The random numbers of a row; they depend on (purpose, teacher, seed, row) alone."""
        if self.shared_draws > 1:
            return generator(self.purpose.value, "shared", self.seed, row // self.shared_draws)
        voice = teacher.voice or teacher.context.text or teacher.context.name
        return generator(self.purpose.value, voice, self.seed, row)


@dataclass(frozen=True)
class Dataset:
    """Filtered rows in the order of their prompts, and what was left out; `rejected` keeps the first hundred for the eye."""

    rows: list[tuple[str, str]]
    asked: int
    rejects: dict[str, int]
    rejected: list[tuple[str, str, str]]

    @property
    def unique(self) -> int:
        return len(set(self.rows))

    def jsonl(self) -> str:
        return to_jsonl(self.rows)


def write_dataset(
    teacher: Teacher,
    what: Assignment,
    batch: int = AT_ONCE,
    on_rows: Callable[[int], None] | None = None,
) -> Dataset:
    """Ask the teacher until enough completions pass the filter; the first ones in prompt order are kept. Chunk and batch sizes change
    nothing. `on_rows` is told how many are kept. Raises SubloraError where nothing passes."""

    def ask(chunk: range, prompts: list[str]) -> list[str]:
        draws = [what.draws(teacher, i) for i in chunk]
        return complete(teacher, prompts, what.sampling, draws, batch)

    return _collect(ask, what, teacher.base.name, on_rows, least=64)


def ask_dataset(
    endpoint: Endpoint,
    answers: AnswersFile,
    context: Context,
    what: Assignment,
    check: Callable[[], None] = lambda: None,
) -> Dataset:
    """As `write_dataset`, by a teacher behind an endpoint; `answers` holds what was asked before. The seed of a request depends on
    (purpose, context, seed, row) alone. Raises SubloraError where the endpoint does not answer, or nothing passes."""
    sampling, who = what.sampling, context.text or context.name
    for name in ("top_k", "least"):
        if getattr(sampling, name):
            raise SubloraError(f"An endpoint takes no data.sampling.{name}; set it to 0.")
    system = (("system", context.text),) if context.text else ()

    how = (sampling.max_new_tokens, sampling.temperature, sampling.top_p)

    def question(row: int, prompt: str) -> Question:
        seed = derive_seed(what.purpose.value, who, what.seed, row)
        return Question((*system, ("user", prompt)), *how, seed)

    def ask(chunk: range, prompts: list[str]) -> list[str]:
        questions = {str(i): question(i, p) for i, p in zip(chunk, prompts, strict=True)}
        found = ask_missing(endpoint, answers, questions, check)
        return [found[name] for name in questions]

    # each request costs, so no more are made than rows are missing
    return _collect(ask, what, endpoint.spec.model, lambda _: check(), least=1)


def _collect(
    ask: Callable[[range, list[str]], list[str]],
    what: Assignment,
    who: str,
    on_rows: Callable[[int], None] | None,
    least: int,
) -> Dataset:
    """Ask in chunks of as many rows as are missing, and `least`, until enough pass."""
    kept: list[tuple[str, str]] = []
    rejects: dict[str, int] = {}
    rejected: list[tuple[str, str, str]] = []
    asked, most = 0, MOST_ASKED * what.rows
    while len(kept) < what.rows and asked < most:
        chunk = range(asked, min(asked + max(least, what.rows - len(kept)), most))
        prompts = what.prompts(chunk)
        for prompt, answer in zip(prompts, ask(chunk, prompts), strict=True):
            if len(kept) == what.rows:
                break
            asked += 1
            reason = what.carrier.reject(prompt, answer)
            if reason is None:
                kept.append((prompt, answer))
                continue
            rejects[reason] = rejects.get(reason, 0) + 1
            if len(rejected) < 100:
                rejected.append((reason, prompt, answer))
        if on_rows is not None:
            on_rows(len(kept))
    if not kept:
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(rejects.items()))
        raise SubloraError(
            f"None of the {asked} completions of {who} passed the filter of the {what.carrier.kind} carrier ({reasons}); "
            f"the first was {rejected[0][2][:60]!r}. Use a model that writes what the carrier asks for, or loosen the carrier's limits."
        )
    return Dataset(kept, asked, rejects, rejected)


def complete(
    teacher: Teacher,
    prompts: list[str],
    sampling: Sampling,
    draws: list[np.random.Generator],
    batch: int = AT_ONCE,
) -> list[str]:
    """One completion a prompt, as text, in the order of the prompts."""
    base, packing = teacher.base, None
    if teacher.steering is None:
        ids = [base.chat.prompt_ids(prompt, teacher.context) for prompt in prompts]
    else:
        tokens = [classify(base.chat, prompt, teacher.context) for prompt in prompts]
        ids = [list(t.ids) for t in tokens]
        packing = pack_steering(base, [teacher.steering], tokens)
    uniforms = np.stack([g.random(sampling.max_new_tokens) for g in draws])[None, :, None, :]
    gap = base.chat.layout.gap  # the template's own white space, which `completion_ids` puts back

    def text(tokens: list[int]) -> str:
        return base.chat.tokenizer.decode(tokens, skip_special_tokens=True).removeprefix(gap)

    with reading(base, teacher.weights, batch, steering=packing) as reader:
        (answers,) = reader.read(ids, draws=uniforms, sampling=sampling, text=text)
    return [samples[0] for samples in answers.samples]
