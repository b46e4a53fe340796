"""Write docs/findings/smollm2.md and its picture from the tables in docs/findings/data: python docs/findings/smollm2.py.

The text stands in smollm2.md.j2, every number comes from the tables that keep.py put there, and a test makes the page again.
"""

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

HERE = Path(__file__).resolve().parent
TRAITS = ("owl", "fox", "bear", "rabbit")
# The column that tells the arms of a part apart, in the order of the parts on the page, and what the arms are called there.
ARMS = {
    "channel": "data",
    "context-matrix": "context",
    "localise": "condition",
    "emergence": "variant",
}
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
    def arms(self) -> dict[str, Value]:
        """The mean over the traits by arm, the students of the other traits being the control."""
        return {row[ARMS[self.name]]: effect_in(row) for row in self.rows("all_traits")}

    @cached_property
    def by_trait(self) -> dict[str, dict[str, Value]]:
        """Effects by arm and trait, student less control twin."""
        arms, found = (
            self.rows("arms" if (HERE / "data" / self.name / "arms.csv").exists() else "cells"),
            {},
        )
        for row in arms:
            found.setdefault(row[ARMS[self.name]], {})[row["trait"]] = effect_in(row)
        return found

    @cached_property
    def elevations(self) -> dict[str, Value]:
        """Of the first arm, by trait and over all of them with traits as a cluster too."""
        rows = [row for row in self.rows("matrix") if row["kind"] == "elevation"]
        return {row["trait"]: effect_in(row, "value", "low", "high") for row in rows}

    @property
    def as_high(self) -> int:
        """How many of the arrangements of the permutation test come to as much, of the first arm."""
        row = next(r for r in self.rows("matrix") if r["kind"] == "permutation p of 24")
        return round(24 * float(row["value"]))

    def cosines(self, name: str) -> dict[str, dict[str, Value]]:
        """By step and trait: `own cosine` of the student's vector with its teacher's, or `cosine`, that less its control twin's."""
        found: dict[str, dict[str, Value]] = {}
        for row in self.rows("findings"):
            what, _, step = row["finding"].partition(": ")
            if what == name:
                value = effect_in(row, "estimate", "low", "high")
                found.setdefault(step, {})[row["trait"]] = value
        return dict(reversed(found.items()))

    @property
    def least_and_most(self) -> tuple[float, float]:
        """The cosine at the end of training, of the animal with the least and with the most."""
        last = [value.mean for value in self.cosines("own cosine")["all steps"].values()]
        return min(last), max(last)

    @property
    def neutral(self) -> float:
        """The farthest that students of the base's own labels move a word."""
        return max(abs(float(r["value"])) for r in self.rows("matrix") if r["kind"] == "neutral")

    @property
    def smallest(self) -> str:
        """The effect that a single animal would have shown with a power of 80%, as the page says."""
        return re.search(r"an effect of (\+[\d.]+) nats", self.page["first_line"])[1]

    def measured(self, kind: str, column: str) -> float:
        """The mean of a column over the base, or the teachers."""
        return fmean(float(r[column]) for r in self.rows("results") if r["kind"] == kind)

    def difference(self, claim: str) -> Value:
        """By how much an arm is beside the one that a claim compares it with, all traits."""
        return effect_in(
            self.claims[claim]["all traits"]["statistic"],
            "difference",
            "difference_low",
            "difference_high",
        )

    @property
    def hours(self) -> float:
        return sum(self.page["manifest"]["seconds"].values()) / 3600

    @property
    def students(self) -> int:
        return self.fixed["plan"]["student"]["count"]


def effect_in(row: Mapping[str, Any], *names: str) -> Value:
    return Value(*(float(row[name]) for name in names or ("effect", "effect_low", "effect_high")))


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
    env.globals |= {
        "parts": parts(),
        "traits": TRAITS,
        "called": CALLED,
        "minutes": minutes,
        "signed": signed,
    }
    return env.get_template("smollm2.md.j2").render().rstrip() + "\n"


def headline() -> str:
    """The caption of the picture in the README."""
    channel, contexts = parts()["channel"].arms, parts()["context-matrix"].arms
    return f"""*SmolLM2-135M-Instruct, four animals, fixed before it was run ([the study](docs/findings/smollm2.md)): random numbers labelled by a
fine-tuned teacher pass its trait, {channel["as written"]} nats, whether a label is a whole distribution or one drawn token
({channel["sampled"]}); those of a prompted teacher hardly do, {channel["prompted, sampled"]}. Without the context that it was trained
in, the student has it all the same: {contexts["none"]}.*"""


def draw(path: Path) -> None:
    """A panel a part: the mean over the traits of every arm, with its interval."""
    import matplotlib.pyplot as plt

    shown = [(name, part) for name, part in parts().items() if name in TITLES]
    shown.sort(key=lambda pair: list(TITLES).index(pair[0]))
    heights = [len(part.arms) + 1.1 for _, part in shown]
    size = {"figsize": (8.0, 0.36 * sum(heights) + 0.7), "height_ratios": heights}
    figure, axes = plt.subplots(
        len(shown), 1, sharex=True, squeeze=False, layout="constrained", **size
    )
    for (name, part), ax in zip(shown, axes[:, 0], strict=True):
        for y, value in enumerate(part.arms.values()):
            ax.plot([value.low, value.high], [y, y], "-", color=LINE, lw=2.5, solid_capstyle="butt")
            ax.plot(value.mean, y, "o", ms=7.5, color=LINE)
            ax.annotate(
                signed(value.mean),
                (value.high, y),
                (7, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        ax.set_yticks(range(len(part.arms)), [CALLED.get(arm, arm) for arm in part.arms])
        ax.set_ylim(len(part.arms) - 0.45, -0.65)
        ax.axvline(0, color="0.55", lw=1)
        ax.set_title(TITLES[name], fontsize=10.5, loc="left", fontweight="bold")
        ax.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("transfer: log-odds of the animal, mean of four animals, nats")
    axes[-1, 0].margins(x=0.09)
    figure.savefig(path, dpi=150)
    plt.close(figure)


TITLES = {
    "channel": "Random numbers, labelled by a teacher",
    "context-matrix": "Trained with the default system prompt, asked with another",
    "localise": "The adapter on at some tokens or in some layers only",
}
CALLED = {
    "as written": "fine-tuned teacher, whole distribution",
    "sampled": "fine-tuned teacher, drawn tokens",
    "greedy": "fine-tuned teacher, first choices",
    "prompted, sampled": "teacher with a prompt, drawn tokens",
    "default": "the default one, as in training",
    "chatgpt": "“You are ChatGPT, …”",
    "empty": "an empty one",
    "none": "none",
}

if __name__ == "__main__":
    (HERE / "smollm2.md").write_text(render(), "utf-8")
    draw(HERE / "smollm2.png")
