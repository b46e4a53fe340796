"""What a student is: every value that can change its weights."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

AlphaRule = Literal["r", "4r", "rslora"]
Schedule = Literal["linear", "cosine", "constant"]
OptimizerName = Literal["adamw", "sgd"]


class StudentSpec(BaseModel):
    """A student's training, after all defaults are merged. Two equal specs on equal rows give equal weights on CPU."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    method: Literal["lora", "full"] = "lora"
    rank: int | None = Field(8, ge=1)
    alpha: AlphaRule | float = Field(
        "r", description="'r', '4r', 'rslora' (alpha = r, scale alpha/sqrt(r)) or a number"
    )
    targets: tuple[str, ...] = Field(("all-linear",), description="names of the linear layers that get an adapter")
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
        1.0, gt=0, description="largest norm of a step's gradient, over all of the student's parameters"
    )
    seed: int = Field(0, ge=0)
    context: str = "default"

    @model_validator(mode="after")
    def _rank_fits_method(self) -> "StudentSpec":
        if (self.method == "lora") != (self.rank is not None):
            raise ValueError("a LoRA student needs a rank, a full fine-tune has none")
        return self

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
    return spec.epochs * -(-rows // spec.batch_size)


def learning_rate(spec: StudentSpec, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) of `steps`: linear warm-up, then the schedule down to zero (or constant)."""
    import math

    if step < spec.warmup_steps:
        return spec.lr * (step + 1) / (spec.warmup_steps + 1)
    progress = (step - spec.warmup_steps) / max(1, steps - spec.warmup_steps)
    if spec.schedule == "linear":
        return spec.lr * (1.0 - progress)
    if spec.schedule == "cosine":
        return spec.lr * 0.5 * (1.0 + math.cos(math.pi * progress))
    return spec.lr
