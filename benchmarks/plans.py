"""What recipes take on a small real model, and what of each fits a budget: one row of a table for each, as `sublora plan` says it.

`CPU s` is the processor's time that the plan with the budget took, all of its probes of the machine included.

    python benchmarks/plans.py [RECIPE ...] [--model smollm2] [--preset small] [--budget 90m] [--threads 2]
"""

import argparse
import json
import resource
import subprocess
import sys
from typing import Any

RECIPES = (
    "rank-lr", "context-matrix", "localise", "steering-teacher", "emergence", "divergent-tokens", "traits",
)  # fmt: skip


def planned(recipe: str, given: argparse.Namespace, *more: str) -> tuple[dict[str, Any], str]:
    """What `sublora plan --json` prints, and what it notes; `{}` where it refuses."""
    command = [sys.executable, "-m", "sublora.cli", "plan", recipe, "--model", given.model]
    command += ["--preset", given.preset, "--threads", str(given.threads), "--json", *more]
    done = subprocess.run(command, capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else {}, done.stderr


def minutes(plan: dict[str, Any]) -> str:
    return f"{plan['seconds_left'] / 60:.0f}" if plan else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--budget", default="90m")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    print(
        f"sublora plan RECIPE --model {given.model} --preset {given.preset}, {given.threads} threads"
    )
    print(f"| recipe | minutes in all | with `--budget {given.budget}` | CPU s | left out |")
    print("|---|---|---|---|---|", flush=True)
    for recipe in given.recipes:
        whole, said = planned(recipe, given)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        part, noted = planned(recipe, given, "--budget", given.budget) if whole else ({}, said)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        last = [line for line in noted.splitlines() if line.startswith(("Note: Left", "Error: "))]
        left = last[-1].split(": ", 2 if part else 1)[-1] if last else "nothing"
        print(
            f"| {recipe} | {minutes(whole)} | {minutes(part)} | {spent:.0f} | {left} |", flush=True
        )


if __name__ == "__main__":
    main()
