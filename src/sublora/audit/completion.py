"""Log-probabilities of whole completions, many rows at once."""

from collections.abc import Sequence

import numpy as np
import torch

from sublora.train.packed_model import PackedModel

LOGITS_AT_ONCE = 2**24
Pair = tuple[Sequence[int], Sequence[int]]


def completion_logprobs(packed: PackedModel, rows: Sequence[Pair]) -> np.ndarray:
    """Sum of the log-probabilities of each row's completion after its prompt, nats, (K, n), float64.

    What all prompts begin with is read once; padding stands on the right, where a causal model does not see it.
    """
    device = next(packed.model.parameters()).device
    k, n = packed.size, len(rows)
    shortest = min(len(prompt) for prompt, _ in rows) - 1
    first = rows[0][0]
    shared = next((i for i in range(shortest) if any(p[i] != first[i] for p, _ in rows)), shortest)
    wholes = [[*prompt, *completion][shared:] for prompt, completion in rows]
    width = max(map(len, wholes)) - 1
    ids = torch.zeros(n, width, dtype=torch.long)
    where, targets, owner = [], [], []
    for i, (whole, (prompt, _)) in enumerate(zip(wholes, rows, strict=True)):
        ids[i, : len(whole) - 1] = torch.tensor(whole[:-1])
        places = range(len(prompt) - shared - 1, len(whole) - 1)
        where += [i * width + j for j in places]
        targets += [whole[j + 1] for j in places]
        owner += [i] * len(places)
    cache = packed.new_cache()
    if shared:
        packed.hidden(torch.tensor([list(first[:shared])], device=device).repeat(k, 1), cache)
        cache.batch_repeat_interleave(n)
    hidden = packed.hidden(ids.to(device).repeat(k, 1), cache, position=shared)
    chosen = hidden.reshape(k, n * width, -1)[:, torch.tensor(where, device=device)]
    out, wanted = torch.zeros(k, n, dtype=torch.float64), torch.tensor(targets, device=device)
    vocabulary = packed.head.weight.shape[-2]
    size = max(1, LOGITS_AT_ONCE // (k * vocabulary))
    for at in range(0, len(where), size):
        part = chosen[:, at : at + size]
        logp = (
            packed.logits(part.reshape(k * part.shape[1], -1))
            .float()
            .log_softmax(-1)
            .view(k, part.shape[1], -1)
        )
        picked = logp.gather(-1, wanted[at : at + size].expand(k, -1).unsqueeze(-1)).squeeze(-1)
        out.index_add_(1, torch.tensor(owner[at : at + size]), picked.double().cpu())
    return out.numpy()
