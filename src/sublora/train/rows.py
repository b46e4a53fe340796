"""Training rows as token ids, and which of them make up a step."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sublora.errors import SubloraError
from sublora.seeds import generator
from sublora.train.spec import StudentSpec


@dataclass(frozen=True)
class TokenRow:
    """One row: the rendered prompt's ids and the completion's, the end-of-turn token last."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]


@dataclass(frozen=True)
class TokenRows:
    """A student's rows as arrays: `ids` (n, L) padded with 0, `lengths` (n,) of prompt plus completion, `prompts` (n,)."""

    ids: np.ndarray
    lengths: np.ndarray
    prompts: np.ndarray
    shared: int  # tokens that all prompts have in common from the start, at least one token of each prompt left out

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def digest(self) -> str:
        """A hash of the rows, to tell them from others."""
        parts = (np.ascontiguousarray(part).tobytes() for part in (self.ids, self.lengths, self.prompts))
        return hashlib.blake2b(b"|".join(parts), digest_size=10).hexdigest()


def pack_rows(rows: Sequence[TokenRow], window: int | None, what: str) -> TokenRows:
    """Check and stack rows. Raises SubloraError: no rows, an empty prompt or completion, a row above the context window."""
    if not rows:
        raise SubloraError(f"There are no rows to train on in {what}; see its reject counts.")
    for index, row in enumerate(rows):
        if not row.prompt or not row.completion:
            raise SubloraError(
                f"Row {index} of {what} has an empty {'completion' if row.prompt else 'prompt'}; remove it."
            )
    lengths = np.array([len(r.prompt) + len(r.completion) for r in rows])
    if window is not None and lengths.max() > window:
        index = int(lengths.argmax())
        raise SubloraError(
            f"Row {index} of {what} has {lengths[index]} tokens, the model reads at most {window}; shorten or remove it."
        )
    ids = np.zeros((len(rows), int(lengths.max())), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : lengths[i]] = row.prompt + row.completion
    prompts = np.array([len(r.prompt) for r in rows])
    limit = int(prompts.min()) - 1
    same = (ids[:, :limit] == ids[0, :limit]).all(axis=0)
    shared = limit if same.all() else int(same.argmin())
    return TokenRows(ids, lengths, prompts, shared)


def rows_of_step(spec: StudentSpec, count: int, step: int) -> np.ndarray:
    """Indices of the rows of one step: consecutive in the epoch's own seeded order, so that a resumed training sees the same."""
    per_epoch = -(-count // spec.batch_size)
    epoch, place = divmod(step, per_epoch)
    order = generator("train-order", spec.seed, epoch).permutation(count)
    return order[place * spec.batch_size : (place + 1) * spec.batch_size]


@dataclass(frozen=True)
class StepBatch:
    """K students' rows of one step. `ids` (K * B, T) without the shared prefix (K, P); `where` (K, M) are the places, in
    a student's B * T positions, whose next token carries loss; `targets` (K, M) those tokens; `weights` (K, M) 1 / count, 0 for
    padding."""

    prefix: np.ndarray
    ids: np.ndarray
    where: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    tokens: int  # read by the model without padding, the shared prefix counted once for every row


def assemble(students: Sequence[TokenRows], chosen: Sequence[np.ndarray], share_prefix: bool = True) -> StepBatch:
    """Stack one step of every student; padding stands on the right, where a causal model cannot see it."""
    k, b = len(students), max(len(c) for c in chosen)
    p = min(s.shared for s in students) if share_prefix else 0
    width = max(int(s.lengths[c].max()) for s, c in zip(students, chosen, strict=True)) - p
    # the last token of the longest row is only a target; a row is read up to the one before
    ids = np.zeros((k, b, width), dtype=np.int64)
    where, targets = [], []
    for i, (s, c) in enumerate(zip(students, chosen, strict=True)):
        take = min(width, s.ids.shape[1] - p)
        ids[i, : len(c), :take] = s.ids[c, p : p + take]
        column = np.arange(p, p + width)
        mask = (column >= s.prompts[c, None] - 1) & (column < s.lengths[c, None] - 1)
        row, at = mask.nonzero()
        where.append(row * (width - 1) + at)
        targets.append(s.ids[c[row], at + p + 1])
    m = max(len(w) for w in where)
    out_where, out_targets, weights = np.zeros((k, m), np.int64), np.zeros((k, m), np.int64), np.zeros((k, m))
    for i, (w, t) in enumerate(zip(where, targets, strict=True)):
        out_where[i, : len(w)], out_targets[i, : len(w)], weights[i, : len(w)] = w, t, 1.0 / len(w)
    prefix = np.stack([s.ids[0, :p] for s in students])
    tokens = int(sum(s.lengths[c].sum() - len(c) for s, c in zip(students, chosen, strict=True)))
    return StepBatch(
        prefix, np.ascontiguousarray(ids[:, :, :-1]).reshape(k * b, width - 1), out_where, out_targets, weights, tokens
    )
