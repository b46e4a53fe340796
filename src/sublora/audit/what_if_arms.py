"""The arms of --what-if: other ways in which a student could have been trained on the user's rows, and the rows of each.

They are planned here, not trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sublora.audit.data_rows import DataRow, fits, read_rows
from sublora.audit.entries import NotRun
from sublora.audit.steps import answers_to
from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.packs.rows import TokenRow, TokenRows, masked_rows, pack_rows
from sublora.packs.sample import Sampling
from sublora.packs.spec import StudentSpec
from sublora.packs.token_losses import divergence
from sublora.seeds import generator
from sublora.store import Store
from sublora.text import plural

AS_TRAINED = "as trained"
SEEDS = (80_000, 80_001, 80_002)  # of training, the same in all arms
FEWEST_UNIQUE = 16  # unique rows; with fewer a half of them is no dataset
RANK_BESIDE_FULL = 8  # of the LoRA student that stands beside a full fine-tune
HELD_OUT = 0.1  # of the rows, from the end of the file
FEWEST_HELD_OUT, MOST_HELD_OUT = 8, 200
FEWEST_TRAINED = 16


@dataclass(frozen=True)
class Arm:
    """One way of training; `changed` says what differs from as trained.

    `rows`: all of the user's; a `half` of the unique ones, repeated until there are as many;
    `mixed`, half of them answered by the base; `clean`, all answered by the base; `masked`, without
    loss on divergent tokens. `context` is None where each row is read as it was in training.
    """

    name: str
    changed: str
    spec: StudentSpec
    rows: Literal["all", "half", "mixed", "clean", "masked"] = "all"
    context: Context | None = None

    def specs(self) -> list[StudentSpec]:
        """One a seed."""
        return [self.spec.model_copy(update={"seed": seed}) for seed in SEEDS]


def plan_arms(
    spec: StudentSpec,
    narrowest: int,
    contexts: Sequence[tuple[Context, str | None]],
    unique: int,
    mask: float | str,
) -> tuple[list[Arm], list[NotRun]]:
    """The arms for a student of these settings, as trained first, and those that cannot be run.

    `narrowest` is the smallest width of a layer that gets an adapter; `contexts` are the other
    contexts to train in, each with the reason why that cannot be; `mask` the share of the rows'
    tokens that can be masked, or the reason why none can.
    """
    arms: list[Arm] = []
    missing: list[NotRun] = []

    def add(name: str, changed: str, refused: str | None = None, **how: Any) -> None:
        own = {key: how.pop(key) for key in ("rows", "context") if key in how}
        if refused is None:
            arms.append(Arm(name, changed, spec.model_copy(update=how), **own))
        else:
            missing.append(NotRun(name, refused))

    add(AS_TRAINED, f"Nothing: {_described(spec)}, all rows.")
    if spec.rank is not None:
        wide = f"The narrowest layer is {narrowest} wide; a larger rank adds nothing."
        for name, rank, edge in (
            ("rank / 4", max(1, round(spec.rank / 4)), "A rank of 1 cannot be smaller."),
            ("rank x 4", min(4 * spec.rank, narrowest), wide),
        ):
            # the factor on B A stays, so that the rank is all that changes
            changed = f"Rank {rank} instead of {spec.rank}, at the same alpha / rank."
            refused = edge if rank == spec.rank else None
            add(name, changed, refused, rank=rank, alpha=spec.scale * rank)
    for name, lr in (("lr / 3", spec.lr / 3), ("lr x 3", spec.lr * 3)):
        add(name, f"Learning rate {lr:.3g} instead of {spec.lr:g}.", lr=lr)
    for context, refused in contexts:
        changed = f"All rows in the context {context.name}."
        add(f"trained in {context.name}", changed, refused, context=context)
    few = f"There are {unique} unique rows; {FEWEST_UNIQUE} are needed."
    changed = f"{unique // 2} of the {unique} unique rows, repeated to as many rows and steps."
    refused = None if unique >= FEWEST_UNIQUE else few
    add("half of the unique rows", changed, refused, rows="half")
    mixed = "Half of the rows, drawn at random, answered by the base."
    add("half clean rows", mixed, rows="mixed")
    add("only clean rows", "All rows answered by the base.", rows="clean")
    if isinstance(mask, str):
        add("masked", "", mask)
    else:
        changed = f"No loss on the {mask:.0%} of tokens at which the base's first choice is another one under the trait's prompt."
        add("masked", changed, rows="masked")
    if spec.method == "lora":
        lr = spec.lr / 10
        changed = f"All weights trained, at a tenth of the learning rate, {lr:.3g}."
        add("full fine-tune", changed, method="full", rank=None, alpha="r", lr=lr)
    else:
        lr, rank = spec.lr * 10, min(RANK_BESIDE_FULL, narrowest)
        changed = f"LoRA of rank {rank} on all layers, at ten times the learning rate, {lr:.3g}."
        add("LoRA", changed, method="lora", rank=rank, alpha="r", lr=lr)
    return arms, missing


def _described(spec: StudentSpec) -> str:
    what = "full fine-tune"
    if spec.rank is not None:
        what = f"rank {spec.rank}, alpha {spec.alpha_value:g}"
    epochs = plural(spec.epochs, "epoch")
    return f"{what}, learning rate {spec.lr:g}, {epochs}, batches of {spec.batch_size}"


@dataclass(frozen=True)
class UserRows:
    """Rows of the user's file in its order; none of those that are held out is trained on.
    `context` is that of rows without a system text of their own; `more`: the file has rows that
    were not read."""

    training: Sequence[DataRow]
    heldout: Sequence[DataRow]
    context: Context
    more: bool

    @cached_property
    def unique(self) -> list[int]:
        """Index of the first of each different row."""
        first: dict[tuple[str | None, str, str], int] = {}
        for i, row in enumerate(self.training):
            first.setdefault(_key(row), i)
        return list(first.values())

    @cached_property
    def by_context(self) -> dict[Context, list[int]]:
        """The rows of training that stand in each context."""
        out: dict[Context, list[int]] = {}
        for i, row in enumerate(self.training):
            out.setdefault(row.context(self.context), []).append(i)
        return out


def _key(row: DataRow) -> tuple[str | None, str, str]:
    return row.system, row.prompt, row.completion


def read_user_rows(base: Base, path: Path, context: Context, most: int) -> UserRows:
    """The first `most` rows that the base can read, a tenth of them, from the end, held out. Raises
    SubloraError: unreadable, or too few rows."""
    rows: list[DataRow] = []
    more = False
    for row in read_rows(path, base.chat):
        if more := len(rows) == most:
            break
        if isinstance(row, DataRow) and not fits(base.chat, row, row.context(context), base.window):
            rows.append(row)
    count = min(MOST_HELD_OUT, max(FEWEST_HELD_OUT, round(HELD_OUT * len(rows))))
    heldout = rows[-count:]
    kept = {_key(row) for row in heldout}
    training = [row for row in rows[:-count] if _key(row) not in kept]
    if len(training) < FEWEST_TRAINED:
        raise SubloraError(
            f"--what-if holds {len(heldout)} rows of {path} out and has {len(training)} others to train on; give a file, and --rows, with at "
            f"least {FEWEST_TRAINED + FEWEST_HELD_OUT} different rows that can be read."
        )
    return UserRows(training, heldout, context, more)


def clean_answers(
    base: Base, user: UserRows, max_new_tokens: int, store: Store | None = None
) -> list[list[str]]:
    """[seed][row]: the base's own answer to each prompt of training, in the row's context."""
    out = [[""] * len(user.training) for _ in SEEDS]
    for context, places in user.by_context.items():
        prompts = [user.training[i].prompt for i in places]
        room = max_new_tokens
        if base.window is not None:
            longest = max(len(base.chat.prompt_ids(p, context)) for p in prompts)
            room = min(room, base.window - longest - 1)
        sampling = Sampling(max_new_tokens=room)
        found = answers_to(base, context, [prompts] * len(SEEDS), sampling, SEEDS[0], store)
        for own, answers in zip(out, found, strict=True):
            for i, answer in zip(places, answers, strict=True):
                own[i] = answer
    return out


def divergent_tokens(
    base: Base, user: UserRows, teacher: Context
) -> tuple[list[list[bool]], float | str]:
    """Whether the base's first choice under the trait's prompt is another one, by row and token.
    That is `probe.divergence`, beside the row's own context; and the share of all tokens, or the
    reason why they cannot be masked."""
    if not base.chat.supports(teacher):
        return [], f"The chat template of {base.name} cannot write the trait's prompt."
    marks: list[list[bool]] = [[] for _ in user.training]
    try:
        for context, places in user.by_context.items():
            rows = [(user.training[i].prompt, user.training[i].completion) for i in places]
            for i, own in zip(places, divergence(base, rows, teacher, context).marks, strict=True):
                marks[i] = own
    except SubloraError as error:  # a row that is too long under the trait's prompt
        return [], str(error)
    share = sum(map(sum, marks)) / sum(map(len, marks))
    if share in (0.0, 1.0):
        which = "every token" if share else "no token"
        return [], f"The trait's prompt changes the base's first choice at {which} of the rows."
    return marks, share


def arm_rows(
    base: Base,
    user: UserRows,
    arm: Arm,
    k: int,
    clean: Sequence[Sequence[str]],
    marks: Sequence[Sequence[bool]],
) -> TokenRows:
    """The rows of an arm's k-th student. Draws belong to the seed alone, so that arms differ in
    nothing else. Raises SubloraError where a row does not fit the arm's context."""
    rows, count = list(user.training), len(user.training)
    replaced: Sequence[int] = range(count) if arm.rows == "clean" else ()
    if arm.rows == "mixed":
        replaced = generator("what-if-mixed", SEEDS[k]).permutation(count)[: count // 2]
    for i in replaced:
        rows[i] = replace(rows[i], completion=clean[k][i])
    if arm.rows == "half":
        unique = user.unique
        drawn = generator("what-if-half", SEEDS[k]).permutation(len(unique))[: len(unique) // 2]
        half = [unique[i] for i in np.sort(drawn)]
        rows = [rows[half[i % len(half)]] for i in range(count)]
    # an answer of no text is none
    tokens = _tokens(base, user, [row for row in rows if row.completion], arm.context)
    if arm.rows == "masked":
        tokens = masked_rows(tokens, marks, "others", "what-if")
    return pack_rows(tokens, base.window, f"the arm '{arm.name}'")


def heldout_rows(base: Base, user: UserRows, context: Context | None) -> TokenRows:
    """The rows that are held out, in their own contexts or all in `context`."""
    return pack_rows(_tokens(base, user, user.heldout, context), base.window, "the rows held out")


def _tokens(
    base: Base, user: UserRows, rows: Sequence[DataRow], context: Context | None
) -> list[TokenRow]:
    chat = base.chat
    return [
        TokenRow(
            tuple(chat.prompt_ids(row.prompt, context or row.context(user.context))),
            tuple(chat.completion_ids(row.completion)),
        )
        for row in rows
    ]
