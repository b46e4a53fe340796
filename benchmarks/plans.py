"""What recipes take on a small real model, and what of each fits a budget: a row of a table for each, by the same pace as `sublora plan` has.

`probe s` is the processor's time that went into the pace, the probe of this machine.

    python benchmarks/plans.py [RECIPE ...] [--model smollm2] [--preset small] [--budget 90m] [--threads 2]
"""

import argparse
import time

from sublora.errors import SubloraError
from sublora.experiments.kinds import open_recipe
from sublora.runner import probe  # noqa: F401  imported before its time is taken
from sublora.runner.budget import within
from sublora.runner.estimate import seconds_of
from sublora.store import Store
from sublora.text import duration

RECIPES = (
    "rank-lr", "context-matrix", "localise", "steering-teacher", "emergence", "divergent-tokens", "traits",
)  # fmt: skip


def row(name: str, given: argparse.Namespace) -> str:
    try:
        recipe = open_recipe(name, preset=given.preset, sets=[], model=given.model, traits=[])
        take = seconds_of(recipe, Store(), "cpu", given.threads)
        started = time.process_time()
        whole = take(recipe)
        spent = time.process_time() - started
    except SubloraError as error:
        return f"| {name} | refused | | | {error} |"
    try:
        fitted = within(recipe, given.budget, None, take)
    except SubloraError as error:
        return f"| {name} | {duration(whole)} | does not fit | {spent:.1f} | {error} |"
    part, left = duration(take(fitted.recipe)), fitted.said.partition(": ")[2] or "nothing"
    return f"| {name} | {duration(whole)} | {part} | {spent:.1f} | {left} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--budget", default="90m")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    print(f"{given.model}, preset {given.preset}, {given.threads} threads\n")
    print(f"| recipe | whole | with --budget {given.budget} | probe s | left out |")
    print("|---|---|---|---|---|", flush=True)
    for name in given.recipes:
        print(row(name, given), flush=True)


if __name__ == "__main__":
    main()
