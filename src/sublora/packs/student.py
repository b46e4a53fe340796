"""A student of a pack, before and after its training."""

from dataclasses import dataclass, field

import torch

from sublora.packs.rows import TokenRows
from sublora.packs.spec import StudentSpec, total_steps
from sublora.packs.stack import Group


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
    """A student after its last step, or one of `keep_at`: its row of a group's weights, and its training so far."""

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
