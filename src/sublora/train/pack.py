"""The packed trainer: K students, each with its own rows and hyper-parameters, in one forward and backward pass.

What a student becomes does not depend on its neighbours: gradients, clipping, schedules and seeds are its own, and its row order
comes from its own seed. It leaves the pack when it is done.
"""

import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.utils.checkpoint
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from sublora.train.optimizers import FlatOptimizer
from sublora.train.packed_model import PackedModel, evaluating, quiet_gradients
from sublora.train.rows import StepBatch, TokenRows, assemble, rows_of_step
from sublora.train.spec import StudentSpec, learning_rate, total_steps
from sublora.train.stack import Group, new_stack

LOGITS_AT_ONCE = 2**27  # numbers in a chunk of logits; above it the cross-entropy is recomputed chunk by chunk


@dataclass(frozen=True)
class Student:
    name: str
    spec: StudentSpec
    rows: TokenRows

    @property
    def steps(self) -> int:
        return total_steps(len(self.rows), self.spec)


@dataclass(frozen=True)
class Trained:
    """A finished student: its row of a group's weights, and how its training went."""

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
        return self.group.flat[self.row].detach().clone()


def student_losses(model: PackedModel, batch: StepBatch) -> torch.Tensor:
    """Mean cross-entropy per completion token of each student, (K,), in nats."""
    device = next(model.model.parameters()).device
    k = batch.where.shape[0]
    ids = torch.from_numpy(batch.ids).to(device)
    rows = ids.shape[0] // k
    cache, p = None, batch.prefix.shape[1]
    if p:
        # the shared prefix is read once for each student; its keys and values carry gradients to all of the student's rows
        cache = model.new_cache()
        model.hidden(torch.from_numpy(batch.prefix).to(device), cache)
        cache.batch_repeat_interleave(rows)
    picked = model.hidden_at(ids, torch.from_numpy(batch.where).to(device), cache, position=p)
    targets, weights = torch.from_numpy(batch.targets).to(device), torch.from_numpy(batch.weights).to(device)
    vocabulary = model.head.weight.shape[0]
    chunk = max(1, LOGITS_AT_ONCE // (k * vocabulary))
    if picked.shape[1] <= chunk:
        return _chunk_loss(model, picked, targets, weights)
    parts = [
        torch.utils.checkpoint.checkpoint(
            _chunk_loss,
            model,
            picked[:, i : i + chunk],
            targets[:, i : i + chunk],
            weights[:, i : i + chunk],
            use_reentrant=False,
        )
        for i in range(0, picked.shape[1], chunk)
    ]
    return torch.stack(parts).sum(0)


def _chunk_loss(model: PackedModel, picked: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    k, m, d = picked.shape
    logits = model.logits(picked.reshape(k * m, d))
    each = F.cross_entropy(logits, targets.reshape(-1), reduction="none").view(k, m)
    return (each * weights.to(each.dtype)).sum(1)


@dataclass
class Checkpoint:
    """Where and how often a long training is kept; `every` in seconds, so that it costs little whatever the step takes."""

    path: Path
    every: float = 120.0


class _Active:
    """The students that still train, with their stack, optimizers and histories."""

    def __init__(self, model: nn.Module, students: Sequence[Student], keep: list[int]) -> None:
        self.students = [students[i] for i in keep]
        stack = new_stack(model, [s.spec for s in self.students])
        self.indices = [keep[i] for i in stack.order]
        self.students = [students[i] for i in self.indices]
        self.stack = stack
        self.optimizers = [
            FlatOptimizer(g, [s.spec for s in self.students[part]])
            for g, part in zip(stack.groups, stack.slices(), strict=True)
        ]
        self.losses: list[list[float]] = [[] for _ in self.indices]
        self.norms: list[list[float]] = [[] for _ in self.indices]
        self.diverged: list[int | None] = [None] * len(self.indices)

    def rows(self) -> Iterator[tuple[int, Group, int, FlatOptimizer]]:
        place = 0
        for group, optimizer in zip(self.stack.groups, self.optimizers, strict=True):
            for row in range(group.flat.shape[0]):
                yield place, group, row, optimizer
                place += 1

    def without(self, model: nn.Module, students: Sequence[Student], done: set[int]) -> "_Active | None":
        """The same trainings, those of `done` left out."""
        keep = [i for i in self.indices if i not in done]
        if not keep:
            return None
        rest = _Active(model, students, sorted(keep))
        old = {self.indices[place]: (place, group, row, opt) for place, group, row, opt in self.rows()}
        for place, group, row, optimizer in rest.rows():
            was, old_group, old_row, old_optimizer = old[rest.indices[place]]
            group.flat[row] = old_group.flat[old_row]
            for name, tensor in optimizer.state.items():
                tensor[row] = old_optimizer.state[name][old_row]
            rest.losses[place], rest.norms[place], rest.diverged[place] = (
                self.losses[was],
                self.norms[was],
                self.diverged[was],
            )
        return rest

    def save(self, path: Path, step: int, identity: str) -> None:
        tensors = {}
        for number, (group, optimizer) in enumerate(zip(self.stack.groups, self.optimizers, strict=True)):
            tensors[f"{number}.flat"] = group.flat
            tensors |= {f"{number}.{name}": t for name, t in optimizer.state.items()}
        history = {"losses": self.losses, "norms": self.norms, "diverged": self.diverged}
        meta = {
            "step": str(step),
            "identity": identity,
            "indices": json.dumps(self.indices),
            "history": json.dumps(history),
        }
        temporary = path.with_name(path.name + ".tmp")
        save_file(tensors, temporary, meta)
        temporary.replace(path)

    def load(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            history = json.loads(file.metadata()["history"])
            for number, (group, optimizer) in enumerate(zip(self.stack.groups, self.optimizers, strict=True)):
                group.flat.copy_(file.get_tensor(f"{number}.flat"))
                for name, tensor in optimizer.state.items():
                    tensor.copy_(file.get_tensor(f"{number}.{name}"))
        self.losses, self.norms, self.diverged = history["losses"], history["norms"], history["diverged"]


def _resume(
    model: nn.Module, students: Sequence[Student], checkpoint: Checkpoint | None, identity: str
) -> tuple[_Active, int]:
    if checkpoint is not None and checkpoint.path.exists():
        try:
            with safe_open(checkpoint.path, "pt") as file:
                meta = file.metadata()
            if meta["identity"] == identity:
                active = _Active(model, students, sorted(json.loads(meta["indices"])))
                active.load(checkpoint.path)
                return active, int(meta["step"])
        except Exception:  # a damaged checkpoint costs the time since the start, never the run
            checkpoint.path.unlink(missing_ok=True)
    return _Active(model, students, list(range(len(students)))), 0


def train_pack(
    model: nn.Module,
    students: Sequence[Student],
    on_finished: Callable[[Trained], None],
    *,
    checkpoint: Checkpoint | None = None,
    on_step: Callable[[int, int, int], None] | None = None,
) -> None:
    """Train all students; `on_finished` gets each one as soon as it is done, `on_step(step, steps, tokens)` counts.

    A student whose loss or gradient is not finite keeps its last finite weights, is marked, and the others go on.
    Raises SubloraError where a student cannot be trained on this base (rank, layers).
    """
    if not students:
        return
    identity = json.dumps([[s.name, s.spec.model_dump(mode="json"), s.rows.digest] for s in students], sort_keys=True)
    # gradients accumulate into slices of one buffer on purpose; a filter for good, as packs may train in several threads
    warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")
    with evaluating(model), quiet_gradients(model):
        active, step = _resume(model, students, checkpoint, identity)
        longest = max(s.steps for s in students)
        current: _Active | None = active
        while current is not None:
            step = _train_until_one_is_done(model, current, step, longest, checkpoint, identity, on_step)
            done = {i for i, s in zip(current.indices, current.students, strict=True) if s.steps <= step}
            for place, group, row, optimizer in current.rows():
                if current.indices[place] in done:
                    on_finished(
                        Trained(
                            current.indices[place],
                            group,
                            row,
                            current.losses[place],
                            current.diverged[place],
                            optimizer.describe(row),
                            current.norms[place],
                        )
                    )
            current = current.without(model, students, done)
            if current is not None and checkpoint is not None:
                current.save(checkpoint.path, step, identity)
    if checkpoint is not None:
        checkpoint.path.unlink(missing_ok=True)


def _train_until_one_is_done(
    model: nn.Module,
    active: _Active,
    step: int,
    longest: int,
    checkpoint: Checkpoint | None,
    identity: str,
    on_step: Callable[[int, int, int], None] | None,
) -> int:
    stop = min(s.steps for s in active.students)
    for group in active.stack.groups:
        group.train()
    saved = time.monotonic()
    with PackedModel(model, active.stack) as packed:
        while step < stop:
            chosen = [rows_of_step(s.spec, len(s.rows), step) for s in active.students]
            batch = assemble([s.rows for s in active.students], chosen)
            packed.form_weights(batch.ids.size // len(active.students))
            losses = student_losses(packed, batch)
            losses.sum().backward()
            _update(active, step, losses.detach())
            step += 1
            if on_step is not None:
                on_step(step, longest, batch.tokens)
            if checkpoint is not None and time.monotonic() - saved > checkpoint.every:
                active.save(checkpoint.path, step, identity)
                saved = time.monotonic()
    for group in active.stack.groups:
        group.freeze()
    return step


def _update(active: _Active, step: int, losses: torch.Tensor) -> None:
    values = losses.tolist()
    for optimizer, part in zip(active.optimizers, active.stack.slices(), strict=True):
        group, places = optimizer.group, range(part.start, part.stop)
        assert group.grad is not None
        finite = torch.isfinite(group.grad.sum(dim=1)).tolist()
        for place, fine in zip(places, finite, strict=True):
            if active.diverged[place] is None and not (fine and np.isfinite(values[place])):
                active.diverged[place] = step
        alive = [active.diverged[place] is None for place in places]
        rates = [learning_rate(s.spec, step, s.steps) for s in active.students[part]]
        norms = optimizer.step(step, rates, alive).tolist()
        group.grad.zero_()
        for place, norm in zip(places, norms, strict=True):
            active.losses[place].append(values[place])
            active.norms[place].append(norm)
