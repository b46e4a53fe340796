"""A run: one execution of a recipe in a folder that a person can read, resumed by the same command."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sublora.arms import ARM_COLUMNS, summarise_arms
from sublora.cost import costs_of, row_sizes
from sublora.execute import Execution, Executor, InProcess
from sublora.journal import Journal, journalled
from sublora.known_runs import note_run
from sublora.leak_check import check_leaks, leak_sentences
from sublora.manifest import (
    check_conditions,
    check_ranks,
    check_words,
    manifest_of,
    result_warnings,
)
from sublora.model import Base, shape_from_config
from sublora.packs.check import load_base
from sublora.plan import Plan, contexts_of, make_plan
from sublora.processes import Processes, worth_processes
from sublora.progress import Steps
from sublora.rates import keep_rates, rates_of
from sublora.recipe import AS_WRITTEN, PLAIN_CONDITION, Recipe
from sublora.remote import work_for
from sublora.results import RESULT_COLUMNS, Results, to_csv
from sublora.run_folder import guard_other_recipe, only_one
from sublora.stages import ROWS_AT_ONCE
from sublora.store import Store, write_atomic, write_json_atomic
from sublora.units import train_units


@dataclass(frozen=True)
class RunResult:
    folder: Path
    page: Path
    cells: list[dict[str, Any]]
    verdicts: list[dict[str, Any]]
    warnings: list[str]
    seconds: dict[str, float]


def tokens_per_row(base: Base, recipe: Recipe) -> float:
    """Mean tokens of a rendered row: 32 prompts as they are, and a full answer."""
    from sublora.carriers.carrier import answer_words, prompt_of_row

    context = contexts_of(recipe)[recipe.train_contexts[0]]
    spec = recipe.data.carrier
    prompts = [len(base.chat.prompt_ids(prompt_of_row(spec, 0, i), context)) for i in range(32)]
    return sum(prompts) / len(prompts) + len(base.chat.completion_ids(answer_words(spec)))


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
    executor: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
) -> RunResult:
    """Run a recipe, or go on with it; the folder holds run.json, results.csv, cells.csv, verdicts.json, answers.json and the page.

    With `executor="ray"` the work is done by the workers of a Ray cluster (a new one on this machine without `ray_address`), on
    `device` there ("auto": their GPU where the cluster has any). Where another process works on the same folder, this one helps with
    what is left and then waits for it. Raises SubloraError for whatever a user can mend; a run that is interrupted keeps what was
    finished.
    """
    import torch

    store = store or Store()
    threads = threads or torch.get_num_threads()
    rows_at_once = rows_at_once or ROWS_AT_ONCE
    with contextlib.ExitStack() as stack:
        cluster = None
        if executor == "ray":
            from sublora.ray_executor import connect

            cluster = stack.enter_context(connect(ray_address, threads, device))
            device = "cpu"  # this process only plans
        own_base = base is not None
        base = base or load_base(
            recipe.model, device=device, dtype=recipe.dtype, revision=recipe.revision
        )
        place = cluster.device if cluster else base.device.type
        plan = make_plan(recipe, base.identity, tokens_per_row(base, recipe), place)
        check_ranks(base, recipe)
        check_conditions(base, plan)
        words = check_words(base, plan)
        manifest = manifest_of(recipe, plan, base, out, command, threads)
        if recipe.data.teacher.endpoint:
            words = [
                *words,
                "The teacher is behind an endpoint; the row called teacher is the students' base under its prompt.",
            ]
        manifest |= {
            "warnings": words,
            "executor": executor,
            "device": place if cluster else str(base.device),
        }
        guard_other_recipe(out, manifest)
        out.mkdir(parents=True, exist_ok=True)
        unfinished = [
            *(u.id for u in train_units(plan)),
            *(d.id for d in plan.datasets if d.endpoint),
        ]
        note_run(store, out, [s.id for s in plan.stages], unfinished)
        steps = stack.enter_context(Steps())
        for warning in words:
            steps.say(f"Warning: {warning}")
        steps.say(manifest["sentence"])
        if cluster:
            runner: Executor = cluster.executor(recipe, base, store, rows_at_once)
        elif not own_base and worth_processes(plan, base, threads):
            runner = stack.enter_context(
                Processes(work_for(recipe, base, store, rows_at_once, "cpu", 1), threads)
            )
        else:
            runner = InProcess(base, store, threads, rows_at_once)
        stack.enter_context(only_one(out, lambda: Execution(runner, store, steps).run(plan), steps))
        journal, execution = stack.enter_context(journalled(out, manifest, runner, store, steps))
        execution.run(plan)
        return _finish(recipe, plan, base, out, store, journal, execution, report)


def _finish(
    recipe: Recipe,
    plan: Plan,
    base: Base,
    out: Path,
    store: Store,
    journal: Journal,
    execution: Execution,
    report: Callable[[Path], Path] | None,
) -> RunResult:
    from sublora.claims import judge, load_claims, summarise
    from sublora.findings import FINDING_COLUMNS, finding_rows
    from sublora.run_findings import findings_of, steerability

    manifest, results = journal.manifest, Results(plan, store)
    ran = {s.optimizer: results.meta[s.id]["optimizer"] for s in reversed(plan.students)}
    manifest["optimizer"] = "\n".join(
        f"{name}: {text}" if name else text for name, text in reversed(ran.items())
    )
    manifest["datasets"] = [
        {
            "id": d.id,
            "trait": d.trait,
            "data_seed": d.seed,
            "heldout": d.heldout,
            **{
                k: results.dataset_meta[d.id][k]
                for k in ("rows", "unique_rows", "asked", "rejects")
            },
        }
        for d in plan.datasets
    ]
    manifest["warnings"] = manifest["warnings"] + result_warnings(plan, results)
    if (
        recipe.data.carrier.kind != "numbers"
    ):  # numbers have a recipe of their own, `number-statistics`
        leaks = check_leaks(plan, store, base.identity)
        write_json_atomic(out / "leaks.json", leaks)
        manifest["warnings"] += leak_sentences(leaks, recipe.level)
    cells: list[dict[str, Any]] = []
    for context in recipe.measure.contexts:
        cells += summarise(results.table(context))
    arms, judged = results.arms(), results.table(recipe.judged_context)
    findings = findings_of(results)
    verdicts = [v.to_dict() for v in judge(load_claims(), judged, recipe.name, arms, findings)]
    if findings:
        write_atomic(
            out / "findings.csv", to_csv(finding_rows(findings, 1 - recipe.level), FINDING_COLUMNS)
        )
    if arms is not None:
        write_atomic(
            out / "arms.csv", to_csv(summarise_arms(arms, PLAIN_CONDITION, AS_WRITTEN), ARM_COLUMNS)
        )
    if recipe.measure.teachers and len(plan.traits) > 2:
        rows = [asdict(f) | {"imitation": f.imitation} for f in steerability(results)]
        write_atomic(out / "steerability.csv", to_csv(rows))
    if recipe.train.optimizers:
        write_atomic(out / "optimizers.csv", to_csv(results.sweep()))
    if plan.attributions:
        write_json_atomic(out / "attribution.json", results.attributions())
    write_atomic(out / "results.csv", to_csv(results.rows(), RESULT_COLUMNS))
    write_atomic(out / "cells.csv", to_csv(cells))
    write_json_atomic(out / "answers.json", results.answers(cells))
    write_json_atomic(out / "verdicts.json", verdicts)
    costs = costs_of(
        recipe, shape_from_config(base.model.config.to_dict()), row_sizes(base.chat, recipe)
    )
    keep_rates(
        store,
        rates_of(execution.timings, costs, recipe.model, base.identity, execution.executor.workers),
    )
    journal.write("done", finished=datetime.now(UTC).isoformat(timespec="seconds"))
    if report is None:
        from sublora.report.page import build_report as report
    started = time.monotonic()
    page = report(out)
    seconds = {**execution.seconds, "report": round(time.monotonic() - started, 2)}
    return RunResult(out, page, cells, verdicts, manifest["warnings"], seconds)


def default_out(recipe: Recipe) -> Path:
    model = recipe.model.rstrip("/").split("/")[-1]
    traits = "-".join(t.lower() for t in recipe.traits[:3]) + (
        "-and-more" if len(recipe.traits) > 3 else ""
    )
    return Path("runs") / f"{recipe.name}-{model}-{traits}"
