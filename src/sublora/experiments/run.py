"""Run an experiment in a folder, resumed by the same command, as `sublora.run` does for grids."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sublora.execute import Execution, Watch
from sublora.experiment import Experiment, Stage, Task, Work, findings_json
from sublora.journal import Journal, journalled
from sublora.known_runs import note_run
from sublora.manifest import PACKAGES
from sublora.model import Base
from sublora.packs.check import load_base
from sublora.progress import Steps
from sublora.rates import device_name
from sublora.results import to_csv
from sublora.run_folder import guard_other_recipe, only_one
from sublora.store import Busy, NoRoom, Store, write_atomic, write_json_atomic
from sublora.workers import is_small


@dataclass(frozen=True)
class ExperimentResult:
    folder: Path
    page: Path
    estimates: list[dict[str, Any]]
    verdicts: list[dict[str, Any]]
    warnings: list[str]
    seconds: dict[str, float]


class OneByOne:
    """Tasks one after the other in this process, each on all threads, or on one where its model is small."""

    workers = 1

    def __init__(self, store: Store, base: Base | None, threads: int, device: str) -> None:
        self.store = store
        self.bases = {base.name: base} if base else {}
        self.threads = threads
        self.torch_device = device
        self.device = device_name(str(base.device) if base else device, threads)

    def base_of(self, model: str) -> Base:
        import torch

        if model not in self.bases:
            self.bases[model] = load_base(model, device=self.torch_device)
        base = self.bases[model]
        torch.set_num_threads(1 if is_small(base) else self.threads)
        return base

    def run(self, units: Sequence[Task], watch: Watch) -> None:
        """What another process makes is done last, when that process has left little to do."""
        busy = [unit for unit in units if not self._done(unit, watch, wait=False)]
        for unit in busy:
            self._done(unit, watch, wait=True)

    def _done(self, unit: Task, watch: Watch, wait: bool) -> bool:
        watch.started(unit)
        started = time.monotonic()
        try:
            with self.store.lock(unit.id, lambda: watch.waiting(unit), wait=wait):
                wanted = {name for name in unit.makes if not self.store.has(name)}
                if wanted:
                    unit.perform(Work(self.store, self.base_of, watch.made), wanted)
        except Busy:
            watch.postponed(unit)
            return False
        except NoRoom:
            raise
        except Exception as error:  # of this unit alone
            watch.failed(unit, error)
        else:
            watch.finished(unit, time.monotonic() - started, self.device)
        return True


def run_experiment(
    recipe: Experiment,
    out: Path,
    *,
    store: Store | None = None,
    device: str = "cpu",
    threads: int | None = None,
    command: str = "",
    base: Base | None = None,
    report: Callable[[Path], Path] | None = None,
) -> ExperimentResult:
    """Run an experiment, or go on with it; the folder holds run.json, results.csv, findings.json, verdicts.json and the page.

    Raises SubloraError for whatever a user can mend; what was finished is kept.
    """
    import torch

    store = store or Store()
    if base is None and recipe.model_name is not None:
        base = load_base(recipe.model_name, device=device, dtype="float32")
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    identity = base.identity if base else {}
    stages = recipe.stages(identity)
    manifest = _manifest(recipe, out, base, stages, command, threads)
    guard_other_recipe(out, manifest)
    out.mkdir(parents=True, exist_ok=True)
    tasks = [task for stage in stages for task in stage.tasks]
    note_run(store, out, [name for t in tasks for name in t.makes], [t.id for t in tasks])
    runner = OneByOne(store, base, threads, device)
    plan = [(s.name, s.label, s.tasks) for s in stages]
    with Steps() as steps:
        steps.say(manifest["sentence"])
        with (
            only_one(out, lambda: Execution(runner, store, steps).run_stages(plan), steps),
            journalled(out, manifest, runner, store, steps) as (journal, execution),
        ):
            execution.run_stages(plan)
            return _finish(recipe, stages, identity, out, store, journal, execution, report)


def _finish(
    recipe: Experiment,
    stages: Sequence[Stage],
    identity: Mapping[str, str],
    out: Path,
    store: Store,
    journal: Journal,
    execution: Execution,
    report: Callable[[Path], Path] | None,
) -> ExperimentResult:
    from sublora.claims import judge_estimates, load_claims

    started = time.monotonic()
    findings = recipe.findings(store, stages, identity)
    found = findings_json(findings, recipe.level)
    verdicts = [v.to_dict() for v in judge_estimates(load_claims(), findings.effects, recipe.name)]
    journal.manifest["warnings"] = list(findings.warnings)
    write_atomic(out / "results.csv", to_csv(found["estimates"]))
    write_json_atomic(out / "findings.json", found)
    write_json_atomic(out / "verdicts.json", verdicts)
    journal.write("done", finished=datetime.now(UTC).isoformat(timespec="seconds"))
    analysed = round(time.monotonic() - started, 2)
    started = time.monotonic()
    if report is None:
        from sublora.report.experiment import build_report as report
    page = report(out)
    seconds = {
        **execution.seconds,
        "statistics": analysed,
        "report": round(time.monotonic() - started, 2),
    }
    return ExperimentResult(
        out, page, found["estimates"], verdicts, list(findings.warnings), seconds
    )


def _manifest(
    recipe: Experiment,
    out: Path,
    base: Base | None,
    stages: Sequence[Stage],
    command: str,
    threads: int,
) -> dict[str, Any]:
    model = None
    if base is not None:
        model = {
            "name": base.name,
            "parameters": base.model.num_parameters(),
            "dtype": "float32",
            "weights_sha256": base.identity["weights"],
            "template_sha256": base.identity["template"],
            "tokenizer_sha256": base.identity["tokenizer"],
            "organism": base.organism,
        }
    return {
        "schema": 1,
        "sublora": version("sublora"),
        "name": out.name,
        "kind": recipe.kind,
        "recipe": recipe.model_dump(mode="json"),
        "command": command,
        "sentence": recipe.sentence,
        "status": "running",
        "model": model,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "finished": None,
        "seconds": {},
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "device": str(base.device) if base else "cpu",
        "threads": threads,
        "warnings": [],
        "counts": {s.label: len({name for t in s.tasks for name in t.makes}) for s in stages},
    }
