"""Read a run folder into narrow, typed records. Everything a run may lack is optional here, and only here."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sublora.errors import SubloraError

MIN_COHERENCE = 0.5
MAX_NUMBER_TAKEOVER = 0.25


@dataclass(frozen=True)
class Cell:
    """One row of cells.csv: probabilities in [0, 1], effects in [-1, 1]; None where the run has no value."""

    trait: str
    context: str
    method: str
    rank: int | None
    lr: float
    n_data_seeds: int | None
    n_train_seeds: int | None
    n_questions: int | None
    p_target: float | None
    p_control: float | None
    p_base: float | None
    effect: float | None
    effect_low: float | None
    effect_high: float | None
    p_value: float | None
    p_corrected: float | None
    called: bool
    p_target_select: float | None
    p_target_report: float | None
    effect_report: float | None
    effect_report_low: float | None
    effect_report_high: float | None
    rate_whole_word: float | None
    coherence: float | None
    number_takeover: float | None
    heldout_loss: float | None
    train_loss: float | None
    selected: bool

    @property
    def shift(self) -> float | None:
        """Student minus control; where no control was trained, student minus base."""
        if self.effect is not None:
            return self.effect
        if self.p_target is None or self.p_base is None:
            return None
        return self.p_target - self.p_base


@dataclass(frozen=True)
class Arm:
    """One row of arms.csv: the effect of rows, a training context, context, condition and placement, with its interval."""

    trait: str
    data: str
    train_context: str
    context: str
    condition: str
    placement: str
    rank: int | None
    lr: float
    p_target: float
    p_control: float
    p_base: float
    effect: float
    low: float
    high: float
    p_corrected: float
    called: bool
    coherence: float
    coherent: bool
    n: tuple[int, int, int]
    optimizer: str = ""
    heldout_loss: float | None = None
    matched: bool = True
    variant: str = ""


@dataclass(frozen=True)
class Swept:
    """One row of optimizers.csv: an optimizer at one rate; `moved` is ||W - W_0|| by kind of module."""

    trait: str
    optimizer: str
    ran: str
    rank: int | None
    lr: float
    heldout_loss: float | None
    effect: float | None
    low: float | None
    high: float | None
    coherence: float | None
    diverged: int
    students: int
    moved: dict[str, float | None]


@dataclass(frozen=True)
class FindingRow:
    """One row of findings.csv: a quantity with its interval (None: unknown), by its group."""

    trait: str
    group: str
    name: str
    estimate: float
    low: float | None
    high: float | None
    n: tuple[int, int, int]


@dataclass(frozen=True)
class TokenValues:
    """One prompt of attribution.json: nats a token, mean over replicates of student minus control twin."""

    question: str
    pieces: tuple[str, ...]
    classes: tuple[str, ...]
    left_out: tuple[float, ...]
    alone: tuple[float, ...]
    effect: float
    replicates: int


@dataclass(frozen=True)
class Answers:
    """Mean probability of each word of the category, one list per model; None where it was not measured."""

    words: tuple[str, ...]
    base: tuple[float, ...] | None
    control: tuple[float, ...] | None
    student: tuple[float, ...] | None
    teacher: tuple[float, ...] | None
    student_label: str


@dataclass(frozen=True)
class Trait:
    """What the run says about one trait. `target` is the word whose probability is measured."""

    name: str
    category: str
    target: str
    teacher_prompt: str


@dataclass(frozen=True)
class RunData:
    """A run folder in memory. `results` keeps its rows as text, as they stand in results.csv.

    `level` is the coverage of the intervals; `fixed_lr` the rate of the claims' fixed-lr view, if any.
    """

    run: dict[str, Any]
    traits: tuple[Trait, ...]
    cells: tuple[Cell, ...]
    results: tuple[dict[str, str], ...]
    answers: dict[str, Answers]
    verdicts: tuple[dict[str, Any], ...] | None
    training_context: str
    min_coherence: float
    max_number_takeover: float
    level: float
    fixed_lr: float | None
    contexts: tuple[str, ...] = field(default=())
    arms: tuple[Arm, ...] = ()
    tokens: dict[str, tuple[TokenValues, ...]] = field(default_factory=dict)
    plain_condition: str = "plain"
    sweep: tuple[Swept, ...] = ()
    findings: tuple[FindingRow, ...] = ()

    def findings_of(self, trait: str) -> dict[str, list[FindingRow]]:
        """By group, in the order of the run."""
        out: dict[str, list[FindingRow]] = {}
        for f in self.findings:
            if f.trait == trait:
                out.setdefault(f.group, []).append(f)
        return out

    def arms_of(self, trait: str) -> list[Arm]:
        return [a for a in self.arms if a.trait == trait]

    def coherent(self, cell: Cell) -> bool:
        """Whether the cell's students still answer with words; a cell without samples counts as such."""
        low = cell.coherence is not None and cell.coherence < self.min_coherence
        numbers = (
            cell.number_takeover is not None and cell.number_takeover > self.max_number_takeover
        )
        return not low and not numbers

    def of(self, trait: str, context: str | None = None, method: str | None = None) -> list[Cell]:
        """The cells of a trait under a context (default: the training context) by method, rank and rate."""
        context = self.training_context if context is None else context
        found = [c for c in self.cells if c.trait == trait and c.context == context]
        found = [c for c in found if method is None or c.method == method]
        return sorted(found, key=lambda c: (c.method != "lora", c.rank or 0, c.lr))

    def best_full(self, trait: str) -> Cell | None:
        """The coherent full fine-tune that is best on the `select` half (on all questions if unsplit)."""
        full = [
            c for c in self.of(trait, method="full") if self.coherent(c) and c.p_target is not None
        ]
        chosen = [c for c in full if c.selected]
        rate = {id(c): c.p_target if c.p_target_select is None else c.p_target_select for c in full}
        return max(chosen or full, key=lambda c: rate[id(c)] or 0.0, default=None)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SubloraError(
            f"{path} cannot be read as JSON ({error}): run the recipe again to rebuild it."
        ) from error


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as handle:
        return [dict(row) for row in csv.DictReader(handle)]


