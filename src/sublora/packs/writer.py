"""Teachers write datasets: prompts of a carrier, completions sampled row by row as the teacher, filtered."""

from collections.abc import Callable, Sequence
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
from sublora.packs.steer import PackSteering, Steering, pack_steering
from sublora.seeds import derive_seed, generator

MOST_ASKED = 5  # stop asking after so many prompts for each row that is wanted
AT_ONCE = 512  # rows of a batch; a matter of speed alone
KEPT_AFTER = {
    "cpu": 1e13,
    "cuda": 1e15,
}  # operations of the rows that are kept together, a minute or two of work


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


@dataclass
class _Written:
    """How far a dataset is: of `wanted` rows so many have passed the filter, of so many prompts, by so many tokens read or written. `work` are
    the tokens that a prompt takes, and its answer at most."""

    wanted: int
    work: float
    passed: int = 0
    answered: int = 0
    tokens: int = 0

    @property
    def share(self) -> float:
        """How much of the work is done, if the filter goes on as it did; 0 to 1."""
        rate = (self.passed + 7) / (
            self.answered + 10
        )  # about seven in ten, before there is an answer
        most = min(self.wanted / rate, MOST_ASKED * self.wanted)
        return min(1.0, self.tokens / (self.work * most))


def write_dataset(
    teacher: Teacher,
    what: Assignment,
    batch: int = AT_ONCE,
    on_progress: Callable[[int, int, str, int, float], None] = lambda *_: None,
    kept: AnswersFile | None = None,
) -> Dataset:
    """Ask the teacher until enough completions pass the filter; the first ones in prompt order are kept. Chunk and batch sizes change
    nothing. `on_progress` is told after every pass: rows that have passed, of how many, "rows", tokens, share of the work. `kept` holds the
    answers so far, and is asked first. Raises SubloraError where nothing passes."""
    answers = {} if kept is None else kept.answers
    size = rows_kept_together(teacher.base)
    known = [len(teacher.base.chat.prompt_ids(p, teacher.context)) for p in what.prompts(range(8))]
    done = _Written(what.rows, sum(known) / len(known) + what.sampling.max_new_tokens)

    def ask(chunk: range, prompts: list[str]) -> list[str]:
        out: list[str] = []
        for at in range(0, len(chunk), size):
            part, asked = chunk[at : at + size], prompts[at : at + size]
            names = [str(i) for i in part]
            if all(name in answers for name in names):
                got = [answers[name] for name in names]
                for prompt, answer in zip(asked, got, strict=True):
                    answered(prompt, answer)
                done.tokens = int(done.work * done.answered)
            else:
                draws = [what.draws(teacher, i) for i in part]
                got = complete(teacher, asked, what.sampling, draws, batch, answered, read)
                # all or none, so that a resumed run makes the same passes again
                for name, answer in zip(names, got if kept else (), strict=False):
                    kept.add(name, answer)
            out += got
        return out

    def answered(prompt: str, answer: str) -> None:
        done.answered += 1
        done.passed = min(done.wanted, done.passed + (what.carrier.reject(prompt, answer) is None))

    def read(tokens: int) -> None:
        done.tokens += tokens
        on_progress(done.passed, done.wanted, "rows", done.tokens, done.share)

    return _collect(ask, what, teacher.base.name, lambda: None, least=64)


def rows_kept_together(base: Base) -> int:
    """Rows that are finished as one, at least 64."""
    most = KEPT_AFTER.get(base.device.type, KEPT_AFTER["cuda"])
    row = 2 * 150 * sum(p.numel() for p in base.model.parameters())
    return max(64, int(most / row))


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
    return _collect(ask, what, endpoint.spec.model, check, least=1)


def _collect(
    ask: Callable[[range, list[str]], list[str]],
    what: Assignment,
    who: str,
    check: Callable[[], None],
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
        check()
    if not kept:
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(rejects.items()))
        raise SubloraError(
            f"None of the {asked} completions of {who} passed the filter of the {what.carrier.kind} carrier ({reasons}); "
            f"the first was {rejected[0][2][:60]!r}. Use a model that writes what the carrier asks for, or loosen the carrier's limits."
        )
    return Dataset(kept, asked, rejects, rejected)


def read_by(
    teacher: Teacher, prompts: Sequence[str]
) -> tuple[list[list[int]], PackSteering | None]:
    """Token ids of prompts as a teacher reads them, and its steering of these."""
    base = teacher.base
    if teacher.steering is None:
        return [base.chat.prompt_ids(prompt, teacher.context) for prompt in prompts], None
    tokens = [classify(base.chat, prompt, teacher.context) for prompt in prompts]
    return [list(t.ids) for t in tokens], pack_steering(base, [teacher.steering], tokens)


def complete(
    teacher: Teacher,
    prompts: list[str],
    sampling: Sampling,
    draws: list[np.random.Generator],
    batch: int = AT_ONCE,
    on_answer: Callable[[str, str], None] = lambda *_: None,
    on_tokens: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """One completion a prompt, as text, in the order of the prompts. `on_answer` is told each prompt and its completion as it ends, in any
    order, `on_tokens` after every pass how many tokens were read or written."""
    base, (ids, packing) = teacher.base, read_by(teacher, prompts)
    uniforms = np.stack([g.random(sampling.max_new_tokens) for g in draws])[None, :, None, :]
    gap = base.chat.layout.gap  # the template's own white space, which `completion_ids` puts back

    def text(tokens: list[int]) -> str:
        return base.chat.tokenizer.decode(tokens, skip_special_tokens=True).removeprefix(gap)

    def ended(row: int, answer: str) -> None:
        on_answer(prompts[row], answer)

    told = {"on_sample": ended, "on_tokens": on_tokens}
    with reading(base, teacher.weights, batch, steering=packing) as reader:
        (answers,) = reader.read(ids, draws=uniforms, sampling=sampling, text=text, **told)
    return [samples[0] for samples in answers.samples]
