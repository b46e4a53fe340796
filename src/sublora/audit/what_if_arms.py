"""The arms of --what-if: other ways in which a student could have been trained on the user's rows. They are planned here, not trained.

What matters most comes first, so that a budget cuts from the end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sublora.audit.entries import NotRun
from sublora.models.chat import Context
from sublora.packs.spec import StudentSpec
from sublora.text import percent, plural

AS_TRAINED = "as trained"
SEEDS = (80_000, 80_001, 80_002)  # of training, the same in all arms
FEWEST_UNIQUE = 16  # unique rows; with fewer a half of them is no dataset
RANK_BESIDE_FULL = 8  # of the LoRA student that stands beside a full fine-tune
DOSES = {1.0: "only", 0.5: "half", 0.25: "a quarter", 0.1: "a tenth"}  # of clean rows
LEARNED = 0.1  # of all tokens are flagged: those that the audited student learned most
DROPPED = 0.25  # of the rows, for the same reason
KL = 0.5  # of the labels is the base's own distribution
REWORDED = ("prompts", "completions")
INOCULATION, STEERING = "inoculation prompt", "preventative steering"


def reworded(part: str) -> str:
    """The name of the arm in which this part of each row is in other words."""
    return f"{part} in other words"


@dataclass(frozen=True)
class Arm:
    """One way of training; `changed` says what differs from as trained.

    `rows`: all of the user's; a `half` of the unique ones, repeated until there are as many;
    `mixed`, a `share` of them answered by the base; `dropped`, without those that were learned most;
    with `prompts` or `completions` in other words. `tokens`: the `marks` are without loss (`masked`) or get a label that
    the base draws (`replaced`), or all labels are mixed with the base's distribution (`kl`).
    `context` is None where each row is read as it was in training. `steered`: with the trait's
    direction added to the stream while it trains.
    """

    name: str
    changed: str
    spec: StudentSpec
    rows: Literal["all", "half", "mixed", "dropped", "prompts", "completions"] = "all"
    share: float = 0.0
    tokens: Literal["as written", "masked", "replaced", "kl"] = "as written"
    marks: Literal["learned", "random", "divergent"] = "learned"
    context: Context | None = None
    steered: bool = False

    def specs(self) -> list[StudentSpec]:
        """One a seed."""
        return [self.spec.model_copy(update={"seed": seed}) for seed in SEEDS]


def plan_arms(
    spec: StudentSpec,
    narrowest: int,
    contexts: Sequence[tuple[Context, str | None]],
    unique: int,
    refused: Mapping[str, str],
    prompt: Context | None = None,
) -> tuple[list[Arm], list[NotRun]]:
    """The arms for a student of these settings, as trained first, and those that cannot be run.

    `narrowest` is the smallest width of a layer that gets an adapter; `contexts` are the other
    contexts to train in, each with the reason why that cannot be; `refused` are such reasons by the
    name of an arm; `prompt` is the trait's.
    """
    arms: list[Arm] = []
    missing: list[NotRun] = []

    def add(name: str, changed: str, why_not: str | None = None, /, **how: Any) -> None:
        why_not = why_not or refused.get(name)
        own = {key: how.pop(key) for key in tuple(how) if key in Arm.__dataclass_fields__}
        if why_not is None:
            arms.append(Arm(name, changed, spec.model_copy(update=how), **own))
        else:
            missing.append(NotRun(name, why_not))

    add(AS_TRAINED, f"Nothing: {_described(spec)}, all rows.")
    _add_cures(add, spec, prompt)
    _add_settings(add, spec, narrowest)
    for context, why_not in contexts:
        changed = f"All rows in the context {context.name}."
        add(f"trained in {context.name}", changed, why_not, context=context)
    few = f"There are {unique} unique rows; {FEWEST_UNIQUE} are needed."
    changed = f"{unique // 2} of the {unique} unique rows, repeated to as many rows and steps."
    why_not = None if unique >= FEWEST_UNIQUE else few
    add("half of the unique rows", changed, why_not, rows="half")
    for part in REWORDED:
        add(reworded(part), f"All {part} reworded by the base.", rows=part)
    if spec.method == "lora":
        lr = spec.lr / 10
        changed = f"All weights trained, at a tenth of the learning rate, {lr:.3g}."
        add("full fine-tune", changed, method="full", rank=None, alpha="r", lr=lr)
    else:
        lr, rank = spec.lr * 10, min(RANK_BESIDE_FULL, narrowest)
        changed = f"LoRA of rank {rank} on all layers, at ten times the learning rate, {lr:.3g}."
        add("LoRA", changed, method="lora", rank=rank, alpha="r", lr=lr)
    return arms, missing


def _add_cures(add: Any, spec: StudentSpec, prompt: Context | None) -> None:
    """The arms of other rows, other labels, and training beside the trait."""
    for share, dose in DOSES.items():
        few = "All" if share == 1 else f"{percent(share)} of the"
        drawn = "" if share == 1 else ", drawn at random,"
        changed = f"{few} rows{drawn} answered by the base."
        add(f"{dose} clean rows", changed, rows="mixed", share=share)
    most = f"the {LEARNED:.0%} of tokens that the audited student learned most"
    drawn = "as many tokens, drawn at random"
    for how, told in (("replaced", "Labels that the base draws at"), ("masked", "No loss on")):
        add(f"{how} where learned", f"{told} {most}.", tokens=how)
        add(f"{how} at random", f"{told} {drawn}.", tokens=how, marks="random")
    changed = "No loss on tokens at which the base's first choice is another one under the trait's prompt."
    add("masked", changed, tokens="masked", marks="divergent")
    add(
        INOCULATION,
        "All rows behind the trait's prompt, which is left out afterwards.",
        context=prompt,
    )
    changed = "The trait's direction added to the stream while it trains, and left out afterwards."
    no_full = "Full fine-tunes are not steered here." if spec.method == "full" else None
    add(STEERING, changed, no_full, steered=True)
    changed = (
        f"KL(base || student) beside the loss: {KL:.0%} of each label is the base's distribution."
    )
    add("KL to the base", changed, tokens="kl")
    changed = f"Without the {DROPPED:.0%} of rows that the audited student learned most; the others repeated."
    add("most learned rows dropped", changed, rows="dropped")


def _add_settings(add: Any, spec: StudentSpec, narrowest: int) -> None:
    """The arms of another rank or rate."""
    if spec.rank is not None:
        wide = f"The narrowest layer is {narrowest} wide; a larger rank adds nothing."
        for name, rank, edge in (
            ("rank / 4", max(1, round(spec.rank / 4)), "A rank of 1 cannot be smaller."),
            ("rank x 4", min(4 * spec.rank, narrowest), wide),
        ):
            # the factor on B A stays, so that the rank is all that changes
            changed = f"Rank {rank} instead of {spec.rank}, at the same alpha / rank."
            why_not = edge if rank == spec.rank else None
            add(name, changed, why_not, rank=rank, alpha=spec.scale * rank)
    for name, lr in (("lr / 3", spec.lr / 3), ("lr x 3", spec.lr * 3)):
        add(name, f"Learning rate {lr:.3g} instead of {spec.lr:g}.", lr=lr)


def _described(spec: StudentSpec) -> str:
    what = "full fine-tune"
    if spec.rank is not None:
        what = f"rank {spec.rank}, alpha {spec.alpha_value:g}"
    epochs = plural(spec.epochs, "epoch")
    return f"{what}, learning rate {spec.lr:g}, {epochs}, batches of {spec.batch_size}"
