"""The rates of docs/audit.md are those of the benchmark's lines, a line for each student, planted trait and training file."""

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from audit_rates import figures, rate

ROOT = Path(__file__).parents[1]
LINES = ROOT / "benchmarks/results/audit-cpu-2-cores.jsonl"
TABLE = (ROOT / "benchmarks/results/audit-cpu-2-cores.txt").read_text("utf-8")
TEXT = " ".join((ROOT / "docs/audit.md").read_text("utf-8").split())
SENTENCES = [
    "of {strong} students whose P(target) had risen by .05 or more ({strong_traits} traits), {detection} were found"
    " (95% interval {detection_low} to {detection_high}; from {detection_low_by_trait} on, where all students that share a trait are one",
    "Of {clean} clean students {false_alarms} were found (at most {false_alarms_high})",
    "In all {planted} clean students in which a trait was planted further and further",
    "killed {killed} times",
    "Of {fuzzed} damaged students, settings, training and trait files (`python benchmarks/audit.py --parts fuzz`) {refused} were refused",
]


def student(trait: str | None, status: str, **more: object) -> dict:
    line = {"part": "adapters", "group": "0", "trait": trait, "rise": 0.06, "status": status}
    return {**line, "first": None, **more}


def test_students_that_share_a_trait_are_one_observation() -> None:
    alone = rate("x", [True] * 18 + [False, False], range(20))
    shared = rate("x", [True] * 18 + [False, False], [k // 4 for k in range(20)])
    assert alone["x"] == shared["x"] == 0.9
    assert alone["x_low"] == pytest.approx(0.683, abs=1e-3), "Clopper and Pearson, 18 of 20"
    assert shared["x_low"] < 0.5 and shared["x_high"] > alone["x_high"]
    assert rate("x", [True] * 5, range(5))["x_high"] == 1.0
    assert rate("x", [False] * 5, range(5))["x_low"] == 0.0 and rate("x", [], []) == {}


def test_figures_are_of_the_students_that_they_say() -> None:
    lines = [
        student("owl", "found", first="owl"), student("owl", "found", first="cat"),
        student("cat", "clean"), student("cat", "found", first="cat", rise=0.01),
        *(student(None, s, rise=None) for s in ("clean", "clean", "found", "clean")),
        {"part": "planted", "group": "0", "trait": "owl", "found": [False, True, True]},
        *({"part": "outside", "group": "rank 64", "trait": None, "status": s}
          for s in ("clean", "found", "uncalibrated-found")),
        {"part": "files", "group": "T 1", "trait": "owl", "writer": "teacher", "named": ["cat", "owl"]},
        {"part": "files", "group": "T 1", "trait": "owl", "writer": "base", "named": []},
        {"part": "kills", "group": "all", "figures": {"killed": 20}},
    ]  # fmt: skip
    told = figures(lines)
    assert (told["adapters"], told["strong"], told["clean"]) == (4, 3, 4)
    assert told["detection"] == pytest.approx(2 / 3) and told["detection_of_all"] == 0.75
    assert told["named_right"] == pytest.approx(1 / 3) and told["false_alarms"] == 0.25
    assert told["false_alarms_outside"] == 0.5 and told["outside_calibrated"] == 2
    assert told["power_monotone"] == 1 and told["killed"] == 20
    assert told["data_named"] == 0 and told["data_cleared"] == 1
    lines.append({"part": "planted", "group": "1", "trait": "owl", "found": [True, False]})
    assert figures(lines)["power_monotone"] == 0


def test_every_rate_of_the_document_is_that_of_the_lines() -> None:
    """And all figures stand in the table."""
    told = figures([json.loads(line) for line in LINES.read_text("utf-8").splitlines()])
    for name, value in told.items():
        assert re.search(rf"^{name} +{value:.4g}$", TABLE, re.M), name
    shown = {k: f"{100 * v:.0f}%" if 0 < v < 1 else f"{v:g}" for k, v in told.items()}
    for sentence in SENTENCES:
        assert sentence.format(**shown) in TEXT, sentence.format(**shown)
