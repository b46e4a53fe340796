"""Placebo students: trained as the audited adapter was, on the same prompts, answered by the base itself. What they show is chance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sublora.chat import Context
from sublora.model import Base
from sublora.sample import Sampling
from sublora.seeds import generator
from sublora.teacher import complete
from sublora.train.pack import Student, train_pack
from sublora.train.rows import TokenRows
from sublora.train.spec import StudentSpec

Row = tuple[str, str]
BATCH = 4096  # prompts answered at once; a matter of speed


@dataclass(frozen=True)
class Finished:
    """A trained student: its flat weights for `stack_weights`, and how it was trained."""

    spec: StudentSpec
    weights: torch.Tensor


def answer_prompts(
    base: Base, context: Context, prompts: Sequence[Sequence[str]], sampling: Sampling, seed: int
) -> list[list[Row]]:
    """Each list of prompts answered by the base in `context`, all lists in the same batches; a draw belongs to (seed, list, row).

    Prompts that the base answers with nothing are left out.
    """
    flat = [(k, i, prompt) for k, some in enumerate(prompts) for i, prompt in enumerate(some)]
    draws = [generator("placebo", context.text or context.name, seed, k, i) for k, i, _ in flat]
    answers = complete(base, context, [prompt for _, _, prompt in flat], sampling, draws, BATCH)
    out: list[list[Row]] = [[] for _ in prompts]
    for (k, _, prompt), answer in zip(flat, answers, strict=True):
        if answer:
            out[k].append((prompt, answer))
    return out


def train_students(
    base: Base,
    specs: Sequence[StudentSpec],
    rows: Sequence[TokenRows],
    on_step: Callable[[int, int, int], None] | None = None,
) -> list[Finished]:
    """Train one student a spec, all in one pack, in the order given."""
    students = [Student(f"student {i}", spec, own) for i, (spec, own) in enumerate(zip(specs, rows, strict=True))]
    done: dict[int, torch.Tensor] = {}
    train_pack(
        base.model, students, lambda trained: done.__setitem__(trained.index, trained.weights.clone()), on_step=on_step
    )
    return [Finished(spec, done[i]) for i, spec in enumerate(specs)]
