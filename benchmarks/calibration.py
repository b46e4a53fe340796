"""How often the program calls a transfer where none can be: on micro-null, and of students of neutral rows; and where one is planted.

One trait student, one control student and one student of neutral rows are trained for each of at least 100 data seeds (each with a
training seed of its own). An experiment of the size that recipes use, four replicates, is then drawn many times from these seeds, and
called by the very rule of the recipes (`Effect.shown`): log-odds of student less control and of student less base both above zero, p
below the level. The share of calls is the rate; its error is a jackknife over seeds.

    python benchmarks/calibration.py [--seeds 100] [--json FILE]
"""

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from sublora.analysis.contrast import MIN_EFFECT
from sublora.analysis.effects import Effect
from sublora.experiments.grid.effects import Results, cell_effects, effect_of
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


def effects(model: str, seeds: int, rank: int, lr: float, store: Store) -> dict[str, list[Effect]]:
    """Of trait and of neutral students, one effect a trait with a replicate for each of its seeds; the seeds are shared out among them."""
    out: dict[str, list[Effect]] = {"trait": [], "neutral": []}
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
        results = Results(recipe.layout(known), store)
        (subject,) = results.plan.traits
        out["trait"].append(cell_effects(results, "default")[0])
        out["neutral"].append(effect_of(results, subject, results.plan.neutral, "default", None))
    return out


def call_rate(effects: list[Effect], level: float) -> tuple[float, float]:
    """(share of experiments called, its jackknife standard error); an experiment's replicates are of one trait."""
    rng = generator("calibration")
    drawn, called = [], []
    for draw in range(DRAWS):
        number = draw % len(effects)
        whole = effects[number]
        chosen = rng.choice(len(whole.values), size=REPLICATES, replace=False)
        own = replace(
            whole,
            values=whole.values[chosen],
            data_seeds=tuple(chosen.tolist()),
            train_seeds=tuple(chosen.tolist()),
            parts={"rise": whole.parts["rise"][chosen]},
        )
        interval = own.shown(1 - level)
        drawn.append({(number, k) for k in chosen.tolist()})
        called.append(interval.p_value < level and interval.estimate >= MIN_EFFECT)
    hits = np.array(called, dtype=float)
    every = [(k, j) for k, e in enumerate(effects) for j in range(len(e.values))]
    without = np.array([hits[[one not in d for d in drawn]].mean() for one in every])
    n = len(every)
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
    columns = ("students", "seeds", "P(target)", "control", "effect, nats", "sd of seeds", "called")
    print(f"{'model':<12}" + "".join(f"{c:>14}" for c in columns) + f"{'s.e.':>8}")
    names = {"trait": ("detection_rate", "false_call_rate"), "neutral": ("neutral_call_rate",) * 2}
    for place, model in enumerate(("micro", "micro-null")):
        for who, found in effects(model, args.seeds, args.rank, args.lr, store).items():
            rate, error = call_rate(found, args.level)
            name = names[who][place] + ("_null" if who == "neutral" and place else "")
            figures |= {name: rate, f"{name}_se": error}
            gap = np.concatenate([e.values.mean(1) for e in found])
            p = [np.mean([e.parts[k].mean() for e in found]) for k in ("student", "control")]
            numbers = [f"{x:.4f}" for x in (*p, gap.mean(), gap.std(ddof=1), rate, error)]
            cells = [who, str(args.seeds), *numbers[:-1]]
            row = f"{model:<12}" + "".join(f"{c:>14}" for c in cells) + f"{error:>8.3f}"
            print(row, flush=True)
    print(
        f"Level {args.level:g} (two-sided, so {args.level / 2:g} of false calls above zero are nominal), rank {args.rank}, lr {args.lr:g}, "
        f"{REPLICATES} replicates an experiment, traits {', '.join(TRAITS)}; {time.monotonic() - started:.0f} s on {os.cpu_count()} cores."
    )
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
