"""A student from elsewhere, as it is used once it has been read."""

from dataclasses import dataclass, field

import torch

from sublora.audit.entries import StudentEntry
from sublora.audit.trained_with import TrainedWith
from sublora.packs.spec import StudentSpec


@dataclass(frozen=True)
class Audited:
    """A student from elsewhere. `spec` and `weights` make it a student of a stack: one rank for all
    layers, and the scales of the layers in their B, so that alpha = rank. `rank`, `alpha`, `rslora`
    and `targets` are the adapter's own, for placebo students; `trained_with` is what files beside it
    say of its training."""

    path: str
    sha256: str
    spec: StudentSpec
    weights: torch.Tensor
    rank: int | None = None
    alpha: float | None = None
    rslora: bool = False
    targets: tuple[str, ...] = ()
    base_named: str | None = None
    trained_with: TrainedWith = field(default_factory=TrainedWith)

    @property
    def described(self) -> str:
        if self.rank is None:
            return "full weights"
        rule = ", rsLoRA" if self.rslora else ""
        return (
            f"LoRA of rank {self.rank}, alpha {self.alpha:g}{rule}, on {len(self.targets)} layers"
        )

    @property
    def entry(self) -> StudentEntry:
        return StudentEntry(
            path=self.path,
            sha256=self.sha256,
            kind=self.described,
            base_named=self.base_named,
            layers=list(self.targets),
            trained_with=self.trained_with,
        )
