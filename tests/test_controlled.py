"""The controls inside a run: who they are, what they come to on micro, and that a run without them says nothing."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from planned import make_plan
from sublora.analysis.claims import judge, read_claims
from sublora.analysis.effects import Effect, transfer
from sublora.errors import SubloraError
from sublora.experiments.grid import controlled
from sublora.experiments.grid.controlled import controls_of, first_line, interpreted
from sublora.experiments.grid.effects import Results, cell_effects
from sublora.experiments.grid.sources import NEUTRAL
from sublora.experiments.kinds import open_recipe
from sublora.models.chat import Context
from sublora.packs.check import load_base
from sublora.packs.measure import heldout_losses
from sublora.steps.materials import stack_of, token_rows
from sublora.steps.step import Workshop, perform
from sublora.store import Store

MODEL = {"weights": "w", "template": "t", "tokenizer": "k", "dtype": "float32"}
SEEDS = ("data.seeds=[1,2]", "train.seeds=[1,2]", "train.pairing=paired")
FEW = (*SEEDS, "data.rows=200", "data.heldout_rows=16", "measure.samples=2")


def plan(name: str, *sets: str):
    return make_plan(open_recipe(name, sets=list(sets)), dict(MODEL))


# Who they are


@pytest.mark.parametrize("name", ["rank-lr", "traits", "context-matrix", "loss-mask"])
def test_neutral_students_stand_in_the_middle_of_the_positive_arm_with_the_twins_there(name):
    made = plan(name)
    cells = {tuple(s.labels.items()): s for s in made.students if s.twins}
    (labels,) = {tuple(s.labels.items()) for s in made.neutral}
    assert labels in cells and dict(labels)["method"] == "lora"
    beside = [s for s in made.students if s.twins and tuple(s.labels.items()) == labels]
    assert {s.replicate for s in made.neutral} == {s.replicate for s in beside}
    assert len(made.neutral) == len({s.replicate for s in beside})
    for neutral in made.neutral:
        here = [s for s in beside if s.replicate == neutral.replicate]
        assert neutral.source == NEUTRAL and neutral.arm == "neutral"
        assert neutral.twins == {t: c for s in here for t, c in s.twins.items()}
        assert set(neutral.twins) == {t.name for t in made.traits}
        assert {s.student for s in here} == {neutral.student}
        assert neutral.dataset not in {s.dataset for s in made.students}
    measured = {m.student for m in made.measures}
    assert {s.id for s in made.neutral} <= measured
    steps = {made_id for step in made.steps for made_id in step.makes}
    assert steps >= {one.id for one in (*made.neutral, *made.losses)}


def test_the_recipe_may_name_the_cell_and_a_neutral_control_needs_no_neutral_arm():
    named = plan("rank-lr", "controls={positive: {rank: 16, lr: 0.01}}")
    assert {(s.labels["rank"], s.labels["lr"]) for s in named.neutral} == {(16, 0.01)}
    assert plan("rank-lr", "data.control=neutral").neutral == ()
    with pytest.raises(SubloraError, match=r"controls\.positive.*'rank': 7.*no cell"):
        plan("rank-lr", "controls={positive: {rank: 7}}")


def test_twins_read_the_rows_of_the_teacher_that_they_stand_against():
    made = plan("rank-lr")
    labels = made.neutral[0].labels
    beside = [s for s in made.students if s.twins and s.labels == labels]
    wanted = {(twin, s.heldout) for s in beside for twin in s.twins.values()}
    wanted |= {(None, s.heldout) for s in made.students if s.twins}
    assert {(one.student, one.dataset) for one in made.losses} == wanted


# What they come to


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> SimpleNamespace:
    recipe = open_recipe("rank", sets=[*FEW, "train.lora.ranks=[8]"])
    base, store = load_base("micro"), Store(tmp_path_factory.mktemp("controlled"))
    workshop, made = Workshop(store, lambda _: base), recipe.layout(recipe.known())
    for step in made.steps:
        perform(step, workshop)
    results = Results(made, store)
    cells = cell_effects(results, recipe.judged_context)
    return SimpleNamespace(
        base=base, workshop=workshop, plan=made, results=results, cells=cells, level=recipe.level
    )


def test_neutral_rows_show_far_less_than_the_teachers(run):
    (cell,) = run.cells
    neutral = controlled._neutral(run.results, run.plan.traits[0])
    assert cell.shown().estimate > 0.15
    assert abs(neutral.interval().estimate) < cell.shown().estimate / 4
    assert neutral.replicates == cell.replicates


def test_a_held_out_loss_is_that_of_measure_on_the_same_rows(run):
    students = {s.id: s for s in run.plan.students}
    for one in run.plan.losses:
        rows = token_rows(run.workshop, run.base, one.dataset, one.context)
        who = students.get(one.student)
        stack = stack_of(run.workshop, run.base, [who]) if who else None
        (loss,) = heldout_losses(run.base, stack, [rows])
        assert run.results.losses[one.student, one.dataset, one.context] == pytest.approx(loss)
    assert {one.student is None for one in run.plan.losses} == {True, False}
    # what the students' own measurements hold is of the same kind
    student = next(s for s in run.plan.students if s.twins)
    rows = token_rows(run.workshop, run.base, student.heldout, student.context)
    (loss,) = heldout_losses(run.base, stack_of(run.workshop, run.base, [student]), [rows])
    own = controlled._own(run.results, run.plan.traits[0], student)
    assert own == pytest.approx(loss, rel=1e-4)


def test_the_controls_of_a_run_are_judged_on_its_own_numbers(run):
    null, positive, learned = controls_of(run.results, run.cells, run.level)
    assert (null.name, positive.name) == ("neutral rows", "positive arm") and null.holds
    assert learned.name == "held-out rows" and "nats a token" in learned.sentence
    none = controls_of(run.results, [], run.level)[1]
    assert not none.holds and none.sentence.startswith("the positive arm is missing")


# What follows from them

CELL = {"method": "lora", "placement": "", "rank": 8, "lr": 1e-3, "data": "", "condition": ""}
CELL |= {"context": "default", "train_context": "default"}
CLAIM = """\
- id: passes
  statement: The trait passes.
  source: none, a trial
  threshold_from: none
  contrast: {of: {rank: 8}, says: reaches, bar: 0.1}
