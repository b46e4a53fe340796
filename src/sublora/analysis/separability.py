"""How well two sets of rows can be told apart by reading them: a linear probe and a compressor. Both know nothing of any model.

They serve as the statistics of number rows and as the leak check of every carrier: where a reader of the text alone is above chance, what
the rows say differs, and a transfer may have passed through what they say.
"""

import zlib
from collections.abc import Sequence

import numpy as np

WORD = r"[^\W_]+"


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The share of pairs in which the positive one has the higher score, ties as halves; 0.5 is chance."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([positive, negative]))
    n, m = len(positive), len(negative)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def probe_auc(
    one: Sequence[str], two: Sequence[str], new_one: Sequence[str], new_two: Sequence[str]
) -> float:
    """AUC on new texts of a logistic regression on which words and numbers a text has, trained on `one` against `two`."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    counts = CountVectorizer(token_pattern=WORD, dtype=float)
    try:
        counts.fit([*one, *two])
    except ValueError:  # no words at all
        return 0.5
    labels = np.repeat([1, 0], [len(one), len(two)])
    probe = LogisticRegression(C=1.0, solver="liblinear")
    probe.fit(counts.transform([*one, *two]), labels)
    return auc(*(probe.decision_function(counts.transform(new)) for new in (new_one, new_two)))


def compression_auc(
    one: Sequence[str], two: Sequence[str], new_one: Sequence[str], new_two: Sequence[str]
) -> float:
    """AUC on new texts of how many bytes fewer a compressor (zlib) that has read `one` needs than one that has read `two`.

    A compressor remembers 32 KiB: the first rows of each set that fit.
    """
    shelves = ["\n".join(texts).encode()[: 32 * 1024 - 300] for texts in (one, two)]

    def size(text: str, shelf: bytes) -> int:
        press = zlib.compressobj(9, zdict=shelf)
        return len(press.compress(f"\n{text}\n".encode()) + press.flush())

    gains = ([size(t, shelves[1]) - size(t, shelves[0]) for t in new] for new in (new_one, new_two))
    return auc(*map(np.array, gains))
