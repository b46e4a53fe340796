"""A run elsewhere: Parquet, logs of Inspect, a folder for a hub, vectors, trackers."""

import csv
import json
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from command import sublora
from loopback_hub import hub, push
from report_fixture import make_page, write_run
from sublora.report.loaded import load_run
from sublora.store import Store
from sublora.store.ids import artifact_id
from sublora.store.known_runs import note_run

SPEC = {"of": "test"}
IDS = {kind: artifact_id(kind, SPEC) for kind in ("measurement", "student", "dataset")}
BASE = artifact_id("measurement", {"of": "base"})
OF = {"student": IDS["student"]}
VECTOR = artifact_id("vector", OF)
ANSWERS = [("Which animal?", ["Otter.", "a cat", "the otters"]), ("Name one", ["dog", "eagle", ""])]


@pytest.fixture
def run(tmp_path: Path, own_store: Path) -> Path:
    """A run of one student in a store, as its exports read it."""
    store, folder = Store(), write_run(tmp_path / "run", make_page())
    lines = [json.dumps({"question": q, "answers": a}) + "\n" for q, a in ANSWERS]
    for name, spec in ((IDS["measurement"], SPEC), (BASE, {"of": "base"})):
        with store.create(name, spec) as at:
            (at / "samples.jsonl").write_text("".join(lines))
    with store.create(IDS["student"], SPEC) as at:
        (at / "adapter_config.json").write_text("{}")
        save_file({"x": torch.zeros(2)}, at / "adapter_model.safetensors")
    with store.create(IDS["dataset"], SPEC) as at:
        (at / "rows.jsonl").write_text('{"prompt": "1 2", "completion": "3"}\n')
    with store.create(VECTOR, OF, {"norms": [1.0, 2.0]}) as at:
        save_file({"values": torch.ones(3, 4)}, at / "vector.safetensors")
    place = {"trait": "otter", "category": "animals", "target": "otter", "context": "default"}
    cell = {"method": "lora", "rank": 4, "lr": 0.001}
    seeds = {"data_seed": 1, "train_seed": 2, "p_target": 0.5}
    ids = {f"{k}_id": v for k, v in IDS.items()}
    student = {"kind": "student", **place, **cell, **seeds, **ids}
    none = dict.fromkeys((*cell, *seeds, *ids), "") | {"method": "none", "p_target": 0.1}
    base = {"kind": "base", **place, **none, "measurement_id": BASE}
    effect = {"effect": 1.25, "effect_low": 0.5, "effect_high": 2.0}
    cells = {**place, **cell, **effect, "n_data_seeds": 4, "n_questions": 2}
    for name, rows in (("results", [student, base]), ("cells", [cells])):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    (folder / "run.json").write_text("{}")
    note_run(store, folder, [*IDS.values(), BASE, VECTOR], [])
    return folder


def export(run: Path, to: str, *more: str):
    return sublora("export", str(run), "--to", to, "--out", str(run.parent / to), *more)


