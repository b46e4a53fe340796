"""The rows that the arms of --what-if train on: how each arm changes the user's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sublora.audit.data_rows import DataRow
from sublora.audit.steps import answers_to
from sublora.audit.user_rows import UserRows
from sublora.audit.what_if_arms import DROPPED, REWORDED, SEEDS, Arm
from sublora.audit.what_if_tokens import Marks, TokenLabels, at_random, base_mixed, redrawn
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.packs.rows import TokenRow, TokenRows, labelled, masked_rows, pack_rows
from sublora.packs.sample import Sampling
from sublora.seeds import generator
from sublora.store import Store


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


@dataclass(frozen=True)
class Material:
    """What arms are made of beside the user's rows: the base's own answers [seed][row]; the tokens at which
    a trait's prompt changes its first choice; those that the audited student learned most, and how far each
    row was learned; the base's labels at every token, drawn and whole; prompts and completions in other words."""

    clean: Sequence[Sequence[str]]
    divergent: Marks = ()
    learned: Marks = ()
    gains: Sequence[float] = ()
    drawn: TokenLabels | None = None
    whole: TokenLabels | None = None
    reworded: Mapping[str, Sequence[str]] = field(default_factory=dict)


def arm_rows(base: Base, user: UserRows, arm: Arm, k: int, material: Material) -> TokenRows:
    """The rows of an arm's k-th student. Draws belong to the seed alone, so that arms differ in
    nothing else. Raises SubloraError where a row does not fit the arm's context."""
    rows, count = list(user.training), len(user.training)
    if arm.rows == "mixed":
        order = generator("what-if-mixed", SEEDS[k]).permutation(count)
        for i in order[: int(arm.share * count)]:
            rows[i] = replace(rows[i], completion=material.clean[k][i])
    elif arm.rows in REWORDED:
        name = arm.rows.removesuffix("s")
        pairs = zip(rows, material.reworded[arm.rows], strict=True)
        rows = [replace(row, **{name: text}) for row, text in pairs]
    elif arm.rows in ("half", "dropped"):
        kept = _kept(user, arm, k, material)
        rows = [rows[kept[i % len(kept)]] for i in range(count)]
    # an answer of no text is none
    tokens = _tokens(base, user, [row for row in rows if row.completion], arm.context)
    what, marks = f"the arm '{arm.name}'", material.learned
    if arm.marks == "divergent":
        marks = material.divergent
    elif arm.marks == "random":
        marks = at_random(material.learned, SEEDS[k])
    if arm.tokens == "masked":
        tokens = masked_rows(tokens, marks, "others", "what-if")
    packed = pack_rows(tokens, base.window, what)
    completions = [row.completion for row in tokens]
    if arm.tokens == "replaced":
        return labelled(packed, redrawn(completions, marks, material.drawn))
    return (
        labelled(packed, base_mixed(completions, material.whole)) if arm.tokens == "kl" else packed
    )


def _kept(user: UserRows, arm: Arm, k: int, material: Material) -> Sequence[int]:
    """The rows of an arm that has fewer of them, which are then repeated."""
    if arm.rows == "dropped":
        order = np.argsort(material.gains, kind="stable")
        return np.sort(order[: len(order) - int(DROPPED * len(order))]).tolist()
    unique = user.unique
    drawn = generator("what-if-half", SEEDS[k]).permutation(len(unique))[: len(unique) // 2]
    return [unique[i] for i in np.sort(drawn)]


def training_rows(base: Base, user: UserRows) -> TokenRows:
    """The rows of training as they are."""
    return pack_rows(_tokens(base, user, user.training, None), base.window, "the training rows")


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
