"""What a student is: every value that can change its weights."""

import math
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

AlphaRule = Literal["r", "4r", "rslora"]
Schedule = Literal["linear", "cosine", "constant"]
OptimizerName = Literal[
    "adamw", "sgd", "rmsprop", "signsgd", "frozen-adam-scale", "muon", "rotated-adamw", "adamw-b"
]
FOR_ADAPTERS = ("muon", "rotated-adamw", "adamw-b")


class StudentSpec(BaseModel):
    """A student's training, after all defaults are merged. Two equal specs on equal rows give equal weights on CPU."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    method: Literal["lora", "full"] = "lora"
    rank: int | None = Field(8, ge=1)
    alpha: AlphaRule | float = Field(
        "r", description="'r', '4r', 'rslora' (alpha = r, scale alpha/sqrt(r)) or a number"
    )
    targets: tuple[str, ...] = Field(
        ("all-linear",), description="names of the linear layers that get an adapter"
    )
    init: Literal["default", "orthogonal", "principal"] = Field(
        "default", description="with which weights an adapter starts, see packs.inits"
    )
    lr: float = Field(2e-4, gt=0)
    schedule: Schedule = "linear"
    warmup_steps: int = Field(5, ge=0)
    epochs: int = Field(3, ge=1)
    batch_size: int = Field(32, ge=1)
    optimizer: OptimizerName = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = Field(0.0, ge=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    clip: float = Field(
        1.0, gt=0, description="largest norm of a step's gradient, over all parameters"
    )
    scout_lr: float | None = Field(
        None, gt=0, description="rate of the scouting epoch of frozen-adam-scale"
    )
    seed: int = Field(0, ge=0)
    context: str = "default"
    kl: Literal["forward", "reverse"] = Field(
        "forward",
        description="the direction of the divergence from soft labels: of the student from the teacher, or of the teacher from the student",
    )

    @model_validator(mode="after")
    def _rank_fits_method(self) -> "StudentSpec":
        if (self.method == "lora") != (self.rank is not None):
            raise ValueError("a LoRA student needs a rank, a full fine-tune has none")
        if self.method == "full" and self.optimizer in FOR_ADAPTERS:
            why = f"{self.optimizer} is made for the matrices of adapters, choose another one for a full fine-tune"
            raise ValueError(why)
        if self.method == "full" and self.init != "default":
            raise ValueError("init is for adapters, drop it or the full fine-tunes")
        if self.init == "orthogonal" and self.rank % 2:
            raise ValueError(f"init orthogonal needs even ranks, change {self.rank}")
        if (self.optimizer == "frozen-adam-scale") != (self.scout_lr is not None):
            why = "scout_lr belongs to frozen-adam-scale, which needs it, and to no other optimizer"
            raise ValueError(why)
        return self

    @model_serializer(mode="wrap")
    def _short(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Values that came later are left out at their defaults: ids hash what is written."""
        out = dump(self)
        for name, usual in (("init", "default"), ("kl", "forward")):
            if out.get(name) == usual:
                del out[name]
        return out

    def to_spec(self) -> dict[str, Any]:
        """The training as it counts in an id; the context counts beside it."""
        unused = {"context"} | ({"scout_lr"} if self.scout_lr is None else set())
        return self.model_dump(mode="json", exclude=unused)

    @property
    def keeps_momentum(self) -> bool:
        return self.optimizer == "muon" or (
            self.momentum > 0
            and self.optimizer in ("sgd", "rmsprop", "signsgd", "frozen-adam-scale")
        )

    @property
    def passes(self) -> int:
        """Passes over the rows: the epochs, and before them one of scouting where the optimizer needs it."""
        return self.epochs + (self.scout_lr is not None)

    def scout_steps(self, steps: int) -> int:
        """How many of all `steps` are scouting."""
        return steps // self.passes if self.scout_lr is not None else 0

    @property
    def alpha_value(self) -> float:
        """peft's lora_alpha."""
        assert self.rank is not None
        if self.alpha in ("r", "rslora"):
            return float(self.rank)
        return 4.0 * self.rank if self.alpha == "4r" else float(self.alpha)

    @property
    def scale(self) -> float:
        """The factor on B A: alpha / r, or alpha / sqrt(r) for rsLoRA (peft's use_rslora)."""
        assert self.rank is not None
        return self.alpha_value / (self.rank**0.5 if self.alpha == "rslora" else self.rank)

    @property
    def label(self) -> str:
        what = f"rank {self.rank}" if self.method == "lora" else "full"
        return f"{what}, lr {self.lr:g}, seed {self.seed}"


def total_steps(rows: int, spec: StudentSpec) -> int:
    """Optimizer steps of a training; the last batch of an epoch may be smaller."""
    return spec.passes * -(-rows // spec.batch_size)


def learning_rate(spec: StudentSpec, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) of `steps`: linear warm-up, then the schedule down to zero (or constant).
    A scouting epoch has a schedule of its own."""
    scout = spec.scout_steps(steps)
    if step < scout:
        assert spec.scout_lr is not None
        return _scheduled(spec, spec.scout_lr, step, scout)
    return _scheduled(spec, spec.lr, step - scout, steps - scout)


def _scheduled(spec: StudentSpec, lr: float, step: int, steps: int) -> float:
    if step < spec.warmup_steps:
        return lr * (step + 1) / (spec.warmup_steps + 1)
    progress = (step - spec.warmup_steps) / max(1, steps - spec.warmup_steps)
    if spec.schedule == "linear":
        return lr * (1.0 - progress)
    if spec.schedule == "cosine":
        return lr * 0.5 * (1.0 + math.cos(math.pi * progress))
    return lr
