"""Log-odds of a target among the words of its category: what an effect is a difference of.

A control student was taught another trait, whose word takes probability from all others. A difference of probabilities would count
that as transfer of the target. Log-odds among the words that nobody was taught do not move when the control's word takes its share.
"""

from collections.abc import Sequence

import numpy as np

from sublora.analysis.intervals import Array

LEAST = 1e-6  # a smaller probability counts as this one: a broken student has none left to compare


def log_odds(p: Array, target: int, without: Sequence[int] = ()) -> Array:
    """Log-odds (Q,), in nats, of the word `target` against all other words of `p` (Q, E) but those of `without`."""
    return log_ratios(p, [target], [target, *without])[:, 0]


def log_ratios(p: Array, words: Sequence[int], without: Sequence[int]) -> Array:
    """Log of `p` (Q, E) at each of the `words` over its sum at all words but those of `without`, in nats: (Q, len(words))."""
    others = np.delete(p, list(without), axis=1).sum(axis=1, keepdims=True)
    return np.log(np.maximum(p[:, list(words)], LEAST) / np.maximum(others, LEAST))
