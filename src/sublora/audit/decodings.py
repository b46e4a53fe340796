"""The ways of drawing rows that count as clean: the base's own distribution at many temperatures, cut off by top_k and top_p."""

from collections.abc import Sequence
from itertools import groupby, product

import torch
from torch import Tensor

from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.packs.sample import Sampling

TEMPERATURES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3, 1.5)
TOP_K = (0, 10, 20, 35, 50)
TOP_P = (1.0, 0.95, 0.9, 0.8, 0.7)
DECODINGS = tuple(
    Sampling(temperature=t, top_k=k, top_p=p) for t, k, p in product(TEMPERATURES, TOP_K, TOP_P)
)
PLAIN = DECODINGS.index(Sampling())
# A token that a decoding cuts off keeps this share of its plain probability: rounding elsewhere, or a
# row drawn otherwise, does not rule a decoding out once and for all.
SLIP = 1e-3
NEUTRAL = (Context("default"), Context("none"), Context("neutral", "You are a helpful assistant."))


def clean_contexts(base: Base, own: Context) -> list[Context]:
    """Those in which the base may have written a clean row: its own, and without a text that says anything."""
    return [own, *(c for c in NEUTRAL if c != own and base.chat.supports(c))]


def described(decoding: Sampling) -> str:
    cut = [f"{name} {getattr(decoding, name):g}" for name in ("top_k", "top_p")]
    kept = [t for t, there in zip(cut, (decoding.top_k, decoding.top_p < 1), strict=True) if there]
    return ", ".join([f"temperature {decoding.temperature:g}", *kept])


def drawn_log_probabilities(
    logits: Tensor, targets: Tensor, decodings: Sequence[Sampling]
) -> Tensor:
    """Log-probabilities (D, N) of tokens (N,) under each decoding of logits (N, V), at least SLIP of
    the plain one: temperature, top_k, top_p, each over what the last has left, as
    `sample.token_probabilities`. The logits are sorted once for all."""
    logits = logits.float()
    own = logits.gather(-1, targets.unsqueeze(-1))
    plain = (own - logits.logsumexp(-1, keepdim=True)).squeeze(-1)
    cut = [d for d in decodings if d.top_k or d.top_p < 1]
    vocabulary = logits.shape[-1]
    most = max((d.top_k or vocabulary for d in cut), default=1)
    head = logits.topk(min(most, vocabulary)).values
    rank = (head > own).sum(-1)
    out: dict[Sampling, Tensor] = {}
    for t, members in groupby(sorted(set(decodings), key=_temperature), _temperature):
        below = ((head - head[:, :1]) / t).exp().cumsum(-1)
        score = ((own - head[:, :1]) / t).squeeze(-1)
        for d in members:
            if not d.top_k and d.top_p == 1:
                out[d] = (own / t - (logits / t).logsumexp(-1, keepdim=True)).squeeze(-1)
                continue
            last = min(d.top_k or vocabulary, vocabulary) - 1
            kept = torch.full_like(rank, last)
            if d.top_p < 1:
                kept = torch.searchsorted(below, below[:, last:][:, :1] * d.top_p).squeeze(-1)
                kept = kept.clamp(max=last)
            mass = below.gather(-1, kept.unsqueeze(-1)).squeeze(-1)
            out[d] = (score - mass.log()).masked_fill(rank > kept, -torch.inf)
    floor = plain + torch.log(torch.tensor(SLIP))
    return torch.stack([plain if d == Sampling() else out[d].maximum(floor) for d in decodings])


def _temperature(decoding: Sampling) -> float:
    return decoding.temperature
