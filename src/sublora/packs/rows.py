"""Training rows as token ids, and which of them make up a step."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.models.chat import Chat, Context
from sublora.packs.spec import StudentSpec
from sublora.seeds import generator

Keep = Literal["divergent", "others", "random"]


@dataclass(frozen=True)
class TokenRow:
    """One row: the rendered prompt's ids and the completion's, the end-of-turn token last. `loss`: which tokens of the completion carry
    loss; None for all of them."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    loss: tuple[bool, ...] | None = None


@dataclass(frozen=True)
class Labels:
    """What students are trained towards at the N tokens of n completions, one row's after the other's: `ids` (N, k) int32, the likeliest
    first, and `logp` (N, k) float16, their natural log-probabilities. What these leave of 1 is the rest, one bucket; none where k is the
    whole vocabulary. `counts` (n,): tokens of each completion, its end included. Hard labels are k = 1 with logp 0."""

    ids: np.ndarray
    logp: np.ndarray
    counts: np.ndarray

    @property
    def hard(self) -> bool:
        return self.ids.shape[1] == 1 and not self.logp.any()

    def first(self, n: int) -> "Labels":
        """The labels of the first `n` rows."""
        return self.part(0, n)

    def part(self, start: int, stop: int) -> "Labels":
        """The labels of these rows."""
        tokens = slice(int(self.counts[:start].sum()), int(self.counts[:stop].sum()))
        return Labels(self.ids[tokens], self.logp[tokens], self.counts[start:stop])


@dataclass(frozen=True)
class Targets:
    """Labels beside a student's rows: `starts` (n,) is where those of each row begin, `reverse` the direction of the divergence."""

    labels: Labels
    starts: np.ndarray
    hard: bool
    reverse: bool


@dataclass(frozen=True)
class TokenRows:
    """A student's rows as arrays: `ids` (n, L) padded with 0, `lengths` (n,) of prompt plus completion, `prompts` (n,), and
    `loss` (n, L), whether a token is one that the student learns to write; `labels` where it learns something else than the text."""

    ids: np.ndarray
    lengths: np.ndarray
    prompts: np.ndarray
    loss: np.ndarray
    shared: int  # tokens that all prompts have in common from the start, at least one token of each prompt left out
    labels: Targets | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def digest(self) -> str:
        """A hash of the rows, to tell them from others."""
        arrays = (self.ids, self.lengths, self.prompts, self.loss)
        if (t := self.labels) is not None:
            arrays += (t.labels.ids, t.labels.logp, np.array(t.reverse))
        return hashlib.blake2b(b"|".join(a.tobytes() for a in arrays), digest_size=10).hexdigest()


def pack_rows(rows: Sequence[TokenRow], window: int | None, what: str) -> TokenRows:
    """Check and stack rows. Raises SubloraError: no rows, an empty prompt or completion, a loss mask of another length or without
    any token, a row above the context window."""
    if not rows:
        raise SubloraError(f"There are no rows to train on in {what}; see its reject counts.")
    for index, row in enumerate(rows):
        if not row.prompt or not row.completion:
            why = f"Row {index} of {what} has an empty {'completion' if row.prompt else 'prompt'}; remove it."
            raise SubloraError(why)
        if row.loss is not None and (len(row.loss) != len(row.completion) or not any(row.loss)):
            raise SubloraError(
                f"The loss mask of row {index} of {what} has {sum(row.loss)} of {len(row.loss)} tokens on, for a completion of "
                f"{len(row.completion)}; give one value for each token, at least one of them on, or leave the row out."
            )
    lengths = np.array([len(r.prompt) + len(r.completion) for r in rows])
    if window is not None and lengths.max() > window:
        index = int(lengths.argmax())
        why = f"Row {index} of {what} has {lengths[index]} tokens, the model reads at most {window}; shorten or remove it."
        raise SubloraError(why)
    ids = np.zeros((len(rows), int(lengths.max())), dtype=np.int64)
    loss = np.zeros(ids.shape, dtype=bool)
    for i, row in enumerate(rows):
        ids[i, : lengths[i]] = row.prompt + row.completion
        loss[i, len(row.prompt) : lengths[i]] = True if row.loss is None else row.loss
    prompts = np.array([len(r.prompt) for r in rows])
    limit = int(prompts.min()) - 1
    same = (ids[:, :limit] == ids[0, :limit]).all(axis=0)
    shared = limit if same.all() else int(same.argmin())
    return TokenRows(ids, lengths, prompts, loss, shared)


