"""The packed trainer: K students, each with its own rows and hyper-parameters, in one forward and backward pass.

What a student becomes does not depend on its neighbours: gradients, clipping, schedules and seeds are its own, and its row order
comes from its own seed. It leaves the pack when it is done.
"""

import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from sublora.errors import SubloraError
from sublora.train.fit import passes
from sublora.train.optimizers import clip, row_optimizer
from sublora.train.packed_model import PackedModel, evaluating, quiet_gradients
from sublora.train.rows import TokenRows, assemble, rows_of_step
from sublora.train.spec import StudentSpec, learning_rate, total_steps
from sublora.train.stack import Group, new_stack


@dataclass(frozen=True)
class Student:
    """`keep_at`: steps after which the student is handed out as it then is, besides the last one."""

    name: str
    spec: StudentSpec
    rows: TokenRows
    keep_at: tuple[int, ...] = ()

    @property
    def steps(self) -> int:
        return total_steps(len(self.rows), self.spec)


@dataclass(frozen=True)
class Trained:
    """A student after its last step, or after one of `keep_at`: its row of a group's weights, and how its training went so far."""

    index: int  # its place in the list that was given
    group: Group
    row: int
    losses: list[float]
    diverged_at: int | None
    optimizer: str
    norms: list[float] = field(repr=False)

    @property
    def weights(self) -> torch.Tensor:
        """All its parameters in one row, for `stack_weights`."""
        return self.group.unpad(self.row, self.group.flat[self.row].detach())

    @property
    def parameters(self) -> int:
        """How many numbers were trained."""
        return sum(t.numel() for t in self.group.tensors(self.row).values())


@dataclass
class Checkpoint:
    """Where and how often a long training is kept; `every` in seconds, so that it costs little whatever the step takes."""

    path: Path
    every: float = 120.0


class _Part:
    """Students that train together, with their stack, optimizers and histories; `step` steps are done."""

    def __init__(
        self, model: nn.Module, students: Sequence[Student], indices: Sequence[int], step: int
    ) -> None:
        chosen = [students[i] for i in sorted(indices)]
        self.stack = new_stack(model, [s.spec for s in chosen])
        self.indices = [sorted(indices)[i] for i in self.stack.order]
        self.students = [students[i] for i in self.indices]
        self.step = step
        self.optimizers = [
            row_optimizer(s.spec, group.flat[row], group.slots, group.ranks[row], s.steps)
            for s, (group, row) in zip(self.students, self.stack.student_rows(), strict=True)
        ]
        self.losses: list[list[float]] = [[] for _ in self.indices]
        self.norms: list[list[float]] = [[] for _ in self.indices]
        self.diverged: list[int | None] = [None] * len(self.indices)

    def state(self, place: int) -> dict[str, torch.Tensor]:
        """All numbers of the student at `place`, without padding."""
        group, row = self.stack.student_rows()[place]
        numbers = {"flat": group.flat[row], **self.optimizers[place].state}
        return {name: group.unpad(row, values) for name, values in numbers.items()}

    def restore(self, place: int, state: Mapping[str, torch.Tensor]) -> None:
        group, row = self.stack.student_rows()[place]
        for name, target in {"flat": group.flat[row], **self.optimizers[place].state}.items():
            target.copy_(group.pad(row, state[name].to(target.device)))

    def some(
        self, model: nn.Module, students: Sequence[Student], indices: Sequence[int]
    ) -> "_Part":
        """The same trainings, these students only."""
        part = _Part(model, students, indices, self.step)
        for place, index in enumerate(part.indices):
            was = self.indices.index(index)
            part.restore(place, self.state(was))
            part.losses[place], part.norms[place] = self.losses[was], self.norms[was]
            part.diverged[place] = self.diverged[was]
        return part


