"""Verdicts as the page shows them: how many of each, what they come to in a sentence, and a row each."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sublora.analysis.effects import ALL_TRAITS
from sublora.text import listed, p_value, plural

MARKS = {
    "supported": "✓",
    "refuted": "✗",
    "inconclusive": "≈",
    "uninterpretable": "∅",
    "not run": "–",
}
VIEWS = {
    "all": "all cells",
    "fixed-lr": "one rate for all ranks",
    "best-lr": "each rank at its best rate",
    "full": "full fine-tunes",
}
Verdicts = Sequence[Mapping[str, Any]]


def counts(verdicts: Verdicts) -> list[dict[str, Any]]:
    """How many there are of each verdict, those that are none included."""
    found = Counter(v["verdict"] for v in verdicts)
    return [
        {"verdict": name, "kind": name.replace(" ", "-"), "mark": mark, "count": found[name]}
        for name, mark in MARKS.items()
    ]


def takeaway(verdicts: Verdicts) -> str:
    """What the verdicts come to, in one sentence; nothing where no claim was asked for."""
    if not verdicts:
        return ""
    judged = [v for v in verdicts if v["verdict"] != "not run"]
    several = len({v.get("trait") for v in judged} - {"all", None}) > 1
    parts = []
    for name, said in (
        ("supported", "supported"),
        ("refuted", "refuted"),
        ("inconclusive", "left open"),
        ("uninterpretable", "not to be interpreted, because a control failed"),
    ):
        mine = [v for v in judged if v["verdict"] == name]
        if mine:
            quoted = name in ("supported", "refuted")
            parts.append(
                _part(mine, said, several) if quoted else f"{len(mine)} {_are(mine, said)}"
            )
    if not judged:
        return f"None of {plural(len(verdicts), 'claim')} could be judged by this run."
    return f"Of {plural(len(judged), 'claim')} judged here, {listed(parts)}."


def _are(verdicts: Verdicts, said: str) -> str:
    return f"{'is' if len(verdicts) == 1 else 'are'} {said}"


def _part(verdicts: Verdicts, said: str, several: bool) -> str:
    """So many are so, and one of them word for word: the first about all traits, or the first."""
    first = next((v for v in verdicts if v.get("trait") == ALL_TRAITS), verdicts[0])
    of = f" (of {first['trait']})" if several and first.get("trait") not in (None, "all") else ""
    quote = f"“{first['statement'].rstrip('.')}”{of}"
    among = ": " if len(verdicts) == 1 else ", among them "
    return f"{len(verdicts)} {_are(verdicts, said)}{among}{quote}"


def verdict_row(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """A verdict as the page shows it."""

    def shown(values: Mapping[str, Any] | None, sign: str = " = ") -> str:
        pairs = (values or {}).items()
        return "; ".join(f"{key.replace('_', ' ')}{sign}{_statistic(x)}" for key, x in pairs)

    name = str(verdict.get("verdict", "not run"))
    return {
        **verdict,
        "verdict": name,
        "mark": MARKS.get(name, "?"),
        "kind": name.replace(" ", "-"),
        "view": VIEWS.get(verdict.get("view"), ""),
        "reason": re.sub(r"(?<![\w.])-(?=\d)", "−", str(verdict.get("reason", ""))),
        "test": str(verdict.get("test", "")).replace("_", " "),
        "threshold": shown(verdict.get("threshold")),
        "threshold_from": verdict.get("threshold_from", ""),
        "statistic": shown(verdict.get("statistic")),
        "n": shown(verdict.get("n"), " "),
        "q": "" if verdict.get("q") is None else f"q {p_value(verdict['q'])}",
        "stability": _stability(name, verdict.get("stability") or {}),
    }


def _stability(verdict: str, moved: Mapping[str, str]) -> str:
    """In words: whether the verdict hangs on its bar."""
    others = [f"{answer} at {where}" for where, answer in moved.items() if answer != verdict]
    if not moved:
        return ""
    return f"{', '.join(others)} the bar" if others else f"same at {' and '.join(moved)} the bar"


def _statistic(value: Any) -> str:
    return f"{value:.4g}".replace("-", "−") if isinstance(value, float) else str(value)
