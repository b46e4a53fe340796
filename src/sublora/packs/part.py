"""Students that train together, with their weights, optimizers and histories; what a checkpoint holds of them."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sublora.packs.optimizers import clip, row_optimizer
from sublora.packs.spec import learning_rate
from sublora.packs.stack import Group, new_stack
from sublora.packs.student import Student, Trained


@dataclass
class History:
    """One student's losses and gradient norms, by step."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    diverged_at: int | None = None


class Part:
    """Some of all `students`, by their `indices`; `step` steps are done."""

    def __init__(
        self, model: nn.Module, students: Sequence[Student], indices: Sequence[int], step: int = 0
    ) -> None:
        self.model, self.all, self.step = model, students, step
        given = sorted(indices)
        self.stack = new_stack(model, [students[i].spec for i in given])
        self.indices = [given[i] for i in self.stack.order]
        self.students = [students[i] for i in self.indices]
        self.optimizers = [
            row_optimizer(s.spec, group.flat[row], group.slots, group.ranks[row], s.steps)
            for s, (group, row) in zip(self.students, self.stack.student_rows(), strict=True)
        ]
        self.histories = [History() for _ in self.indices]

    def only(self, indices: Sequence[int]) -> "Part":
        """The same trainings, these students only."""
        part = Part(self.model, self.all, indices, self.step)
        for place, index in enumerate(part.indices):
            was = self.indices.index(index)
            part.restore(place, self.state(was))
            part.histories[place] = self.histories[was]
        return part

    def _numbers(self, place: int) -> tuple[Group, int, dict[str, Tensor]]:
        group, row = self.stack.student_rows()[place]
        return group, row, {"flat": group.flat[row], **self.optimizers[place].state}

    def state(self, place: int) -> dict[str, Tensor]:
        """All numbers of the student at `place`, without padding."""
        group, row, numbers = self._numbers(place)
        return {name: group.unpad(row, values) for name, values in numbers.items()}

    def restore(self, place: int, state: Mapping[str, Tensor]) -> None:
        group, row, numbers = self._numbers(place)
        for name, target in numbers.items():
            target.copy_(group.pad(row, state[name].to(target.device)))

    @property
    def next_stop(self) -> int:
        """The step after which one of the students is done or wanted."""
        stops = (step for s in self.students for step in (s.steps, *s.keep_at))
        return min(step for step in stops if step > self.step)

    def wanted(self) -> Iterator[Trained]:
        """The students that are done, or are to be handed out at this step."""
        for place, (group, row) in enumerate(self.stack.student_rows()):
            student, past = self.students[place], self.histories[place]
            if student.steps <= self.step or self.step in student.keep_at:
                said = self.optimizers[place].describe()
                losses, norms = list(past.losses), list(past.norms)
                yield Trained(
                    self.indices[place], group, row, losses, past.diverged_at, said, norms
                )

    @torch.no_grad()
    def update(self, losses: Sequence[float]) -> None:
        """One step of every optimizer; a student whose loss or gradient is not finite stops for good."""
        for group, slice_ in zip(self.stack.groups, self.stack.slices(), strict=True):
            places = range(slice_.start, slice_.stop)
            most = [self.students[p].spec.clip for p in places]
            norms = clip(group.grad, group.flat.new_tensor(most)).tolist()
            for row, (place, norm) in enumerate(zip(places, norms, strict=True)):
                student, past = self.students[place], self.histories[place]
                if past.diverged_at is None and not math.isfinite(norm + losses[place]):
                    past.diverged_at = self.step
                if past.diverged_at is None:
                    rate = learning_rate(student.spec, self.step, student.steps)
                    self.optimizers[place].step(group.flat[row], group.grad[row], self.step, rate)
                past.losses.append(losses[place])
                past.norms.append(norm)
            group.grad.zero_()
        self.step += 1


def save_parts(parts: Sequence[Part], path: Path, identity: str) -> None:
    tensors, meta = {}, []
    for part in parts:
        for place, index in enumerate(part.indices):
            tensors |= {f"{index}.{n}": v.contiguous() for n, v in part.state(place).items()}
        histories = list(map(asdict, part.histories))
        meta.append({"step": part.step, "indices": part.indices, "histories": histories})
    temporary = path.with_name(path.name + ".tmp")
    save_file(tensors, temporary, {"identity": identity, "parts": json.dumps(meta)})
    temporary.replace(path)


def load_parts(
    model: nn.Module, students: Sequence[Student], path: Path, identity: str
) -> list[Part]:
    """The parts that a checkpoint holds; none where there is no file, or one of another training."""
    parts: list[Part] = []
    if not path.exists():
        return parts
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata()
            for kept in json.loads(meta["parts"]) if meta["identity"] == identity else ():
                part = Part(model, students, kept["indices"], kept["step"])
                for place, index in enumerate(part.indices):
                    history = kept["histories"][kept["indices"].index(index)]
                    part.histories[place] = History(**history)
                    state = {n: file.get_tensor(f"{index}.{n}") for n in part.state(place)}
                    part.restore(place, state)
                parts.append(part)
    except Exception:  # a damaged checkpoint costs the time since the start, never the run
        path.unlink(missing_ok=True)
        return []
    return parts
