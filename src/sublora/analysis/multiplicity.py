"""Many tests at once: Holm's correction of p values, and q values over all claims of a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from sublora.analysis.intervals import Array
from sublora.errors import SubloraError


def _checked(p: ArrayLike) -> Array:
    p = np.asarray(p, dtype=float).reshape(-1)
    if not ((p >= 0) & (p <= 1)).all():
        raise SubloraError("a p value lies outside 0 to 1; pass uncorrected p values.")
    return p


def holm(p: ArrayLike) -> Array:
    """Holm's step-down corrected p values (m,): family-wise, under any dependence between the tests."""
    p = _checked(p)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    result = np.empty_like(p)
    result[order] = np.minimum(stepped, 1.0)
    return result


def benjamini_hochberg(p: ArrayLike) -> Array:
    """The q value (m,) of each p value (Benjamini & Hochberg 1995): among all tests with a q of at most x, a share x is expected to be
    chance, where tests are independent or depend positively, as contrasts on the same students do."""
    p = _checked(p)
    order = np.argsort(p, kind="stable")[::-1]
    result = np.empty_like(p)
    result[order] = np.minimum.accumulate(p[order] * len(p) / np.arange(len(p), 0, -1))
    return result


def q_values(p: Sequence[float | None]) -> list[float | None]:
    """The q values of a run's claims; a claim without a p value has none and does not count."""
    known = [k for k, value in enumerate(p) if value is not None]
    found = benjamini_hochberg([p[k] for k in known])
    q = dict(zip(known, found.tolist(), strict=True))
    return [q.get(k) for k in range(len(p))]
