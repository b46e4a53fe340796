"""Teachers write datasets: prompts of a carrier, completions sampled row by row under the teacher's system prompt, filtered."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sublora.carriers.carrier import Carrier, prompt_of_row, reject_reason
from sublora.chat import Context
from sublora.endpoint import Endpoint, Kept, Question, ask_kept
from sublora.errors import SubloraError
from sublora.measure import reading
from sublora.model import Base
from sublora.sample import Sampling
from sublora.seeds import derive_seed, generator
from sublora.steer import Steering, pack_steering
from sublora.token_classes import classify
from sublora.train.stack import Stack

MOST_ASKED = 5  # stop asking after so many prompts for each row that is wanted


@dataclass(frozen=True)
class Dataset:
    """Filtered rows in the order of their prompts, and what was left out. `rejected` keeps the first hundred for the eye."""

    rows: list[tuple[str, str]]
    asked: int
    rejects: dict[str, int]
    rejected: list[tuple[str, str, str]]

    @property
    def unique(self) -> int:
        return len(set(self.rows))

    def jsonl(self) -> str:
        return rows_jsonl(self.rows)


def rows_jsonl(rows: Sequence[tuple[str, str]]) -> str:
    return "".join(
        json.dumps({"prompt": p, "completion": c}, ensure_ascii=False) + "\n" for p, c in rows
    )


def read_jsonl(text: str) -> list[tuple[str, str]]:
    """Rows of `rows_jsonl`. Lines end at a line feed only: a text may hold other separators as they are (U+2028)."""
    return [
        (row["prompt"], row["completion"])
        for row in map(json.loads, filter(None, text.split("\n")))
    ]


def write_dataset(
    base: Base,
    teacher: Context,
    carrier: Carrier,
    sampling: Sampling,
    rows: int,
    seed: int,
    stage: str = "teacher",
    batch: int = 512,
    on_rows: Callable[[int], None] | None = None,
    weights: Stack | None = None,
    steering: Steering | None = None,
    voice: str | None = None,
    shared_draws: int = 1,
) -> Dataset:
    """Ask the teacher until `rows` completions pass the filter; the first ones in prompt order are kept.

    Row i's prompt depends on (stage, seed, i) alone, its draws on the teacher as well, so the chunk and batch sizes change nothing.
    `weights` is a stack of one, of a teacher by weights, `steering` acts on the teacher, and `voice` then names what is done for the draws.
    With `shared_draws` above 1, so many prompts in a row take the same random numbers, whoever the teacher is.
    Raises SubloraError where nothing passes.
    """

    def ask(chunk: range, prompts: list[str]) -> list[str]:
        if shared_draws > 1:
            draws = [generator(stage, "shared", seed, i // shared_draws) for i in chunk]
        else:
            draws = [
                generator(stage, voice or teacher.text or teacher.name, seed, i) for i in chunk
            ]
        return complete(base, teacher, prompts, sampling, draws, batch, weights, steering)

    return _collect(ask, carrier, rows, seed, stage, base.name, on_rows, least=64)


def ask_dataset(
    endpoint: Endpoint,
    answers: Kept,
    teacher: Context,
    carrier: Carrier,
    sampling: Sampling,
    rows: int,
    seed: int,
    stage: str = "teacher",
    check: Callable[[], None] = lambda: None,
    on_rows: Callable[[int], None] | None = None,
) -> Dataset:
    """As `write_dataset`, by a teacher behind an endpoint; `answers` holds what was asked before.

    The seed of row i's request depends on (stage, teacher, seed, i) alone. Raises SubloraError where the endpoint does not answer, or
    nothing passes.
    """
    if sampling.top_k:
        raise SubloraError("An endpoint takes no data.sampling.top_k; set it to 0.")
    who = teacher.text or teacher.name

    def ask(chunk: range, prompts: list[str]) -> list[str]:
        questions = {
            str(i): Question(
                ((("system", teacher.text),) if teacher.text else ()) + (("user", prompt),),
                sampling.max_new_tokens,
                sampling.temperature,
                sampling.top_p,
                derive_seed(stage, who, seed, i),
            )
            for i, prompt in zip(chunk, prompts, strict=True)
        }
        found = ask_kept(endpoint, answers, questions, check)
        return [found[name] for name in questions]

    return _collect(
        ask, carrier, rows, seed, stage, endpoint.spec.model, on_rows, least=1
    )  # each costs


def _collect(
    ask: Callable[[range, list[str]], list[str]],
    carrier: Carrier,
    rows: int,
    seed: int,
    stage: str,
    who: str,
    on_rows: Callable[[int], None] | None,
    least: int,
) -> Dataset:
    """Ask in chunks of as many rows as are missing, and `least`, until enough pass."""
    kept: list[tuple[str, str]] = []
    rejects: dict[str, int] = {}
    rejected: list[tuple[str, str, str]] = []
    asked = 0
    prompt_seed = (
        seed if stage == "teacher" else derive_seed(stage, seed)
    )  # held-out rows answer prompts of their own
    while len(kept) < rows and asked < MOST_ASKED * rows:
        chunk = range(asked, min(asked + max(least, rows - len(kept)), MOST_ASKED * rows))
        prompts = [prompt_of_row(carrier, prompt_seed, i) for i in chunk]
        for prompt, answer in zip(prompts, ask(chunk, prompts), strict=True):
            if len(kept) == rows:
                break
            asked += 1
            reason = reject_reason(prompt, answer, carrier)
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
            f"None of the {asked} completions of {who} passed the filter of the {carrier.kind} carrier ({reasons}); "
            f"the first was {rejected[0][2][:60]!r}. Use a model that writes what the carrier asks for, or loosen the carrier's limits."
        )
    return Dataset(kept, asked, rejects, rejected)


def complete(
    base: Base,
    context: Context,
    prompts: list[str],
    sampling: Sampling,
    draws: list[np.random.Generator],
    batch: int,
    weights: Stack | None = None,
    steering: Steering | None = None,
) -> list[str]:
    """One completion a prompt, as text, in the order of the prompts."""
    packing = None
    if steering is None:
        ids = [base.chat.prompt_ids(prompt, context) for prompt in prompts]
    else:
        tokens = [classify(base.chat, prompt, context) for prompt in prompts]
        ids, packing = [list(t.ids) for t in tokens], pack_steering(base, [steering], tokens)
    uniforms = np.stack([g.random(sampling.max_new_tokens) for g in draws])[None, :, None, :]
    gap = base.chat.layout.gap  # white space that the template itself writes before an answer, and `completion_ids` puts back

    def text(tokens: list[int]) -> str:
        return base.chat.tokenizer.decode(tokens, skip_special_tokens=True).removeprefix(gap)

    with reading(base, weights, batch, steering=packing) as reader:
        (answers,) = reader.read(ids, draws=uniforms, sampling=sampling, text=text)
    return [samples[0] for samples in answers.samples]
