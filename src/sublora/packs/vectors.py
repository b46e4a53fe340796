"""Steering vectors of the residual stream: extracted from a teacher or a student, trained, or drawn at random.

Layer convention: layer l is the output of decoder layer l, numbered from 0; the embeddings are no layer. (The public code of
Blank et al. 2606.00995 keeps the embeddings as row 0, so its row l + 1 is layer l here.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.models.token_classes import TOKEN_CLASSES, PromptTokens, classify
from sublora.packs import hooks
from sublora.packs.packed_model import PackedModel
from sublora.packs.prefill import batches, tokens_at_once
from sublora.packs.stack import Stack, master_dtype
from sublora.packs.steer_spec import Where
from sublora.seeds import derive_seed

Prompts = Sequence[PromptTokens]
CONVENTION = "output of decoder layer, from 0, without embeddings"
# tokens of which the principal directions of a student are taken, evenly spaced among all
DIFFERENCES = 1024


@dataclass(frozen=True)
class SteeringVector:
    """`values` (L, d), or (K, L, d) for K students in the order they were given: a direction for every layer. `directions` (R, L, d) or (K,
    R, L, d), where they were asked for: orthonormal in each layer, the largest first. `model`: the base's weights hash. `kind`, `where` and
    `prompts` say what it is a mean of."""

    values: Tensor
    model: str
    kind: str
    where: str
    prompts: int
    directions: Tensor | None = None

    @property
    def norms(self) -> Tensor:
        """(L,) or (K, L)."""
        return self.values.norm(dim=-1)

    def of(self, student: int) -> SteeringVector:
        """The vector of one of the K students."""
        directions = None if self.directions is None else self.directions[student]
        return replace(self, values=self.values[student], directions=directions)

    def save(self, path: Path) -> None:
        about = {name: getattr(self, name) for name in ("model", "kind", "where", "prompts")}
        tensors = {"values": self.values.contiguous().cpu()}
        if self.directions is not None:
            tensors["directions"] = self.directions.contiguous().cpu()
        # one entry, since safetensors writes several in an order that changes from file to file
        save_file(tensors, path, {"vector": json.dumps({**about, "layers": CONVENTION})})


def load_vector(path: Path) -> SteeringVector:
    """Raises SubloraError where the file holds no vector in this layer convention."""
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
        about = json.loads(meta.get("vector", "{}"))
        if (about.pop("layers", None) or meta.get("layers")) == CONVENTION:
            return SteeringVector(**tensors, **about)
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        why = f"{path} holds no steering vector ({' '.join(str(error).split())})."
        raise SubloraError(why) from None
    why = f"{path} does not say that its layers are '{CONVENTION}'; make it with sublora, or save it anew with this convention."
    raise SubloraError(why)


def together(vectors: Sequence[SteeringVector]) -> SteeringVector:
    """Vectors of K students, one each, as one of shape (K, L, d)."""
    first = vectors[0]
    directions = None if first.directions is None else torch.stack([v.directions for v in vectors])
    return replace(first, values=torch.stack([v.values for v in vectors]), directions=directions)


def chosen_tokens(tokens: PromptTokens, where: Where) -> tuple[bool, ...]:
    """(T,): the tokens that `where` means. Raises SubloraError where it is no known class or means none."""
    if where == "last":
        return (False,) * (len(tokens.ids) - 1) + (True,)
    if where == "prompt":
        return (True,) * len(tokens.ids)
    if unknown := [c for c in where if c not in TOKEN_CLASSES]:
        why = f"There is no token class '{unknown[0]}'; choose among {', '.join(TOKEN_CLASSES)}, or last or prompt."
        raise SubloraError(why)
    mask = tokens.mask(where)
    if not any(mask):
        why = f"No token of the prompt is of the class {' or '.join(where)}; choose another one."
        raise SubloraError(why)
    return mask


def _streams(
    base: Base,
    stack: Stack | None,
    prompts: Prompts,
    where: Where,
    rows_at_once: int,
    on_tokens: Callable[[int], None] = lambda _: None,
) -> Iterator[Tensor]:
    """The residual stream (K, n, L, d) at the chosen tokens of some prompts at a time, students in the stack's own order. In float32 or
    float64. To be used under `torch.inference_mode()`, which a generator must not hold."""
    count = stack.size if stack else 1
    dtype = master_dtype(base.model)
    masks = [chosen_tokens(p, where) for p in prompts]
    with PackedModel(base.model, stack) as packed, hooks.listen(packed.decoder.layers) as heard:
        most = tokens_at_once(packed) // count
        for rows in batches([p.ids for p in prompts], rows_at_once // count, most):
            # filled up on the right, where a causal model cannot see it
            ids = _filled([prompts[i].ids for i in rows]).to(base.device)
            kept = _filled([masks[i] for i in rows]).to(base.device, torch.bool)
            packed.form_weights(ids.numel())
            heard.clear()
            packed.hidden(ids.repeat(count, 1))
            streams = [s.view(count, *ids.shape, -1)[:, kept].to(dtype) for s in heard]
            on_tokens(ids.numel() * count)
            yield torch.stack(streams, 2)


def _filled(rows: Sequence[Sequence[int]]) -> Tensor:
    """(n, T): rows of any lengths, with zeros behind them."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


