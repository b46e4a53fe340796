"""One self-contained HTML page for a run, made of its `page.json` alone, with its figures beside it."""

import html
import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from pydantic import ValidationError

from sublora.analysis.page import Chart, Heatmap, Page, Section
from sublora.errors import SubloraError, reason
from sublora.report.figures import plate
from sublora.report.glossary import Glossary
from sublora.report.hover import csv_of
from sublora.report.tokens import strips
from sublora.report.verdicts import counts, takeaway, verdict_row
from sublora.store import write_atomic
from sublora.text import visible

MAX_TOKENS = 400
SCRIPT = (files("sublora.report") / "page.js").read_text("utf-8").strip()
NUMBER = re.compile(r"[+−<]? ?[0-9][0-9.,e+−]*( ?[×%†‡●] ?[0-9–]*| of [0-9]+)*|–|none|")
RATE = re.compile(r"\b(?:lr )?[0-9.]+e-[0-9]+")


def build_report(run_dir: Path) -> Path:
    """Write report.html and figures/*.svg|png|pdf from page.json of a run folder; return the page's path.

    The same page.json gives the same bytes, and each file is replaced in one step. Raises SubloraError
    where page.json is missing or cannot be read, or the folder takes no more.
    """
    run_dir = Path(run_dir)
    page = read_page(run_dir / "page.json")
    try:
        figures = run_dir / "figures"
        figures.mkdir(exist_ok=True)
        write_atomic(run_dir / "report.html", render(page, figures))
    except OSError as error:
        raise SubloraError(
            f"The report of {run_dir} could not be written ({reason(error)}): "
            "free some room or check the folder's permissions, then run `sublora report` again."
        ) from error
    return run_dir / "report.html"


def read_page(path: Path) -> Page:
    """Raises SubloraError where there is no page of this version."""
    if not path.parent.is_dir():
        raise SubloraError(
            f"There is no folder {path.parent}; give a run's folder (`sublora ls runs`)."
        )
    if not path.exists():
        raise SubloraError(
            f"{path.parent} has no page.json, because its run is not finished or is of an older version; "
            "run the same command again, which goes on from the store and writes the page."
        )
    try:
        return Page.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise SubloraError(
            f"{path} cannot be read ({' '.join(str(error).split())[:120]}); run the same command again, which writes it anew."
        ) from None


def render(page: Page, folder: Path | None = None) -> str:
    """The page as HTML; its figures are written into the folder too, where there is one."""
    made, glossary, verdicts = environment(), Glossary(), page.verdicts or ()
    made.filters |= {"code": prose, "prose": lambda text: glossary.explain(prose(text))}
    made.filters["head"] = glossary.head
    return made.get_template("page.html.j2").render(
        page=page,
        run=page.manifest,
        model=page.manifest.get("model") or {},
        sections=[(s, _groups(s, folder)) for s in page.sections],
        appendix=[(s, _groups(s, folder)) for s in page.appendix],
        verdicts=None if page.verdicts is None else [verdict_row(v) for v in verdicts],
        counts=counts(verdicts),
        takeaway=takeaway(verdicts),
        glossary=glossary,
        script=SCRIPT,
        script_hash=hash_of(SCRIPT),
        recipe=json.dumps(
            page.manifest.get("recipe") or {}, indent=2, ensure_ascii=False, sort_keys=True
        ),
    )


def environment() -> Environment:
    """The templates with their filters."""
    made = Environment(
        loader=PackageLoader("sublora", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"prose": prose, "example": example, "columns": column_classes}
    return made


def prose(text: str) -> Markup:
    """Text as HTML: code between backticks, and learning rates that do not break at their hyphens."""
    text = RATE.sub(r'<span class="whole">\g<0></span>', html.escape(text))
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", text))


def hash_of(script: str) -> str:
    """As a content security policy names the one script that may run."""
    return "sha256-" + b64encode(sha256(script.encode("utf-8")).digest()).decode("ascii")


def _groups(section: Section, folder: Path | None) -> list[tuple[str, list[Any]]]:
    """The parts of a section as (kind, items); figures that follow one another are one group."""

    def kind(part: Any) -> str:
        return "figures" if isinstance(part, Chart | Heatmap) else part.kind

    groups = []
    for name, parts in groupby(section.parts, kind):
        if name == "figures":
            groups.append((name, [(part, plate(part, folder), _data(part)) for part in parts]))
        elif name == "tokens":
            groups.append((name, [(part, list(map(strips, part.prompts))) for part in parts]))
        else:
            groups.append((name, list(parts)))
    return groups


def _data(chart: Chart | Heatmap) -> str:
    """The numbers of a figure as an address that a click saves."""
    text = b64encode(csv_of(chart).encode("utf-8")).decode("ascii")
    return f"data:text/csv;charset=utf-8;base64,{text}"


def column_classes(rows: Sequence[Sequence[str]]) -> list[str]:
    """The CSS class of each column: numbers to the right, intervals muted."""
    classes = []
    for column in zip(*rows, strict=True):
        spans = all(not text or text[0] == "[" or text == "unknown" for text in column)
        numbers = all(NUMBER.fullmatch(text) for text in column) and any(column)
        classes.append("n" if numbers else "span" if spans and any(column) else "")
    return classes


def example(entry: Mapping[str, Any] | None) -> dict[str, Any]:
    """A rendered text with its tokens paired to their ids where both are known."""
    entry = entry or {}
    ids, tokens = list(entry.get("ids") or []), list(entry.get("tokens") or [])
    tokens = tokens if len(tokens) == len(ids) else [""] * len(ids)
    pairs = [(visible(str(t)), i) for t, i in zip(tokens, ids, strict=True)]
    more = max(0, len(pairs) - MAX_TOKENS)
    return {"text": entry.get("text") or "", "pairs": pairs[:MAX_TOKENS], "more": more}
