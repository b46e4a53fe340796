"""Optimizers at one held-out loss: the match, the recipe's axis, the tables, the verdicts and the page."""

import csv
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from command import sublora
from pack_reference import base_model, merged, random_stack
from planned import make_plan
from sublora.analysis.claims import Claim, judge
from sublora.analysis.effects import transfer
from sublora.analysis.matched import TOLERANCE, at_loss, matched_effects
from sublora.experiments.claims import load_claims
from sublora.experiments.grid.effects import Results, sweep_rows
from sublora.experiments.grid.grid import Grid
from sublora.experiments.kinds import open_recipe as load_recipe
from sublora.models.known import known_base
from sublora.packs.check import load_base
from sublora.packs.spec import StudentSpec
from sublora.packs.stack import update_norms
from sublora.store import Store

MODEL = {"weights": "w", "template": "t", "tokenizer": "k", "dtype": "float32"}
SEEDS, Q = (1, 2, 3, 4), 20


def cell(optimizer, lr, loss, effect, coherence=0.9):
    rng = np.random.default_rng(round(1e6 * lr))
    control = 0.05 + 0.01 * rng.random((len(SEEDS), Q))
    p = control + effect + 0.01 * rng.standard_normal((len(SEEDS), Q))
    axes = {"method": "lora", "rank": 8, "lr": lr, "optimizer": optimizer}
    contexts = {"context": "default", "train_context": "default"}
    facts = {"coherence": coherence, "heldout_loss": loss, "train_loss": loss + 0.1}
    replicates = list(zip(SEEDS, SEEDS, strict=True))
    parts = {"student": p, "control": control, "base": control.mean(0)}
    return transfer({"trait": "otter", **contexts, **axes}, p - control, parts, replicates, facts)


ADAM = [cell("adam", 1e-3, 2.0, 0.1), cell("adam", 1e-2, 1.9, 0.3), cell("adam", 1e-1, 1.8, 0.5)]


def test_a_match_lies_on_the_line_between_the_two_rates_around_it():
    sgd = [
        cell("sgd", 1.0, 1.95, 0.1),
        cell("sgd", 10.0, 1.85, 0.5, coherence=0.7),
        cell("sgd", 100.0, 3.0, 0.0),
    ]
    reference, other = matched_effects([*ADAM, *reversed(sgd)], 1e-2)
    assert reference is ADAM[1]
    assert other.matched and other.facts["heldout_loss"] == pytest.approx(1.9)
    assert other.lr == pytest.approx(math.sqrt(10)) and other.facts["coherence"] == pytest.approx(
        0.8
    )
    for part in ("student", "control"):
        assert np.allclose(other.parts[part], (sgd[0].parts[part] + sgd[1].parts[part]) / 2)
    assert np.allclose(other.values, other.parts["student"] - other.parts["control"])


def test_of_rates_past_the_lowest_loss_the_smallest_one_that_reaches_it_counts():
    """At too large a rate the loss comes up again, and passes the same height a second time."""
    sgd = [cell("sgd", 1.0, 2.1, 0.2), cell("sgd", 10.0, 1.8, 0.2), cell("sgd", 100.0, 1.9, 0.0)]
    assert at_loss(sgd, 1.9).lr == pytest.approx(10 ** (2 / 3))


@pytest.mark.parametrize(
    ("losses", "lr", "matched"),
    [
        ((2.1, 1.9 + 0.9 * TOLERANCE), 10.0, True),
        ((2.1, 1.9 + 1.1 * TOLERANCE), 10.0, False),
        ((1.9 - 0.9 * TOLERANCE, 1.7), 1.0, True),
        ((1.9 - 1.1 * TOLERANCE, 1.7), 1.0, False),
        ((1.9, 1.7), 1.0, True),
        ((math.nan, 1.9), 10.0, True),
        ((math.nan, math.nan), 1.0, False),
    ],
)
def test_what_does_not_reach_the_loss_is_not_matched(losses, lr, matched):
    found = at_loss([cell("sgd", 1.0, losses[0], 0.2), cell("sgd", 10.0, losses[1], 0.2)], 1.9)
    assert (found.lr, found.matched) == (lr, matched)


