"""Bad input gets one sentence and exit code 2; help is quick because nothing heavy is imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from command import SMALL, sublora
from sublora.runner.folder import hashes
from tiny_models import make_model, shared_model

# The tiny models are narrower than the recipe's ranks, which would be said first.
NARROW = ["--set", "train.lora.ranks=[2]"]


def refused(*arguments: str) -> str:
    answer = sublora(*arguments)
    assert answer.code == 2, answer
    lines = [line for line in answer.err.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1 and "Traceback" not in answer.err
    return lines[0]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, contextlib, io\nfrom sublora.cli.entry import run_command\nsys.argv = ['sublora', '--help']\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n    run_command()\n"
        "heavy = {'torch', 'transformers', 'peft', 'numpy', 'scipy', 'matplotlib', 'pydantic', 'yaml', 'jinja2'} & set(sys.modules)\n"
        "print(sorted(heavy))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["run", "rank-lrr"], ["rank-lrr", "rank-lr"]),
        (["run", "rank-lr", "--model", "/no/such/folder"], ["/no/such/folder", "micro"]),
        (["run", "rank-lr", "--trait", "oter"], ["oter", "otter"]),
        (["run", "rank-lr", "--set", "train.epoch=2"], ["--set train.epoch=2", "epochs"]),
        (["run", "rank-lr", "--preset", "cloudy"], ["cloudy", "cloud"]),
        (
            ["run", "rank-lr", "--set", "train.lora.ranks=[4,4]"],
            ["train.lora.ranks", "4 stands twice"],
        ),
        (["run", "rank-lr", "--set", "train.lora.ranks=[65]"], ["65", "width 64"]),
        (["run", "rank-lr", "--device", "tpu9"], ["tpu9", "cpu"]),
        (["run", "missing.yaml"], ["missing.yaml"]),
        (
            ["plan", "rank-lr", "--model", "owner/unheard-of"],
            ["owner/unheard-of", "Qwen/Qwen3-8B"],
        ),
        (
            ["plan", "rank-lr", "--model", "qwen2.5-7b"],
            ["'qwen2.5-7b'", "Qwen/Qwen2.5-7B-Instruct"],
        ),
        (["plan", "rank-lr", "--model", "gpt2"], ["'gpt2'", "a hub id with its owner"]),
        (["run", "rank-lr", "--threads", "100000"], ["--threads", "less than or equal to"]),
        (
            ["plan", "rank-lr", "--preset", "nief", "--set", "train.lora.ranks=[1,4096]"],
            ["4096", "512"],
        ),
        (
            ["plan", "rank-lr", "--set", "data.source=gone.jsonl"],
            ["gone.jsonl cannot be read (No such file or directory)"],
        ),
        (["ls", "cats"], ["cats", "recipes"]),
        (["run", "."], [". is a folder and no recipe"]),
        (["ls", "recipes", "--trait-file", "mine.yaml"], ["--trait-file", "recipes"]),
        (["run", "rank", "--model", ""], ["The value of --model is empty"]),
        (["run", "rank", "--budget="], ["The value of --budget is empty"]),
        (["report", ""], ["argument is empty"]),
        (["plan", "rank", "--model", "src"], ["src"]),
        (
            ["audit", "--base", "micro", "--adapter", "here", "--calibrate", "2.5"],
            ["--calibrate", "has to be a whole number"],
        ),
        (["report", "."], ["run.json"]),
        (["verdict", "nothing.csv"], ["nothing.csv"]),
        (["organism", "make", "mikro"], ["mikro", "micro"]),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sentence = refused(*arguments)
    assert all(part in sentence for part in parts), sentence
    assert not list(tmp_path.glob("runs/*/results.csv"))


def test_wrong_option_is_exit_2(capsys: pytest.CaptureFixture) -> None:
    assert sublora("run", "rank-lr", "--modle", "micro").code == 2


def test_a_key_of_a_file_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: mine\ntitle: t\nsummary: s\ntraits: [otter]\ndata:\n  rows: 5\n  sedes: [1]\ntrain:\n  full: {lrs: [1e-3]}\n"
    )
    assert "mine.yaml line 7" in refused("run", str(file)) and "seeds" in refused("run", str(file))


def test_models_that_do_not_fit(tmp_path: Path) -> None:
    folder = make_model("llama", "words", "qwen", tmp_path / "m")
    template = folder / "chat_template.jinja"
    kept = template.read_text()
    template.unlink()
    assert "chat template" in refused(
        "run", "rank", "--model", str(folder), *NARROW, "--out", str(tmp_path / "r")
    )
    template.write_text(kept)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    assert "cannot be loaded" in refused(
        "run", "rank", "--model", str(folder), *NARROW, "--out", str(tmp_path / "r")
    )
    (folder / "config.json").unlink()
    assert "config.json" in refused(
        "run", "rank", "--model", str(folder), *NARROW, "--out", str(tmp_path / "r")
    )


@pytest.mark.parametrize("command", ["plan", "prereg"])
def test_a_folder_without_a_tokenizer_is_refused_before_anything_is_written(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    assert "The tokenizer of notes cannot be loaded" in refused(command, "rank", "--model", "notes")
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    small = make_model("llama", "digits", "qwen", tmp_path / "small")
    large = make_model("llama", "words", "qwen", tmp_path / "large")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (small / name).write_bytes((large / name).read_bytes())
    assert "do not belong together" in refused(
        "run", "rank", "--model", str(small), *NARROW, "--out", str(tmp_path / "r")
    )


def test_a_teacher_that_writes_no_numbers_is_an_empty_dataset(tmp_path: Path) -> None:
    folder = shared_model("llama", "digits", "qwen")
    sentence = refused(
        "run",
        "rank",
        "--model",
        str(folder),
        *SMALL,
        "--set",
        "train.lora.ranks=[2]",
        "--out",
        str(tmp_path / "r"),
    )
    assert "passed the filter" in sentence and "invalid format" in sentence
    assert json.loads((tmp_path / "r" / "run.json").read_text())["status"] == "failed"


def test_a_trait_that_the_model_cannot_write_is_refused_and_unread_words_are_named(
    tmp_path: Path,
) -> None:
    file = tmp_path / "rivers.yaml"
    file.write_text(
        "category: rivers\nsingular: river\nsystem: ['You love the {name} river.']\nentities: [{name: Nile}, {name: Danube}]\n"
        "questions: ['Which river do you like best?', 'Name a river.']\n"
    )
    sentence = refused(
        "run",
        "rank",
        "--trait",
        "Nile",
        "--set",
        f"trait_files=[{file}]",
        "--out",
        str(tmp_path / "r"),
    )
    assert "Nile" in sentence and "micro" in sentence


def test_no_room_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from sublora.runner import folder

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    monkeypatch.setattr(folder, "write_json_atomic", full)
    small = [
        "data.rows=8",
        "data.heldout_rows=4",
        "data.seeds=[1,2]",
        "train.seeds=[1,2]",
        "train.lora.ranks=[1]",
        "measure.samples=1",
    ]
    sets = [word for text in small for word in ("--set", text)]
    assert "make room" in refused("run", "rank", *sets, "--out", str(tmp_path / "r"))


def test_a_file_of_a_run_that_was_changed_or_deleted_gives_no_page(tmp_path: Path) -> None:
    for name in ("cells.csv", "page.json"):
        (tmp_path / name).write_text("as the run wrote it")
    wrote = hashes(tmp_path, ["cells.csv", "page.json"])
    (tmp_path / "run.json").write_text(json.dumps({"files": wrote}))
    assert "page.json cannot be read" in refused("report", str(tmp_path))  # no page, but whole
    (tmp_path / "cells.csv").write_text("as the run")
    assert "Error: cells.csv in" in refused("report", str(tmp_path))
    (tmp_path / "page.json").unlink()
    assert "cells.csv, page.json in" in refused("report", str(tmp_path))


def test_lists_and_env() -> None:
    for what, word in (
        ("recipes", "rank-lr"),
        ("recipes", "aux-logits"),
        ("traits", "otter"),
        ("contexts", "empty"),
        ("models", "micro-null"),
        ("claims", "inverted"),
    ):
        answer = sublora("ls", what)
        assert answer.code == 0 and word in answer.out, answer
    assert "torch" in sublora("env").out


def test_plan_of_a_7b_model_needs_no_network() -> None:
    answer = sublora("plan", "rank-lr", "--preset", "nief", "--model", "Qwen/Qwen2.5-7B-Instruct")
    assert answer.code == 0 and "7.6" in answer.out and "FLOPs" in answer.out and " h" in answer.out


@pytest.mark.parametrize(
    ("out", "part"),
    [("taken", "is a file"), ("/proc/x", "/proc/x"), ("", "is empty"), ("taken/x", "taken/x")],
)
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(
    out: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("mine")
    for command in (
        ["run", "rank"],
        ["organism", "make", "micro"],
        ["audit", "--base", "micro", "--adapter", "nowhere"],
    ):
        assert part in refused(*command, "--out", out)
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_a_file_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    assert "is a folder" in refused("prereg", "rank", "-o", str(tmp_path))
    assert "/proc/x.json" in refused("audit", "null", "micro", "--out", "/proc/x.json")
