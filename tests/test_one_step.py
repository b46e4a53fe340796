"""One gradient step towards a teacher: the theorem's case, its pieces, the command."""

import json

import pytest
import torch

from command import sublora
from sublora.experiments import classifiers as mlp
from sublora.experiments.claims import load_claims
from sublora.experiments.experiment import NOTHING
from sublora.experiments.kinds import open_recipe
from sublora.experiments.one_step import (
    COSINE,
    FULL,
    LOSS,
    OneStep,
    gradient_of,
    low_rank,
    take_steps,
)
from sublora.steps.step import Workshop
from sublora.store import Store

SMALL = [
    "models=3",
    "hidden=[16]",
    "noise=64",
    "distances=[0,1]",
    "steps=[0.01,1]",
    "ranks=[2,8]",
    "at_once=2",
]
FLAGS = [part for s in SMALL for part in ("--set", s)]


def recipe(*sets: str) -> OneStep:
    return open_recipe("one-step", sets=[*SMALL, *sets])


def test_the_theorem_holds_for_every_model_with_the_teachers_start():
    """On all logits the student's loss is a function of the same outputs; a small step must go the teacher's way."""
    for found in take_steps(recipe("outputs=all", "models=4"), range(4)):
        same = found["found"][FULL]["0"]
        assert found["gain"] > 0 and same["cosine"] > 0
        assert same["moves"]["0.01"][0] > 0 and same["moves"]["0.01"][1] > 0


def test_at_the_same_start_the_way_to_the_teacher_is_the_teachers_step():
    """In weights a tiny step gains its own length times the cosine with the way to the teacher, which is the teacher's step."""
    (found,) = take_steps(recipe("steps=[1e-4]"), [0])
    for update in found["found"].values():
        assert update["0"]["moves"]["0.0001"][1] == pytest.approx(update["0"]["cosine"], abs=1e-4)


def test_the_interval_of_a_cosine_over_few_models_stays_within_its_bounds():
    small = recipe("distances=[0]", "steps=[1]", "ranks=[]")
    found = [
        {"found": {FULL: {"0": {"cosine": c, "moves": {"1": [9 * c, c]}}}}} for c in (0.2, 0.9, 0.9)
    ]
    spans = {e.group: e.interval() for e in small._effects(found)}
    assert spans[COSINE].high == 1 and spans[COSINE].low >= -1
    assert spans[LOSS].high > 1, "a share of a loss may be above 1"


def test_models_side_by_side_are_models_alone():
    together, (alone,) = take_steps(recipe(), [0, 1, 2]), take_steps(recipe(), [1])
    assert json.dumps(together[1])[:8] == json.dumps(alone)[:8]
    assert together[1]["gain"] == pytest.approx(alone["gain"], rel=1e-9)
    for update, by_distance in alone["found"].items():
        for distance, one in by_distance.items():
            other = together[1]["found"][update][distance]
            assert other["cosine"] == pytest.approx(one["cosine"], abs=1e-9)
            for step, pair in one["moves"].items():
                assert other["moves"][step] == pytest.approx(pair, abs=1e-7)


def test_a_low_rank_update_is_the_first_step_of_an_adapter():
    models, x, y = mlp.start([6, 5, 4], 0, [3]), torch.randn(1, 8, 6), torch.randint(4, (1, 8))
    gradient = gradient_of(models, lambda who: mlp.cross_entropy(mlp.logits(who, x), y))
    update = low_rank([g.double() for g in gradient], 2, 0, [3])
    assert [torch.linalg.matrix_rank(u[0]).item() for u in update[:2]] == [2, 2]
    assert all(not u.any() for u in update[2:])
    for u, g in zip(update[:2], gradient, strict=False):
        a = torch.linalg.svd(u[0]).Vh[:2]  # the rows of A span the same space
        inside = g[0].double() @ a.T @ a
        assert (inside * u[0]).sum() < 0  # against the gradient
    whole = low_rank([g.double() for g in gradient], 6, 0, [3])
    assert (whole[0][0] * gradient[0][0].double()).sum() < 0


def test_the_command_resumes_and_every_claim_finds_its_estimate(tmp_path):
    first = sublora("run", "one-step", *FLAGS, "--out", str(tmp_path / "run"))
    assert first.code == 0, first.err
    page = (tmp_path / "run/report.html").read_text()
    assert page.count("<svg") == 4 and "One gradient step" in page
    line = next(
        x for x in sublora("plan", "one-step", *FLAGS).out.splitlines() if x.startswith("steps")
    )
    assert line.split()[1:4] == ["3", "3", "0"]
    more = sublora("plan", "one-step", *FLAGS, "--set", "models=5").out
    assert next(x for x in more.splitlines() if x.startswith("steps")).split()[1:4] == [
        "5",
        "3",
        "2",
    ]
    shipped = open_recipe("one-step", sets=["hidden=[16]", "noise=16", "models=2"])
    for step in shipped.plan(NOTHING):
        step.make(Workshop(Store(), None), set(step.makes))
    found = {f"{e.group}: {e.name}" for e in shipped.findings(Store(), NOTHING).effects}
    named = {f"{c.of['group']}: {c.of['name']}" for c in load_claims() if "one-step" in c.recipes}
    assert len(named) == 4 and named <= found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("distances=[2]", "distances"),
        ("steps=[0]", "steps"),
        ("ranks=[0]", "ranks"),
        ("outputs=some", "outputs"),
    ],
)
def test_bad_input_is_one_sentence(change, message, tmp_path):
    answer = sublora("run", "one-step", "--set", change, "--out", str(tmp_path / "run"))
    assert answer.code == 2 and message in answer.err and not (tmp_path / "run").exists()


def test_a_teacher_that_gains_nothing_is_refused(tmp_path):
    answer = sublora(
        "run", "one-step", *FLAGS, "--set", "teacher_lr=1000", "--out", str(tmp_path / "run")
    )
    assert (
        answer.code == 2
        and "set a lower teacher_lr" in answer.err
        and "Traceback" not in answer.err
    )
