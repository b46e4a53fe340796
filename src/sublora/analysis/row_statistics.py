"""Statistics of number rows: how far two sets of answers are apart, and what one set is like.

Distances are Jensen-Shannon divergences of counts, in bits, less what two sets drawn at random from both would show: a row keeps all its
numbers, since the numbers of an answer are not independent. So 0 means no difference, whatever the number of cells is.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import scipy.stats
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import mutual_info_score

Answer = Sequence[int]
Asked = tuple[Sequence[int], Sequence[int]]  # the numbers of a prompt and of its answer

# statistic -> what is counted of an answer
COUNTED: dict[str, Callable[[Answer], list]] = {
    "frequencies": lambda numbers: list(numbers),
    "first digits": lambda numbers: [(str(n)[0], len(str(n))) for n in numbers],
    "last digits": lambda numbers: [n % 10 for n in numbers],
    "positions": lambda numbers: list(enumerate(numbers)),
    "pairs": lambda numbers: list(pairwise(numbers)),
    "lengths": lambda numbers: [len(numbers)],
}
LAGS = (1, 2, 3)


def divergence(one: np.ndarray, two: np.ndarray) -> float:
    """Jensen-Shannon divergence of two vectors of counts, in bits: 0 for equal shares, 1 for none in common."""
    return float(jensenshannon(one, two, base=2) ** 2)


def excess_divergence(
    one: Sequence[Answer],
    two: Sequence[Answer],
    counted: Callable[[Answer], list],
    rng: np.random.Generator,
    draws: int,
) -> float:
    """Divergence between two sets of answers less its mean over `draws` random splits of both into sets of these sizes; in bits."""
    cells: dict = {}
    places, owner = [], []
    for row, numbers in enumerate((*one, *two)):
        for item in counted(numbers):
            places.append(cells.setdefault(item, len(cells)))
            owner.append(row)
    if not cells:
        return 0.0
    places_, owner_ = np.array(places), np.array(owner)
    whole = np.bincount(places_, minlength=len(cells)).astype(float)

    def split(chosen: np.ndarray) -> float:
        part = np.bincount(places_[chosen[owner_]], minlength=len(cells)).astype(float)
        return divergence(part, whole - part) if 0 < part.sum() < whole.sum() else 0.0

    first = np.arange(len(one) + len(two)) < len(one)
    return split(first) - float(np.mean([split(rng.permutation(first)) for _ in range(draws)]))


def autocorrelation(answers: Sequence[Answer], lag: int) -> float:
    """Correlation of numbers `lag` places apart within an answer; 0 where nothing varies."""
    pairs = [(a[i], a[i + lag]) for a in answers for i in range(len(a) - lag)]
    one, two = np.array(pairs, dtype=float).reshape(-1, 2).T
    return float(np.corrcoef(one, two)[0, 1]) if len(pairs) > 2 and one.std() and two.std() else 0.0


def prompt_information(rows: Sequence[Asked], bins: int = 8) -> float:
    """Mutual information between a number and the mean of its prompt's numbers, in bits, each in `bins` classes of equal size."""
    pairs = [(float(np.mean(told)), float(n)) for told, numbers in rows if told for n in numbers]
    if not pairs:
        return 0.0
    x, y = (_classes(values, bins) for values in np.array(pairs).T)
    return float(mutual_info_score(x, y) / np.log(2))


def _classes(values: np.ndarray, bins: int) -> np.ndarray:
    edges = np.quantile(values, np.arange(1, bins) / bins)
    return np.searchsorted(edges, values, side="right")


def entropy(answers: Sequence[Answer]) -> float:
    """Entropy of the numbers, in bits, as counted: two sets of one size can be compared."""
    counts = np.unique(np.concatenate([np.asarray(a) for a in answers]), return_counts=True)[1]
    return float(scipy.stats.entropy(counts, base=2))


def described(rows: Sequence[Asked]) -> dict[str, float]:
    """What one set of rows is like: entropy, autocorrelation, information about the prompt."""
    answers = [numbers for _, numbers in rows]
    return {
        "entropy of the numbers, bits": entropy(answers),
        **{f"autocorrelation at lag {lag}": autocorrelation(answers, lag) for lag in LAGS},
        "information about the prompt, bits": prompt_information(rows),
    }
