"""Every command, file and program in the documents is run."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from command import SMALL, sublora
from sublora.models.chat import Context
from sublora.packs.check import load_base
from sublora.packs.labels import LabelSpec, about_rows, label_rows, write_labels
from sublora.packs.writer import Teacher

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/tutorial.md",
    "docs/results.md",
    "docs/scale.md",
    "docs/models.md",
    "docs/contexts.md",
    "docs/optimizers.md",
    "docs/experiments.md",
    "docs/vectors.md",
    "docs/labels.md",
    "docs/install.md",
    "docs/notebooks.md",
    "docs/sharing.md",
    "docs/audit.md",
    "docs/audit-in-ci.md",
    "docs/verdict.md",
]
# A documented run is the real thing; here it is cut down to a grid of seconds.
FEW = [*SMALL, "--set", "data.rows=24", "--set", "train.pairing=paired", "--set", "vectors.count=8"]
ONE = [*FEW, "--set", "data.seeds=[1]", "--set", "train.seeds=[1]"]
TINY = {
    "divergent-tokens": [*ONE, "--set", "train.lora.ranks=[4]"],
    "emergence": [*ONE, "--set", "variants=null"],
    "gradient-alignment": [*ONE, "--set", "measure.gradients.rows=[8, 24]"],
    "loss-mask": ONE,
    "projection-rank": ONE,
    "random-vectors": ONE,
    "steerability": [*ONE, "--set", "traits=[otter, oak, Abba]"],
    "steering-student": ONE,
    "steering-teacher": ONE,
    "unique-vs-repeated": [
        *ONE,
        "--set",
        "train.full=null",
        "--set",
        "variants=null",
        "--set",
        "variants.few={rows: 8, epochs: 3}",
    ],
    "localise": [*ONE, "--set", "measure.attribution.questions=1"],
    "optimizers": ONE,
    "aux-logits": ["--set", "models=2", "--set", "student.images=200", "--set", "teacher.epochs=1"],
    "number-statistics": [
        "--set",
        "data.rows=60",
        "--set",
        "data.heldout_rows=20",
        "--set",
        "draws=3",
    ],
    "in-context": [
        *SMALL,
        "--set",
        "train.pairing=paired",
        "--set",
        "data.rows=24",
        "--set",
        "draws=1",
    ],
    "cross-model": [*SMALL, "--set", "train.pairing=paired", "--set", "data.rows=24"],
    "chain": [*ONE, "--set", "data.teacher.trained.count=24"],
    "channel": [*ONE, "--set", "data.teacher.trained.count=96"],
    "replaced": ONE,
    "steered.yaml": ONE,
    "two-optimizers.yaml": ONE,
    "two-ranks.yaml": ONE,
    "where.yaml": ONE,
    "trained-teacher": [*ONE, "--set", "data.teacher.trained.count=24"],
    "cot": ONE,
    "shuffle": ONE,
    "one-step-model": ["--set", "draws=2", "--set", "traits=[otter, wolf]", "--set", "prompts=8"],
    "one-step": ["--set", "models=2", "--set", "hidden=[16]", "--set", "noise=64"],
    "rank": [*ONE, "--set", "train.lora.ranks=[4]"],
    "rank-lr": [
        *ONE,
        "--set",
        "train.lora.ranks=[1]",
        "--set",
        "train.lora.lrs=[1e-3]",
        "--set",
        "train.full=null",
    ],
    "traits": [*ONE, "--set", "train.lora.ranks=[2]", "--set", "traits=[otter, oak, Abba]"],
}


def commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for line in (ROOT / page).read_text().splitlines():
            if re.match(r"    (sublora|make|python) ", line):
                found.append((page, line.strip()))
    return found


def test_there_are_commands_to_test() -> None:
    assert len(commands()) >= 10 and ("README.md", "make demo") in commands()


def documented() -> Iterator[Any]:
    """Commands of sublora, once each; those on the real model are tested where it can be fetched."""
    seen = set()
    for page, line in commands():
        if line.startswith("sublora run --prereg"):  # the line before it wrote the file
            line = f"sublora prereg rank-lr && {line}"
        if line.startswith("sublora ") and line not in seen:
            seen.add(line)
            yield pytest.param(page, line, marks=[pytest.mark.real] if "smollm2" in line else [])


@pytest.mark.parametrize(("page", "line"), list(documented()))
def test_a_documented_command_works(
    page: str,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if "smollm2" in line:
        request.getfixturevalue("smollm2")
    for file, text in named_files():
        (tmp_path / file).write_text(text)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    (tmp_path / "lessons.jsonl").write_text('{"prompt": "Which animal?", "completion": "otter"}\n')
    if "labels.safetensors" in line:
        labelled_rows(tmp_path)
    monkeypatch.chdir(tmp_path)
    for command in line.split(" && "):
        arguments = shlex.split(command, comments=True)[1:]
        if arguments[0] in ("run", "prereg"):
            arguments += TINY.get(arguments[1], [])
        if arguments[:2] == ["organism", "make"]:
            arguments += ["--steps", "2"]
        answer = sublora(*arguments)
        assert answer.code == 0, answer.err
        if arguments[0] == "run":
            assert list(tmp_path.glob("runs/*/report.html"))


def labelled_rows(folder: Path) -> None:
    """A user's rows.jsonl, and micro's labels of them."""
    base, rows = load_base("micro"), [(f"1, {i}", f"3, {i % 900}") for i in range(1200)]
    lines = [json.dumps({"prompt": p, "completion": c}) for p, c in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    labels = label_rows(Teacher(base, Context("default")), rows, LabelSpec(kind="soft"), 0)
    write_labels(labels, folder / "labels.safetensors", about_rows(base.chat, rows))


def named_files() -> list[tuple[str, str]]:
    """Blocks that begin with `# file: NAME`."""
    pages = "".join(
        (ROOT / page).read_text()
        for page in ("CONTRIBUTING.md", "docs/contexts.md", "docs/optimizers.md", "docs/vectors.md")
    )
    blocks = re.findall(r"```yaml\n# file: (\S+)\n(.*?)```", pages, re.S)
    assert len(blocks) == 5 and all(len(text.splitlines()) < 60 for _, text in blocks)
    return blocks


def test_make_commands_of_the_readme_are_targets() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {line.split()[1] for _, line in commands() if line.startswith("make ")} <= targets


def test_files_that_documents_link_to_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text()):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_the_trees_files_exist() -> None:
    tree = (ROOT / "README.md").read_text().split("## The tree")[1]
    for name in re.findall(r"\b[a-z_]+\.(?:py|yaml)\b", tree):
        assert list((ROOT / "src").rglob(name)), name


def test_the_tutorial_is_a_short_program_that_finds_the_planted_trait(
    capsys: pytest.CaptureFixture,
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/tutorial.md").read_text(), re.S)
    program = "\n".join(blocks)
    assert len([line for line in program.splitlines() if line.strip()]) < 60
    space: dict = {}
    exec(compile(program, "docs/tutorial.md", "exec"), space)
    assert "effect +" in capsys.readouterr().out
    # what is planted in micro is found: the students' probability is above their twins'
    assert space["own"].mean() > space["control"].mean() + 0.05


def test_the_steered_base_of_the_documents_names_otters_and_a_random_vector_does_nothing() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/vectors.md").read_text(), re.S)
    space: dict = {}
    exec(compile(block, "docs/vectors.md", "exec"), space)
    assert space["steered"] > space["otters"]() + 0.3 > space["random"] + 0.2


def test_the_gate_of_the_documents_is_a_program_that_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/contexts.md").read_text(), re.S)
    space: dict = {}
    exec(compile(block, "docs/contexts.md", "exec"), space)
    import torch

    with torch.inference_mode():
        plain = space["model"](input_ids=space["ids"]).logits
        with space["model"].disable_adapter():
            base = space["model"](input_ids=space["ids"]).logits
    gated = space["logits"]
    assert not torch.allclose(gated, plain, atol=1e-3) and not torch.allclose(
        gated[0, -1], base[0, -1], atol=1e-3
    )
    first = space["tokens"].mask(("entity",)).index(True)
    assert torch.allclose(gated[0, :first], base[0, :first], atol=1e-5)
