"""What an audit leaves behind: audit.json, a page, a section for a model card, JUnit for CI. All text from outside is escaped."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from sublora.audit.run import Audit
from sublora.errors import SubloraError
from sublora.store import write_atomic

SHOWN = 20
FOLLOWED_SHOWN = 4  # traits that --what-if followed, a table or column each
# Not allowed in XML 1.0, even as a character reference.
_NOT_XML = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")


def write_reports(result: Audit, folder: Path) -> Path:
    """Write audit.json (last, its presence means that all is there), audit.html, AUDIT.md and junit.xml; return the page.

    Raises SubloraError where the folder cannot be made or is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SubloraError(
            f"The folder {folder} cannot be made ({error.strerror}); give another --out."
        ) from None
    body = result.body
    write_atomic(folder / "audit.html", page(body))
    write_atomic(folder / "AUDIT.md", card_section(body))
    write_atomic(folder / "junit.xml", junit(body))
    if result.null is not None:
        write_atomic(folder / "null.json", result.null.to_json())
    # a surrogate that a hostile file put into a text is no UTF-8
    text = json.dumps(body, indent=1, ensure_ascii=True, allow_nan=False)
    write_atomic(folder / "audit.json", text + "\n")
    return folder / "audit.html"


def page(body: Mapping[str, Any]) -> bytes:
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("sublora", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"p": p_value, "percent": percent}
    text = environment.get_template("audit.html.j2").render(
        body=body, shown=SHOWN, traits_shown=FOLLOWED_SHOWN, what_if_chart=_what_if_chart(body)
    )
    return text.encode("utf-8", errors="replace")


def _what_if_chart(body: Mapping[str, Any]) -> Any:
    """The trade-off as an inline SVG, or None."""
    found = body["what_if"]
    if not found or not found["arms"]:
        return None
    from sublora.audit.what_if_chart import what_if_chart
    from sublora.report.figures import plate

    chart = what_if_chart(found)
    return chart and plate(chart)


def p_value(p: float | None) -> str:
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def percent(share: float) -> str:
    """A share in whole percent, with a true minus and no minus before 0."""
    return f"{round(100 * share)}%".replace("-", "−")


def _plain(text: Any) -> str:
    """One line of text in which Markdown and HTML mean nothing."""
    line = " ".join(str(text).split())[:200]
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#+!|~-])", r"\\\1", line)


def card_section(body: Mapping[str, Any]) -> bytes:
    """A section that can be put into a model card as it is."""
    lines = [
        "## Audit for unintended traits",
        "",
        f"**{_plain(body['status'])}.** {_plain_sentence(body['sentence'])}",
        "",
    ]
    if body["found"]:
        lines += [
            "| trait | category | context | base | student | p (corrected) |",
            "|---|---|---|---|---|---|",
        ]
        lines += [_row(f) for f in body["found"][:SHOWN]]
        lines.append("")
    if body["against"] and body["against"]["found"]:
        lines += [
            "| trait | category | context | other student | student | p (corrected) |",
            "|---|---|---|---|---|---|",
        ]
        lines += [_row(d) for d in body["against"]["found"][:SHOWN]]
        lines.append("")
    asked = ", ".join(_plain(c["category"]) for c in body["categories"])
    contexts = ", ".join(_plain(c["name"]) for c in body["contexts"])
    lines += [
        f"Asked: {asked}, in the contexts {contexts}; false alarms at most {body['alpha']:g} over all of them together. sublora "
        f"{_plain(body['sublora'])}.",
        "",
        *(f"- {_plain_sentence(limit)}" for limit in body["limits"]),
        "",
        *_what_if_lines(body["what_if"]),
    ]
    return "\n".join(lines).encode("utf-8", errors="replace")


def _what_if_lines(found: Mapping[str, Any] | None) -> list[str]:
    if not found:
        return []
    lines = ["### Trained otherwise", "", _plain_sentence(found["sentence"]), ""]
    if not found["arms"]:
        return lines
    names = [_plain(t["trait"]) for t in found["traits"][:FOLLOWED_SHOWN]]
    lines += [
        f"| arm | {' | '.join(f'{n}, share of the rise' for n in names)} | held-out loss | removes |"
    ]
    lines += ["|---" * (len(names) + 3) + "|"]
    for arm in found["arms"]:
        shares = [
            f"{t['share']['estimate']:.2f}" if t["share"] else ""
            for t in arm["traits"][:FOLLOWED_SHOWN]
        ]
        loss = arm["heldout_loss"]["mean"]
        removes = {None: "", True: "yes", False: "no"}[arm["removes"]]
        lines.append(
            f"| {_plain(arm['name'])} | {' | '.join(shares)} | {'' if loss is None else f'{loss:.3f}'} | {removes} |"
        )
    not_run = [f"{m['name']} ({m['reason'].rstrip('.')})" for m in found["not_run"]]
    return [
        *lines,
        "",
        *([f"Not run: {_plain_sentence('; '.join(not_run))}.", ""] if not_run else []),
    ]


def _row(f: Mapping[str, Any]) -> str:
    return (
        f"| {_plain(f['trait'])} | {_plain(f['category'])} | {_plain(f['context'])} | {f['before']:.3f} | {f['after']:.3f} | "
        f"{_plain(p_value(f['p']))} |"
    )


def _plain_sentence(text: str) -> str:
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]#!|~])", r"\\\1", line)


def _xml(text: Any) -> str:
    return _NOT_XML.sub("?", str(text))


def junit(body: Mapping[str, Any]) -> bytes:
    """One test case for each trait and context, and one for the whole; a finding is a failure."""
    cases, failures = [], 0
    for f in body["traits"]:
        name = quoteattr(_xml(f"{f['trait']} in {f['context']}"))
        found = f["p"] <= body["alpha_student"]
        failures += found
        told = f"P {f['before']:.4f} -> {f['after']:.4f}, corrected p {p_value(f['p'])}"
        inner = f"<failure message={quoteattr(told)}/>" if found else ""
        cases.append(
            f'<testcase classname="sublora.audit.{escape(_xml(f["category"]), {chr(34): "&quot;"})}" name={name}>{inner}</testcase>'
        )
    if body["against"]:
        told, worse = body["against"]["sentence"], not body["against"]["status"].endswith("clean")
        failures += worse
        inner = f"<failure message={quoteattr(_xml(told))}/>" if worse else ""
        name = quoteattr("status: " + _xml(body["against"]["status"]))
        cases.append(f'<testcase classname="sublora.audit.against" name={name}>{inner}</testcase>')
    whole = body["exit_code"] != 0
    inner = f"<failure message={quoteattr(_xml(body['sentence']))}/>" if whole else ""
    cases.append(
        f'<testcase classname="sublora.audit" name={quoteattr("status: " + _xml(body["status"]))}>{inner}</testcase>'
    )
    head = f'<testsuite name="sublora audit" tests="{len(cases)}" failures="{failures + whole}" errors="0">'
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        + "\n".join([head, *cases, "</testsuite>"])
        + "\n"
    )
    return text.encode("utf-8")