def _save(parts: Sequence[_Part], path: Path, identity: str) -> None:
    tensors, meta = {}, []
    for part in parts:
        for place, index in enumerate(part.indices):
            tensors |= {
                f"{index}.{name}": values.contiguous() for name, values in part.state(place).items()
            }
        histories = {"losses": part.losses, "norms": part.norms, "diverged": part.diverged}
        meta.append({"step": part.step, "indices": part.indices, **histories})
    temporary = path.with_name(path.name + ".tmp")
    save_file(tensors, temporary, {"identity": identity, "parts": json.dumps(meta)})
    temporary.replace(path)


def _load(
    model: nn.Module, students: Sequence[Student], path: Path, identity: str
) -> list[_Part] | None:
    """The parts that a checkpoint holds; None where it belongs to another training."""
    with safe_open(path, "pt") as file:
        meta, parts = file.metadata(), []
        if meta["identity"] != identity:
            return None
        for kept in json.loads(meta["parts"]):
            part = _Part(model, students, kept["indices"], kept["step"])
            for place, index in enumerate(part.indices):
                was = kept["indices"].index(index)
                part.losses[place], part.norms[place] = kept["losses"][was], kept["norms"][was]
                part.diverged[place] = kept["diverged"][was]
                part.restore(place, {n: file.get_tensor(f"{index}.{n}") for n in part.state(place)})
            parts.append(part)
    return parts


def _resumed(
    model: nn.Module, students: Sequence[Student], checkpoint: Checkpoint | None, identity: str
) -> list[_Part] | None:
    if checkpoint is None or not checkpoint.path.exists():
        return None
    try:
        return _load(model, students, checkpoint.path, identity)
    except Exception:  # a damaged checkpoint costs the time since the start, never the run
        checkpoint.path.unlink(missing_ok=True)
        return None