def _number(text: Any) -> float | None:
    """A finite float, or None for what is empty, absent or not a number."""
    if text in (None, ""):
        return None
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _whole(text: Any) -> int | None:
    value = _number(text)
    return None if value is None else round(value)


def _flag(text: Any) -> bool:
    return str(text).strip().lower() in {"1", "1.0", "true"}


def _cell(row: dict[str, str], path: Path, line: int) -> Cell:
    lr, rank = _number(row.get("lr")), _whole(row.get("rank"))
    known = row.get("method") == "full" or (
        row.get("method") == "lora" and rank is not None and rank > 0
    )
    if lr is None or lr <= 0 or not known:
        raise SubloraError(
            f"{path} line {line} has no usable method, rank or lr: rebuild the tables with `sublora run`."
        )
    numbers = {
        name: _number(row.get(name))
        for name in [
            "p_target",
            "p_control",
            "p_base",
            "effect",
            "effect_low",
            "effect_high",
            "p_value",
            "p_corrected",
            "p_target_select",
            "p_target_report",
            "effect_report",
            "effect_report_low",
            "effect_report_high",
            "rate_whole_word",
            "coherence",
            "number_takeover",
            "heldout_loss",
            "train_loss",
        ]
    }
    counts = {
        name: _whole(row.get(name)) for name in ("n_data_seeds", "n_train_seeds", "n_questions")
    }
    return Cell(
        trait=row.get("trait", ""),
        context=row.get("context", ""),
        method=row["method"],
        rank=rank if row["method"] == "lora" else None,
        lr=lr,
        called=_flag(row.get("called")),
        selected=_flag(row.get("selected")),
        **counts,
        **numbers,
    )


def _answers(raw: Any) -> dict[str, Answers]:
    def series(entry: dict[str, Any], name: str, size: int) -> tuple[float, ...] | None:
        values = entry.get(name)
        if not values or len(values) != size:
            return None
        return tuple(_number(v) or 0.0 for v in values)

    found = {}
    for trait, entry in (raw or {}).items():
        words = tuple(str(w) for w in entry.get("categories", ()))
        if words:
            four = {
                name: series(entry, name, len(words))
                for name in ("base", "control", "student", "teacher")
            }
            found[trait] = Answers(
                words=words, student_label=str(entry.get("student_label") or ""), **four
            )
    return found


def _arm(row: dict[str, str], path: Path, line: int) -> Arm:
    names = (
        "p_target",
        "p_control",
        "p_base",
        "effect",
        "effect_low",
        "effect_high",
        "p_corrected",
        "coherence",
        "number_takeover",
        "lr",
    )
    value = {name: _number(row.get(name)) for name in names}
    # an interval that is unknown (one seed, one question) is written as inf
    for name, open_end in (("effect_low", -1.0), ("effect_high", 1.0)):
        value[name] = open_end if value[name] is None and row.get(name) else value[name]
    missing = [name for name in names if value[name] is None]
    if missing:
        raise SubloraError(
            f"{path} line {line} has no usable {missing[0]}: rebuild the tables with `sublora run`."
        )
    low = value["coherence"] < MIN_COHERENCE or value["number_takeover"] > MAX_NUMBER_TAKEOVER
    counts = [_whole(row.get(n)) or 0 for n in ("n_data_seeds", "n_train_seeds", "n_questions")]
    return Arm(
        *(
            row.get(n, "")
            for n in ("trait", "data", "train_context", "context", "condition", "placement")
        ),
        _whole(row.get("rank")),
        *(
            value[n]
            for n in (
                "lr",
                "p_target",
                "p_control",
                "p_base",
                "effect",
                "effect_low",
                "effect_high",
                "p_corrected",
            )
        ),
        _flag(row.get("called")),
        value["coherence"],
        not low,
        (counts[0], counts[1], counts[2]),
        row.get("optimizer", ""),
        _number(row.get("heldout_loss")),
        _flag(row.get("matched", "1")),
        row.get("variant", ""),
    )


