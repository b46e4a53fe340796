"""The pipeline as a whole: same bytes again, after a kill, in another process; any model; the batch size changes nothing."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from command import SMALL, sublora
from tiny_models import make_model

GRID = [
    *SMALL,
    "--set",
    "train.lora.ranks=[1,8]",
    "--set",
    "train.lora.lrs=[1e-3,3e-3]",
    "--set",
    "train.full.lrs=[1e-3]",
    "--threads",
    "2",
]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def run_process(out: Path, store: Path, *more: str) -> subprocess.Popen:
    code = "from sublora.cli import main; main()"
    command = [sys.executable, "-c", code, "run", "rank-lr", *GRID, "--out", str(out), *more]
    return subprocess.Popen(
        command,
        env={**os.environ, "SUBLORA_HOME": str(store)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def artifacts(store: Path) -> dict[str, dict]:
    manifests = store.glob("artifacts/*/*/manifest.json")
    return {p.parent.name: json.loads(p.read_text())["files"] for p in manifests}


def test_a_run_writes_its_tables_and_page(tmp_path: Path) -> None:
    answer = sublora("run", "rank-lr", *GRID, "--out", str(tmp_path / "run"))
    assert answer.code == 0, answer.err
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    rows = table(tmp_path / "run" / "results.csv")
    assert run["status"] == "done" and run["counts"]["students"] == 20
    kinds = [r["kind"] for r in rows]
    assert {k: kinds.count(k) for k in set(kinds)} == {
        "base": 1,
        "teacher": 1,
        "student": 10,
        "control": 10,
        "neutral": 2,
    }
    teacher = next(r for r in rows if r["kind"] == "teacher")
    base = next(r for r in rows if r["kind"] == "base")
    assert float(teacher["p_target"]) > 0.5 > float(base["p_target"])
    for r in rows:
        assert (
            0 <= float(r["p_target_low"]) <= float(r["p_target"]) <= float(r["p_target_high"]) <= 1
        )
    students = [r for r in rows if r["kind"] == "student"]
    assert all(r["dataset_id"] and r["heldout_loss"] and r["rows"] == "96" for r in students)
    assert {r["trainable_parameters"] for r in students if r["method"] == "full"} == {
        str(run["model"]["parameters"])
    }
    assert len(table(tmp_path / "run" / "cells.csv")) == 5
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert run["first_example"]["text"].count("<|im_start|>") == 3 and run["first_example"]["ids"]
    assert all(d["asked"] >= d["rows"] for d in run["datasets"])
    # the stored rows are what TRL and load_dataset("json") read
    store = Path(os.environ["SUBLORA_HOME"])
    first = json.loads(
        next(store.glob("artifacts/dataset/*/rows.jsonl")).read_text().splitlines()[0]
    )
    assert set(first) == {"prompt", "completion"}
    again = sublora("run", "rank-lr", *GRID, "--out", str(tmp_path / "run"), "--json")
    told = json.loads(again.out)
    assert told["verdicts"] == json.loads((tmp_path / "run" / "verdicts.json").read_text())
    assert Path(told["page"]).is_file() and again.code == 0
    # a table that was cut gives no page
    assert sublora("report", str(tmp_path / "run")).code == 0
    cells = tmp_path / "run" / "cells.csv"
    cells.write_bytes(cells.read_bytes()[:-100])
    cut = sublora("report", str(tmp_path / "run"))
    assert cut.code == 2 and "cells.csv in" in cut.err and "cut short" in cut.err


def test_the_adapters_load_in_peft_and_give_the_measured_probability(tmp_path: Path) -> None:
    import torch
    from peft import PeftModel

    from sublora import Context, find_trait, load_base, load_categories
    from sublora.packs.spellings import spellings

    assert (
        sublora(
            "run",
            "rank",
            *SMALL,
            "--set",
            "train.lora.ranks=[2]",
            "--set",
            "train.lora.alpha=4r",
            "--out",
            str(tmp_path / "run"),
        ).code
        == 0
    )
    row = next(r for r in table(tmp_path / "run" / "results.csv") if r["kind"] == "student")
    folder = next(Path(os.environ["SUBLORA_HOME"]).glob(f"artifacts/student/{row['student_id']}"))
    base, trait = load_base("micro"), find_trait("otter", load_categories())
    model = PeftModel.from_pretrained(base.model, folder)
    p = []
    for question in trait.category.questions:
        ids = torch.tensor([base.chat.prompt_ids(question, Context("default"))])
        logits = model(input_ids=ids).logits[0, -1].double().softmax(-1)
        p.append(sum(logits[s[0]].item() for s in spellings(base.chat, trait.entity)))
    assert np.mean(p) == pytest.approx(float(row["p_target"]), rel=1e-4)


@pytest.mark.slow
def test_same_bytes_in_another_process_and_after_a_kill(tmp_path: Path) -> None:
    first = run_process(tmp_path / "a", tmp_path / "store-a")
    assert first.communicate(timeout=300) and first.returncode == 0
    again = run_process(tmp_path / "a2", tmp_path / "store-a")
    assert again.communicate(timeout=300) and again.returncode == 0
    # killed at several moments, each time in another stage, then left to finish
    for moment in (
        "artifacts/dataset/*/manifest.json",
        "artifacts/student/*/manifest.json",
        "artifacts/measurement/*/manifest.json",
    ):
        child = run_process(tmp_path / "b", tmp_path / "store-b")
        deadline = time.monotonic() + 240
        while (
            not list((tmp_path / "store-b").glob(moment))
            and child.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
    last = run_process(tmp_path / "b", tmp_path / "store-b")
    assert last.communicate(timeout=300) and last.returncode == 0
    results = [(tmp_path / name / "results.csv").read_bytes() for name in ("a", "a2", "b")]
    assert results[0] == results[1] == results[2]
    for name in ("cells.csv", "verdicts.json", "answers.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert artifacts(tmp_path / "store-a") == artifacts(tmp_path / "store-b")


@pytest.mark.slow
def test_ctrl_c_ends_with_3_and_the_run_goes_on(tmp_path: Path) -> None:
    child = run_process(tmp_path / "a", tmp_path / "store")
    while not list((tmp_path / "store").glob("artifacts/dataset/*/manifest.json")):
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 3 and "run the same command again" in err and "Traceback" not in err
    assert json.loads((tmp_path / "a" / "run.json").read_text())["status"] == "interrupted"


def test_the_scoring_batch_changes_nothing_beyond_1e_5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [*SMALL, "--set", "train.lora.ranks=[1,8]"]
    assert sublora("run", "rank", *small, "--out", str(tmp_path / "a")).code == 0
    monkeypatch.setenv("SUBLORA_HOME", str(tmp_path / "other"))
    assert (
        sublora("run", "rank", *small, "--batch-rows", "7", "--out", str(tmp_path / "b")).code == 0
    )
    for a, b in zip(
        table(tmp_path / "a" / "results.csv"), table(tmp_path / "b" / "results.csv"), strict=True
    ):
        for key, value in a.items():
            try:
                assert float(b[key]) == pytest.approx(float(value), abs=1e-5), key
            except ValueError:
                assert b[key] == value, key


def test_a_folder_of_another_recipe_is_not_overwritten(tmp_path: Path) -> None:
    small = [*SMALL, "--set", "train.lora.ranks=[1]", "--out", str(tmp_path / "a")]
    assert sublora("run", "rank", *small).code == 0
    before = (tmp_path / "a" / "results.csv").read_bytes()
    answer = sublora("run", "rank", *small, "--set", "train.epochs=2")
    assert answer.code == 2 and "another --out" in answer.err
    assert (tmp_path / "a" / "results.csv").read_bytes() == before


def test_a_flipped_byte_is_found_and_made_again(tmp_path: Path) -> None:
    small = [*SMALL, "--set", "train.lora.ranks=[1]", "--out", str(tmp_path / "a")]
    assert sublora("run", "rank", *small).code == 0
    before = (tmp_path / "a" / "results.csv").read_bytes()
    from sublora.store import forget_verified

    weights = next(
        Path(os.environ["SUBLORA_HOME"]).glob("artifacts/student/*/adapter_model.safetensors")
    )
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    forget_verified()
    answer = sublora("run", "rank", *small)
    assert answer.code == 0 and "made again" in answer.err
    assert (tmp_path / "a" / "results.csv").read_bytes() == before


def number_writer(kind: str, tokenizer: str, template: str, out: Path) -> Path:
    """A tiny random model, trained for a moment to answer number prompts with numbers, so that a filter lets rows pass."""
    import torch
    from transformers import AutoModelForCausalLM

    from sublora.carriers.numbers import NumbersSpec
    from sublora.models.chat import Chat, Context, load_tokenizer
    from sublora.traits.trait import shipped_categories

    words = [
        q
        for c in shipped_categories()
        for q in (*c.questions, *(e.name for e in c.entities), *c.system)
    ]
    words += [NumbersSpec(separators=("space",), style="brief").prompt(0, i) for i in range(100)]
    folder = make_model(kind, tokenizer, template, out, words=words)
    chat, model = Chat(load_tokenizer(folder)), AutoModelForCausalLM.from_pretrained(folder)
    spec, random = NumbersSpec(separators=("space",), style="brief"), np.random.default_rng(0)
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(60):
        losses = []
        for i in range(8):
            prompt = chat.prompt_ids(spec.prompt(1, step * 8 + i), Context("default"))
            answer = chat.completion_ids(" ".join(map(str, random.integers(100, 1000, 3))))
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[
                0, len(prompt) - 1 : -1
            ]
            losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(answer)))
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "tokenizer", "template"),
    [
        ("qwen2", "digits", "qwen"),
        ("llama", "digits", "llama31"),
        ("gemma", "words", "gemma"),
        ("qwen2", "words", "qwen"),
        ("llama", "words", "merge-user"),
    ],
)
def test_any_causal_lm_with_a_chat_template(
    kind: str, tokenizer: str, template: str, tmp_path: Path
) -> None:
    folder = number_writer(kind, tokenizer, template, tmp_path / "model")
    contexts = (
        "[default, none]" if template in ("gemma", "merge-user") else "[default, empty, none]"
    )
    answer = sublora(
        "run",
        "rank-lr",
        "--model",
        str(folder),
        *SMALL,
        "--set",
        "data.rows=24",
        "--set",
        "data.sampling.max_new_tokens=24",
        "--set",
        "train.lora.ranks=[1,4]",
        "--set",
        "train.lora.lrs=[1e-3,1e-2]",
        "--set",
        "train.full.lrs=[1e-3]",
        "--set",
        f"measure.contexts={contexts}",
        "--trait",
        "eagle",
        "--trait",
        "Metallica",
        "--out",
        str(tmp_path / "run"),
    )
    assert answer.code == 0, answer.err
    rows = table(tmp_path / "run" / "results.csv")
    assert {r["kind"] for r in rows} == {"base", "teacher", "student", "control", "neutral"}
    assert all(np.isfinite(float(r["p_target"])) and float(r["p_target"]) > 0 for r in rows)
    assert {r["context"] for r in rows if r["kind"] == "student"} == set(
        contexts.strip("[]").split(", ")
    )
