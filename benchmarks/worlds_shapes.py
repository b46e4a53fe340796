"""Simulated worlds in which the shape of transfer over rank, or the best learning rate of a rank, is known beforehand.

    python benchmarks/worlds_shapes.py      all of them, about a minute

Each function returns a dict of figures. Values are in no unit: an effect is whatever the analysis takes for one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from sublora.analysis.best_rate import best_rates
from sublora.analysis.effects import Effect
from sublora.analysis.evidence import Grid, View
from sublora.analysis.rules import RULES

QUESTIONS = 20
RANKS = (1, 4, 16, 32, 64)
NARROW = (3e-4, 1e-3, 3e-3, 1e-2)
WIDE = (*NARROW, 3e-2, 1e-1)  # what `--extend-lrs` makes of it
SHAPES = ("inverted_u", "monotone_decline", "transfer_flat_in_rank")


def cell(
    draw: np.random.Generator, mean: float, seeds: int, sd: float, rank: int = 8, lr: float = 1e-3
) -> Effect:
    """A cell: every seed has luck of its own with spread `sd`, questions are near copies of each other."""
    luck = sd * draw.standard_normal((seeds, 1))
    questions = 0.01 * draw.standard_normal((1, QUESTIONS))
    values = mean + luck + questions + 0.02 * draw.standard_normal((seeds, QUESTIONS))
    labels = {"trait": "otter", "method": "lora", "rank": rank, "lr": lr}
    return Effect(labels, values, tuple(range(seeds)), tuple(range(seeds)))


def judged(cells: Sequence[Effect], rules: Sequence[str], view: View) -> list[str]:
    evidence = Grid(cells, fixed_lr=1e-3).of("otter")
    return [RULES[rule].judge(evidence, view, RULES[rule].defaults)[0] for rule in rules]


def winners(runs: int = 3000, seeds: int = 4, rates: int = 5, truth: float = 0.2) -> dict[str, Any]:
    """The bias of the reported best transfer where all rates are equally good, by the spread over seeds: as it is, and with the choice
    on one half of the questions and the reading on the other, as it was. And how often the interval holds the truth."""
    out: dict[str, Any] = {}
    for sd in (0.05, 0.10):
        draw, found, halves, held = np.random.default_rng(1), [], [], 0
        for _ in range(runs):
            cells = [cell(draw, truth, seeds, sd, lr=1e-4 * 2**k) for k in range(rates)]
            (best,) = best_rates(cells).values()
            interval = best.interval(0.95)
            found.append(interval.estimate)
            held += interval.low <= truth <= interval.high
            half = max(cells, key=lambda c: c.values[:, ::2].mean())
            halves.append(half.values[:, 1::2].mean())
        out[f"sd {sd:.2f}"] = {
            "bias": float(np.mean(found) - truth),
            "bias_by_halves": float(np.mean(halves) - truth),
            "coverage": held / runs,
        }
    return out


def falling(draw: np.random.Generator, rates: Sequence[float], seeds: int = 4) -> list[Effect]:
    """At its best rate, .08 over the rank, transfer falls by .1 with every doubling of the rank; away from it, it falls as a bell."""
    return [
        cell(
            draw,
            (0.85 - 0.1 * np.log2(rank)) * np.exp(-((np.log10(lr * rank / 0.08) / 0.85) ** 2)),
            seeds,
            0.05,
            rank,
            lr,
        )
        for rank in RANKS
        for lr in rates
    ]


def censored(runs: int = 500) -> dict[str, Any]:
    """Verdicts of the two claims that exclude each other where the rates end below the best ones of ranks 1 and 4, and where they do not.

    `reversed`: runs in which the rise and fall is supported or the decline refuted, both of which are wrong here.
    """
    out = {}
    for name, rates in (("narrow", NARROW), ("wide", WIDE)):
        draw, turned, right, open_ = np.random.default_rng(2), 0, 0, 0
        for _ in range(runs):
            cells = falling(draw, rates)
            u, fall = judged(cells, SHAPES[:2], "best-lr")
            turned += u == "supported" or fall == "refuted"
            right += (u, fall) == ("refuted", "supported")
            open_ += (u, fall) == ("inconclusive", "inconclusive")
        out[name] = {"runs": runs, "reversed": turned, "right": right, "inconclusive": open_}
    return out


def random_curve(draw: np.random.Generator, count: int) -> np.ndarray:
    """Flat, a line, a hill, a valley, a step, a walk, or a hill on a slope."""
    x, size = np.linspace(0, 1, count), draw.uniform(0, 1.5)
    hill = np.exp(-(((x - draw.uniform(0, 1)) / draw.uniform(0.1, 0.6)) ** 2))
    kinds = (
        np.zeros(count),
        (x - 0.5) * draw.choice([-1, 1]),
        hill,
        -hill,
        (x > draw.uniform(0, 1)) * float(draw.choice([-1, 1])),
        np.cumsum(draw.normal(0, 0.4, count)),
        hill - x,
    )
    return draw.choice([0.0, 0.1, 0.5, 1.0]) + size * kinds[draw.integers(len(kinds))]


def contradictions(curves: int = 2000) -> dict[str, Any]:
    """Pairs of claims on one random curve with noise whose statements exclude each other: how many are both supported, or one
    supported and the other not refuted. Half of the curves are at best rates, of which some are at an edge."""
    draw, both, loose, supported = np.random.default_rng(3), 0, 0, 0
    for number in range(curves):
        count, seeds = int(draw.integers(3, 8)), int(draw.choice([2, 3, 4, 8]))
        means, sd = random_curve(draw, count), float(draw.choice([0.005, 0.02, 0.05, 0.2]))
        view: View = "best-lr" if number % 2 else "fixed-lr"
        rates = (5e-4, 1e-3, 2e-3) if number % 2 else (1e-3,)
        cells = []
        for k, mean in enumerate(means):
            best = int(draw.choice([0, 1, 1, 1, 1, 2]))
            cells += [
                cell(draw, mean - 0.2 * abs(j - best), seeds, sd, 2**k, lr)
                for j, lr in enumerate(rates)
            ]
        groups = [SHAPES, ("any_transfer", "no_transfer")]
        for rules in groups:
            answers = judged(cells, rules, view)
            supported += "supported" in answers
            for one, other in itertools.permutations(answers, 2):
                both += (one, other) == ("supported", "supported")
                loose += one == "supported" and other == "inconclusive"
    return {"curves": curves, "supported": supported, "contradictions": both + loose}


def main() -> None:
    worlds = {"winners": winners, "censored": censored, "contradictions": contradictions}
    print(json.dumps({name: world() for name, world in worlds.items()}, indent=1))


if __name__ == "__main__":
    main()
