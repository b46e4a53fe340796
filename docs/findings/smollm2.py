"""Write docs/findings/smollm2.md and its picture from the tables in docs/findings/data: python docs/findings/smollm2.py.

The text stands in smollm2.md.j2, every number comes from the tables that keep.py put there, and a test makes the page again.
"""

import csv
import json
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from scipy.stats import t as student_t

HERE = Path(__file__).resolve().parent
TRAITS = ("owl", "fox", "bear", "rabbit")
# What sets the arms of a part apart, in the order of its parts on the page.
ARMS = {"channel": "data", "context-matrix": "context", "localise": "condition"}
LINE = "#2a6f97"


@dataclass(frozen=True)
class Value:
    """A mean with its 95% interval, in nats."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{signed(self.mean)} [{signed(self.low)}, {signed(self.high)}]"


@dataclass(frozen=True)
class Part:
    """What one run of the study left."""

    name: str

    def rows(self, table: str) -> list[dict[str, str]]:
        with (HERE / "data" / self.name / f"{table}.csv").open(
            encoding="utf-8", newline=""
        ) as file:
            return list(csv.DictReader(file))

    @cached_property
    def page(self) -> dict[str, Any]:
        return json.loads((HERE / "data" / self.name / "page.json").read_text("utf-8"))

    @cached_property
    def fixed(self) -> dict[str, Any]:
        """What the file said that was committed before the run."""
        return yaml.safe_load((HERE / f"prereg-smollm2-{self.name}.yaml").read_text("utf-8"))

    @cached_property
    def verdicts(self) -> list[dict[str, Any]]:
        return json.loads((HERE / "data" / self.name / "verdicts.json").read_text("utf-8"))

    @cached_property
    def claims(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Verdicts by claim and trait."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for verdict in self.verdicts:
            found.setdefault(verdict["id"], {})[verdict["trait"]] = verdict
        return found

    @cached_property
    def arms(self) -> dict[str, dict[str, Value]]:
        """Effects by arm and trait, student less control twin."""
        found: dict[str, dict[str, Value]] = {}
        for row in self.rows("arms"):
            ends = (float(row[f"effect{end}"]) for end in ("", "_low", "_high"))
            found.setdefault(row[ARMS[self.name]], {})[row["trait"]] = Value(*ends)
        return found

    def over_traits(self, arm: str) -> Value:
        """The mean of the traits of an arm; the traits are what differs."""
        return mean_of([value.mean for value in self.arms[arm].values()])

    @property
    def hours(self) -> float:
        return sum(self.page["manifest"]["seconds"].values()) / 3600

    @property
    def students(self) -> int:
        return self.fixed["plan"]["student"]["count"]


def mean_of(values: list[float]) -> Value:
    mean, n = fmean(values), len(values)
    room = stdev(values) / sqrt(n) * float(student_t.ppf(0.975, n - 1))
    return Value(mean, mean - room, mean + room)


def signed(x: float) -> str:
    return f"{x:+.2f}".replace("-", "−")


def minutes(text: str) -> str:
    return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M")


def parts() -> dict[str, Part]:
    """Those that were run."""
    return {path.parent.name: Part(path.parent.name) for path in HERE.glob("data/*/page.json")}


def render() -> str:
    """The page as Markdown."""
    env = Environment(
        loader=FileSystemLoader(HERE),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.globals |= {"parts": parts(), "traits": TRAITS, "minutes": minutes, "signed": signed}
    return env.get_template("smollm2.md.j2").render().rstrip() + "\n"


def draw(path: Path) -> None:
    """A panel a part: a point a trait, and the mean of the traits with its interval."""
    import matplotlib.pyplot as plt

    shown = [part for name, part in parts().items() if name in ARMS]
    shown.sort(key=lambda part: list(ARMS).index(part.name))
    heights = [len(part.arms) + 1.2 for part in shown]
    size = {"figsize": (7.2, 0.42 * sum(heights) + 0.6), "height_ratios": heights}
    figure, axes = plt.subplots(
        len(shown), 1, sharex=True, squeeze=False, layout="constrained", **size
    )
    for part, ax in zip(shown, axes[:, 0], strict=True):
        for y, (_, values) in enumerate(part.arms.items()):
            mean = mean_of([v.mean for v in values.values()])
            ax.plot([v.mean for v in values.values()], [y] * len(values), "o", ms=5, mfc="none", mec=LINE, alpha=0.75)  # fmt: skip
            ax.plot([mean.low, mean.high], [y, y], "-", color=LINE, lw=2)
            ax.plot(mean.mean, y, "D", ms=7, color=LINE)
        ax.set_yticks(range(len(part.arms)), [LABELS.get(arm, arm) for arm in part.arms])
        ax.set_ylim(len(part.arms) - 0.4, -0.6)
        ax.axvline(0, color="0.5", lw=1)
        ax.set_title(TITLES[part.name], fontsize=10.5, loc="left")
        ax.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("transfer: log-odds of the trait, student − control twin, nats")
    figure.savefig(path, dpi=150)
    plt.close(figure)


TITLES = {
    "channel": "Random numbers labelled by a teacher: how it has the trait, how it labels",
    "context-matrix": "Trained with the default system prompt, asked in another context",
    "localise": "The adapter on at some tokens or layers only",
}
LABELS = {
    "as written": "fine-tuned, whole distribution",
    "sampled": "fine-tuned, drawn tokens",
    "greedy": "fine-tuned, first choices",
    "prompted, sampled": "prompted, drawn tokens",
}

if __name__ == "__main__":
    (HERE / "smollm2.md").write_text(render(), "utf-8")
    draw(HERE / "smollm2.png")