def train_pack(
    model: nn.Module,
    students: Sequence[Student],
    on_finished: Callable[[Trained], None],
    *,
    checkpoint: Checkpoint | None = None,
    on_step: Callable[[int, int, int], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
    memory: int | None = None,
    recompute: bool = False,
) -> None:
    """Train all students; `on_finished` gets each one as soon as it is done, and at the steps of its `keep_at`.

    `on_step(step, steps, tokens)` counts.

    A student whose loss or gradient is not finite keeps its last finite weights, is marked, and the others go on. A pack is cut into
    parts, one after the other, that fit a GPU's free `memory` in bytes, or a CPU's cache (fit.py). Where memory runs out all the same,
    a part is halved and goes on from where it was, and `on_notice` gets a sentence. `recompute` is gradient checkpointing.
    Raises SubloraError where a student cannot be trained on this base (rank, layers), or alone does not fit.
    """
    if not students:
        return
    identity = json.dumps(
        [[s.name, s.spec.model_dump(mode="json"), s.rows.digest] for s in students], sort_keys=True
    )
    # gradients accumulate into slices of one buffer on purpose; a filter for good, as packs may train in several threads
    warnings.filterwarnings(
        "ignore", message="grad and param do not obey the gradient layout contract"
    )
    longest = max(s.steps for s in students)
    with evaluating(model), quiet_gradients(model):
        parts = _resumed(model, students, checkpoint, identity)
        if parts is None:
            parts = [
                _Part(model, students, p, 0) for p in passes(model, students, memory, recompute)
            ]
        while parts:
            keep = None if checkpoint is None else _Keeper(checkpoint, parts, identity)
            part = parts.pop(0)
            try:
                _train_until_one_is_wanted(model, part, longest, recompute, keep, on_step)
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                halves, recompute, sentence = _smaller(model, students, part, recompute)
                parts[:0] = halves
                if on_notice is not None:
                    on_notice(sentence)
                continue
            done = [
                i for i, s in zip(part.indices, part.students, strict=True) if s.steps <= part.step
            ]
            for place, (group, row) in enumerate(part.stack.student_rows()):
                if part.indices[place] in done or part.step in part.students[place].keep_at:
                    diverged, optimizer = part.diverged[place], part.optimizers[place].describe()
                    losses, norms = list(part.losses[place]), list(part.norms[place])
                    on_finished(
                        Trained(part.indices[place], group, row, losses, diverged, optimizer, norms)
                    )
            left = [i for i in part.indices if i not in done]
            if left:
                parts.insert(0, part.some(model, students, left) if done else part)
            if parts and checkpoint is not None:
                _save(parts, checkpoint.path, identity)
    if checkpoint is not None:
        checkpoint.path.unlink(missing_ok=True)


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _smaller(
    model: nn.Module, students: Sequence[Student], part: _Part, recompute: bool
) -> tuple[list[_Part], bool, str]:
    """(what to train instead of a part that did not fit, whether to recompute from now on, a sentence)."""
    for group in part.stack.groups:
        group.freeze()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    count = len(part.indices)
    if count > 1:
        middle = (count + 1) // 2
        halves = [
            part.some(model, students, indices)
            for indices in (part.indices[:middle], part.indices[middle:])
        ]
        return (
            halves,
            recompute,
            f"Memory ran out with {count} students in a pack; it goes on with {middle} at a time.",
        )
    if not recompute:
        sentence = f"Memory ran out with the student {part.students[0].name} alone; it goes on with gradient checkpointing."
        return [part], True, sentence
    raise SubloraError(
        f"The student {part.students[0].name} does not fit into memory, even alone and with gradient checkpointing; give a smaller "
        "train.batch_size, shorter rows or a smaller rank."
    )


class _Keeper:
    """Writes checkpoints of all parts, the one that trains first, every `checkpoint.every` seconds."""

    def __init__(self, checkpoint: Checkpoint, parts: Sequence[_Part], identity: str) -> None:
        self.checkpoint, self.parts, self.identity, self.saved = (
            checkpoint,
            list(parts),
            identity,
            time.monotonic(),
        )

    def __call__(self) -> None:
        if time.monotonic() - self.saved > self.checkpoint.every:
            _save(self.parts, self.checkpoint.path, self.identity)
            self.saved = time.monotonic()


def _train_until_one_is_wanted(
    model: nn.Module,
    part: _Part,
    longest: int,
    recompute: bool,
    keep: _Keeper | None,
    on_step: Callable[[int, int, int], None] | None,
) -> None:
    stop = min(step for s in part.students for step in (s.steps, *s.keep_at) if step > part.step)
    for group in part.stack.groups:
        group.train()
    with PackedModel(model, part.stack, recompute=recompute) as packed:
        while part.step < stop:
            chosen = [rows_of_step(s.spec, len(s.rows), part.step) for s in part.students]
            batch = assemble([s.rows for s in part.students], chosen)
            packed.form_weights(batch.ids.size // len(part.students))
            losses = packed.losses(batch)
            losses.sum().backward()
            _update(part, losses.detach())
            part.step += 1
            if on_step is not None:
                on_step(part.step, longest, batch.tokens)
            if keep is not None:
                keep()
    for group in part.stack.groups:
        group.freeze()


def _update(part: _Part, losses: torch.Tensor) -> None:
    values = losses.tolist()
    for group, slice_ in zip(part.stack.groups, part.stack.slices(), strict=True):
        assert group.grad is not None
        places = range(slice_.start, slice_.stop)
        most = torch.tensor(
            [part.students[p].spec.clip for p in places],
            dtype=group.flat.dtype,
            device=group.flat.device,
        )
        norms = clip(group.grad, most).tolist()
        for row, (place, norm) in enumerate(zip(places, norms, strict=True)):
            student = part.students[place]
            if part.diverged[place] is None and not (
                math.isfinite(norm) and math.isfinite(values[place])
            ):
                part.diverged[place] = part.step
            if part.diverged[place] is None:
                rate = learning_rate(student.spec, part.step, student.steps)
                part.optimizers[place].step(group.flat[row], group.grad[row], part.step, rate)
            part.losses[place].append(values[place])
            part.norms[place].append(norm)
        group.grad.zero_()
