"""How much time a run saves because no kind of step waits for the last step of another kind.

    python benchmarks/barriers.py                          real plans, whose steps sleep for as long as they would compute
    python benchmarks/barriers.py --ray --workers 4        the same on workers of Ray
    python benchmarks/barriers.py --real rank --workers 6  a recipe that computes, on Ray

The steps and what they need are those of a recipe's plan; a step sleeps in proportion to the plan's count of its operations, give or
take what machines differ by. With barriers means: the same steps, and each needs besides all that the kind before it makes.
"""

import argparse
import contextlib
import json
import queue
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sublora.experiments.kinds import open_recipe
from sublora.runner.display import Display
from sublora.runner.execution import Execution
from sublora.runner.ray import connect
from sublora.runner.worker import Answer, Setup, token_of
from sublora.steps.step import Cost, Step, Workshop
from sublora.store import Store, artifact_id

RECIPES = ("rank-lr", "steering-teacher", "trained-teacher", "unique-vs-repeated")
SPREAD = 0.25  # of the logarithm of a step's time
LEAST = 0.002  # share of all work that a step takes at least: no step is free


@dataclass(frozen=True)
class Sleep:
    """A step that takes its time and makes empty artifacts."""

    kind: str
    label: str
    makes: tuple[str, ...]
    needs: tuple[str, ...]
    seconds: float
    model = None

    @property
    def id(self) -> str:
        return self.makes[0]

    @property
    def cost(self) -> Cost:
        return Cost(flops=self.seconds)

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        time.sleep(self.seconds)
        for n, name in enumerate(self.makes):
            with workshop.store.create(name, {"name": f"{self.label}{n}"}):
                pass
            workshop.made(name)


def sleeping(steps: Sequence[Step], seconds: float) -> list[Sleep]:
    """The steps of a plan, `seconds` of work in all."""
    rng, everything = random.Random(0), sum(s.cost.flops for s in steps)
    names: dict[str, str] = {}
    for number, step in enumerate(steps):
        for n, name in enumerate(step.makes):
            names[name] = artifact_id("sleep", {"name": f"{number}.{n}"})
    out = []
    for number, step in enumerate(steps):
        share = max(step.cost.flops / everything, LEAST) * rng.lognormvariate(0, SPREAD)
        makes, needs = ([names[n] for n in of if n in names] for of in (step.makes, step.needs))
        out.append(Sleep(step.kind, f"{number}.", tuple(makes), tuple(needs), share * seconds))
    return out


def barred(steps: Sequence[Sleep]) -> list[Sleep]:
    """The same with a barrier before each kind."""
    kinds = list(dict.fromkeys(s.kind for s in steps))
    made = {k: tuple(n for s in steps if s.kind == k for n in s.makes) for k in kinds}
    before = dict(zip(kinds[1:], kinds, strict=False))
    return [
        replace(s, needs=tuple(dict.fromkeys((*s.needs, *made.get(before.get(s.kind, ""), ())))))
        for s in steps
    ]


class Sleepers:
    """`workers` threads that sleep; an `Executor` without processes or artifacts."""

    def __init__(self, workers: int) -> None:
        self.workers, self.running = workers, 0
        self.news: queue.SimpleQueue[Sleep] = queue.SimpleQueue()

    def room(self) -> bool:
        return self.running < self.workers

    def submit(self, step: Sleep, wait: bool) -> None:
        self.running += 1
        threading.Thread(target=self._sleep, args=(step,), daemon=True).start()

    def _sleep(self, step: Sleep) -> None:
        time.sleep(step.seconds)
        self.news.put(step)

    def advance(self, listener) -> None:
        step = self.news.get()
        self.running -= 1
        listener.started(step)
        listener.ended(step, Answer("done"))

    def close(self) -> None:
        pass


def wall(steps: Sequence[Step], workers: int, ray: bool) -> float:
    """Seconds of one execution on an empty store, without the start of the workers."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        store = Store(Path(folder))
        executor = Sleepers(workers)
        if ray:
            setup = Setup(None, None, (), "float32", None, "cpu", 1, folder, token_of(store))
            cluster = stack.enter_context(connect(None, workers, "cpu"))
            executor = cluster.executor(steps, setup, store)
            warm = [
                Sleep("warm", f"w{n}.", (artifact_id("sleep", {"name": f"w{n}.0"}),), (), 1.0)
                for n in range(workers)
            ]
            Execution(executor, store, Display(every=1e9)).run(warm)
        started = time.monotonic()
        Execution(executor, store, Display(every=1e9)).run(steps)
        return time.monotonic() - started


def real(name: str, workers: int, bars: bool) -> float:
    """Seconds of a small recipe that computes, on Ray, on an empty store; the start of the workers included."""
    from sublora.models.known import known_base
    from sublora.packs.check import load_base

    recipe = open_recipe(
        name,
        sets=["data.rows=96", "data.seeds=[1,2]", "train.seeds=[1,2]", "measure.samples=3"],
    )
    base = load_base("micro")
    steps = recipe.plan(known_base(base))
    with tempfile.TemporaryDirectory() as folder, connect(None, workers, "cpu") as cluster:
        store, identity = Store(Path(folder)), tuple(sorted(base.identity.items()))
        setup = Setup(
            "micro", "micro", identity, "float32", None, "cpu", 1, folder, token_of(store)
        )
        executor = cluster.executor(steps, setup, store)
        started = time.monotonic()
        if not bars:
            Execution(executor, store, Display()).run(steps)
        else:  # kind after kind, which is what barriers are
            for kind in dict.fromkeys(s.kind for s in steps):
                mine = [s for s in steps if s.kind == kind]
                Execution(executor, store, Display()).run(mine)
        return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--workers", nargs="+", type=int, default=(8, 32))
    parser.add_argument("--seconds", type=float, default=4.0, help="work of each worker")
    parser.add_argument("--ray", action="store_true", help="sleep on workers of Ray")
    parser.add_argument("--real", metavar="RECIPE", help="compute a small recipe on Ray instead")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    print(
        f"{'recipe':<20}{'workers':>8}{'datasets':>9}{'steps':>7}{'barriers, s':>13}{'none, s':>9}{'saved':>7}"
    )
    for name in [options.real] if options.real else options.recipes:
        plan = open_recipe(name)
        steps = plan.plan(plan.known())
        datasets = sum(s.kind == "datasets" for s in steps)
        for workers in options.workers:
            if options.real:
                slow, fast = (real(name, workers, bars) for bars in (True, False))
            else:
                asleep = sleeping(steps, options.seconds * workers)
                slow, fast = (wall(s, workers, options.ray) for s in (barred(asleep), asleep))
            row = {"recipe": name, "workers": workers, "datasets": datasets, "steps": len(steps)}
            rows.append(row | {"barriers_s": round(slow, 2), "none_s": round(fast, 2)})
            saved = f"{1 - fast / slow:.0%}"
            print(
                f"{name:<20}{workers:>8}{datasets:>9}{len(steps):>7}{slow:>13.1f}{fast:>9.1f}{saved:>7}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
