"""What models do at single tokens of given rows: loss, greedy choice, distance to the base, and the size of the gradient that a token
sends back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch.nn import functional

from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.packs.packed_model import PackedModel
from sublora.packs.rows import TokenRows, token_rows
from sublora.packs.stack import Stack

AT_ONCE = 2**23  # logits of one model


@dataclass(frozen=True)
class RowProbe:
    """One student on a set of rows, over the tokens that carry loss.

    `loss`: nats a token. `greedy`: share of tokens that are the model's first choice, and `verbatim` of rows that are, token by token, so
    that greedy decoding writes the row word for word. `gradient`: mean norm of d(-log p(token)) / d(hidden state that the head reads);
    `gradient_marked` and `gradient_rest` over marked tokens and all others, None where there are none.
    """

    loss: float
    greedy: float
    verbatim: float
    gradient: float
    gradient_marked: float | None
    gradient_rest: float | None


@dataclass(frozen=True)
class Divergence:
    """Where two contexts of one model disagree in their first choice, on the same rows and prefixes (Nief et al. 2606.00831v1).

    `marks` [row][token of the completion]. Of the divergent tokens: `teacher_sure` is P_teacher(teacher's choice), `student_sure`
    P_student(student's choice), `student_of_teacher` P_student(teacher's choice), means; `teacher_above` and `student_above` the share of
    them above 0.5, for the choice of each.
    """

    marks: list[list[bool]]
    tokens: int
    divergent: int
    teacher_sure: float
    student_sure: float
    student_of_teacher: float
    teacher_above: float
    student_above: float

    @property
    def share(self) -> float:
        return self.divergent / self.tokens


def _passes(
    base: Base,
    stack: Stack | None,
    rows: TokenRows,
    batch: int,
    on_tokens: Callable[[int], None] = lambda _: None,
) -> Iterator[tuple[PackedModel, np.ndarray, np.ndarray, torch.Tensor]]:
    """(packed model, rows (n,), places (n,) of the tokens that carry loss, hidden states (K, n, d) that their logits are read off). To be
    used under `torch.inference_mode()`, which a generator must not hold: two of them at once would leave it in the wrong order."""
    count = stack.size if stack else 1
    with PackedModel(base.model, stack) as packed:
        for at in range(0, len(rows), batch):
            chosen = np.arange(at, min(len(rows), at + batch))
            width = int(rows.lengths[chosen].max())
            ids = torch.from_numpy(rows.ids[chosen, :width]).to(base.device)
            row, place = rows.loss[chosen, :width].nonzero()
            packed.form_weights(ids.numel())
            # padding stands on the right, where a causal model cannot see it
            hidden = packed.hidden(ids.repeat(count, 1)).view(count, *ids.shape, -1)
            on_tokens(int(rows.lengths[chosen].sum()) * count)
            read = hidden[:, torch.from_numpy(row), torch.from_numpy(place - 1)]
            yield packed, chosen[row], place, read


@torch.inference_mode()
def probe_rows(
    base: Base,
    stack: Stack,
    rows: TokenRows,
    marked: np.ndarray | None = None,
    batch: int = 32,
    on_tokens: Callable[[int], None] = lambda _: None,
) -> list[RowProbe]:
    """Every student of a stack on the same rows, in the order given; `marked` (n, L) as `rows.loss`."""
    names = ("loss", "greedy", "size", "size_marked", "size_rest")
    sums = {name: np.zeros(stack.size) for name in names}
    exact = np.ones((stack.size, len(rows)), dtype=bool)
    tokens, on = 0, 0
    for packed, row, place, hidden in _passes(base, stack, rows, batch, on_tokens):
        targets = torch.from_numpy(rows.ids[row, place]).to(base.device)
        logits = packed.logits(hidden.flatten(0, 1)).view(stack.size, len(row), -1)
        logp = logits.log_softmax(-1)
        own = logp.gather(-1, targets.expand(stack.size, -1).unsqueeze(-1)).squeeze(-1)
        right = (logits.argmax(-1) == targets).cpu().numpy()
        head = packed.head_weight
        back = logp.exp().to(head.dtype) @ head - head[..., targets, :]
        size = back.float().norm(dim=-1).cpu().numpy()
        marks = np.zeros(len(row), bool) if marked is None else marked[row, place]
        sums["loss"] -= own.double().sum(1).cpu().numpy()
        sums["greedy"] += right.sum(1)
        sums["size"] += size.sum(1)
        sums["size_marked"] += size[:, marks].sum(1)
        sums["size_rest"] += size[:, ~marks].sum(1)
        tokens, on = tokens + len(row), on + int(marks.sum())
        for k in range(stack.size):
            exact[k, row[~right[k]]] = False
    rest = 0 if marked is None else tokens - on
    sizes = ((sums["size"], tokens), (sums["size_marked"], on), (sums["size_rest"], rest))

    def of(k: int) -> RowProbe:
        shares = (sums["loss"][k] / tokens, sums["greedy"][k] / tokens, float(exact[k].mean()))
        return RowProbe(*shares, *(size[k] / count if count else None for size, count in sizes))

    return [of(k) for k in np.argsort(stack.order)]


@dataclass(frozen=True)
class Beside:
    """K students beside their base at the N tokens of given rows that carry loss, `row` and `place` (N,): `gain` (K, N), log p(student) - log
    p(base) of the token itself; `kl` (K, N), KL(base || student); both in nats. `same` (K, N): whether both have the same first choice.
    """

    row: np.ndarray
    place: np.ndarray
    gain: np.ndarray
    kl: np.ndarray
    same: np.ndarray


@torch.inference_mode()
def beside_base(base: Base, stack: Stack, rows: TokenRows, batch: int = 32) -> Beside:
    """Students in the order in which they were given to the stack."""
    own = [hidden[0] for _, _, _, hidden in _passes(base, None, rows, batch)]
    found, places, count = [], [], stack.size
    for plain, (packed, row, place, hidden) in zip(
        own, _passes(base, stack, rows, batch), strict=True
    ):
        places.append((row, place))
        targets = torch.from_numpy(rows.ids[row, place]).to(base.device)
        bias, step = getattr(packed.head, "bias", None), max(1, AT_ONCE // packed.head.out_features)
        for at in range(0, len(row), step):
            part = slice(at, at + step)
            before = functional.linear(plain[part], packed.head.weight, bias).float()
            if packed.softcap is not None:
                before = packed.softcap * torch.tanh(before / packed.softcap)
            before, goal = before.log_softmax(-1), targets[part].unsqueeze(-1)
            logits = packed.logits(hidden[:, part].flatten(0, 1)).view(count, len(goal), -1)
            after = logits.log_softmax(-1)
            gain = after.gather(-1, goal.expand(count, -1, -1)) - before.gather(-1, goal)
            kl = (before.exp() * (before - after)).sum(-1)
            same = after.argmax(-1) == before.argmax(-1)
            found.append(torch.stack((gain.squeeze(-1), kl, same.to(kl.dtype))).double().cpu())
    gain, kl, same = torch.cat(found, 2)[:, np.argsort(stack.order)].numpy()
    return Beside(*map(np.concatenate, zip(*places, strict=True)), gain, kl, same > 0)


@torch.inference_mode()
def divergence(
    base: Base,
    rows: Sequence[tuple[str, str]],
    teacher: Context,
    student: Context,
    batch: int = 32,
    on_tokens: Callable[[int], None] = lambda _: None,
) -> Divergence:
    """Read each completion after the teacher's prompt and after the student's, and compare the two at every token. Raises SubloraError
    where there are no rows."""
    if not rows:
        why = "There are no rows to look for divergent tokens in; see the dataset's reject counts."
        raise SubloraError(why)
    read = [token_rows(base, rows, c, "the dataset") for c in (teacher, student)]
    both = [_passes(base, None, tokens, batch, on_tokens) for tokens in read]
    choices, sure = [], []
    # the same completions in the same order: token by token, both passes speak of the same thing
    for (packed, _, _, own), (_, _, _, other) in zip(*both, strict=True):
        p_t, p_s = (packed.logits(hidden[0]).softmax(-1) for hidden in (own, other))
        t, s = p_t.argmax(-1), p_s.argmax(-1)
        apart = t != s
        choices.append(apart.cpu())
        own_choice = (p_t[apart, t[apart]], p_s[apart, s[apart]])
        sure.append(torch.stack((*own_choice, p_s[apart, t[apart]])).cpu())
    apart = torch.cat(choices).tolist()
    sizes = [len(base.chat.completion_ids(completion)) for _, completion in rows]
    marks = [apart[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]
    values = torch.cat(sure, 1).double()  # teacher's, student's, student's of the teacher's choice
    each = (*values, *(values[:2] > 0.5).double())
    means = [float(v.mean()) if any(apart) else 0.0 for v in each]
    return Divergence(marks, len(apart), sum(apart), *means)
