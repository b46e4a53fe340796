"""A run as Parquet files: every table, the verdicts, and one row for each sampled answer."""

from pathlib import Path

from sublora.analysis.frame import Frame, needs
from sublora.report.exports.answers import asked
from sublora.report.loaded import LoadedRun
from sublora.store import Store


def export_parquet(run: LoadedRun, store: Store, out: Path) -> list[Path]:
    """Write NAME.parquet for each CSV, verdicts.parquet, and answers.parquet where answers were sampled.

    Raises SubloraError where pyarrow is not installed, or the store has lost an artifact.
    """
    write = needs("pyarrow.parquet", "sublora[notebook]").write_table
    tables = {**run.tables, "verdicts": run.verdicts}
    if "measurement_id" in run.tables.get("results", Frame({})).columns:
        tables["answers"] = _answers(run, store)
    out.mkdir(parents=True, exist_ok=True)
    files = {name: out / f"{name}.parquet" for name, table in tables.items() if table.columns}
    for name, file in files.items():
        write(tables[name].to_arrow(), file)
    return list(files.values())


def _answers(run: LoadedRun, store: Store) -> Frame:
    columns: dict[str, list] = {n: [] for n in ("measurement_id", "question", "sample", "answer")}
    for one in asked(run, store):
        for question, answers in one.answers.items():
            for k, answer in enumerate(answers):
                row = (one.row["measurement_id"], question, k, answer)
                for column, value in zip(columns.values(), row, strict=True):
                    column.append(value)
    return Frame(columns)
