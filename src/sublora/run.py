"""A run: one execution of a recipe in a folder that a person can read, resumed by the same command."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sublora.errors import SubloraError
from sublora.execute import Execution, InProcess
from sublora.manifest import check_ranks, check_words, manifest_of, result_warnings
from sublora.model import Base, load_base
from sublora.plan import Plan, contexts_of, make_plan
from sublora.progress import Steps
from sublora.recipe import Recipe
from sublora.results import RESULT_COLUMNS, Results, to_csv
from sublora.stages import ROWS_AT_ONCE
from sublora.store import Store, canonical_json, write_atomic, write_json_atomic


@dataclass(frozen=True)
class RunResult:
    folder: Path
    page: Path
    cells: list[dict[str, Any]]
    verdicts: list[dict[str, Any]]
    warnings: list[str]
    seconds: dict[str, float]


def tokens_per_row(base: Base, recipe: Recipe) -> float:
    """Mean tokens of a rendered row: 32 prompts as they are, and a full answer of numbers."""
    from sublora.carriers.numbers import join_numbers, prompt_of_row

    context = contexts_of(recipe)[recipe.train.context]
    spec = recipe.data.carrier
    prompts = [len(base.chat.prompt_ids(prompt_of_row(spec, 0, i), context)) for i in range(32)]
    answer = join_numbers([10**spec.digits - 1] * spec.count, spec.separators[0])
    return sum(prompts) / len(prompts) + len(base.chat.completion_ids(answer))


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    store: Store | None = None,
    device: str = "cpu",
    threads: int | None = None,
    rows_at_once: int | None = None,
    command: str = "",
    base: Base | None = None,
    report: Callable[[Path], Path] | None = None,
) -> RunResult:
    """Run a recipe, or go on with it; the folder holds run.json, results.csv, cells.csv, verdicts.json, answers.json and the page.

    Raises SubloraError for whatever a user can mend; a run that is interrupted keeps what was finished.
    """
    store = store or Store()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            return _run_locked(recipe, out, store, device, threads, rows_at_once, command, base, report)
    except Timeout:
        raise SubloraError(
            f"Another process is working on the run {out}; wait for it, or choose another --out."
        ) from None


def _run_locked(
    recipe: Recipe,
    out: Path,
    store: Store,
    device: str,
    threads: int | None,
    rows_at_once: int | None,
    command: str,
    base: Base | None,
    report: Callable[[Path], Path] | None,
) -> RunResult:
    import torch

    with Steps() as steps:
        base = base or load_base(recipe.model, device=device, dtype=recipe.dtype, revision=recipe.revision)
        plan = make_plan(recipe, base.identity, tokens_per_row(base, recipe), base.device.type)
        check_ranks(base, recipe)
        words = check_words(base, plan)
        for warning in words:
            steps.say(f"Warning: {warning}")
        threads = threads or torch.get_num_threads()
        manifest = manifest_of(recipe, plan, base, out, command, threads)
        manifest["warnings"] = words
        _guard_other_recipe(out, manifest)
        write_json_atomic(out / "run.json", manifest)
        steps.say(manifest["sentence"])
        execution = Execution(InProcess(base, store, threads, rows_at_once or ROWS_AT_ONCE), store, steps)
        try:
            execution.run(plan)
        except BaseException as error:
            manifest |= {
                "status": "interrupted" if isinstance(error, KeyboardInterrupt) else "failed",
                "seconds": execution.seconds,
            }
            write_json_atomic(out / "run.json", manifest)
            raise
        return _finish(recipe, plan, out, store, manifest, execution, report)


def _guard_other_recipe(out: Path, manifest: dict[str, Any]) -> None:
    """The folder of one recipe is not overwritten by another."""
    import json

    path = out / "run.json"
    if not path.exists():
        return
    try:
        old = json.loads(path.read_text("utf-8"))
    except (OSError, json.JSONDecodeError):
        return
    if canonical_json(old.get("recipe")) != canonical_json(manifest["recipe"]):
        raise SubloraError(
            f"The folder {out} holds a run of another recipe or other settings; choose another --out, or remove it."
        )


def _finish(
    recipe: Recipe,
    plan: Plan,
    out: Path,
    store: Store,
    manifest: dict[str, Any],
    execution: Execution,
    report: Callable[[Path], Path] | None,
) -> RunResult:
    import time

    from sublora.claims import judge, load_claims, summarise

    results = Results(plan, store)
    manifest["optimizer"] = results.meta[plan.students[0].id]["optimizer"]
    manifest["datasets"] = [
        {
            "id": d.id,
            "trait": d.trait,
            "data_seed": d.seed,
            "heldout": d.heldout,
            **{k: results.dataset_meta[d.id][k] for k in ("rows", "unique_rows", "asked", "rejects")},
        }
        for d in plan.datasets
    ]
    manifest["warnings"] = manifest["warnings"] + result_warnings(plan, results)
    cells: list[dict[str, Any]] = []
    for context in recipe.measure.contexts:
        cells += summarise(results.table(context))
    judged = recipe.train.context if recipe.train.context in recipe.measure.contexts else recipe.measure.contexts[0]
    verdicts = [v.to_dict() for v in judge(load_claims(), results.table(judged), recipe.name)]
    write_atomic(out / "results.csv", to_csv(results.rows(), RESULT_COLUMNS))
    write_atomic(out / "cells.csv", to_csv(cells))
    write_json_atomic(out / "answers.json", results.answers(cells))
    write_json_atomic(out / "verdicts.json", verdicts)
    manifest |= {
        "status": "done",
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": execution.seconds,
    }
    write_json_atomic(out / "run.json", manifest)
    if report is None:
        from sublora.report.page import build_report as report
    started = time.monotonic()
    page = report(out)
    seconds = {**execution.seconds, "report": round(time.monotonic() - started, 2)}
    return RunResult(out, page, cells, verdicts, manifest["warnings"], seconds)


def default_out(recipe: Recipe) -> Path:
    model = recipe.model.rstrip("/").split("/")[-1]
    traits = "-".join(t.lower() for t in recipe.traits[:3]) + ("-and-more" if len(recipe.traits) > 3 else "")
    return Path("runs") / f"{recipe.name}-{model}-{traits}"


def command_line() -> str:
    import shlex

    return "sublora " + " ".join(shlex.quote(a) for a in sys.argv[1:])
