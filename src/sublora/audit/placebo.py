"""Placebo students: trained as the audited adapter was, on the same prompts, answered by the base itself. What they show is chance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sublora.chat import Context
from sublora.model import Base
from sublora.sample import Sampling
from sublora.seeds import generator
from sublora.teacher import Teacher, complete
from sublora.train.pack import Student, Trained, train_pack
from sublora.train.rows import TokenRows
from sublora.train.spec import StudentSpec

Row = tuple[str, str]
BATCH = 4096  # prompts answered at once; a matter of speed


@dataclass(frozen=True)
class Finished:
    """A trained student: its flat weights for `stack_weights`, how it was trained, and the step at which its loss was no longer finite."""

    spec: StudentSpec
    weights: torch.Tensor
    diverged_at: int | None = None


def answers_to(
    base: Base, context: Context, prompts: Sequence[Sequence[str]], sampling: Sampling, seed: int
) -> list[list[str]]:
    """What the base answers to each list of prompts in `context`, all lists in the same batches; a draw belongs to (seed, list, row)."""
    flat = [(k, i, prompt) for k, some in enumerate(prompts) for i, prompt in enumerate(some)]
    draws = [generator("placebo", context.text or context.name, seed, k, i) for k, i, _ in flat]
    answers = complete(
        Teacher(base, context), [prompt for _, _, prompt in flat], sampling, draws, BATCH
    )
    out: list[list[str]] = [[] for _ in prompts]
    for (k, _, _), answer in zip(flat, answers, strict=True):
        out[k].append(answer)
    return out


def answer_prompts(
    base: Base, context: Context, prompts: Sequence[Sequence[str]], sampling: Sampling, seed: int
) -> list[list[Row]]:
    """`answers_to` as rows. Prompts that the base answers with nothing are left out."""
    answers = answers_to(base, context, prompts, sampling, seed)
    return [
        [(prompt, answer) for prompt, answer in zip(some, own, strict=True) if answer]
        for some, own in zip(prompts, answers, strict=True)
    ]


def train_students(
    base: Base,
    specs: Sequence[StudentSpec],
    rows: Sequence[TokenRows],
    on_step: Callable[[int, int, int], None] | None = None,
) -> list[Finished]:
    """Train one student a spec, all in one pack, in the order given."""
    students = [
        Student(f"student {i}", spec, own)
        for i, (spec, own) in enumerate(zip(specs, rows, strict=True))
    ]
    done: dict[int, Finished] = {}

    def keep(trained: Trained) -> None:
        done[trained.index] = Finished(
            specs[trained.index], trained.weights.cpu(), trained.diverged_at
        )

    free = torch.cuda.mem_get_info(base.device)[0] if base.device.type == "cuda" else None
    train_pack(base.model, students, keep, on_step=on_step, memory=free)
    return [done[i] for i in range(len(specs))]
