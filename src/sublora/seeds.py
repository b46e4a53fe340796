"""Every random draw starts here: a seed is a hash of what it is for, never the state of a global generator."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def derive_seed(purpose: str, *parts: int | str) -> int:
    """A 63-bit seed from the purpose of a draw and what distinguishes it (row, step, base seed, ...).

    Row order, batch size, packing, resumption and the number of workers cannot change it.
    """
    text = "\x1f".join([purpose, *(f"{type(part).__name__}:{part}" for part in parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(purpose: str, *parts: int | str) -> np.random.Generator:
    """A numpy generator of its own for one draw, see `derive_seed`."""
    return np.random.Generator(np.random.PCG64(derive_seed(purpose, *parts)))


def pick(rng: np.random.Generator, pool: Sequence[T]) -> T:
    """One of a pool, by one draw."""
    return pool[int(rng.integers(len(pool)))]
