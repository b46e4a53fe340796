"""How a token is drawn: per row, by the inverse of the cumulative distribution at a uniform number that belongs to that row and place, so
that the batch it stands in does not matter. Nothing is inherited from a checkpoint's generation_config."""

from collections.abc import Callable
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_serializer
from torch import Tensor

NUMBERS_AT_ONCE = {
    "cpu": 2**19,
    "cuda": 2**27,
}  # of a table (rows, vocabulary); on a CPU they should stay in its cache


class Sampling(BaseModel):
    """How a token is drawn. The defaults are the plain distribution: temperature 1, no truncation."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="0 keeps all tokens")
    least: float = Field(0.0, ge=0, lt=1, description="a token less likely than this is not drawn")
    max_new_tokens: int = Field(16, ge=1)

    @model_serializer(mode="wrap")
    def _short(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """What came later is left out at its default: ids hash what is written."""
        out = dump(self)
        if not out.get("least"):
            out.pop("least", None)
        return out


def token_probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities (N, V), float64, after temperature, top_k and then top_p, in the order of Hugging Face's warpers,
    and then `least`, below which a token is drawn only where it is the likeliest."""
    scores = logits.double() / sampling.temperature
    if sampling.top_k and sampling.top_k < scores.shape[-1]:
        least = scores.topk(sampling.top_k).values[..., -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    p = scores.softmax(-1)
    if sampling.top_p < 1.0:
        ordered, index = p.sort(dim=-1, descending=True)
        drop = ordered.cumsum(-1) - ordered >= sampling.top_p
        p = p.masked_fill(torch.zeros_like(drop).scatter(-1, index, drop), 0.0)
        p = p / p.sum(-1, keepdim=True)
    if sampling.least:
        p = p.masked_fill(p < p.amax(-1, keepdim=True).clamp(max=sampling.least), 0.0)
        p = p / p.sum(-1, keepdim=True)
    return p


def draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens (N, S) at uniforms (N, S) in [0, 1) of the rows' cumulative distributions; `weights` (N, V) are probabilities times any
    number."""
    total = weights.cumsum(-1)
    tokens = torch.searchsorted(total, uniforms.to(total) * total[:, -1:], right=True)
    if int(tokens.max()) < weights.shape[-1]:
        return tokens
    # at the very end rounding may point behind the last token that has any probability
    last = (weights > 0).to(torch.uint8).flip(-1).argmax(-1, keepdim=True)
    return torch.minimum(tokens, weights.shape[-1] - 1 - last)


def draw_tokens(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> Tensor:
    """Tokens (N, S) of logits (N, V) at uniforms (N, S), a few rows at a time."""
    at_once = NUMBERS_AT_ONCE.get(logits.device.type, NUMBERS_AT_ONCE["cuda"])
    size = max(1, at_once // logits.shape[-1])
    parts = zip(logits.split(size), uniforms.to(logits.device).split(size), strict=True)
    return torch.cat([draw(_weights(part, sampling), u) for part, u in parts])


def _weights(logits: Tensor, sampling: Sampling) -> Tensor:
    if sampling.top_k or sampling.top_p < 1 or sampling.least:
        return token_probabilities(logits, sampling)
    scores = logits.to(torch.float64, copy=True).div_(sampling.temperature)
    return scores.sub_(scores.amax(-1, keepdim=True)).exp_()