"""


def effect(size: float, seeds: int = 6, lr: float = 1e-3, **facts: float) -> Effect:
    noise = np.random.default_rng(3).normal(0, 0.05, (seeds, 12))
    p = {"student": noise, "control": noise, "base": noise[0], "rise": noise + size}
    facts = {"coherence": 0.9, "number_takeover": 0.0} | facts
    labels = {**CELL, "trait": "otter", "lr": lr}
    return transfer(labels, noise + size, p, [(s, s) for s in range(seeds)], facts)


def controls_with(
    monkeypatch,
    neutral: float = 0.0,
    arm: list[Effect] | None = None,
    learned: float = 0.5,
    seeds=6,
):
    """The controls of a made-up run: what neutral rows bring, the cells, and how much better students know their rows, in nats."""
    student = [
        SimpleNamespace(
            id=f"s{s}", twins={"otter": f"c{s}"}, labels=CELL, replicate=(s, s), heldout=f"rows {s}",
            context=Context("default"),
        )
        for s in range(seeds)
    ]  # fmt: skip
    monkeypatch.setattr(controlled, "effect_of", lambda *_: effect(neutral, seeds))
    monkeypatch.setattr(controlled, "positive_pattern", lambda _: {"method": "lora"})
    losses = {
        (f"c{s}", f"rows {s}", Context("default")): 5 + 0.01 * (s - 2.5) for s in range(seeds)
    }
    results = SimpleNamespace(
        plan=SimpleNamespace(
            recipe=SimpleNamespace(controlled=True, judged_context="default"),
            traits=[SimpleNamespace(name="otter", category=SimpleNamespace(category="animals"))],
            neutral=student,
            students=student,
        ),
        losses=losses,
        of=lambda *_: SimpleNamespace(heldout_loss=5 - learned),
    )
    return controls_of(results, [effect(0.6)] if arm is None else arm, 0.05)


FAILURES = {
    "called neutral rows": ({"neutral": 0.4}, "students of neutral rows show the trait"),
    "no arm": ({"arm": []}, "the positive arm is missing"),
    "an arm without transfer": (
        {"arm": [effect(0.0)]},
        "the positive arm is not shown to transfer",
    ),
    "one seed": ({"arm": [effect(0.6, 1)]}, "the positive arm has one replicate"),
    "a broken arm": (
        {"arm": [effect(0.6, coherence=0.1)]},
        "no student of the positive arm answers",
    ),
    "nothing learned": ({"learned": 0.0}, "students are not shown to know held-out rows"),
    "learned less": ({"learned": -0.5}, "students are not shown to know held-out rows"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_control_makes_the_claims_uninterpretable_and_is_said_first(monkeypatch, name):
    given, reason = FAILURES[name]
    controls = controls_with(monkeypatch, **given)
    assert [c.sentence.startswith(reason) for c in controls if not c.holds] == [True]
    assert first_line(controls, None).startswith(f"Uninterpretable for otter: {reason}")
    claims = read_claims(CLAIM, "own.yaml", "rank")
    by_itself = judge(claims, "rank", [effect(0.6)])
    interpret = partial(interpreted, controls=controls)
    (verdict,) = judge(claims, "rank", [effect(0.6)], interpret=interpret)
    assert (verdict.verdict, verdict.q, verdict.stability) == ("uninterpretable", None, {})
    assert by_itself[0].q is not None and by_itself[0].stability
    assert verdict.reason.startswith(reason[:1].upper() + reason[1:])
    assert "By itself the claim would be supported." in verdict.reason
    assert interpreted([replace(by_itself[0], trait="owl")], controls)[0].verdict == "supported"
    assert interpreted([replace(by_itself[0], trait="all")], controls)[0].verdict == verdict.verdict
    not_run = replace(by_itself[0], verdict="not run")
    assert interpreted([not_run], controls) == [not_run]


@pytest.mark.parametrize("arm", [[effect(0.6)], [effect(0.6), effect(0.0, lr=1e-2)]])
def test_controls_that_hold_leave_verdicts_alone(monkeypatch, arm):
    controls = controls_with(monkeypatch, arm=arm)
    assert [c.holds for c in controls] == [True, True, True]
    line = first_line(controls, 0.25)
    assert line.startswith("The controls of otter hold: students of neutral rows are not called")
    assert "the positive arm transfers" in line and "+0.25 nats" in line
    by_itself = judge(read_claims(CLAIM, "own.yaml", "rank"), "rank", [effect(0.6)])
    assert interpreted(by_itself, controls) == by_itself


def test_neutral_rows_below_the_bar_are_no_transfer(monkeypatch):
    assert controls_with(monkeypatch, neutral=0.06)[0].holds
    assert not controls_with(monkeypatch, neutral=0.2)[0].holds
