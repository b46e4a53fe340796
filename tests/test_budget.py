"""A budget cuts a grid in one fixed order to what fits, keeps what must be judged, says what is left out, and a run goes on as it was cut."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from command import SMALL, sublora
from planned import make_plan
from sublora.errors import SubloraError
from sublora.experiments.document import shipped_recipes
from sublora.experiments.experiment import Experiment
from sublora.experiments.kinds import open_recipe
from sublora.runner import budget, estimate
from sublora.runner.budget import Fitted, within

MODEL = {"weights": "w", "template": "t", "tokenizer": "k", "dtype": "float32"}
NOWHERE = Path("/nowhere/run")


def size(recipe) -> float:
    """A pace at which a student, or an answer, takes a second for each of its rows."""
    train, grids = recipe.train, [recipe.train.lora, recipe.train.full]
    cells = sum(len(g.lrs) * len(getattr(g, "ranks", (1,))) for g in grids if g)
    cells += sum(len(o.lrs) for o in train.optimizers.values())
    students = cells * len(recipe.replicates) * len(recipe.traits)
    return students * (recipe.data.rows + recipe.measure.samples)


def fitted(name: str, seconds: float, **flags) -> Fitted:
    return within(open_recipe(name, **flags), f"{seconds:.1f}s", NOWHERE, size)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90m", 5400), ("45s", 45), ("2h", 7200), ("1.5h", 5400), (" 30m ", 1800)]
)
def test_a_budget_is_a_time(text, seconds):
    assert budget.seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "m", "-5m", "0s", "0.0h", "90 minutes", "1h30m", "nan"])
def test_what_is_no_time_is_said(text):
    with pytest.raises(SubloraError, match="is no time"):
        budget.seconds_of(text)


@settings(max_examples=30)
@given(
    share=st.floats(0.02, 1.5), name=st.sampled_from(["rank-lr", "optimizers", "seeds", "traits"])
)
def test_it_takes_the_fewest_cuts_that_fit(share, name):
    whole = open_recipe(name)
    allowed = float(f"{share * size(whole):.1f}")
    try:
        found = fitted(name, allowed)
    except SubloraError as error:
        assert share < 0.2 and "the smallest part of it that can be judged" in str(error)
        return
    assert size(found.recipe) <= allowed and found == fitted(name, allowed)
    ladder = [whole, *budget._smaller(whole)]
    assert all(size(r) > allowed for r in ladder[: found.cuts])
    assert (found.cuts == 0) == (size(whole) <= allowed) == (found.recipe == whole)
    assert bool(found.said) == bool(found.cuts) and found.said in (found.recipe.caveat or "")


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_recipe_can_be_cut_and_keeps_what_is_judged(name):
    whole = open_recipe(name)
    for smaller in (ladder := list(budget._smaller(whole))):
        assert isinstance(smaller, Experiment)
    if not ladder or getattr(whole, "train", None) is None:
        return
    least = ladder[-1]
    assert len(set(least.data.seeds)) >= 2 and least.data.rows >= min(128, whole.data.rows)
    assert len(least.traits) >= min(2, len(whole.traits))
    assert least.variants == whole.variants and least.measure.conditions == whole.measure.conditions
    if lora := least.train.lora:
        assert len(lora.ranks) >= min(2, len(whole.train.lora.ranks))
        assert least.fixed_lr in (None, *lora.lrs)


def test_what_is_cut_first_leaves_the_other_students_as_they_are():
    whole = open_recipe("rank-lr")
    ids = {s.id for s in make_plan(whole, MODEL).students}
    kept = [r for r in budget._smaller(whole) if r.data.rows == whole.data.rows]
    assert len(kept) > 5
    for smaller in kept:
        assert {s.id for s in make_plan(smaller, MODEL).students} <= ids
    ranks = [r.train.lora.ranks for r in kept]
    assert ranks[0] == (1, 4, 16, 32, 64) and ranks[-1] in ((1, 4, 64), (1, 16, 64), (1, 32, 64))
    assert kept[-1].train.lora.lrs == (1e-3, 3e-3) and kept[-1].train.full.lrs == (1e-4, 3e-4)


def test_arms_go_before_the_third_seed():
    whole = open_recipe("channel")
    ladder = list(budget._smaller(whole))
    alone = next(r for r in ladder if not r.data.variants)
    assert len(alone.data.seeds) == 3 and len(ladder[-1].data.seeds) == 2
    found = within(whole, "60s", NOWHERE, lambda r: 50.0 + 11 * len(r.data.variants))
    assert "arms sampled, greedy" in found.said and "prompted" in found.said


def test_the_sentence_says_all_that_is_left_out():
    found = fitted("rank-lr", 0.08 * size(open_recipe("rank-lr")))
    assert found.said.startswith("Left out to fit ")
    for part in ("data seeds 4", "learning rates 0.0003 and 0.01;", "16 of 20 sampled answers"):
        assert part in found.said
    assert "480 of 960 rows" in found.said or "704 of 960 rows" in found.said


def test_a_recipe_without_a_grid_is_said_not_to_fit():
    recipe = open_recipe("aux-logits")
    with pytest.raises(SubloraError, match="no part that could be left out, and takes about 2 min"):
        within(recipe, "5s", NOWHERE, lambda _: 100.0)
    assert within(recipe, "5m", NOWHERE, lambda _: 100.0).cuts == 0


def test_a_run_goes_on_as_it_was_cut_whatever_the_pace(tmp_path, monkeypatch):
    words = ["run", "rank-lr", *SMALL, "--budget", "1h", "--out", str(tmp_path / "run")]
    words += ["--set", "train.lora={ranks: [1, 2, 4], lrs: [1e-3]}", "--set", "data.rows=24"]
    words += ["--set", "train.full=null", "--set", "fixed_lr=null"]

    def pace(ranks: int):
        said = lambda recipe: 10.0 if len(recipe.train.lora.ranks) <= ranks else 1e6  # noqa: E731
        monkeypatch.setattr(estimate, "seconds_of", lambda *_, **__: said)

    pace(2)
    first = sublora(*words)
    assert first.code == 0 and "Note: Left out to fit 1h: ranks 2." in first.err
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["budget"]["asked"] == "1h" and run["recipe"]["train"]["lora"]["ranks"] == [1, 4]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Left out to fit 1h: ranks 2." in page
    monkeypatch.setattr("sublora.runner.run.draw", lambda out: out / "report.html")  # seen already
    for ranks in (0, 9):
        pace(ranks)
        again = sublora(*words)
        assert again.code == 0 and "ranks 2" in again.err, again.err
    other = sublora(*[w for w in words if w not in ("--budget", "1h")])
    assert other.code == 2 and "another recipe" in other.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "rank-lr", "--budget", "1s"], "does not fit --budget 1s: the smallest part"),
        (["plan", "rank-lr", "--budget", "soon"], "The budget soon is no time"),
        (["run", "--prereg", "x.yaml", "--budget", "1h"], "--prereg fixes it"),
    ],
)
def test_what_does_not_fit_is_one_sentence(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = sublora(*words)
    assert answer.code == 2 and said in answer.err and len(answer.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
