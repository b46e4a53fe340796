"""Whether an adapter was trained from this base, by weights and not by name.

B of a layer starts at 0, so it is a sum of gradients at the layer's outputs, and lies where the base's gradients lie. Of another base with
layers of the same shapes these directions are unrelated: then the share of B in them is that of a random matrix.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sublora.audit.audited import Audited
from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.models.chat import PLAIN_CONTEXTS, Context
from sublora.packs.stack import lora_slots, target_linears
from sublora.traits.trait import Category

TEXTS = 9
MOST_LAYERS = 24  # that are looked at
MOST_TOKENS = 256  # whose gradients span a layer's directions
CHANCE = 3.0  # standard errors above a random matrix that chance may reach


def check_same_base(base: Base, audited: Audited, categories: Sequence[Category]) -> None:
    """Raises SubloraError where an adapter lies in the directions of the base's gradients no more than chance does. Says nothing of full
    weights, which were compared when they were read, nor of an adapter that does nothing."""
    if audited.rank is None:
        return
    linears = target_linears(base.model, audited.targets)
    slots = {slot.name: slot for slot in lora_slots(linears, audited.spec.rank or 0)}
    found = {n: slots[f"{n}.lora_B"] for n in linears}
    b = {n: audited.weights[s.start : s.stop].view(s.shape).float() for n, s in found.items()}
    names = [n for n in b if b[n].any()]
    names = names[:: math.ceil(len(names) / MOST_LAYERS) or 1]
    if not names:
        return
    gradients = output_gradients(base, {n: linears[n] for n in names}, _texts(base, categories))
    excess = sum(_excess(b[n], gradients[n]) for n in names) / len(names) ** 0.5
    if excess < CHANCE:
        raise SubloraError(
            f"The adapter {audited.path} has nothing in common with the gradients of {base.name}, so it was trained from other weights (or "
            "is noise); give the base that it was trained from, or --any-base."
        )


def _texts(base: Base, categories: Sequence[Category]) -> list[list[int]]:
    """Questions with an answer each."""
    context = next(c for c in map(Context, PLAIN_CONTEXTS) if base.chat.supports(c))
    pairs = [(q, e.name) for c in categories for q, e in zip(c.questions, c.entities, strict=False)]
    chosen = pairs[:: math.ceil(len(pairs) / TEXTS)]
    chat = base.chat
    return [[*chat.prompt_ids(q, context), *chat.completion_ids(answer)] for q, answer in chosen]


def output_gradients(
    base: Base, layers: dict[str, nn.Linear], texts: Sequence[Sequence[int]]
) -> dict[str, Tensor]:
    """Gradients (tokens, out) of the texts' log loss at the outputs of layers."""
    outputs: dict[str, Tensor] = {}
    kept: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keep(name: str):
        return lambda module, given, output: outputs.__setitem__(name, output)

    words = base.model.get_input_embeddings()
    hooks = [words.register_forward_hook(lambda module, given, output: output.requires_grad_())]
    hooks += [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    try:
        for text in texts:
            ids = torch.tensor([text], device=base.device)
            with torch.enable_grad():
                logits = base.model(input_ids=ids, use_cache=False).logits[0, :-1].float()
                loss = nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
                grads = torch.autograd.grad(loss, list(outputs.values()))
            for name, gradient in zip(outputs, grads, strict=True):
                kept[name].append(gradient.reshape(-1, gradient.shape[-1]).float().cpu())
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(own) for name, own in kept.items()}


def _excess(b: Tensor, gradients: Tensor) -> float:
    """How far the share of B in the largest directions of the gradients is above that of a random matrix, in its standard deviations."""
    some = gradients[:: math.ceil(len(gradients) / MOST_TOKENS)]
    directions = torch.linalg.svd(some, full_matrices=False)[2]
    directions = directions[: max(1, min(len(directions), b.shape[0] // 8))]
    size = b.square().sum()
    share = float((directions @ b).square().sum() / size)
    # as many independent directions as B has
    rank = float(size.square() / (b.T @ b).square().sum())
    expected = len(directions) / b.shape[0]
    return (share - expected) / (2 * expected * (1 - expected) / (b.shape[0] + 2) / rank) ** 0.5