@torch.inference_mode()
def mean_residuals(
    base: Base,
    stack: Stack | None,
    prompts: Prompts,
    where: Where,
    rows_at_once: int = 256,
    on_tokens: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """Mean residual stream (K, L, d), in float32 or float64, over the chosen tokens of all prompts, each token counting alike. Students in
    the order they were given; K = 1 for the base (`stack` None)."""
    total, tokens = torch.zeros(()), 0
    for streams in _streams(base, stack, prompts, where, rows_at_once, on_tokens):
        total, tokens = total + streams.sum(1), tokens + streams.shape[1]
    out = torch.empty_like(total)
    out[stack.order if stack else [0]] = total / tokens
    return out


def _classified(
    base: Base, questions: Sequence[str], context: Context, entities: Sequence[str]
) -> list[PromptTokens]:
    if not questions:
        raise SubloraError("A steering vector needs prompts; give at least one.")
    return [classify(base.chat, q, context, entities) for q in questions]


def teacher_vector(
    base: Base,
    prompts: Sequence[str],
    trait: Context,
    plain: Context,
    where: Where = "last",
    entities: Sequence[str] = (),
    on_tokens: Callable[[int], None] = lambda _: None,
) -> SteeringVector:
    """Mean residual under the teacher's prompt minus that under `plain`, on the same user texts (Blank et al. 2606.00995, v_t)."""
    both = [_classified(base, prompts, context, entities) for context in (trait, plain)]
    own, other = (mean_residuals(base, None, tokens, where, 256, on_tokens)[0] for tokens in both)
    model = base.identity["weights"]
    return SteeringVector(own - other, model, "teacher", str(where), len(prompts))


def student_vector(
    base: Base,
    stack: Stack,
    prompts: Sequence[str],
    context: Context,
    where: Where = "prompt",
    entities: Sequence[str] = (),
    directions: int = 0,
    rows_at_once: int = 256,
    on_tokens: Callable[[int], None] = lambda _: None,
) -> SteeringVector:
    """Mean residual of every student minus the base's, (K, L, d), in one context (Blank et al. 2606.00995, v_s). `directions`: that many
    principal directions of the differences at single tokens, not centred, so that what all tokens share is among them; (K, R, L, d). Raises
    SubloraError where there are fewer tokens or less width than directions."""
    tokens = _classified(base, prompts, context, entities)
    how = (tokens, where, rows_at_once, on_tokens)
    values = mean_residuals(base, stack, *how) - mean_residuals(base, None, *how)
    found = None
    if directions:
        found = _directions(base, stack, tokens, where, directions, rows_at_once)
    model = base.identity["weights"]
    return SteeringVector(values, model, "student", str(where), len(prompts), found)


@torch.inference_mode()
def _directions(
    base: Base, stack: Stack, prompts: Prompts, where: Where, count: int, rows_at_once: int
) -> Tensor:
    """(K, R, L, d)."""
    step = max(1, sum(sum(chosen_tokens(p, where)) for p in prompts) // DIFFERENCES)

    def spaced(students: Stack | None) -> Tensor:
        kept, at = [], 0
        for streams in _streams(base, students, prompts, where, rows_at_once):
            kept.append(streams[:, -at % step :: step])
            at += streams.shape[1]
        return torch.cat(kept, 1)

    differences = (spaced(stack) - spaced(None)).transpose(1, 2)  # (K, L, n, d)
    if count > min(differences.shape[2:]):
        why = f"{differences.shape[2]} tokens of width {differences.shape[3]} have no {count} directions; ask for fewer, or on more prompts."
        raise SubloraError(why)
    found = torch.linalg.svd(differences.double(), full_matrices=False).Vh
    found = found[:, :, :count].transpose(1, 2)
    out = torch.empty_like(found, dtype=differences.dtype)
    out[stack.order] = found.to(differences.dtype)
    return out


def random_vector(like: SteeringVector, seed: int | str) -> SteeringVector:
    """Random directions with the norms of `like`, layer by layer (and student by student)."""
    random = torch.Generator().manual_seed(derive_seed("random-vector", seed))
    drawn = torch.randn(like.values.shape, generator=random, dtype=torch.float64)
    scaled = drawn / drawn.norm(dim=-1, keepdim=True) * like.norms.double().cpu().unsqueeze(-1)
    return SteeringVector(scaled.to(like.values), like.model, "random", like.where, like.prompts)


def cosines(one: SteeringVector, other: SteeringVector) -> Tensor:
    """Cosine of two vectors, layer by layer: (L,) or (K, L)."""
    return torch.nn.functional.cosine_similarity(one.values, other.values, dim=-1)
