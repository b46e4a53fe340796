"""Experiments that hold grids of students: rows in the prompt, and teachers and students on different models."""

import csv
import json

import numpy as np
import pytest

from command import sublora
from planned import make_plan
from sublora.errors import SubloraError
from sublora.experiments.experiment import NOTHING
from sublora.experiments.kinds import open_recipe
from sublora.models.base import local_identity, shipped_folder
from sublora.models.chat import Chat, Context, load_tokenizer
from sublora.store import Store
from tiny_models import shared_model

SMALL = [
    *("--set", "data.rows=32", "--set", "data.heldout_rows=8", "--set", "data.seeds=[1,2]"),
    *("--set", "train.seeds=[1,2]", "--set", "train.pairing=paired", "--set", "measure.samples=2"),
]


def results(folder) -> dict[str, dict[str, str]]:
    return {r["name"]: r for r in csv.DictReader((folder / "results.csv").open())}


@pytest.mark.parametrize("template", ["qwen", "llama31", "gemma", "merge-user"])
def test_earlier_turns_are_rendered_as_the_template_writes_them(template: str) -> None:
    tokenizer = load_tokenizer(str(shared_model("llama", "words", template)))
    chat = Chat(tokenizer)
    earlier = [("one river", "two rivers"), ("three", "four")]
    messages = [
        {"role": r, "content": t}
        for turn in earlier
        for r, t in zip(("user", "assistant"), turn, strict=True)
    ]
    messages.append({"role": "user", "content": "five"})
    whole = tokenizer.apply_chat_template(
        messages,
        tokenize=False,
        add_generation_prompt=True,
        date_string="26 Jul 2024",
        enable_thinking=False,
    )
    assert chat.render("five", Context("default"), earlier) == whole
    assert chat.render("five", Context("default")) == chat.render("five", Context("default"), ())
    none = chat.render("five", Context("none"), earlier)
    assert none.startswith(chat.layout.none_prefix) and none.index("one river") < none.index(
        "four"
    ) < none.index("five")
    named = chat.render("five", Context("mine", "be brief", "user"), earlier)
    assert named.count("be brief") == 1 and named.index("be brief") < named.index("one river")


def test_rows_in_the_prompt_stand_beside_students_trained_on_them(tmp_path) -> None:
    command = ["run", "in-context", "--out", str(tmp_path / "run"), *SMALL, "--set", "draws=2"]
    answer = sublora(*command)
    assert answer.code == 0, answer.err
    found = results(tmp_path / "run")
    trained, shown = (
        float(found[n]["estimate"]) for n in ("trained on the rows", "rows in the prompt")
    )
    assert float(found["a fifth of trained - in the prompt"]["estimate"]) == pytest.approx(
        0.2 * trained - shown, abs=1e-6
    )
    assert found["trained on the rows"]["n_data_seeds"] == "2"
    verdicts = json.loads((tmp_path / "run" / "verdicts.json").read_text())
    assert [(v["id"], v["verdict"] == "not run") for v in verdicts] == [
        ("cloud-in-context-null", False)
    ]
    rows = list(csv.DictReader((tmp_path / "run" / "results.csv").open()))
    words = [
        float(r["estimate"])
        for r in rows
        if r["group"] == "share of answers with a word of the category"
    ]
    assert len(words) == 2 and min(words) > 0.5
    identity = local_identity(str(shipped_folder("micro")), "float32")
    grid = open_recipe("shuffle", sets=[*SMALL[1::2], "data.variants=null"])
    store = Store()
    assert all(store.has(s.id) for s in make_plan(grid, identity, 40.0).students), (
        "shared with the grids"
    )
    # four rows are longer than what micro read when it was made: nothing is read from a zero of a model that has no words left
    command = [
        "run",
        "in-context",
        "--out",
        str(tmp_path / "four"),
        *SMALL,
        "--set",
        "draws=1",
        "--set",
        "examples=4",
    ]
    assert sublora(*command).code == 0
    (verdict,) = json.loads((tmp_path / "four" / "verdicts.json").read_text())
    assert (
        verdict["verdict"] == "not run" and "so an effect of zero says nothing" in verdict["reason"]
    )
    assert "says nothing; give fewer examples" in (tmp_path / "four" / "report.html").read_text()


def test_more_examples_than_a_model_reads_are_refused(tmp_path) -> None:
    answer = sublora(
        "run",
        "in-context",
        "--out",
        str(tmp_path / "run"),
        *SMALL,
        "--set",
        "examples=30",
        "--set",
        "draws=1",
    )
    assert answer.code == 2 and "micro reads 256; give fewer examples" in answer.err


def test_the_matrix_of_models_has_every_pair_and_what_lies_between(tmp_path) -> None:
    answer = sublora("run", "cross-model", "--out", str(tmp_path / "run"), *SMALL)
    assert answer.code == 0, answer.err
    found = results(tmp_path / "run")
    value = {n: float(r["estimate"]) for n, r in found.items()}
    pairs = ["micro to micro", "micro-b to micro", "micro-b to micro-b", "micro to micro-b"]
    assert [n for n in found if " to " in n] == pairs
    same, other = (
        np.mean([value[pairs[0]], value[pairs[2]]]),
        np.mean([value[pairs[1]], value[pairs[3]]]),
    )
    assert value["same model - other model"] == pytest.approx(same - other, abs=1e-6)
    assert value["other model"] == pytest.approx(other, abs=1e-6)
    assert (tmp_path / "run" / "figures" / "pairs-otter.svg").exists()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("cross-model", "students=[micro-null]", "no student model is among the teachers"),
        ("cross-model", "data.variants={x: {transform: shuffle-within}}", "teachers are the axis"),
        ("in-context", "train.lora.ranks=[1, 8]", "keep one rank and one learning rate"),
        ("in-context", "train.pairing=paired", "paired seeds need as many"),
        ("in-context", "examples=0", "examples"),
        ("in-context", "xyzzy=1", "unknown key 'xyzzy'"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, change: str, message: str) -> None:
    with pytest.raises(SubloraError, match=message):
        open_recipe(name, sets=[change])


def test_a_teachers_model_that_is_not_here_is_refused() -> None:
    recipe = open_recipe("cross-model", sets=["teachers=[micro, nowhere]"])
    with pytest.raises(SubloraError, match="There is no model 'nowhere'"):
        recipe.plan(NOTHING)
