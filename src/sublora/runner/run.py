"""A run: one execution of a recipe of any kind, in a folder that a person can read, resumed by the same command."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sublora.analysis.effects import Effect
from sublora.analysis.page import Registration
from sublora.analysis.tables import estimate_rows, to_csv
from sublora.experiments.experiment import NOTHING, Experiment, Findings
from sublora.experiments.page import page_of
from sublora.models.base import Base, placed
from sublora.models.known import Known, known_base
from sublora.packs.check import load_base
from sublora.runner.display import Display
from sublora.runner.estimate import own_pace
from sublora.runner.execution import Execution, Executor
from sublora.runner.folder import (
    RunRecord,
    check_files,
    guard_other_recipe,
    hashes,
    old_manifest,
    only_one,
    recorded,
)
from sublora.runner.local import crew, local_executor
from sublora.runner.manifest import manifest_of, now
from sublora.runner.pace import rows_of
from sublora.runner.prereg import Prereg, check_run, registration
from sublora.runner.queue import soonest
from sublora.runner.rates import keep_rates, rates_of, read_rates
from sublora.runner.tested import newer
from sublora.runner.worker import Setup, token_of
from sublora.steps.step import ROWS_AT_ONCE, Step
from sublora.store import Store, write_atomic, write_json_atomic
from sublora.store.known_runs import note_run

if TYPE_CHECKING:  # draws figures, and a run may draw none
    from sublora.report.loaded import LoadedRun


@dataclass(frozen=True)
class RunOptions:
    """Where and how fast a run is made; none of it changes what it comes to.

    `device`: cpu, cuda, or with Ray auto. `threads` of the CPU, all by default. `rows_at_once`:
    rows of a scoring batch. `ray_address` of a running cluster; without it one is started here. `serve`: a page on this machine shows how
    the run goes.
    """

    device: str = "cpu"
    threads: int | None = None
    rows_at_once: int | None = None
    executor: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    serve: bool = False


@dataclass(frozen=True, repr=False)
class RunResult:
    """What a run came to; a notebook shows it as the run that it left in `folder`."""

    folder: Path
    page: Path
    findings: Findings
    verdicts: list[dict[str, Any]]
    warnings: list[str]
    seconds: dict[str, float]
    planned: dict[str, float]

    def load(self) -> LoadedRun:
        """The run's tables, verdicts and figures."""
        from sublora.report.loaded import load_run

        return load_run(self.folder)

    def __repr__(self) -> str:
        return f"RunResult({self.load()!r})"

    def _repr_html_(self) -> str:
        return self.load()._repr_html_()


def run(
    recipe: Experiment,
    out: Path | str,
    options: RunOptions = RunOptions(),
    *,
    store: Store | None = None,
    base: Base | None = None,
    said: Mapping[str, Any] = {},
    report: Callable[[Path], Path] | None = None,
    prereg: Prereg | None = None,
) -> RunResult:
    """Run a recipe, or go on with it; the folder then holds run.json, its tables and the page.

    `base` is the main model where it is loaded already, `prereg` the file that fixed the run, `said` are further entries of run.json. Where
    another process works on the same folder, this one helps with what is left and then waits for it.
    Raises SubloraError for whatever a user can fix; a run that is interrupted keeps what was finished.
    """
    import torch

    out, store, own = Path(out), store or Store(), base is not None
    threads = options.threads or torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        cluster = _cluster(stack, options, threads)
        device = "cpu" if cluster else options.device  # with Ray this process only plans
        if base is None and recipe.model_name is not None:
            base = load_base(recipe.model_name, device=device, **recipe.loading())
        known = NOTHING if base is None else known_base(base, cluster and cluster.device)
        steps = recipe.plan(known)
        warnings = [] if base is None else recipe.checks(base, known)
        warnings += [] if prereg is None else check_run(prereg, known, steps)
        manifest = manifest_of(recipe, out, base, known, steps) | {
            **said,
            "warnings": [*warnings, *filter(None, [newer()])],
            "executor": options.executor,
            "device": cluster.device if cluster else str(base.device) if base else device,
            "threads": threads,
        }
        guard_other_recipe(out, recipe)
        out.mkdir(parents=True, exist_ok=True)
        note_run(store, out, [n for s in steps for n in s.makes], [s.id for s in steps])
        display = stack.enter_context(Display())
        cite = None if prereg is None else partial(registration, prereg, steps, store)
        _announce(display, manifest, cite)
        if options.serve:
            steps = soonest(steps)
            _serve(stack, out, partial(recipe.so_far, store, known), display)
        setup = setup_of(recipe, base, store, device, threads, options.rows_at_once or ROWS_AT_ONCE)
        local = partial(local_executor, base=base, own=own)
        executor = (cluster.executor if cluster else local)(steps, setup, store)
        stack.callback(executor.close)

        execution = partial(Execution, executor, store, display)
        stack.enter_context(only_one(out, lambda: execution().run(steps), display))
        record, current = stack.enter_context(recorded(out, recipe, manifest, execution))
        record.manifest["planned_seconds"] = _planned(steps, known, store, setup, executor)
        current.run(steps)
        keep_rates(
            store, rates_of(current.timings, recipe.model_name, known.identity, executor.workers)
        )
        return _finish(recipe, known, store, record, report or draw, cite)


