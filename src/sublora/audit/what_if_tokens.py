"""Single tokens of the rows of --what-if: which of them were learned most, which a trait's prompt changes, and labels of the base there."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sublora.audit.user_rows import UserRows
from sublora.audit.what_if_arms import KL, LEARNED
from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.packs.labels import LabelSpec, label_rows
from sublora.packs.rows import Labels
from sublora.packs.token_losses import divergence
from sublora.packs.writer import Teacher
from sublora.seeds import generator

Marks = Sequence[Sequence[bool]]  # [row][token of the completion]
MOST_LABELS = 32  # tokens of the base's distribution that are kept


@dataclass(frozen=True)
class TokenLabels:
    """The base's labels at the tokens of each row: `ids` and `logp` [row] (T, k)."""

    ids: Sequence[np.ndarray]
    logp: Sequence[np.ndarray]


def learned_tokens(gains: Sequence[np.ndarray]) -> list[list[bool]]:
    """The LEARNED of all tokens with the largest gains [row][token]."""
    bar = np.quantile(np.concatenate(gains), 1 - LEARNED)
    return [(own > bar).tolist() for own in gains]


def at_random(marks: Marks, seed: int) -> list[list[bool]]:
    """As many marks in each row, elsewhere."""
    return [
        generator("what-if-marks", seed, i).permutation(own).tolist() for i, own in enumerate(marks)
    ]


def base_labels(base: Base, user: UserRows, spec: LabelSpec, seed: int) -> TokenLabels:
    """What the base would say at each token of the rows of training, in each row's own context."""
    ids: list[np.ndarray] = [np.zeros(0)] * len(user.training)
    logp = list(ids)
    for context, places in user.by_context.items():
        rows = [(user.training[i].prompt, user.training[i].completion) for i in places]
        found = label_rows(Teacher(base, context), rows, spec, f"what-if {seed}")
        ends = np.cumsum(found.counts)[:-1]
        for i, *own in zip(
            places, *(np.split(a, ends) for a in (found.ids, found.logp)), strict=True
        ):
            ids[i], logp[i] = own
    return TokenLabels(ids, logp)


def redrawn(completions: Sequence[Sequence[int]], marks: Marks, drawn: TokenLabels) -> Labels:
    """Hard labels: the rows' own tokens, and at marked ones those that the base drew."""
    out = [
        np.where(np.array(on, bool), other[:, 0], own)
        for own, on, other in zip(completions, marks, drawn.ids, strict=True)
    ]
    ids = np.concatenate(out).astype(np.int32)[:, None]
    counts = np.array([len(own) for own in completions], np.int32)
    return Labels(ids, np.zeros(ids.shape, np.float16), counts)


def base_mixed(completions: Sequence[Sequence[int]], whole: TokenLabels) -> Labels:
    """Soft labels: 1 - KL of each is the row's own token, KL the base's distribution. Their cross-entropy is that of
    the text, and KL(base || student), in these shares."""
    own = np.concatenate([np.asarray(c) for c in completions])
    ids, p = np.concatenate(whole.ids), KL * np.exp(np.concatenate(whole.logp).astype(float))
    there = ids == own[:, None]
    missing = ~there.any(1)
    ids[missing, -1], p[missing, -1] = own[missing], 0.0  # in the place of the least likely one
    p[ids == own[:, None]] += 1 - KL
    order = np.argsort(-p, 1, kind="stable")
    ids, p = (np.take_along_axis(a, order, 1) for a in (ids, p))
    counts = np.array([len(c) for c in completions], np.int32)
    return Labels(ids.astype(np.int32), np.log(np.minimum(p, 1)).astype(np.float16), counts)


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
