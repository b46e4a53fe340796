"""The sampled answers behind a run's results, read from the store for exports."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sublora.errors import SubloraError
from sublora.report.loaded import LoadedRun
from sublora.store import Artifact, Store


@dataclass(frozen=True)
class Asked:
    """One measurement: its `row` of results.csv, and by question the answers."""

    row: Mapping[str, Any]
    answers: Mapping[str, list[str]]

    @property
    def who(self) -> str:
        """Who answered, in words: the base, or a student by its labels and seeds."""
        names = ("method", "rank", "lr", "variant", "placement", "optimizer", "data", "condition")
        names += ("data_seed", "train_seed")
        shown = (f"{n} {self.row[n]}" for n in names if self.row.get(n) not in (None, "", "none"))
        return ", ".join([str(self.row["kind"]), *shown])


def results(run: LoadedRun) -> list[dict[str, Any]]:
    """The rows of results.csv that are measurements. Raises SubloraError for an experiment that stores no answers."""
    table = run.tables.get("results")
    if table is None or "measurement_id" not in table.columns:
        raise SubloraError(
            f"The run {run.folder} is no grid of students with sampled answers; export it with --to parquet."
        )
    return table.rows()


def stored(store: Store, name: str) -> Artifact:
    """Raises SubloraError where the store has lost it."""
    if not store.has(name):
        raise SubloraError(
            f"The store {store.root} has no {name}; run the same command again, which makes it anew."
        )
    return store.read(name)


def asked(run: LoadedRun, store: Store) -> Iterator[Asked]:
    """All measurements of a run, one after the other."""
    for row in results(run):
        yield Asked(row, _answers(stored(store, row["measurement_id"]).file("samples.jsonl")))


def _answers(file: Path) -> dict[str, list[str]]:
    lines = [json.loads(line) for line in file.read_text("utf-8").split("\n") if line]
    return {line["question"]: line["answers"] for line in lines}