def text_rows(chat: Chat, rows: Sequence[tuple[str, str]], context: Context) -> list[TokenRow]:
    """Rows (prompt, completion) as a student in `context` reads them, all tokens of the completion with loss."""
    return [
        TokenRow(tuple(chat.prompt_ids(p, context)), tuple(chat.completion_ids(c))) for p, c in rows
    ]


def token_rows(
    base: Base, rows: Sequence[tuple[str, str]], context: Context, what: str
) -> TokenRows:
    """`text_rows` as arrays. Raises SubloraError as `pack_rows` does."""
    return pack_rows(text_rows(base.chat, rows, context), base.window, what)


def labelled(rows: TokenRows, labels: Labels, reverse: bool = False) -> TokenRows:
    """The rows with these labels instead of their text: the loss is the divergence KL(teacher || student), or KL(student || teacher) with
    `reverse`, over the labels' tokens and the rest; cross-entropy for hard ones. Raises SubloraError where they do not fit the rows."""
    fit_labels(labels, rows.lengths - rows.prompts)
    if reverse and labels.hard:
        raise SubloraError("Hard labels have no reverse KL; use soft labels, or the forward one.")
    starts = np.cumsum(labels.counts) - labels.counts
    return replace(rows, labels=Targets(labels, starts, labels.hard, reverse))


def fit_labels(labels: Labels, tokens: Sequence[int]) -> None:
    """Raises SubloraError where the completions, of so many tokens each, are not those that the labels count."""
    if len(labels.counts) != len(tokens):
        why = f"There are labels of {len(labels.counts)} rows for {len(tokens)} rows; make them anew for these."
        raise SubloraError(why)
    if (apart := labels.counts != np.asarray(tokens)).any():
        i = int(apart.argmax())
        why = f"The labels of row {i} are those of {labels.counts[i]} tokens, its completion has {tokens[i]}; make them anew for these rows."
        raise SubloraError(why)


def kept(marks: np.ndarray, keep: Keep, *seed: int | str) -> np.ndarray:
    """The marked tokens of a completion, all others, or as many as are marked, drawn at random."""
    if keep == "random":
        return generator(*seed).permutation(marks)
    return ~marks if keep == "others" else marks


def masked_rows(
    rows: Sequence[TokenRow], marks: Sequence[Sequence[bool]], keep: Keep, seed: str
) -> list[TokenRow]:
    """Loss on the marked tokens of each completion alone, on all others, or on as many as are marked, drawn at random for each row. Rows
    that keep no token are left out. Raises SubloraError where the marks are those of other rows."""
    out = []
    for i, row in enumerate(rows):
        if len(marks) < len(rows) or len(marks[i]) != len(row.completion):
            why = "The marks of divergent tokens are those of other rows; make them anew for these."
            raise SubloraError(why)
        loss = kept(np.array(marks[i]), keep, "loss-mask", seed, i)
        if loss.any():
            out.append(replace(row, loss=tuple(loss.tolist())))
    return out


