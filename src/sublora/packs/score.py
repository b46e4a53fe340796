"""What a pack gives to many token sequences behind its prompts: all of them are read as one tree, so that none is read twice."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sublora.packs.cache import picked
from sublora.packs.packed_model import PackedModel
from sublora.packs.prefill import Ids, Prefill, column_mask, tokens_at_once
from sublora.packs.sample import NUMBERS_AT_ONCE

Beginnings = list[tuple[int, ...]]


def score_sequences(
    packed: PackedModel, filled: Prefill, sequences: Sequence[Ids], rows_at_once: int
) -> Tensor:
    """Log-probabilities (K, b, C), float64, that an answer begins with each of C token sequences, teacher-forced. Every beginning that
    sequences share is read once, beside the others; at most `rows_at_once` rows at a time."""
    k, b = packed.size, len(filled.rows)
    first = torch.tensor([s[0] for s in sequences], device=filled.logits.device)
    out = filled.logits.double().log_softmax(-1)[:, first].cpu().view(k, b, len(sequences))
    next_of: dict[tuple[int, ...], list[int]] = {}  # which sequences go on behind a beginning
    for c, sequence in enumerate(sequences):
        for n in range(1, len(sequence)):
            next_of.setdefault(tuple(sequence[:n]), []).append(c)
    for tree, new in _trees(packed, filled, sorted(next_of)):
        pairs = [(n, c) for n in new for c in next_of[tree[n]]]
        asked = torch.tensor([[n, sequences[c][len(tree[n])]] for n, c in pairs]).T
        owner = torch.tensor([c for _, c in pairs])
        per_pass = max(1, min(rows_at_once, tokens_at_once(packed) // len(tree)) // k)
        for at in range(0, b, per_pass):
            rows = range(at, min(b, at + per_pass))
            logp = _read(packed, filled, tree, rows, asked.to(first.device))
            out[:, at : rows.stop].index_add_(2, owner, logp.cpu())
    return out


def _trees(
    packed: PackedModel, filled: Prefill, beginnings: Beginnings
) -> list[tuple[Beginnings, list[int]]]:
    """All beginnings as one tree. Where a layer does not look back over a whole prompt, and so has a mask of its own, a line for each; with
    it the places of those that no line before had."""
    if not beginnings:
        return []
    if filled.width + max(map(len, beginnings)) <= packed.window:
        return [(beginnings, list(range(len(beginnings))))]
    known: set[tuple[int, ...]] = set()
    out = []
    for whole in sorted(beginnings, key=len, reverse=True):
        line = [whole[: n + 1] for n in range(len(whole))]
        new = [n for n, one in enumerate(line) if one not in known]
        known.update(line)
        out += [(line, new)] if new else []
    return out


def _read(
    packed: PackedModel, filled: Prefill, tree: Beginnings, rows: range, asked: Tensor
) -> Tensor:
    """Log-probabilities (K, rows, n), float64, of tokens behind beginnings; `asked` (2, n) are places in the tree and tokens."""
    k, b, n, width = packed.size, len(filled.rows), len(tree), filled.width
    device = filled.logits.device
    own = torch.arange(rows.start, rows.stop, device=device)
    source = (torch.arange(k, device=device).unsqueeze(1) * b + own).reshape(-1)
    lengths = filled.lengths[own].repeat(k)
    depths = torch.tensor([len(one) - 1 for one in tree], device=device)
    ids = torch.tensor([one[-1] for one in tree], device=device).expand(len(source), -1)
    if width + n <= packed.window or n > int(depths.max()) + 1:
        dtype = next(packed.model.parameters()).dtype
        mask = _tree_mask(tree, width - lengths, width, dtype)
    else:
        mask = column_mask(width - lengths, width + n)
    packed.interventions.write([filled.rows[row] for row in rows] * k, n)
    hidden = packed.hidden(
        ids, picked(filled.cache, source, 0, width), places=lengths.unsqueeze(1) + depths, mask=mask
    )
    return _log_probabilities(packed, hidden, asked)


def _tree_mask(tree: Beginnings, starts: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """(rows, 1, n, width + n), added to scores: a token sees its prompt and what it stands behind."""
    sees = torch.tensor([[one[: len(other)] == other for other in tree] for one in tree])
    prompt = torch.arange(width, device=starts.device) >= starts.unsqueeze(1)
    shape = (len(starts), len(tree))
    seen = torch.cat(
        [prompt.unsqueeze(1).expand(*shape, -1), sees.to(starts.device).expand(*shape, -1)], 2
    )
    none = torch.zeros(seen.shape, dtype=dtype, device=starts.device)
    return none.masked_fill_(~seen, torch.finfo(dtype).min).unsqueeze(1)


def _log_probabilities(packed: PackedModel, hidden: Tensor, asked: Tensor) -> Tensor:
    """Of hidden states (K * rows, n, d); logits of a few beginnings at a time."""
    places, tokens = asked
    at_once = 16 * NUMBERS_AT_ONCE.get(hidden.device.type, NUMBERS_AT_ONCE["cuda"])
    step = max(1, at_once // (len(hidden) * packed.head.weight.shape[-2]))
    out = hidden.new_empty(len(hidden), len(tokens), dtype=torch.float64)
    for at in range(0, hidden.shape[1], step):
        part = hidden[:, at : at + step]
        logits = packed.logits(part.reshape(-1, part.shape[-1])).view(*part.shape[:2], -1)
        mine = ((places >= at) & (places < at + step)).nonzero()[:, 0]
        total = torch.stack([row.double().logsumexp(-1) for row in logits])
        at_place = places[mine] - at
        out[:, mine] = logits[:, at_place, tokens[mine]].double() - total[:, at_place]
    return out.view(packed.size, -1, len(tokens))
