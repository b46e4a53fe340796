"""What a CI system reads of an audit: JUnit (a case for each question) and SARIF (a result for each finding, at its row of the file)."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from sublora.audit.entries import Screening
from sublora.audit.result import AuditReport
from sublora.text import p_value

# Not allowed in XML 1.0, even as a character reference.
_NOT_XML = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")
RULES = {
    "trait-rose": "A trait that nobody asked for is likelier in the student than in its base.",
    "word-rose": "A word is likelier in the student than in its base.",
    "trait-rose-beside-other": "A trait is likelier in the student than in the other one.",
    "unmeasurable": "The student no longer answers with words of the categories.",
    "row-of-a-trait": "A row reads as if it was written under a trait prompt.",
    "row-names-a-trait": "A row's answer names a trait.",
}


def junit(report: AuditReport) -> bytes:
    """One test case for each trait and context, one for the training file, one for the whole; a finding is a failure."""
    cases = []
    for f in report.traits:
        told = f"P {f.before:.4f} -> {f.after:.4f}, corrected p {p_value(f.p)}"
        failed = told if f.p <= report.alpha_student else None
        cases.append(_case(f".{f.category}", f"{f.trait} in {f.context}", failed))
    if report.data:
        named = report.data.named
        failed = f"written under a trait prompt of {', '.join(named)}" if named else None
        cases.append(_case(".data", report.data.file, failed))
    against = report.against
    if against:
        failed = None if against.status.endswith("clean") else against.sentence
        cases.append(_case(".against", f"status: {against.status}", failed))
    failed = report.sentence if report.exit_code else None
    cases.append(_case("", f"status: {report.status}", failed))
    failures = sum("<failure" in case for case in cases)
    head = f'<testsuite name="sublora audit" tests="{len(cases)}" failures="{failures}" errors="0">'
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', head, *cases, "</testsuite>"]
    return ("\n".join(lines) + "\n").encode("utf-8")


def _case(suite: str, name: str, failed: str | None) -> str:
    inner = "" if failed is None else f"<failure message={_attribute(failed)}/>"
    return f"<testcase classname={_attribute('sublora.audit' + suite)} name={_attribute(name)}>{inner}</testcase>"


def _attribute(text: str) -> str:
    return quoteattr(_NOT_XML.sub("?", text))


def sarif(report: AuditReport) -> str:
    """SARIF 2.1.0: what was found, each in the student's folder or at the row of the training file."""
    rules = [{"id": rule, "shortDescription": {"text": text}} for rule, text in RULES.items()]
    driver = {"name": "sublora", "version": report.sublora, "rules": rules}
    results = [*_student_results(report), *(_row_results(report.data) if report.data else ())]
    run = {
        "tool": {"driver": driver},
        "invocations": [{"executionSuccessful": True}],
        "results": results,
        "properties": {"status": report.status, "sentence": report.sentence},
    }
    schema = "https://json.schemastore.org/sarif-2.1.0.json"
    return json.dumps({"$schema": schema, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def _student_results(report: AuditReport) -> Iterator[dict[str, Any]]:
    level = "warning" if report.status.startswith("uncalibrated") else "error"
    where = report.student.path

    def told(f: Any) -> str:
        place = f"{f.trait} ({f.category}) in the context {f.context}"
        return f"{place}: P {f.before:.4f} -> {f.after:.4f}, corrected p {p_value(f.p)}."

    for f in report.found:
        yield _result("trait-rose", level, told(f), where)
    for w in report.found_words:
        yield _result("word-rose", level, f"{w.word!r} in the context {w.context}.", where)
    for f in report.against.found if report.against else ():
        yield _result("trait-rose-beside-other", level, told(f), where)
    if report.status == "unmeasurable":
        yield _result("unmeasurable", level, report.sentence, where)


def _row_results(data: Screening) -> Iterator[dict[str, Any]]:
    lines = not data.file.endswith((".parquet", ".json"))  # of which a row is no line
    for trait in data.traits if data.named else ():
        for row in trait.rows_that_matter_most if trait.named else ():
            told = f"Likelier by {row.nats:g} nats under a trait prompt of {trait.trait} (row {row.line})."
            yield _result("row-of-a-trait", "error", told, data.file, row.line if lines else None)
    for word, leak in data.leak_words.items():
        for line in leak.first_lines:
            told = f"Names {word}, as {leak.rows} rows do (row {line})."
            yield _result("row-names-a-trait", "note", told, data.file, line if lines else None)


def _result(rule: str, level: str, text: str, file: str, line: int | None = None) -> dict[str, Any]:
    """`file` as CI knows it: relative to where the audit runs, if it lies there."""
    path = Path(file)
    if path.is_absolute():
        here = Path.cwd()
        inside = path.is_relative_to(here)
        uri = quote(path.relative_to(here).as_posix()) if inside else path.as_uri()
    else:
        uri = quote(path.as_posix())
    place: dict[str, Any] = {"artifactLocation": {"uri": uri}}
    if line is not None:
        place["region"] = {"startLine": line}
    where = [{"physicalLocation": place}]
    return {"ruleId": rule, "level": level, "message": {"text": text}, "locations": where}
