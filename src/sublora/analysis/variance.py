"""How the spread of an effect divides among data seeds, training seeds and questions: variance components by the method of moments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sublora.analysis.intervals import Array, Interval
from sublora.seeds import generator

Levels = tuple[int, ...]  # of a factor, one for each value
MEAN, REST = "mean", "rest"
DRAWS = 20_000  # of a generalised interval


@dataclass(frozen=True)
class Shares:
    """Shares of the variance of one value, which replicate and question add up to. `seeds` + `question` + `rest` = 1.

    `seeds` is what lies between replicates: `data` + `train` + their interaction where the design is crossed. `data` and `train` are NaN
    where they cannot be told apart (paired seeds) or have one level, `question` where there is one. `rest` holds the interactions of
    seeds and questions, and chance.
    """

    data: float = math.nan
    train: float = math.nan
    seeds: float = math.nan
    question: float = math.nan
    rest: float = math.nan


def variance_shares(
    values: ArrayLike, data_seeds: Sequence[int], train_seeds: Sequence[int]
) -> Shares:
    """Of values (R replicates, Q questions), all random and crossed (Henderson's first method, 1953; in a balanced design the usual analysis
    of variance). Components below 0 count as 0. All are NaN where nothing varies, or a value is not finite."""
    y = np.asarray(values, dtype=float)
    if y.size < 2 or not np.isfinite(y).all() or np.ptp(y) == 0:
        return Shares()
    names, factors, moments = _design(tuple(data_seeds), tuple(train_seeds), y.shape[1])
    flat = (y - y.mean()).reshape(-1)
    squares = [np.sum(np.bincount(f, flat) ** 2 / np.bincount(f)) for f in factors]
    parts = np.clip(np.linalg.lstsq(moments, np.array(squares), rcond=None)[0], 0.0, None)
    if parts.sum() == 0:
        return Shares()
    of = dict(zip(names, parts / parts.sum(), strict=True))

    def share(*wanted: str) -> float:
        mine = [float(v) for name, v in of.items() if name in wanted]
        return sum(mine) if mine else math.nan

    seeds, question = share("data", "train", "seeds"), share("question")
    return Shares(
        share("data"),
        share("train"),
        seeds,
        question,
        share("data question", "train question", REST),
    )


def seed_gap(means: Array, level: float = 0.95) -> Interval:
    """The variance component of the data seed less that of the training seed, of means (data seeds, training seeds) that are crossed.

    Components are those of the analysis of variance. The interval is a generalised one (Weerahandi 1995): each mean square is divided by
    draws of the chi-square that it would have, and the share of draws on one side of 0 is half of the p value.
    """
    d, t = means.shape
    rows, columns = means.mean(axis=1, keepdims=True), means.mean(axis=0, keepdims=True)
    rest = means - rows - columns + means.mean()
    squares = (t * np.var(rows) * d, d * np.var(columns) * t, float((rest**2).sum()))
    dfs = (d - 1, t - 1, (d - 1) * (t - 1))
    random = generator("seed-gap")
    data, train, both = (s / random.chisquare(k, DRAWS) for s, k in zip(squares, dfs, strict=True))
    drawn = (data - both) / t - (train - both) / d
    data, train, both = (s / k for s, k in zip(squares, dfs, strict=True))
    estimate = float((data - both) / t - (train - both) / d)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    below = (float(np.sum(drawn <= 0)) + 1) / (DRAWS + 1)
    p = min(1.0, 2 * min(below, 1 - below + 1 / (DRAWS + 1)))
    return Interval(estimate, float(low), float(high), min(dfs), p, level)


@lru_cache(maxsize=256)
def _design(
    data: Levels, train: Levels, questions: int
) -> tuple[list[str], list[np.ndarray], Array]:
    """(names, factors, moments): the factors that the design can tell apart, levels (N,) of each, and what a variance of 1 of each adds
    to each factor's sum of squares (mean taken off)."""
    count = len(data) * questions
    both = _levels(list(zip(data, train, strict=True)))
    of_row = {"data": _levels(data), "train": _levels(train), "seeds": both}
    asked = np.tile(np.arange(questions), len(data))
    long = {name: np.repeat(levels, questions) for name, levels in of_row.items()}
    every = {"question": asked, **long}
    every |= {
        f"{n} question": _levels(list(zip(long[n], asked, strict=True))) for n in ("data", "train")
    }
    every |= {REST: np.arange(count)}
    kept: dict[bytes, str] = {}
    # what two factors share belongs to the later one: paired seeds are "seeds", the finest of all is the rest
    order = ["data", "train", "seeds", "question", "data question", "train question", REST]
    nested = _nested(of_row)
    for name in order:
        if every[name].max() > 0:
            kept[every[name].tobytes()] = nested.get(name, name)
    names = list(kept.values())
    factors = [np.frombuffer(raw, dtype=np.int64) for raw in kept]
    whole = np.zeros(count, dtype=np.int64)
    moments = [[_moment(g, h) - _moment(whole, h) for h in factors] for g in factors]
    return names, factors, np.array(moments)


def _nested(of_row: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Whose the levels of both seeds are where they are those of one alone."""
    data, train, both = (of_row[name].tobytes() for name in ("data", "train", "seeds"))
    if data == train:
        return {}
    return {"seeds": "data"} if both == data else {"seeds": "train"} if both == train else {}


def _levels(labels: Sequence[Any]) -> np.ndarray:
    """Numbers from 0 in the order in which levels come first, so that equal divisions are equal arrays."""
    seen: dict[Any, int] = {}
    return np.array([seen.setdefault(label, len(seen)) for label in labels], dtype=np.int64)


def _moment(of: np.ndarray, by: np.ndarray) -> float:
    """What a variance of 1 of the factor `by` adds to the sum over levels of `of` of (sum of values)^2 / n."""
    cells, n = np.unique(np.stack([of, by]), axis=1, return_counts=True)
    return float(np.sum(n**2 / np.bincount(of)[cells[0]]))


def spread_sentence(cells: Sequence[Mapping[str, Any]]) -> str | None:
    """What a page says of the rows of cells.csv, on average; None where nothing is known."""

    def told(*factors: tuple[str, str]) -> list[str]:
        means = ((np.array([c[f"icc_{name}"] for c in cells]), place) for name, place in factors)
        return [f"{np.nanmean(v):.0%} between {p}" for v, p in means if np.isfinite(v).any()]

    apart = told(("data", "data seeds"), ("train", "training seeds"))
    apart = apart or told(("seeds", "replicates (data and training seed together)"))
    said = apart + told(("question", "questions"))
    if not said:
        return None
    return f"Of the spread of an effect, {', '.join(said)}; the rest is their interplay and chance (mean over cells)."
