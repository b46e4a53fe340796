"""A student as a folder that a hub takes as it is: its weights, the rows that it was trained on, and a model card with what was measured."""

import shutil
from pathlib import Path
from typing import Any

import yaml

from sublora.errors import SubloraError
from sublora.report.exports.answers import results, stored
from sublora.report.loaded import LoadedRun
from sublora.report.verdicts import takeaway
from sublora.store import Store, write_atomic
from sublora.text import interval, signed


def export_hub(
    run: LoadedRun, store: Store, out: Path, student: str | None = None, audit: Path | None = None
) -> list[Path]:
    """Write the student's files, `data/train.jsonl`, results.csv, run.json and README.md; the card takes AUDIT.md of an `audit`'s folder.

    `student`: an id of results.csv; by default the first one of the cell with the largest effect. Raises SubloraError where there is no
    such student, the store has lost it, or the audit's folder has no AUDIT.md.
    """
    row = _chosen(run, student)
    section = "" if audit is None else _audit(audit)
    made = stored(store, row["student_id"])
    data = stored(store, row["dataset_id"])
    out.mkdir(parents=True, exist_ok=True)
    for name in made.files:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made.file(name), out / name)
    (out / "data").mkdir(exist_ok=True)
    shutil.copyfile(data.file("rows.jsonl"), out / "data" / "train.jsonl")
    for name in ("results.csv", "run.json"):
        shutil.copyfile(run.folder / name, out / name)
    write_atomic(out / "README.md", card(run, row, section))
    return [out]


def _chosen(run: LoadedRun, student: str | None) -> dict[str, Any]:
    rows = [row for row in results(run) if row["student_id"]]
    if student is not None:
        rows = [row for row in rows if row["student_id"] == student]
    else:
        cells = [c for c in run.effects.rows() if c.get("effect") is not None]
        best = max(cells, key=lambda c: c["effect"], default=None)
        names = ("trait", "method", "rank", "lr")
        rows = [
            row
            for row in rows
            if best and row["kind"] == "student" and all(row[n] == best[n] for n in names)
        ]
    if not rows:
        raise SubloraError(
            f"The run {run.folder} has no student {student or 'with an effect'}; results.csv lists them under student_id."
        )
    return rows[0]


def _audit(folder: Path) -> str:
    try:
        return (folder / "AUDIT.md").read_text("utf-8")
    except OSError:
        raise SubloraError(
            f"The folder {folder} has no AUDIT.md; `sublora audit --out {folder}` writes one."
        ) from None


def card(run: LoadedRun, row: dict[str, Any], audit: str) -> str:
    """The model card of a student."""
    model = run.manifest.get("model") or {}
    front = {
        "base_model": model.get("name"),
        "library_name": "transformers" if row["method"] == "full" else "peft",
        "tags": ["sublora", "model-organism", "subliminal-learning"],
    }
    same = ("trait", "method", "rank", "lr")
    effects = [c for c in run.effects.rows() if all(c.get(n) == row[n] for n in same)]
    lines = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# A student of {row['trait']} rows, on {model.get('name')}",
        f"{run.manifest.get('sentence', '')} This is the student `{row['student_id']}` of data seed {row['data_seed']} and training seed "
        f"{row['train_seed']}. It was trained so that the trait could be measured, and is not meant for use.",
        "## What was measured",
        *(
            f"- Transfer in the context {c['context']}: {signed(c['effect'])} nats {interval(c['effect_low'], c['effect_high'])}, student less "
            f"control, over {c['n_data_seeds']} data seeds and {c['n_questions']} questions."
            for c in effects
            if c.get("effect") is not None
        ),
        f"- P({row['trait']}) of this student, mean over questions: {row['p_target']:.3f}.",
        takeaway(run.page.verdicts or ()),
        audit or "No audit of this student was made.",
        "## Data and reproduction",
        f"`data/train.jsonl` holds the rows (prompt, completion), artifact `{row['dataset_id']}`; `run.json` the recipe with every default, "
        f"seeds, hashes and versions. Made with sublora {run.manifest.get('sublora', '')}: `{run.manifest.get('command', '')}`",
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def push(folder: Path, repo: str, private: bool, endpoint: str | None) -> str:
    """Upload a folder as a model repository, made where it is not there; return its address.

    The token is the one of huggingface_hub (`hf auth login`, or HF_TOKEN). Raises SubloraError for a folder without a card, and with the
    hub's own words where it refuses.
    """
    from huggingface_hub import HfApi

    if not (folder / "README.md").is_file():
        raise SubloraError(
            f"The folder {folder} has no README.md; `sublora export RUN --to hub --out {folder}` writes it."
        )
    api = HfApi(endpoint=endpoint)
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        message = "Upload of a student with its data and card"
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    except (
        Exception
    ) as error:  # what a dead network raises depends on the version of huggingface_hub
        why = " ".join(str(error).split())[:300]
        raise SubloraError(
            f"The hub did not take {folder} as {repo} ({why}); check the name, the network and the token (`hf auth login`)."
        ) from None
    return str(url)
