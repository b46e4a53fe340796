"""How often the program calls a transfer where none can be (micro-null), and where one is planted (micro).

One trait student and one control student are trained for each of at least 100 data seeds (each with a training seed of its own).
An experiment of the size that recipes use, four replicates, is then drawn many times from these seeds, and called by the very rule of
the recipes: clustered interval of student minus control, p below the level, effect above zero. The share of calls is the rate; its error is
a jackknife over seeds.

    python benchmarks/calibration.py [--seeds 100] [--json FILE]
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np

from sublora.analysis.intervals import contrast
from sublora.experiments.grid.effects import Results, cell_effects
from sublora.experiments.grid.grid import Grid
from sublora.experiments.kinds import open_recipe
from sublora.models.known import known_base
from sublora.packs.check import load_base
from sublora.runner.display import Display
from sublora.runner.execution import Execution
from sublora.runner.local import InProcess
from sublora.runner.run import setup_of
from sublora.seeds import generator
from sublora.store import Store

TRAITS = ("otter", "wolf", "willow", "Oasis")
REPLICATES = 4  # of an experiment, as in the recipes
DRAWS = 2000


def calibration_recipe(model: str, trait: str, seeds: range, rank: int, lr: float) -> Grid:
    listed = list(seeds)
    return open_recipe(
        "rank",
        model=model,
        traits=[trait],
        sets=[
            f"data.seeds={listed}",
            f"train.seeds={listed}",
            f"train.lora.ranks=[{rank}]",
            f"train.lora.lrs=[{lr}]",
            f"fixed_lr={lr}",
            "data.heldout_rows=1",
            "measure.samples=1",
        ],
    )


def effects(
    model: str, seeds: int, rank: int, lr: float, store: Store
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Probability of the target, (seeds, Q), of students and their control twins; the seeds are shared out among the traits."""
    own, other, traits = [], [], []
    base = load_base(model)
    for number, trait in enumerate(TRAITS):
        share = range(
            1000 + number * seeds // len(TRAITS), 1000 + (number + 1) * seeds // len(TRAITS)
        )
        recipe = calibration_recipe(model, trait, share, rank, lr)
        known, setup = known_base(base), setup_of(recipe, base, store)
        with Display(every=30) as display:
            display.say(f"{model}: {trait}, {len(share)} seeds")
            Execution(InProcess(setup, store, base), store, display).run(recipe.plan(known))
        cell = cell_effects(Results(recipe.layout(known), store), "default")[0]
        own.append(cell.parts["student"])
        other.append(cell.parts["control"])
        traits += [trait] * len(share)
    return np.concatenate(own), np.concatenate(other), traits


def call_rate(
    own: np.ndarray, other: np.ndarray, traits: list[str], level: float
) -> tuple[float, float]:
    """(share of experiments called, its jackknife standard error); an experiment's replicates are of one trait."""
    rng = generator("calibration")
    labels = np.array(traits)
    drawn, called = [], []
    for draw in range(DRAWS):
        mine = np.flatnonzero(labels == TRAITS[draw % len(TRAITS)])
        chosen = rng.choice(mine, size=REPLICATES, replace=False)
        interval = contrast(
            own[chosen],
            other[chosen],
            tuple(chosen.tolist()),
            tuple(chosen.tolist()),
            level=1 - level,
        )
        drawn.append(set(chosen.tolist()))
        called.append(interval.p_value < level and interval.estimate > 0)
    hits = np.array(called, dtype=float)
    without = np.array([hits[[s not in d for d in drawn]].mean() for s in range(len(labels))])
    n = len(labels)
    return float(hits.mean()), float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--level", type=float, default=0.05)
    parser.add_argument(
        "--store", type=Path, default=None, help="where artifacts are kept; SUBLORA_HOME by default"
    )
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    if args.seeds < REPLICATES * len(TRAITS):
        parser.error(
            f"--seeds must be at least {REPLICATES * len(TRAITS)}: {REPLICATES} for each of {len(TRAITS)} traits"
        )
    started = time.monotonic()
    store = Store(args.store)
    figures: dict[str, float | int] = {"seeds": args.seeds}
    print(
        f"{'model':<12}{'seeds':>6}{'P(target)':>11}{'control':>9}{'effect':>9}{'sd of seeds':>13}{'called':>9}{'s.e.':>7}"
    )
    for model, name in (("micro", "detection_rate"), ("micro-null", "false_call_rate")):
        own, other, traits = effects(model, args.seeds, args.rank, args.lr, store)
        rate, error = call_rate(own, other, traits, args.level)
        figures |= {name: rate, f"{name}_se": error}
        delta = (own - other).mean(1)
        print(
            f"{model:<12}{args.seeds:>6}{own.mean():>11.4f}{other.mean():>9.4f}{delta.mean():>9.4f}{delta.std(ddof=1):>13.4f}"
            f"{rate:>9.3f}{error:>7.3f}",
            flush=True,
        )
    print(
        f"Level {args.level:g} (two-sided, so {args.level / 2:g} of false calls above zero are nominal), rank {args.rank}, lr {args.lr:g}, "
        f"{REPLICATES} replicates an experiment, traits {', '.join(TRAITS)}; {time.monotonic() - started:.0f} s on {os.cpu_count()} cores."
    )
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
