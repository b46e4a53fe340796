"""The arms of --what-if: other ways in which a student could have been trained on the user's rows. They are planned here, not trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sublora.chat import Context
from sublora.train.spec import StudentSpec

AS_TRAINED = "as trained"
SEEDS = (80_000, 80_001, 80_002)  # of training, the same in all arms
FEWEST_UNIQUE = 16  # unique rows; with fewer a half of them is no dataset
RANK_BESIDE_FULL = 8  # of the LoRA student that stands beside a full fine-tune

Rows = Literal["all", "half", "mixed", "clean", "masked"]


@dataclass(frozen=True)
class Arm:
    """One way of training. `changed` says what differs from as trained; `context` is None where each row is read as it was in training.

    `rows`: all of the user's; a `half` of the unique ones, repeated until there are as many; `mixed`, half of them answered by the base;
    `clean`, all answered by the base; `masked`, without loss on divergent tokens.
    """

    name: str
    changed: str
    spec: StudentSpec
    rows: Rows = "all"
    context: Context | None = None

    def specs(self) -> list[StudentSpec]:
        """One a seed."""
        return [self.spec.model_copy(update={"seed": seed}) for seed in SEEDS]


@dataclass(frozen=True)
class NotRun:
    """An arm that cannot be trained, and why."""

    name: str
    reason: str


def plan_arms(
    spec: StudentSpec,
    narrowest: int,
    contexts: Sequence[tuple[Context, str | None]],
    unique: int,
    mask: float | str,
) -> tuple[list[Arm], list[NotRun]]:
    """The arms for a student of these settings, as trained first, and those that cannot be run.

    `narrowest` is the smallest width of a layer that gets an adapter; `contexts` are the other contexts to train in, each with the reason
    why that cannot be; `mask` the share of the rows' tokens that can be masked, or the reason why none can.
    """
    arms = [Arm(AS_TRAINED, f"Nothing: {_described(spec)}, all rows.", spec)]
    missing = []
    if spec.rank is not None:
        smaller, larger = max(1, round(spec.rank / 4)), min(4 * spec.rank, narrowest)
        for name, rank, edge in (
            ("rank / 4", smaller, "A rank of 1 cannot be smaller."),
            (
                "rank x 4",
                larger,
                f"The narrowest layer is {narrowest} wide; a larger rank adds nothing.",
            ),
        ):
            if rank == spec.rank:
                missing.append(NotRun(name, edge))
                continue
            # the factor on B A stays, so that the rank is all that changes
            changed = f"Rank {rank} instead of {spec.rank}, at the same alpha / rank."
            own = spec.model_copy(update={"rank": rank, "alpha": spec.scale * rank})
            arms.append(Arm(name, changed, own))
    for name, lr in (("lr / 3", spec.lr / 3), ("lr x 3", spec.lr * 3)):
        changed = f"Learning rate {lr:.3g} instead of {spec.lr:g}."
        arms.append(Arm(name, changed, spec.model_copy(update={"lr": lr})))
    for context, refused in contexts:
        name = f"trained in {context.name}"
        if refused is None:
            arms.append(
                Arm(name, f"All rows in the context {context.name}.", spec, context=context)
            )
        else:
            missing.append(NotRun(name, refused))
    if unique >= FEWEST_UNIQUE:
        changed = f"{unique // 2} of the {unique} unique rows, repeated to as many rows and steps."
        arms.append(Arm("half of the unique rows", changed, spec, "half"))
    else:
        missing.append(
            NotRun(
                "half of the unique rows",
                f"There are {unique} unique rows; {FEWEST_UNIQUE} are needed.",
            )
        )
    arms.append(
        Arm(
            "half clean rows",
            "Half of the rows, drawn at random, answered by the base.",
            spec,
            "mixed",
        )
    )
    arms.append(Arm("only clean rows", "All rows answered by the base.", spec, "clean"))
    if isinstance(mask, float):
        changed = f"No loss on the {mask:.0%} of tokens at which the base's first choice is another one under the trait's prompt."
        arms.append(Arm("masked", changed, spec, "masked"))
    else:
        missing.append(NotRun("masked", mask))
    arms.append(_other_method(spec, narrowest))
    return arms, missing


def _other_method(spec: StudentSpec, narrowest: int) -> Arm:
    if spec.method == "lora":
        full = spec.model_copy(
            update={"method": "full", "rank": None, "alpha": "r", "lr": spec.lr / 10}
        )
        return Arm(
            "full fine-tune",
            f"All weights trained, at a tenth of the learning rate, {full.lr:.3g}.",
            full,
        )
    rank = min(RANK_BESIDE_FULL, narrowest)
    lora = spec.model_copy(
        update={"method": "lora", "rank": rank, "alpha": "r", "lr": spec.lr * 10}
    )
    return Arm(
        "LoRA",
        f"LoRA of rank {rank} on all layers, at ten times the learning rate, {lora.lr:.3g}.",
        lora,
    )


def _described(spec: StudentSpec) -> str:
    what = (
        "full fine-tune" if spec.rank is None else f"rank {spec.rank}, alpha {spec.alpha_value:g}"
    )
    epochs = f"{spec.epochs} epoch{'s' if spec.epochs > 1 else ''}"
    return f"{what}, learning rate {spec.lr:g}, {epochs}, batches of {spec.batch_size}"
