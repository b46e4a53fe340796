"""The numbers of docs/results.md on how far verdicts can be trusted are those of the table of the benchmark."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = (ROOT / "benchmarks/results/validity-cpu-2-cores.txt").read_text("utf-8")
TEXT = " ".join((ROOT / "docs/results.md").read_text("utf-8").split())


def value(name: str) -> float:
    (found,) = re.findall(rf"^{re.escape(name)} +([0-9.]+)$", TABLE, re.M)
    return float(found)


def test_false_calls_and_detection_are_those_measured() -> None:
    models = ("micro", "micro-b", "micro-null")
    assert [value(f"{m}: neutral called") for m in models] == [0.0] * 3
    moved = max(value(f"{m}: largest rise of neutral students, nats") for m in models)
    assert f"by {moved:.3f} nats at most" in TEXT
    before = [round(100 * value(f"{m}: neutral, by probabilities called")) for m in models]
    assert "{}%, {}% and {}% were".format(*before) in TEXT
    found, old = (
        [round(100 * value(f"{m}: {kind} called")) for m in models[:2]]
        for kind in ("trait", "trait, by probabilities")
    )
    assert "called in {}% and {}% ({}% and {}% by the difference)".format(*found, *old) in TEXT


def test_coverage_and_absence_are_those_measured() -> None:
    def covered(world: str) -> list[float]:
        return [value(f"coverage: {world}, D={d}") for d in (2, 4, 8)]

    assert min(covered("Gaussian seeds and questions")) >= 0.95
    assert min(covered("a few questions carry most (log-odds)")) >= 0.93
    low, high = min(covered("lognormal seeds")), max(covered("lognormal seeds"))
    assert f"{100 * low:.0f}% to {100 * high:.0f}% of lognormal seeds" in TEXT
    four, eight = (value(f"false absent, a third of seeds jump, D={d}") for d in (4, 8))
    assert (
        f"({100 * four:.0f}% false at four seeds of which a third jump, {100 * eight:.1f}% at eight)"
        in TEXT
    )
    assert value("reversed_shapes") == value("contradictions") == 0
