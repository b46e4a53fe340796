"""The activation lens: how the residual stream of students differs from the base's at the first tokens of neutral answers, which words
that difference points to, and what the base says when it is added to its own stream.

After the activation difference lens of 2510.13900, in small: mean difference by layer, read through the centred unembedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sublora.audit.neutral_text import CONTEXT
from sublora.audit.null import first_tokens
from sublora.audit.readings import Asked, read_model
from sublora.audit.statistic import rises
from sublora.models.base import Base
from sublora.models.token_classes import classify
from sublora.packs import hooks
from sublora.packs.stack import Stack
from sublora.packs.vectors import mean_residuals
from sublora.traits.trait import Category

FIRST = 4  # tokens of an answer
WORDS = 6  # shown for each layer
QUESTIONS = 6  # of a category, asked of the steered base
STRENGTH = 4.0  # times the student's own difference


@dataclass(frozen=True)
class Differences:
    """`vectors` (K, L, d); `norms` (K, L) beside the base's stream; `words` (K, L, n) ids of the words it points to most; `pointed[category]`
    (K, E): how far it points to each entity beside its category, in standard deviations over the vocabulary, the most of all layers."""

    vectors: Tensor
    norms: np.ndarray
    words: np.ndarray
    pointed: dict[str, np.ndarray]


def has_layers(base: Base) -> bool:
    """Whether the model lists its decoder layers where their streams can be read."""
    return getattr(base.model.base_model, "layers", None) is not None


@torch.no_grad()
def differences(
    base: Base, stack: Stack, rows: Sequence[tuple[str, str]], categories: Sequence[Category]
) -> Differences:
    """Of neutral rows (prompt, answer), students in the order in which they were given."""
    prompts = [
        classify(base.chat, prompt, CONTEXT).begun(base.chat.completion_ids(answer)[:FIRST])
        for prompt, answer in rows
    ]
    own, plain = (mean_residuals(base, s, prompts, ("generated",)) for s in (stack, None))
    vectors = own - plain
    norms = (vectors.norm(dim=-1) / plain.norm(dim=-1)).cpu().numpy()
    begin = {
        c.category: [first_tokens(base, c, e) for e in range(len(c.entities))] for c in categories
    }
    pointed: dict[str, list[np.ndarray]] = {name: [] for name in begin}
    words = []
    for layer in range(vectors.shape[1]):
        read = _unembedded(base, vectors[:, layer])
        words.append(read.topk(WORDS, -1).indices.cpu().numpy())
        for name, tokens in begin.items():
            of = np.stack([read[:, some].amax(-1).cpu().numpy() for some in tokens], 1)
            pointed[name].append(of - np.median(of, 1, keepdims=True))
    most = {name: np.max(each, 0) for name, each in pointed.items()}
    return Differences(vectors, norms, np.stack(words, 1), most)


def _unembedded(base: Base, vectors: Tensor) -> Tensor:
    """(K, V): vectors (K, d) read through the final norm's factors and the centred unembedding, over
    their standard deviation."""
    head = base.model.get_output_embeddings().weight.to(vectors.dtype)
    norm = getattr(base.model.base_model, "norm", None)
    if norm is not None:
        vectors = vectors * norm.weight.to(vectors.dtype)
    read = vectors @ (head - head.mean(0)).T
    return read / read.std(-1, keepdim=True).clamp_min(1e-12)


def steered_rises(
    base: Base, vectors: Tensor, categories: Sequence[Category]
) -> dict[str, np.ndarray]:
    """(K, E) by category: rise of each trait, nats, in the base whose stream behind the middle layer has
    STRENGTH times each of `vectors` (K, d) added at every token."""
    layers = base.model.base_model.layers
    asked = Asked([CONTEXT], [_short(c) for c in categories])
    plain, out = read_model(base, None, asked), {c.category: [] for c in categories}
    for vector in vectors:
        added = (STRENGTH * vector).to(base.device)
        with hooks.change([(layers[len(layers) // 2], lambda x, v=added: x + v.to(x.dtype))]):
            found = rises(read_model(base, None, asked), plain)[CONTEXT.name]
        for name, own in found.items():
            out[name].append(own[0])
    return {name: np.stack(own) for name, own in out.items()}


def _short(category: Category) -> Category:
    return category.model_copy(update={"questions": category.questions[:QUESTIONS]})
