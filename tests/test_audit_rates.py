"""The rates of docs/audit.md are those of the benchmark's lines, a line for each student, planted trait and training file."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from audit_rates import figures, rate


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