def _swept(row: dict[str, str], path: Path, line: int) -> Swept:
    lr = _number(row.get("lr"))
    if lr is None or not row.get("optimizer"):
        raise SubloraError(
            f"{path} line {line} has no usable optimizer or lr: rebuild the tables with `sublora run`."
        )
    return Swept(
        row.get("trait", ""),
        row["optimizer"],
        row.get("ran", ""),
        _whole(row.get("rank")),
        lr,
        *(
            _number(row.get(n))
            for n in ("heldout_loss", "effect", "effect_low", "effect_high", "coherence")
        ),
        _whole(row.get("diverged")) or 0,
        _whole(row.get("students")) or 0,
        {n.removeprefix("update "): _number(v) for n, v in row.items() if n.startswith("update ")},
    )


def _finding(row: dict[str, str], path: Path, line: int) -> FindingRow:
    estimate = _number(row.get("estimate"))
    if estimate is None or not row.get("finding"):
        raise SubloraError(
            f"{path} line {line} has no usable finding or estimate: rebuild the tables with `sublora run`."
        )
    counts = [_whole(row.get(n)) or 0 for n in ("n_data_seeds", "n_train_seeds", "n_questions")]
    return FindingRow(
        row.get("trait", ""),
        row.get("group", ""),
        row["finding"],
        estimate,
        _number(row.get("low")),
        _number(row.get("high")),
        (counts[0], counts[1], counts[2]),
    )


def _tokens(raw: Any, path: Path) -> dict[str, tuple[TokenValues, ...]]:
    found = {}
    try:
        for trait, prompts in (raw or {}).items():
            found[trait] = tuple(
                TokenValues(
                    str(p["question"]),
                    tuple(map(str, p["pieces"])),
                    tuple(map(str, p["classes"])),
                    tuple(map(float, p["left_out"])),
                    tuple(map(float, p["alone"])),
                    float(p["effect"]),
                    int(p["replicates"]),
                )
                for p in prompts
            )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise SubloraError(
            f"{path} holds no readable attributions: rebuild it with `sublora run`."
        ) from None
    return found


def _training_context(run: dict[str, Any], present: list[str]) -> str:
    recipe = run.get("recipe") or {}
    train = recipe.get("train") or {}
    candidates = [
        *(train.get("contexts") or ()),
        train.get("context"),
        "default",
        *(run.get("contexts") or {}),
        *present,
    ]
    return next((c for c in candidates if isinstance(c, str) and c in present), "default")


def load_run(run_dir: Path) -> RunData:
    """Read run.json (required), results.csv, cells.csv, answers.json and verdicts.json (each optional).

    Raises SubloraError where the folder holds no readable run.json, or a table with rows that are not cells.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "run.json").exists():
        raise SubloraError(
            f"{run_dir} holds no run.json: give the folder of a run, as `sublora ls runs` lists them."
        )
    run = _json(run_dir / "run.json")
    if not isinstance(run, dict):
        raise SubloraError(
            f"{run_dir / 'run.json'} is not a JSON object: run the recipe again to rebuild it."
        )

    path = run_dir / "cells.csv"
    cells = tuple(_cell(row, path, line) for line, row in enumerate(_rows(path), start=2))
    results = tuple(_rows(run_dir / "results.csv"))
    answers = _json(run_dir / "answers.json") if (run_dir / "answers.json").exists() else {}
    verdicts = (
        tuple(_json(run_dir / "verdicts.json")) if (run_dir / "verdicts.json").exists() else None
    )

    path = run_dir / "arms.csv"
    arms = tuple(_arm(row, path, line) for line, row in enumerate(_rows(path), start=2))
    path = run_dir / "optimizers.csv"
    sweep = tuple(_swept(row, path, line) for line, row in enumerate(_rows(path), start=2))
    path = run_dir / "findings.csv"
    findings = tuple(_finding(row, path, line) for line, row in enumerate(_rows(path), start=2))
    path = run_dir / "attribution.json"
    tokens = _tokens(_json(path), path) if path.exists() else {}
    known = {
        t["name"]: Trait(
            t["name"],
            t.get("category", ""),
            t.get("target", t["name"]),
            t.get("teacher_prompt", ""),
        )
        for t in run.get("traits") or []
    }
    for cell in cells:
        known.setdefault(cell.trait, Trait(cell.trait, "", cell.trait, ""))
    contexts = list(dict.fromkeys(c.context for c in cells))
    limits, recipe = run.get("thresholds") or {}, run.get("recipe") or {}
    return RunData(
        run=run,
        traits=tuple(known.values()),
        cells=cells,
        results=results,
        answers=_answers(answers),
        verdicts=verdicts,
        training_context=_training_context(run, contexts),
        min_coherence=_number(limits.get("coherence")) or MIN_COHERENCE,
        max_number_takeover=_number(limits.get("number_takeover")) or MAX_NUMBER_TAKEOVER,
        level=1 - (_number(recipe.get("level")) or 0.05),
        fixed_lr=_number(recipe.get("fixed_lr")),
        contexts=tuple(contexts),
        arms=arms,
        tokens=tokens,
        sweep=sweep,
        findings=findings,
    )