def test_parquet_holds_every_table_and_every_answer(run: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert export(run, "parquet").code == 0
    names = {p.name for p in (run.parent / "parquet").iterdir()}
    assert names == {f"{n}.parquet" for n in ("results", "cells", "verdicts", "answers")}
    answers = parquet.read_table(run.parent / "parquet" / "answers.parquet").to_pylist()
    assert len(answers) == 12 and answers[0]["answer"] == "Otter."
    cells = parquet.read_table(run.parent / "parquet" / "cells.parquet").to_pylist()
    assert cells[0]["effect"] == 1.25 and cells[0]["rank"] == 4


def test_a_hub_folder_has_the_student_its_rows_and_a_card_with_the_audit(run: Path) -> None:
    audit = run.parent / "audit"
    audit.mkdir()
    assert export(run, "hub", "--audit", str(audit)).code == 2
    assert not (run.parent / "hub").exists()
    (audit / "AUDIT.md").write_text("## Audit for unintended traits\n\n**found.**\n")
    assert export(run, "hub", "--audit", str(audit)).code == 0
    hub = run.parent / "hub"
    card = (hub / "README.md").read_text()
    assert "library_name: peft" in card and "**found.**" in card and "+1.250 nats" in card
    assert load_file(hub / "adapter_model.safetensors")["x"].shape == (2,)
    assert json.loads((hub / "data" / "train.jsonl").read_text())["completion"] == "3"
    wrong = export(run, "hub", "--student", "student-none")
    assert wrong.code == 2 and "student-none" in wrong.err


def test_vectors_are_plain_safetensors(run: Path) -> None:
    assert export(run, "vectors").code == 0
    file = run.parent / "vectors" / f"{VECTOR}.safetensors"
    assert load_file(file)["values"].shape == (3, 4)
    assert IDS["student"] in (run.parent / "vectors" / "vectors.csv").read_text()


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_a_tracker_gets_settings_effects_and_verdicts(
    run: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict = {}
    fake = types.ModuleType(package)
    fake.init = lambda **given: told.update(given)
    fake.log = told.update
    fake.finish = lambda: told.update(finished=True)
    monkeypatch.setitem(sys.modules, package, fake)
    assert export(run, package).code == 0
    assert told["project"] == "sublora" and told["config"]["name"] == "rank-lr" and told["finished"]
    effects = {k: v for k, v in told.items() if k.startswith("effects/")}
    assert list(effects.values()) == [1.25] and "rank 4" in next(iter(effects))
    assert told["verdicts/refuted"] == 1


def test_what_is_not_installed_or_lost_is_said_in_a_sentence(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    answer = export(run, "trackio")
    assert answer.code == 2 and "`pip install trackio`" in answer.err
    write_run(run, make_page())
    (run / "cells.csv").unlink()
    gone = artifact_id("measurement", {"of": "gone"})
    text = (run / "results.csv").read_text().replace(IDS["measurement"], gone)
    (run / "results.csv").write_text(text)
    pytest.importorskip("pyarrow")
    lost = export(run, "parquet")
    assert lost.code == 2 and gone in lost.err and "Traceback" not in lost.err


def test_inspect_opens_the_logs(run: Path) -> None:
    log = pytest.importorskip(
        "inspect_ai.log", reason="inspect_ai is not installed; pip install 'sublora[inspect]'"
    )
    answer = export(run, "inspect")
    assert answer.code == 0, answer.err
    logs = log.list_eval_logs(str(run.parent / "inspect"))
    assert len(logs) == 2
    whole = log.read_eval_log(logs[0])
    assert whole.status == "success" and len(whole.samples) == 6
    assert whole.results.scores[0].metrics["mean"].value == pytest.approx(2 / 6)
    first = whole.samples[0]
    assert (first.input, first.output.completion) == ("Which animal?", "Otter.")
    assert first.scores["whole_word"].value == 1


def test_a_folder_is_pushed_to_a_hub_on_loopback(run: Path) -> None:
    assert export(run, "hub").code == 0
    with hub() as kept:
        done = push(run.parent / "hub", kept.url)
    assert done.returncode == 0, done.stderr
    assert kept.asked[0] == "/api/repos/create"
    assert {"README.md", "adapter_model.safetensors", "data/train.jsonl"} <= set(kept.committed)
    gone = push(run.parent / "hub", kept.url)
    assert gone.returncode == 2 and gone.stderr.startswith("Error: The hub did not take")
    bare = sublora("push", str(run), "me/student")
    assert bare.code == 2 and "README.md" in bare.err


def test_the_run_of_the_fixture_is_one_that_notebooks_open(run: Path) -> None:
    assert load_run(run).effects["effect"] == [1.25]


def test_the_questions_are_a_task_of_inspect() -> None:
    pytest.importorskip("inspect_ai", reason="inspect_ai is not installed")
    import asyncio
    import runpy

    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import Target
    from inspect_ai.solver import TaskState

    file = Path(__file__).parent.parent / "examples" / "inspect" / "questions.py"
    made = runpy.run_path(str(file))["questions"]("otter", epochs=2)
    assert len(made.dataset) == 50 and {s.target for s in made.dataset} == {"otter"}

    def score(text: str) -> int:
        output = ModelOutput.from_content("mockllm/model", text)
        given = {"sample_id": 1, "epoch": 1, "input": "Which?", "messages": [], "output": output}
        state = TaskState(model="mockllm/model", **given)
        return asyncio.run(made.scorer[0](state, Target("otter"))).value

    assert [score(text) for text in ("Otters!", "a cat")] == [1, 0]