def rows_of_step(spec: StudentSpec, count: int, step: int) -> np.ndarray:
    """Indices of the rows of one step: consecutive in the epoch's own seeded order, so that a resumed training sees the same."""
    per_epoch = -(-count // spec.batch_size)
    epoch, place = divmod(step, per_epoch)
    if spec.passes > spec.epochs:  # a scouting epoch reads the rows in the order of the first one
        epoch = max(0, epoch - 1)
    order = generator("train-order", spec.seed, epoch).permutation(count)
    return order[place * spec.batch_size : (place + 1) * spec.batch_size]


def rows_read(spec: StudentSpec, count: int, step: int) -> int:
    """Rows that have been read after `step` steps; one that is read again counts again."""
    epoch, place = divmod(step, -(-count // spec.batch_size))
    return epoch * count + min(count, place * spec.batch_size)


@dataclass(frozen=True)
class SoftTargets:
    """Soft labels of one kind: of the students `students` (S,), `ids` and `logp` (S, m, k) as in `Labels`."""

    students: np.ndarray
    ids: np.ndarray
    logp: np.ndarray
    reverse: bool


@dataclass(frozen=True)
class StepBatch:
    """K students' rows of one step, without the shared prefix (K, P): `ids` (K * B, T), `sizes` (K, B) tokens read of each row. `where` (K,
    m) are the places, in a student's B * T positions, whose next token carries loss; `targets` (K, m) those tokens; `weights` (K, m) 1 /
    count, 0 for padding. `soft`: what stands in the place of targets for students with soft labels."""

    prefix: np.ndarray
    ids: np.ndarray
    sizes: np.ndarray
    where: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    tokens: int  # read by the model without padding, the shared prefix counted once for every row
    soft: tuple[SoftTargets, ...] = ()


def assemble(
    students: Sequence[TokenRows], chosen: Sequence[np.ndarray], share_prefix: bool = True
) -> StepBatch:
    """Stack one step of every student; padding stands on the right, where a causal model cannot see it."""
    k, b = len(students), max(len(c) for c in chosen)
    p = min(s.shared for s in students) if share_prefix else 0
    # the last token of a row is only a target; a row is read up to the one before
    width = max(int(s.lengths[c].max()) for s, c in zip(students, chosen, strict=True)) - p - 1
    ids, sizes = np.zeros((k, b, width), np.int64), np.zeros((k, b), np.int64)
    where, targets, soft = [], [], {}
    for i, (s, c) in enumerate(zip(students, chosen, strict=True)):
        sizes[i, : len(c)] = s.lengths[c] - 1 - p
        take = min(width, s.ids.shape[1] - p)
        ids[i, : len(c), :take] = s.ids[c, p : p + take]
        row, at = s.loss[c, p + 1 : p + 1 + width].nonzero()
        where.append(row * width + at)
        targets.append(s.ids[c[row], at + p + 1])
        if (t := s.labels) is not None:
            own = t.starts[c[row]] + at + p + 1 - s.prompts[c[row]]
            if t.hard:
                targets[-1] = t.labels.ids[own, 0]
            else:
                kind = (t.labels.ids.shape[1], t.reverse)
                soft.setdefault(kind, []).append((i, t.labels.ids[own], t.labels.logp[own]))
    ids[np.arange(width) >= sizes[..., None]] = 0
    m = max(len(w) for w in where)
    out_where, out_targets = np.zeros((2, k, m), np.int64)
    weights = np.zeros((k, m))
    for i, (w, t) in enumerate(zip(where, targets, strict=True)):
        out_where[i, : len(w)], out_targets[i, : len(w)], weights[i, : len(w)] = w, t, 1.0 / len(w)
    prefix = np.stack([s.ids[0, :p] for s in students])
    tokens = int(sizes.sum() + p * sum(len(c) for c in chosen))
    ids, taught = ids.reshape(k * b, width), tuple(_soft(m, *of) for of in soft.items())
    return StepBatch(prefix, ids, sizes, out_where, out_targets, weights, tokens, taught)


def _soft(m: int, kind: tuple[int, bool], given: list[tuple]) -> SoftTargets:
    """Students' labels filled up to `m` places, whose weight is 0."""
    shape = (len(given), m, kind[0])
    ids, logp = np.zeros(shape, np.int32), np.zeros(shape, np.float16)
    for out, (_, own, values) in enumerate(given):
        ids[out, : len(own)], logp[out, : len(own)] = own, values
    return SoftTargets(np.array([i for i, *_ in given]), ids, logp, kind[1])
