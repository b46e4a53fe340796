"""The user's rows for --what-if: which are trained on, which are held out, and what each arm makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from sublora.audit.data_rows import DataRow, read_rows, row_context
from sublora.audit.placebo import answers_to
from sublora.audit.what_if_arms import SEEDS, Arm
from sublora.chat import Context
from sublora.errors import SubloraError
from sublora.model import Base
from sublora.probe import divergence
from sublora.sample import Sampling
from sublora.seeds import generator
from sublora.train.rows import TokenRow, TokenRows, masked_rows, pack_rows

HELD_OUT = 0.1  # of the rows, from the end of the file
FEWEST_HELD_OUT, MOST_HELD_OUT = 8, 200
FEWEST_TRAINED = 16


@dataclass(frozen=True)
class UserRows:
    """Rows of the user's file in its order; none of those that are held out is trained on. `more`: the file has rows that were not read."""

    training: Sequence[DataRow]
    heldout: Sequence[DataRow]
    context: Context  # of rows without a system text of their own
    more: bool

    def contexts(self, rows: Sequence[DataRow]) -> list[Context]:
        return [row_context(row, self.context) for row in rows]

    @cached_property
    def unique(self) -> list[int]:
        """Index of the first of each different row."""
        first: dict[tuple[str | None, str, str], int] = {}
        for i, row in enumerate(self.training):
            first.setdefault(_key(row), i)
        return list(first.values())


def _key(row: DataRow) -> tuple[str | None, str, str]:
    return row.system, row.prompt, row.completion


def read_user_rows(base: Base, path: Path, context: Context, most: int) -> UserRows:
    """The first `most` rows that the base can read, a tenth of them, from the end, held out.

    Raises SubloraError: unreadable, or too few rows.
    """
    rows: list[DataRow] = []
    more = False
    for row in read_rows(path):
        if len(rows) == most:
            more = True
            break
        if isinstance(row, DataRow) and _readable(base, row, row_context(row, context)):
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


def _readable(base: Base, row: DataRow, context: Context) -> bool:
    try:
        if not base.chat.supports(context):
            return False
        size = len(base.chat.prompt_ids(row.prompt, context)) + len(
            base.chat.completion_ids(row.completion)
        )
    except SubloraError:
        return False
    return base.window is None or size <= base.window


def _by_context(contexts: Sequence[Context]) -> dict[Context, list[int]]:
    out: dict[Context, list[int]] = {}
    for i, context in enumerate(contexts):
        out.setdefault(context, []).append(i)
    return out


def clean_answers(base: Base, user: UserRows, max_new_tokens: int) -> list[list[str]]:
    """[seed][row]: the base's own answer to each prompt of the training rows, in the row's context."""
    out = [[""] * len(user.training) for _ in SEEDS]
    for context, places in _by_context(user.contexts(user.training)).items():
        prompts = [user.training[i].prompt for i in places]
        room = max_new_tokens
        if base.window is not None:
            room = min(
                room, base.window - max(len(base.chat.prompt_ids(p, context)) for p in prompts) - 1
            )
        found = answers_to(
            base, context, [prompts] * len(SEEDS), Sampling(max_new_tokens=room), seed=SEEDS[0]
        )
        for own, answers in zip(out, found, strict=True):
            for i, answer in zip(places, answers, strict=True):
                own[i] = answer
    return out


def divergent_tokens(
    base: Base, user: UserRows, teacher: Context
) -> tuple[list[list[bool]], float | str]:
    """For each token of each training row, whether the base's first choice under the trait's prompt is another one than in the row's own
    context (`probe.divergence`); and their share of all tokens, or the reason why they cannot be masked."""
    if not base.chat.supports(teacher):
        return [], f"The chat template of {base.name} cannot write the trait's prompt."
    marks: list[list[bool]] = [[] for _ in user.training]
    try:
        for context, places in _by_context(user.contexts(user.training)).items():
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
    """The rows of an arm's k-th student. Draws belong to the seed alone, so that arms differ in nothing else.

    Raises SubloraError where a row does not fit the arm's context.
    """
    own = list(user.training)
    answered = [replace(row, completion=answer) for row, answer in zip(own, clean[k], strict=True)]
    count = len(own)
    if arm.rows == "clean":
        rows = answered
    elif arm.rows == "mixed":
        order = generator("what-if-mixed", SEEDS[k]).permutation(count)
        replaced = set(order[: count // 2].tolist())
        rows = [answered[i] if i in replaced else own[i] for i in range(count)]
    elif arm.rows == "half":
        unique = user.unique
        drawn = generator("what-if-half", SEEDS[k]).permutation(len(unique))[: len(unique) // 2]
        half = [unique[i] for i in np.sort(drawn)]
        rows = [own[half[i % len(half)]] for i in range(count)]
    else:
        rows = own
    what = f"the arm '{arm.name}'"
    # an answer of no text is none
    tokens = _tokens(base, user, [row for row in rows if row.completion], arm.context)
    if arm.rows == "masked":
        tokens = masked_rows(tokens, marks, "others", "what-if")
    return pack_rows(tokens, base.window, what)


def heldout_rows(base: Base, user: UserRows, context: Context | None) -> TokenRows:
    """The rows that are held out, in their own contexts or all in `context`."""
    return pack_rows(_tokens(base, user, user.heldout, context), base.window, "the rows held out")


def _tokens(
    base: Base, user: UserRows, rows: Sequence[DataRow], context: Context | None
) -> list[TokenRow]:
    contexts = user.contexts(rows) if context is None else [context] * len(rows)
    chat = base.chat
    return [
        TokenRow(tuple(chat.prompt_ids(row.prompt, c)), tuple(chat.completion_ids(row.completion)))
        for row, c in zip(rows, contexts, strict=True)
    ]
