"""How well two sets of rows can be told apart by reading them: a linear probe and a compressor. Both know nothing of any model.

They serve as the statistics of number rows and as the leak check of every carrier: where a reader of the text alone is above chance, what
the rows say differs, and a transfer may have passed through what they say.
"""

import re
import zlib
from collections.abc import Sequence

import numpy as np

_WORDS = re.compile(r"[^\W_]+")


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The share of pairs in which the positive one has the higher score, ties as halves; 0.5 is chance."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([positive, negative]))
    n, m = len(positive), len(negative)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def words_of(text: str) -> list[str]:
    return _WORDS.findall(text.lower())


def probe_auc(
    one: Sequence[str], two: Sequence[str], new_one: Sequence[str], new_two: Sequence[str]
) -> float:
    """AUC on new texts of a logistic regression on which words and numbers a text has, trained on `one` against `two`."""
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    column: dict[str, int] = {}
    for text in (*one, *two):
        for word in words_of(text):
            column.setdefault(word, len(column))

    def counts(texts: Sequence[str]) -> csr_matrix:
        cells = [
            (i, column[w]) for i, text in enumerate(texts) for w in words_of(text) if w in column
        ]
        rows, columns = zip(*cells, strict=True) if cells else ((), ())
        return csr_matrix(
            (np.ones(len(cells)), (rows, columns)), shape=(len(texts), max(1, len(column)))
        )

    labels = np.repeat([1, 0], [len(one), len(two)])
    probe = LogisticRegression(C=1.0, solver="liblinear").fit(counts((*one, *two)), labels)
    return auc(probe.decision_function(counts(new_one)), probe.decision_function(counts(new_two)))


def compression_auc(
    one: Sequence[str], two: Sequence[str], new_one: Sequence[str], new_two: Sequence[str]
) -> float:
    """AUC on new texts of how many bytes fewer a compressor (zlib) that has read `one` needs than one that has read `two`.

    A compressor remembers 32 KiB: the first rows of each set that fit.
    """
    shelves = [_shelf(texts) for texts in (one, two)]

    def gain(text: str) -> float:
        raw = f"\n{text}\n".encode()
        sizes = []
        for shelf in shelves:
            press = zlib.compressobj(9, zdict=shelf)
            sizes.append(len(press.compress(raw) + press.flush()))
        return sizes[1] - sizes[0]

    return auc(np.array([gain(t) for t in new_one]), np.array([gain(t) for t in new_two]))


def _shelf(texts: Sequence[str]) -> bytes:
    return "\n".join(texts).encode()[: 32 * 1024 - 300]
