"""What a design can find, said before anything is trained."""

import numpy as np
import pytest
from scipy.stats import t

from sublora.analysis.power import jumps_missed, smallest_effect
from sublora.errors import SubloraError
from sublora.experiments.grid.design import design_of, unsettled
from sublora.experiments.kinds import open_recipe


@pytest.mark.parametrize("seeds", [2, 4, 8])
def test_the_smallest_effect_is_called_in_four_of_five_experiments(seeds):
    sd, draws = 0.35, 20_000
    effect = smallest_effect(sd / seeds**0.5, seeds - 1)
    values = effect + sd * np.random.default_rng(seeds).standard_normal((draws, seeds))
    found = values.mean(1) / (values.std(1, ddof=1) / seeds**0.5)
    assert np.mean(found > t.ppf(0.975, seeds - 1)) == pytest.approx(0.8, abs=0.02)


def test_one_replicate_detects_nothing():
    with pytest.raises(SubloraError, match="one replicate"):
        smallest_effect(0.1, 0)


def test_eight_seeds_rule_out_that_a_third_jump_and_four_do_not():
    assert jumps_missed(8) < 1 / 3 < jumps_missed(7) and jumps_missed(4) == pytest.approx(
        0.527, abs=1e-3
    )


def test_a_plan_names_the_claims_that_no_result_could_settle():
    eight = ["data.seeds=[1,2,3,4,5,6,7,8]", "train.seeds=[1,2,3,4,5,6,7,8]"]
    few_rows = dict(unsettled(open_recipe("rank-lr", sets=eight)))
    assert set(few_rows) == {"feng-full-ft-transfers", "feng-flat-with-unique-rows"}
    assert all("250,000 unique rows" in why for why in few_rows.values())
    many = dict(unsettled(open_recipe("rank-lr", preset="feng", sets=eight)))
    assert not set(few_rows) & set(many)
    two_ranks = dict(unsettled(open_recipe("rank-lr", sets=["train.lora.ranks=[4,32]"])))
    assert "at least 3 ranks" in two_ranks["nief-inverted-u"]
    assert "nief-full-ft-null" not in two_ranks
    one_seed = ["data.seeds=[1]", "train.seeds=[1]"]
    assert design_of(open_recipe("rank-lr", sets=one_seed)) == [
        "With one replicate no claim can be settled; give two data seeds or more."
    ]
    few = " ".join(design_of(open_recipe("rank-lr")))
    assert "No trait can be called absent: 4 data seeds" in few and "+0.74 nats" in few
