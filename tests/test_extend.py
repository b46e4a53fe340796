"""--extend-lrs: a finished run proposes rates beyond its edge, takes them up, and says so; other recipes stay guarded."""

import json

import pytest

from sublora.errors import SubloraError
from sublora.experiments.grid.edges import added_sentence
from sublora.experiments.kinds import open_recipe
from sublora.runner.extend import continued, extended, with_rates
from sublora.runner.folder import guard_other_recipe

RATES = (3e-4, 1e-3, 3e-3, 1e-2)


def left(folder, recipe, status="done", more=()):
    """A run's folder as a process left it."""
    run = {"recipe": recipe.model_dump(mode="json"), "status": status, "rates_to_add": list(more)}
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(run))


def test_a_finished_run_takes_up_the_rates_that_it_asks_for(tmp_path):
    asked = open_recipe("rank-lr")
    left(tmp_path, asked, more=[0.03, 0.1])
    recipe, said = extended(asked, tmp_path)
    assert recipe.train.lora.lrs == (*RATES, 0.03, 0.1) and recipe.added_lrs == (0.03, 0.1)
    assert said == "Added learning rates: 3e-2 and 1e-1."
    assert "3e-2 and 1e-1 were added" in added_sentence(recipe)[0] and not added_sentence(asked)
    guard_other_recipe(tmp_path, recipe)
    # interrupted, both commands go on with the extended run, and what was asked first does not replace it
    left(tmp_path, recipe, "interrupted")
    assert extended(asked, tmp_path)[0] == continued(asked, tmp_path) == recipe
    with pytest.raises(SubloraError, match="another recipe"):
        guard_other_recipe(tmp_path, asked)
    # done, it may be extended again, or there is nothing more to add
    left(tmp_path, recipe, more=[0.3])
    assert extended(asked, tmp_path)[0].added_lrs == (0.03, 0.1, 0.3)
    left(tmp_path, recipe)
    again, said = extended(asked, tmp_path)
    assert again == recipe and "none is added" in said


def test_what_cannot_be_extended_is_one_sentence(tmp_path):
    asked = open_recipe("rank-lr")
    with pytest.raises(SubloraError, match="no run in"):
        extended(asked, tmp_path)
    left(tmp_path, asked, "failed", [0.03])
    with pytest.raises(SubloraError, match="not finished"):
        extended(asked, tmp_path)
    left(tmp_path, open_recipe("rank-lr", sets=["train.epochs=2"]), more=[0.03])
    with pytest.raises(SubloraError, match="another recipe"):
        extended(asked, tmp_path)
    assert continued(asked, tmp_path) == asked
    with pytest.raises(SubloraError, match="no grid of LoRA learning rates"):
        extended(open_recipe("one-step"), tmp_path)
    with pytest.raises(SubloraError, match="added_lrs"):
        open_recipe("rank-lr", sets=["added_lrs=[0.5]"])


def test_added_rates_change_no_other_artifact():
    asked = open_recipe("rank-lr", sets=["train.full=null"])
    known = asked.known()
    before = {s.id for s in asked.plan(known)}
    more = with_rates(asked, [0.03])
    after = {name for s in more.plan(more.known()) for name in s.makes}
    assert {n for s in asked.plan(asked.known()) for n in s.makes} < after and before
