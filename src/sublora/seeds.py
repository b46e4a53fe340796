"""Every random draw of the program starts here: a seed is a hash of what it is for, never the state of a global generator."""

import hashlib

import numpy as np


def derive_seed(stage: str, *parts: int | str) -> int:
    """A 63-bit seed from the stage's name and what distinguishes the draw (row, step, base seed, ...).

    Row order, batch size, packing, resumption and worker count cannot change it (DESIGN 5.2).
    """
    text = "\x1f".join([stage, *(f"{type(part).__name__}:{part}" for part in parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(stage: str, *parts: int | str) -> np.random.Generator:
    """A numpy generator of its own for one draw, see `derive_seed`."""
    return np.random.Generator(np.random.PCG64(derive_seed(stage, *parts)))