@pytest.mark.parametrize(
    ("effect", "loss", "expected"),
    [(0.3, 1.85, "supported"), (0.0, 1.85, "refuted"), (0.3, 1.99, "inconclusive")],
)
def test_a_claim_is_judged_at_the_match_and_not_beside_it(effect, loss, expected):
    sgd = [cell("sgd", 1.0, 2.2, 0.0), cell("sgd", 10.0, loss, effect)]
    contrast = {"of": {"optimizer": "sgd"}, "against": {"optimizer": "adam"}, "share": 0.5}
    claim = Claim(
        id="x", statement="s", source="p", threshold_from="t", recipes=("r",), contrast=contrast
    )
    (verdict,) = judge([claim], "r", matched_effects([*ADAM, *sgd], 1e-2))
    assert verdict.verdict == expected, verdict.reason
    assert ("does not come to the held-out loss" in verdict.reason) == (expected == "inconclusive")


def test_update_norms_are_those_of_the_merged_weights():
    model = base_model("llama")
    specs = [StudentSpec(rank=4, alpha="4r"), StudentSpec(rank=2, seed=1)]
    stack = random_stack(model, specs)
    for place, (group, row) in enumerate(stack.student_rows()):
        whole = merged(model, stack, place)
        norms = update_norms(group, row, specs[stack.order[place]], model)
        assert set(norms) == set(stack.linears)
        for name, norm in norms.items():
            moved = whole.get_parameter(f"{name}.weight") - model.get_parameter(f"{name}.weight")
            assert norm == pytest.approx(float(moved.detach().norm()), rel=1e-9)
    full = random_stack(model, [StudentSpec(method="full", rank=None)])
    (group, row) = full.student_rows()[0]
    norms, whole = (
        update_norms(group, row, StudentSpec(method="full", rank=None), model),
        merged(model, full, 0),
    )
    assert norms == pytest.approx(
        {
            n: float((whole.get_parameter(n) - p).detach().norm())
            for n, p in model.named_parameters()
        }
    )


# Plans


def test_optimizers_are_an_axis_of_students_and_share_packs():
    plan = make_plan(load_recipe("optimizers"), dict(MODEL), 25.0)
    assert len(plan.students) == 8 * 3 * 2 * 4 and len({s.id for s in plan.students}) == len(
        plan.students
    )
    of = {s.labels["optimizer"]: s.student for s in plan.students}
    assert next(iter(of)) == "AdamW"
    assert of["SGD with momentum"].momentum == 0.9 and of["SGD"].momentum == 0
    assert of["SGD, frozen Adam scale"].scout_lr == 3e-3
    for pack in plan.packs:
        members = [plan.students[i] for i in pack]
        assert (
            len({s.labels["optimizer"] for s in members}) >= 4
            and len({(s.source, s.data_seed) for s in members}) == 1
        )


def test_students_of_the_axis_are_those_of_recipes_without_it():
    axis = make_plan(load_recipe("optimizers"), dict(MODEL), 25.0)
    plain = make_plan(
        load_recipe("optimizers", sets=["train.optimizers=null", "train.match_lr=null"]),
        dict(MODEL),
        25.0,
    )
    assert {s.id for s in plain.students} == {
        s.id for s in axis.students if s.labels["optimizer"] == "AdamW"
    }
    assert all("scout_lr" not in s.spec["student"] for s in plain.students)


def test_the_shipped_claims_on_optimizers_name_those_of_the_recipe():
    mine = [c for c in load_claims() if "optimizers" in c.recipes]
    known = set(load_recipe("optimizers").train.optimizers)
    patterns = [p for c in mine for p in (c.contrast.of, c.contrast.against)]
    named = {pattern["optimizer"] for pattern in patterns}
    assert (
        named == known and set(load_recipe("optimizers", preset="blank").train.optimizers) == known
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.match_lr=5e-3", "not among the rates of the first optimizer AdamW"),
        ("train.full={lrs: [1e-4]}", "compares LoRA students"),
        ("train.contexts=[default]", "stands beside another axis"),
        ("train.optimizers.Muon={optimizer: moon}", "has to be"),
        (
            "train.optimizers.x={optimizer: frozen-adam-scale}",
            "scout_lr belongs to frozen-adam-scale",
        ),
        ("train.optimizer=frozen-adam-scale", "needs a scout_lr"),
        ("train.optimizers=null", "stands without train.optimizers"),
        ("measure.contexts=[none]", "lacks default"),
    ],
)
def test_bad_recipes_name_the_place(change, message):
    answer = sublora("plan", "optimizers", "--set", change)
    assert answer.code == 2 and message in answer.err and "Traceback" not in answer.err, answer.err


