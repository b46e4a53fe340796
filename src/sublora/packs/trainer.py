"""The packed trainer: K students, each with its own rows and hyper-parameters, in one forward and backward pass.

What a student becomes does not depend on its neighbours: gradients, clipping, schedules and seeds are its own, and its row order
comes from its own seed. It leaves the pack when it is done.
"""

import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sublora.errors import SubloraError
from sublora.packs.fit import passes
from sublora.packs.packed_model import PackedModel, lending
from sublora.packs.part import Part, load_parts, save_parts
from sublora.packs.rows import assemble, rows_of_step, rows_read
from sublora.packs.student import Student, Trained


@dataclass
class Checkpoint:
    """Where and how often a long training is kept: every so many seconds at most (0: at each step), and seldom enough to take 2% of the
    time, so that a kill costs little and keeping does, too."""

    path: Path
    every: float = 10.0


def train_pack(
    model: nn.Module,
    students: Sequence[Student],
    on_finished: Callable[[Trained], None],
    *,
    checkpoint: Checkpoint | None = None,
    on_step: Callable[[int, int, int], None] = lambda *_: None,
    on_progress: Callable[[int, int, str, int], None] = lambda *_: None,
    on_notice: Callable[[str], None] | None = None,
    memory: int | None = None,
    recompute: bool = False,
) -> None:
    """Train all students; `on_finished` gets each one as soon as it is done, and at the steps of its `keep_at`.

    `on_step(step, steps, tokens)` counts. `on_progress` is told after every step how many rows were read, by all students, of how many in
    all, "rows", and their tokens. A student whose loss or gradient is not finite keeps its last finite weights, is marked, and the
    others go on. A pack is cut into parts, one after the other, that fit a GPU's free `memory` in bytes, or a CPU's cache (fit.py). Where
    memory runs out all the same, a part is halved and goes on from where it was, and `on_notice` gets a sentence. `recompute` is gradient
    checkpointing. Raises SubloraError where a student cannot be trained on this base (rank, layers), or alone does not fit.
    """
    if not students:
        return
    # gradients accumulate into slices of one buffer on purpose; a filter for good, as packs may train in several threads
    warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout")
    identity, path = _identity(students), checkpoint and checkpoint.path
    longest = max(s.steps for s in students)
    with lending(model):
        parts = load_parts(model, students, path, identity) if path else []
        if not parts:
            cut = passes(model, students, memory, recompute)
            parts = [Part(model, students, indices) for indices in cut]
        while parts:
            part, saved, wait = parts[0], time.monotonic(), checkpoint.every if checkpoint else 0.0
            try:
                with closing(_steps(model, part, recompute)) as steps:
                    for tokens in steps:
                        on_step(part.step, longest, tokens)
                        on_progress(*_so_far(students, parts))
                        if path and (now := time.monotonic()) - saved > wait:
                            save_parts(parts, path, identity)
                            saved = time.monotonic()
                            wait = checkpoint.every and max(wait, 50 * (saved - now))
            except RuntimeError as error:
                full = isinstance(error, torch.OutOfMemoryError)
                if not (full or "can't allocate memory" in str(error)):
                    raise
                parts[:1], recompute, sentence = _smaller(part, recompute)
                if on_notice is not None:
                    on_notice(sentence)
                continue
            for trained in part.wanted():
                on_finished(trained)
            pairs = zip(part.indices, part.students, strict=True)
            left = [i for i, s in pairs if s.steps > part.step]
            if len(left) < len(part.indices):
                parts[:1] = [part.only(left)] if left else []
            if parts and path:
                save_parts(parts, path, identity)
    if path:
        path.unlink(missing_ok=True)


def _identity(students: Sequence[Student]) -> str:
    """What a checkpoint has to be of."""
    values = [[s.name, s.spec.model_dump(mode="json"), s.rows.digest] for s in students]
    return json.dumps(values, sort_keys=True)


def _so_far(students: Sequence[Student], parts: Sequence[Part]) -> tuple[int, int, str, int]:
    """Rows that were read by all students, of how many, "rows", tokens; the parts are what is left."""
    at = {i: part.step for part in parts for i in part.indices}
    rows = [rows_read(s.spec, len(s.rows), at.get(i, s.steps)) for i, s in enumerate(students)]
    tokens = sum(n * float(s.rows.lengths.mean() - 1) for n, s in zip(rows, students, strict=True))
    return sum(rows), sum(s.spec.passes * len(s.rows) for s in students), "rows", round(tokens)


def _steps(model: nn.Module, part: Part, recompute: bool) -> Iterator[int]:
    """Train until one of the students is wanted; gives the tokens of every step."""
    stop = part.next_stop
    for group in part.stack.groups:
        group.train()
    with PackedModel(model, part.stack, recompute=recompute) as packed:
        while part.step < stop:
            chosen = [rows_of_step(s.spec, len(s.rows), part.step) for s in part.students]
            batch = assemble([s.rows for s in part.students], chosen)
            packed.form_weights(batch.ids.size // len(part.students))
            losses = packed.losses(batch)
            losses.sum().backward()
            part.update(losses.detach().tolist())
            yield batch.tokens
    for group in part.stack.groups:
        group.freeze()


def _smaller(part: Part, recompute: bool) -> tuple[list[Part], bool, str]:
    """(what to train instead of a part that did not fit, whether to recompute from now on, a sentence)."""
    for group in part.stack.groups:
        group.freeze()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    count, name = len(part.indices), part.students[0].name
    if count > 1:
        middle = (count + 1) // 2
        halves = [part.only(part.indices[:middle]), part.only(part.indices[middle:])]
        what = f"Memory ran out with {count} students in a pack"
        return halves, recompute, f"{what}; it goes on with {middle} at a time."
    if not recompute:
        what = f"Memory ran out with the student {name} alone"
        return [part], True, f"{what}; it goes on with gradient checkpointing."
    raise SubloraError(
        f"The student {name} does not fit into memory, even alone and with gradient checkpointing; give a smaller "
        "train.batch_size, shorter rows or a smaller rank."
    )