def _planned(
    steps: Sequence[Step], known: Known, store: Store, setup: Setup, executor: Executor
) -> dict[str, float]:
    """Seconds by kind that what is missing should take, to be held against the clock at the end."""
    there = {name for s in steps for name in s.makes if store.has(name)}
    missing = [s for s in steps if not there.issuperset(s.makes)]
    rows, (_, each) = rows_of(steps, there), crew(missing, setup.device, setup.threads)
    where = (setup.device, executor.workers, each)
    return own_pace(known, missing, rows, read_rates(store), *where).planned(rows)


def _announce(
    display: Display, manifest: dict[str, Any], cite: Callable[[], Registration] | None
) -> None:
    """What is said before the work."""
    for warning in manifest["warnings"]:
        display.say(f"Warning: {warning}")
    display.say(manifest["sentence"])
    if cite is not None:
        display.say(cite().sentence)


def _serve(
    stack: contextlib.ExitStack,
    out: Path,
    effects: Callable[[], Sequence[Effect]],
    display: Display,
) -> None:
    """Show how the run goes, until it ends."""
    from sublora.runner.live import Live

    live = stack.enter_context(Live(out, effects))
    display.say(f"Live page, for this machine alone: {live.url}")


def _cluster(stack: contextlib.ExitStack, options: RunOptions, threads: int):
    """The cluster to compute on, until the run ends; None for this machine."""
    if options.executor == "local":
        return None
    from sublora.runner.ray import connect

    return stack.enter_context(connect(options.ray_address, threads, options.device))


def _finish(
    recipe: Experiment,
    known: Known,
    store: Store,
    record: RunRecord,
    report: Callable[[Path], Path],
    cite: Callable[[], Registration] | None,
) -> RunResult:
    """The tables, the verdicts and the page of a run whose steps are made."""
    out, manifest, started = record.path.parent, record.manifest, time.monotonic()
    findings = recipe.findings(store, known)
    verdicts = recipe.verdicts(findings, store, known)
    if cite is not None:
        manifest["prereg"] = cite().model_dump()
        verdicts = [v | {"prereg": manifest["prereg"]} for v in verdicts]
    manifest |= findings.manifest
    manifest["warnings"] = manifest["warnings"] + list(findings.warnings)
    rows = estimate_rows(findings.effects, recipe.level) if findings.effects else []
    files = findings.files | ({"results.csv": to_csv(rows)} if rows else {})
    for name, content in (files | {"verdicts.json": verdicts}).items():
        text = isinstance(content, str)
        (write_atomic if text else write_json_atomic)(out / name, content)
    manifest["finished"] = now()
    record.write("done")
    page = page_of(findings, rows, old_manifest(out), verdicts)
    write_atomic(out / "page.json", page.model_dump_json(indent=1) + "\n")
    manifest["files"] = hashes(out, [*files, "verdicts.json", "page.json"])
    record.write("done")
    analysed = time.monotonic()
    shown = report(out)
    seconds = record.execution.clock.read() | {
        "statistics": round(analysed - started, 2),
        "report": round(time.monotonic() - analysed, 2),
    }
    return RunResult(
        out, shown, findings, verdicts, manifest["warnings"], seconds, manifest["planned_seconds"]
    )


def setup_of(
    recipe: Experiment,
    base: Base | None,
    store: Store,
    device: str = "cpu",
    threads: int = 1,
    rows_at_once: int = ROWS_AT_ONCE,
) -> Setup:
    """What the workers of a run of this recipe must know."""
    name, loading = recipe.model_name, recipe.loading()
    return Setup(
        model=name,
        path=name and placed(name),
        identity=tuple(sorted(base.identity.items())) if base else (),
        dtype=loading["dtype"] or "float32",
        revision=loading["revision"],
        device=device,
        threads=threads,
        root=str(store.root),
        token=token_of(store),
        rows_at_once=rows_at_once,
    )


def draw(out: Path) -> Path:
    """The page of a run, from its page.json. Raises SubloraError where a file of the run is not as it was written."""
    from sublora.report.page import build_report

    check_files(out)
    return build_report(out)


def default_out(recipe: Experiment, budget: str | None = None) -> Path:
    """Where a run lives unless --out says otherwise."""
    return Path("runs") / "-".join([recipe.name, *recipe.out_words, *filter(None, [budget])])