def test_a_full_fine_tune_with_an_optimizer_for_adapters_is_refused():
    answer = sublora("plan", "full-ft", "--set", "train.optimizer=muon")
    assert answer.code == 2 and "muon is for adapters" in answer.err


# A whole run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("optimizers") / "run"
    values = (
        "data.rows=24", "data.heldout_rows=8", "data.seeds=[1,2]", "train.seeds=[1,2]", "measure.samples=2",
        "train.optimizers.SGD.lrs=[0.1, 1e30]",
    )  # fmt: skip
    sets = [part for value in values for part in ("--set", value)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBLORA_HOME", str(out.parent / "store"))
        answer = sublora("run", "optimizers", *sets, "--out", str(out), "--threads", "1")
    assert answer.code == 0, answer.err
    torch.set_num_threads(before)
    return out


def test_a_run_says_what_ran_and_how_far_it_moved(folder):
    with (folder / "optimizers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7 * 3 + 2 and {"update all", "update q_proj", "update down_proj"} < set(
        rows[0]
    )
    for row in rows:
        parts = [
            float(v) ** 2 for k, v in row.items() if k.startswith("update ") and k != "update all"
        ]
        # each a mean over two students, so that they add up only nearly
        assert float(row["update all"]) == pytest.approx(math.sqrt(sum(parts)), rel=1e-2)
    manifest = json.loads((folder / "run.json").read_text())
    said = dict(line.split(": ", 1) for line in manifest["optimizer"].splitlines())
    assert set(said) == {r["optimizer"] for r in rows}
    assert said["Muon"].startswith("Muon(momentum=0.95") and said["SGD"].startswith(
        "SGD(momentum=0,"
    )
    assert "frozen after AdamW" in said["SGD, frozen Adam scale"]


def test_students_of_an_older_store_say_no_norms_and_the_table_is_made_without(folder):
    run = json.loads((folder / "run.json").read_text())
    base = load_base("micro")
    plan = Grid.model_validate(run["recipe"]).layout(known_base(base))
    results = Results(plan, Store(folder.parent / "store"))
    whole = sweep_rows(results)
    old = {s.id for s in plan.students if s.labels["optimizer"] in ("AdamW", "SGD")}
    store = results.store

    class Older(Store):
        def read(self, name):
            found = store.read(name)
            return SimpleNamespace(file=lambda _: folder / "older.json") if name in old else found

    (folder / "older.json").write_text('{"loss": [1.0], "gradient_norm": [1.0]}')
    results.store = Older(store.root)
    rows = sweep_rows(results)
    assert [set(r) for r in rows] == [set(whole[0])] * len(whole)
    for row, was in zip(rows, whole, strict=True):
        assert row["update all"] == (
            "" if row["optimizer"] in ("AdamW", "SGD") else was["update all"]
        )


def test_an_optimizer_that_diverged_is_named_and_kept(folder):
    with (folder / "optimizers.csv").open(newline="") as file:
        wild = [r for r in csv.DictReader(file) if r["diverged"] != "0"]
    assert [(r["optimizer"], float(r["lr"]), r["diverged"]) for r in wild] == [("SGD", 1e30, "2")]
    warnings = json.loads((folder / "run.json").read_text())["warnings"]
    assert any("diverged at step" in w and "1e+30" in w for w in warnings)


def test_arms_and_the_page_stand_at_one_held_out_loss(folder):
    with (folder / "arms.csv").open(newline="") as file:
        arms = list(csv.DictReader(file))
    assert [a["optimizer"] for a in arms] == list(load_recipe("optimizers").train.optimizers)
    loss = float(arms[0]["heldout_loss"])
    assert all(
        abs(float(a["heldout_loss"]) - loss) <= TOLERANCE + 1e-9
        for a in arms
        if a["matched"] == "1"
    )
    page = (folder / "report.html").read_text()
    assert (
        "Optimizers at every rate" in page
        and 'id="arms-otter"' in page
        and "update, down_proj" in page
    )
    unmatched = sum(a["matched"] == "0" for a in arms)
    assert page.count(" ‡</td>") == unmatched
    verdicts = json.loads((folder / "verdicts.json").read_text())
    assert {v["id"] for v in verdicts} >= {"blank-sgd-null", "nief-sgd-transfers"}
    with (folder / "cells.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3, "the main table is that of the first optimizer"
