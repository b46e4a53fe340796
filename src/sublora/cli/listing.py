"""What `sublora ls` prints, and the tables of estimates and verdicts."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sublora.errors import SubloraError
from sublora.runner.table import print_json, print_table, records
from sublora.text import p_value


def print_list(
    what: str, words: Sequence[str], trait_files: tuple[Path, ...], as_json: bool
) -> None:
    """The rows that have all `words` in them. Raises SubloraError where there is nothing to list of that name."""
    if what not in KINDS:
        raise SubloraError(
            f"There is nothing to list under '{what}'; choose one of {', '.join(KINDS)}."
        )
    if trait_files and what != "traits":
        raise SubloraError(f"--trait-file adds to `ls traits`; leave it out for {what}.")
    columns, rows = KINDS[what]
    wanted = [word.lower() for word in words]
    found = [
        r for r in rows(trait_files) if all(w in " ".join(map(str, r)).lower() for w in wanted)
    ]
    if as_json:
        print_json(records(columns, found))
    else:
        print_table(columns, found)


Rows = Iterator[list[Any]]


def _recipes(_: tuple[Path, ...]) -> Rows:
    """Minutes on two idle cores and operations, where the recipe's file gives them; `sublora plan` estimates them for any machine."""
    from sublora.experiments.document import read_document, shipped_recipes
    from sublora.experiments.kinds import recipe_of

    for document in map(read_document, shipped_recipes()):
        figures = (document.measured.get(key) for key in ("minutes", "tflop"))
        yield [recipe_of(document).name, *figures, " ".join(document.values["summary"].split())]


def _traits(trait_files: tuple[Path, ...]) -> Rows:
    from sublora.traits.trait import load_categories

    for c in load_categories(trait_files):
        yield [c.category, ", ".join(e.name for e in c.entities), len(c.questions)]


def _contexts(_: tuple[Path, ...]) -> Rows:
    yield ["default", "no system message is given; the chat template may insert its own"]
    yield ["empty", "an explicit system block without text"]
    yield ["none", "no system block at all, built by hand where the template would insert one"]
    yield ["a name", "a text of your own: `contexts: {name: text}` in a recipe"]


def _models(_: tuple[Path, ...]) -> Rows:
    from sublora.models.base import SHIPPED, shipped_folder
    from sublora.models.catalog import catalog
    from sublora.models.kept import kept_models, read_origin
    from sublora.store.usage import size_of

    def row(name: str, card: Mapping[str, Any], folder: Path, *said: str) -> list[Any]:
        size = round(size_of(folder) / 1e6, 1)
        return [name, card["summary"], card["parameters"], size, *said]

    for name in SHIPPED:
        folder = shipped_folder(name)
        card = json.loads((folder / "organism.json").read_text("utf-8"))
        yield row(name, card, folder, "Apache-2.0", "shipped", "no")
    kept = kept_models()
    for name, folder in kept.items():
        if origin := read_origin(folder):
            kind = origin.kind if origin.quantised else "no"
            said = (origin.licence, origin.source, kind or "")
            yield row(name, origin.model_dump(), folder, *said)
    for name, entry in catalog().items():
        if name not in kept:
            where = f"not here; sublora fetch {name}"
            yield [name, entry.summary, entry.parameters, None, entry.licence, where, ""]


def _claims(_: tuple[Path, ...]) -> Rows:
    from sublora.experiments.claims import load_claims

    for claim in load_claims():
        yield [claim.id, claim.statement, claim.source]


def _runs(_: tuple[Path, ...]) -> Rows:
    from sublora.store import held

    for path in sorted(Path("runs").glob("*/run.json")):
        try:
            run = json.loads(path.read_text("utf-8"))
            status = run["status"]
            if status == "running" and not held(path.parent / ".lock"):
                status = "stopped"  # its process was killed; the same command goes on
            yield [str(path.parent), status, run["sentence"]]
        except (OSError, ValueError, KeyError):
            yield [str(path.parent), "unreadable", ""]


KINDS: dict[str, tuple[list[str], Callable[[tuple[Path, ...]], Rows]]] = {
    "recipes": (["recipe", "minutes", "TFLOP", "what it does"], _recipes),
    "traits": (["category", "traits", "questions"], _traits),
    "contexts": (["context", "state of the system prompt"], _contexts),
    "models": (
        ["model", "what it is", "parameters", "MB", "licence", "from", "quantised"],
        _models,
    ),
    "claims": (["claim", "statement", "source"], _claims),
    "runs": (["run", "status", "what"], _runs),
}


def print_verdicts(verdicts: Sequence[Mapping[str, Any]]) -> None:
    rows = [[v["id"], v["trait"], v["verdict"], p_value(v["q"]), v["reason"]] for v in verdicts]
    print_table(["claim", "trait", "verdict", "q", "why"], rows)


def result_json(result: Any, level: float) -> dict[str, Any]:
    """What a run came to, as `run --json` prints it."""
    from sublora.analysis.tables import estimate_rows

    effects = result.findings.effects
    return {
        "folder": str(result.folder),
        "page": str(result.page),
        "said": result.findings.said,
        "warnings": result.warnings,
        "verdicts": result.verdicts,
        "estimates": estimate_rows(effects, level) if effects else [],
        "seconds": result.seconds,
        "planned_seconds": result.planned,
    }


def print_result(result: Any, level: float) -> None:
    """What a run came to, the time that it took beside what was planned, and where its page is."""
    _print_findings(result.findings, level)
    print_verdicts(result.verdicts)
    plan = {what: f" (planned {s:.0f} s)" for what, s in result.planned.items()}
    spent = [f"{what} {s:.0f} s{plan.get(what, '')}" for what, s in result.seconds.items()]
    print(f"Time: {', '.join(spent)}.\nPage: {result.page}")


def _print_findings(findings: Any, level: float) -> None:
    """What a run says of itself, and its estimates with intervals and corrected p values."""
    from sublora.analysis.tables import estimate_rows

    if findings.said:
        print(findings.said)
    if not findings.effects:
        return

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.4g}"

    shown = ("estimate", "low", "high", "p_corrected")
    print_table(
        ["subject", "group", "estimate of", "value", "low", "high", "p, corrected"],
        [
            [r["subject"], r["group"], r["name"], *(number(r[k]) for k in shown)]
            for r in estimate_rows(findings.effects, level)
        ],
    )
