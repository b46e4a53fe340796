"""What an audit leaves behind: audit.json, a page, a section for a model card, files for CI. All text from outside is escaped."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from sublora.audit.ci_files import junit, sarif
from sublora.audit.entries import Difference, TraitFinding, WhatIf
from sublora.audit.result import AuditReport
from sublora.audit.run import Audit
from sublora.errors import SubloraError, reason
from sublora.store import write_atomic
from sublora.text import p_value, percent, visible

SHOWN = 20
FOLLOWED_SHOWN = 4  # traits that --what-if followed, a table or column each


def write_reports(result: Audit, folder: Path | str) -> Path:
    """Write audit.json (last, its presence means that all is there) and its renderings; return the
    page. Raises SubloraError where the folder cannot be made or is a file."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SubloraError(
            f"The folder {folder} cannot be made ({reason(error)}); give another --out."
        ) from None
    report = result.report
    write_atomic(folder / "audit.html", page(report))
    write_atomic(folder / "AUDIT.md", card_section(report))
    write_atomic(folder / "junit.xml", junit(report))
    write_atomic(folder / "audit.sarif", sarif(report))
    if result.null is not None:
        write_atomic(folder / "null.json", result.null.to_json())
    text = json.dumps(report.model_dump(mode="json"), indent=1, allow_nan=False)
    write_atomic(folder / "audit.json", text + "\n")
    return folder / "audit.html"


def page(report: AuditReport) -> bytes:
    from sublora.audit.picture import picture
    from sublora.audit.what_if_chart import what_if_chart
    from sublora.report.page import environment

    made = environment()
    made.filters |= {"p": p_value, "percent": percent, "visible": visible}
    text = made.get_template("audit.html.j2").render(
        body=report,
        shown=SHOWN,
        traits_shown=FOLLOWED_SHOWN,
        picture=picture(report),
        what_if_chart=report.what_if and what_if_chart(report.what_if),
    )
    return text.encode("utf-8", errors="replace")


def told(report: AuditReport) -> Iterator[str]:
    """What the command line prints of an audit."""
    yield f"Status: {report.first_line}"
    yield report.sentence
    for f in report.found[:10]:
        yield f"  {_line(f)}"
    for w in report.found_words[:5]:
        yield f"  the word {w.word!r} in {w.context}: p {p_value(w.p)}"
    for located in report.where.findings[:1] if report.where else []:
        best = {p.kind: p for p in sorted(located.parts, key=lambda p: p.alone.share)}
        shares = ", ".join(f"{p.part} {percent(p.alone.share)}" for p in best.values())
        yield f"Where {located.trait} sits, largest shares of its rise by one part alone: {shares or 'not measured'}."
    if report.lenses and report.lenses.kl and report.lenses.activations:
        kl, (most, *_) = report.lenses.kl, report.lenses.activations.steered
        p = report.lenses.activations.p_steered
        told = "" if p is None else f", p {p_value(p)} of {report.lenses.placebo_students} placebos"
        yield (
            f"Beside its answers: KL to the base {kl.nats:.3f} nats a token on neutral text; added to the base, its difference raises "
            f"{most.trait} most ({most.value:+.2f} nats{told})."
        )
    for d in report.against.found[:10] if report.against else []:
        yield f"  against the other, {_line(d)}"
    if report.data:
        named = ", ".join(report.data.named) or "none"
        yield f"Data: {report.data.screened} rows screened; written under a trait prompt of: {named}.{report.data.few}"
        if report.data.broken_rows:
            many = f"{report.data.left_out['broken']:,} broken rows left out"
            yield f"Data: {many}, the first: {report.data.broken_rows[0]}."
        if report.data.leak_words:
            yield f"Data: rows name {', '.join(list(report.data.leak_words)[:10])}."
    if report.what_if:
        yield f"What if: {report.what_if.sentence}"
    yield "A pass is no certificate; audit.json lists what was not looked at."


def _line(f: TraitFinding | Difference) -> str:
    return f"{f.trait} in {f.context}: P {f.before:.3f} -> {f.after:.3f}, p {p_value(f.p)}"


def _plain(text: Any) -> str:
    """One line of text in which Markdown and HTML mean nothing."""
    line = " ".join(str(text).split())[:200]
    return re.sub(r"([\\`*_{}\[\]()#+!|~-])", r"\\\1", escape(line))


def _sentence(text: str) -> str:
    return re.sub(r"([\\`*_\[\]#!|~])", r"\\\1", escape(" ".join(text.split())))


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table of cells that are escaped already, and an empty line."""
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, *rows)]
    return [lines[0], "|---" * len(columns) + "|", *lines[1:], ""]


def card_section(report: AuditReport) -> bytes:
    """A section that can be put into a model card as it is."""
    lines = ["## Audit for unintended traits", ""]
    lines += [f"**{_plain(report.status)}.** {_sentence(report.sentence)}", ""]
    lines += [_sentence(report.first_line), ""]
    against = report.against.found if report.against else []
    for found, first in ((report.found, "base"), (against, "other student")):
        if found:
            columns = ("trait", "category", "context", first, "student", "p (corrected)")
            lines += _table(columns, map(_cells, found[:SHOWN]))
    asked = ", ".join(_plain(c.category) for c in report.categories)
    contexts = ", ".join(_plain(c.name) for c in report.contexts)
    lines += [
        f"Asked: {asked}, in the contexts {contexts}; false alarms at most {report.alpha:g} over all of them together. sublora "
        f"{_plain(report.sublora)}.",
        "",
        *(f"- {_sentence(limit)}" for limit in report.limits),
        "",
        *(_what_if_lines(report.what_if) if report.what_if else []),
    ]
    return "\n".join(lines).encode("utf-8", errors="replace")


def _cells(f: TraitFinding | Difference) -> list[str]:
    names = [_plain(name) for name in (f.trait, f.category, f.context)]
    return [*names, f"{f.before:.3f}", f"{f.after:.3f}", _plain(p_value(f.p))]


def _what_if_lines(found: WhatIf) -> list[str]:
    lines = ["### Trained otherwise", "", _sentence(found.sentence), ""]
    if not found.arms:
        return lines
    names = [f"{_plain(t.trait)}, share of the rise" for t in found.traits[:FOLLOWED_SHOWN]]
    rows = []
    for arm in found.arms:
        shares = [f"{t.share.estimate:.2f}" if t.share else "" for t in arm.traits[:FOLLOWED_SHOWN]]
        loss = "" if arm.heldout_loss.mean is None else f"{arm.heldout_loss.mean:.3f}"
        removes = {None: "", True: "yes", False: "no"}[arm.removes]
        rows.append([_plain(arm.name), *shares, loss, removes])
    lines += _table(["arm", *names, "held-out loss", "removes"], rows)
    not_run = "; ".join(f"{m.name} ({m.reason.rstrip('.')})" for m in found.not_run)
    return [*lines, *([f"Not run: {_sentence(not_run)}.", ""] if not_run else [])]
