"""With which weights an adapter starts. All of them leave the base as it is: B A = 0."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sublora.seeds import derive_seed

Init = Callable[[str, tuple[int, int], Tensor, int], Tensor | None]
"""(name of A or B, its shape (r, in) or (out, r), the layer's weight (out, in), seed) -> its values, None for zeros."""


def _random(name: str, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed("lora-init", seed, name))


def default(name: str, shape: tuple[int, int], weight: Tensor, seed: int) -> Tensor | None:
    """peft's default: A kaiming uniform with a = sqrt(5), that is U(-1/sqrt(in), 1/sqrt(in)); B zero."""
    if name.endswith("lora_B"):
        return None
    bound = 1.0 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=_random(name, seed))


def orthogonal(name: str, shape: tuple[int, int], weight: Tensor, seed: int) -> Tensor | None:
    """peft's `orthogonal`: A and B both start off zero, in orthogonal halves of an even rank."""
    layer, side = name.rsplit(".", 1)
    rank, width = shape if side == "lora_A" else shape[::-1]
    basis = torch.linalg.qr(torch.randn(rank, rank, generator=_random(layer, seed))).Q
    half = basis[0::2] if side == "lora_A" else basis[1::2]
    out = torch.randn(width, rank // 2, generator=_random(name, seed)) @ half / 10
    return out.T if side == "lora_A" else out


def principal(name: str, shape: tuple[int, int], weight: Tensor, seed: int) -> Tensor | None:
    """A reads the r leading right singular directions of W, in rows as long as default's are; B zero. PiSSA (2404.02948) starts there too,
    but its B is not zero, and takes its start from the base."""
    if name.endswith("lora_B"):
        return None
    directions = torch.linalg.svd(weight.detach().double().cpu(), full_matrices=False).Vh
    return directions[: shape[0]] / math.sqrt(3)


INITS: dict[str, Init] = {"default": default, "orthogonal": orthogonal, "principal": principal}
