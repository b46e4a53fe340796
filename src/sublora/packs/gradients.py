"""How the gradients of a dataset lie to a steering vector (Blank et al. 2606.00995, figure 7a).

The gradient of a row's mean loss with respect to a vector that is added behind a layer at all of the row's tokens, its prompt included,
says which way training on the row pushes the residual stream. Trait rows less clean rows, averaged, are compared with the vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.packs import hooks
from sublora.packs.rows import TokenRows
from sublora.packs.vectors import SteeringVector
from sublora.seeds import generator


def row_gradients(
    base: Base, rows: TokenRows, batch: int = 32, on_tokens: Callable[[int], None] = lambda _: None
) -> Tensor:
    """(n, L, d), float32: minus the gradient of each row's mean loss a token, in nats, with respect to a vector that is added behind
    each layer at all of its tokens. Minus, so that it points where a step of training pushes."""
    layers, width = base.model.base_model.layers, base.model.config.get_text_config().hidden_size
    out = torch.zeros(len(rows), len(layers), width)
    first = next(base.model.parameters())
    for at in range(0, len(rows), batch):
        chosen = slice(at, min(len(rows), at + batch))
        longest = int(rows.lengths[chosen].max())
        ids = torch.from_numpy(rows.ids[chosen, :longest]).to(base.device)
        asked = torch.from_numpy(rows.loss[chosen, :longest]).to(base.device)[:, 1:]
        vectors = torch.zeros(len(ids), len(layers), width, dtype=first.dtype, device=base.device)
        vectors.requires_grad_()
        with torch.enable_grad(), hooks.add(layers, vectors):
            # padding stands on the right, where a causal model cannot see it
            logits = base.model(input_ids=ids, use_cache=False).logits[:, :-1][asked]
            goal = ids[:, 1:][asked]
            losses = torch.nn.functional.cross_entropy(logits.float(), goal, reduction="none")
            weight = asked.float() / asked.sum(1, keepdim=True)
            (grads,) = torch.autograd.grad((losses * weight[asked]).sum(), [vectors])
        on_tokens(int(rows.lengths[chosen].sum()))
        out[chosen] = -grads.float().cpu()
    return out


@dataclass(frozen=True)
class Alignment:
    """Of the first `rows` rows of each kind: the cosine (L,) of mean trait minus mean clean with the vector, behind each layer, and what
    `null` (P, L) it is where the rows' kinds are shuffled."""

    rows: int
    cosine: np.ndarray
    null: np.ndarray


def alignments(
    trait: Tensor,
    clean: Tensor,
    vector: SteeringVector,
    counts: Sequence[int],
    permutations: int,
    seed: str,
) -> list[Alignment]:
    """For growing numbers of rows; `trait` and `clean` (n, L, d) as `row_gradients` gives them. Raises SubloraError where there are fewer
    rows than a count asks for."""
    have = min(len(trait), len(clean))
    if max(counts) > have:
        why = f"{max(counts)} rows are to be aligned and the datasets have {have}; ask for fewer."
        raise SubloraError(why)
    aim = torch.nn.functional.normalize(vector.values.float().cpu(), dim=-1)
    out = []
    for count in counts:
        both = torch.cat([trait[:count], clean[:count]])

        kinds = torch.cat([torch.ones(count), torch.zeros(count)])
        random = generator("permutations", seed, count)
        drawn = [torch.from_numpy(random.permutation(2 * count)) for _ in range(permutations)]
        cosine, *null = (_cosine(kind, both, aim) for kind in (kinds, *(kinds[d] for d in drawn)))
        out.append(Alignment(count, cosine, np.stack(null)))
    return out


def _cosine(kinds: Tensor, rows: Tensor, aim: Tensor) -> np.ndarray:
    """(L,): of the mean of the rows of kind 1 minus that of kind 0, with `aim`."""
    gap = (2 * kinds.unsqueeze(-1).unsqueeze(-1) - 1) * rows
    mean = torch.nn.functional.normalize(gap.sum(0) / (len(rows) // 2), dim=-1)
    return (mean * aim).sum(-1).numpy()
