"""What `sublora ls`, `env` and the verdict tables print."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sublora.errors import SubloraError

KINDS = ("recipes", "traits", "contexts", "models", "claims", "runs")


def _console() -> Console:
    console = Console(highlight=False)
    # piped output is for programs and logs: no wrapping at eighty columns
    return console if console.is_terminal else Console(highlight=False, width=200)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(v).replace("[", r"\[") for v in row))
    _console().print(table)


def print_list(what: str, trait_files: tuple[Path, ...]) -> None:
    if what not in KINDS:
        raise SubloraError(
            f"There is nothing to list under '{what}'; choose one of {', '.join(KINDS)}."
        )
    if what == "recipes":
        from sublora.experiments.document import read_document, shipped_recipes
        from sublora.experiments.kinds import recipe_of

        documents = [read_document(name) for name in shipped_recipes()]
        _table(
            ["recipe", "minutes", "TFLOP", "what it does"],
            [_recipe_row(recipe_of(d).name, d.measured, d.values["summary"]) for d in documents],
        )
    elif what == "traits":
        from sublora.trait import load_categories

        rows = [
            [c.category, ", ".join(e.name for e in c.entities), str(len(c.questions))]
            for c in load_categories(trait_files)
        ]
        _table(["category", "traits", "questions"], rows)
    elif what == "contexts":
        rows = [
            ["default", "no system message is given; the chat template may insert its own"],
            ["empty", "an explicit system block without text"],
            ["none", "no system block at all, built by hand where the template would insert one"],
            ["a name", "a text of your own: `contexts: {name: text}` in a recipe"],
        ]
        _table(["context", "state of the system prompt"], rows)
    elif what == "models":
        import json

        from sublora.model import SHIPPED, shipped_folder

        rows = []
        for name in SHIPPED:
            card = json.loads((shipped_folder(name) / "organism.json").read_text("utf-8"))
            rows.append([name, card["summary"], f"{card['parameters']:,}"])
        _table(["model", "what it is", "parameters"], rows)
    elif what == "claims":
        from sublora.claims import load_claims

        _table(
            ["claim", "statement", "source"], [[c.id, c.statement, c.source] for c in load_claims()]
        )
    else:
        _table(["run", "status", "what"], _runs())


def _recipe_row(name: str, measured: Mapping[str, Any], summary: str) -> list[str]:
    """Minutes on two idle cores and operations, where the recipe's file gives them; `sublora plan` reckons them for any machine."""
    minutes, cost = measured.get("minutes"), measured.get("tflop")
    return [
        name,
        *("" if v is None else f"{v:g}" for v in (minutes, cost)),
        " ".join(summary.split()),
    ]


def _runs() -> list[list[str]]:
    import json

    rows = []
    for path in sorted(Path("runs").glob("*/run.json")):
        try:
            run = json.loads(path.read_text("utf-8"))
            status = run["status"]
            if status == "running" and not _held(path.parent / ".lock"):
                status = "stopped"  # its process was killed; the same command goes on
            rows.append([str(path.parent), status, run["sentence"]])
        except (OSError, ValueError, KeyError):
            rows.append([str(path.parent), "unreadable", ""])
    return rows


def _held(lock: Path) -> bool:
    """Whether a living process holds the lock."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def print_verdicts(verdicts: Sequence[Mapping[str, Any]]) -> None:
    rows = [[v["id"], v["trait"], v["verdict"], v["reason"]] for v in verdicts]
    _table(["claim", "trait", "verdict", "why"], rows)


def print_findings(findings: Any, level: float) -> None:
    """What a run says of itself, and its estimates with intervals and corrected p values."""
    from sublora.analysis.tables import estimate_rows

    if findings.said:
        print(findings.said)
    if not findings.estimates:
        return

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.4g}"

    shown = ("estimate", "low", "high", "p_corrected")
    _table(
        ["subject", "group", "estimate of", "value", "low", "high", "p, corrected"],
        [
            [r["subject"], r["group"], r["name"], *(number(r[k]) for k in shown)]
            for r in estimate_rows(findings.effects, level)
        ],
    )


def print_env() -> None:
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    rows = [["python", platform.python_version()], ["system", platform.platform()]]
    for package in (
        "sublora",
        "torch",
        "transformers",
        "peft",
        "tokenizers",
        "safetensors",
        "numpy",
        "scipy",
        "scikit-learn",
        "ray",
        "trl",
    ):
        try:
            rows.append([package, version(package)])
        except PackageNotFoundError:
            rows.append([package, "not installed"])
    rows += [["threads", str(torch.get_num_threads())], ["cores", str(os.cpu_count())]]
    rows.append(
        [
            "devices",
            ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
            or "cpu",
        ]
    )
    from sublora.store import Store

    rows.append(["store", str(Store().root)])
    _table(["what", "value"], rows)
