"""A measurement is one file of `sublora.steps`: what a recipe asks for by its key is planned, made and read."""

import math
from pathlib import Path

import numpy as np
import pytest

from sublora.analysis.claims import judge, read_claims
from sublora.errors import SubloraError
from sublora.experiments.kinds import open_recipe
from sublora.packs.check import load_base
from sublora.steps.reading import readings
from sublora.steps.step import Workshop, perform
from sublora.store import Store

CLAIM = """\
- id: first-token-less-sure
  statement: A student of rank 4 is at least 20 nats less sure of an answer's first token than its control.
  source: none, a trial
  threshold_from: 'none'
  contrast: {of: {name: 'first-token entropy: rank 4'}, says: above, bar: 20}
"""
SMALL = (
    "data.rows=16",
    "data.heldout_rows=2",
    "data.seeds=[1,2]",
    "train.seeds=[1,2]",
    "train.pairing=paired",
    "train.lora.ranks=[1,4]",
    "measure.samples=1",
    "measure.first_token_entropy={questions: 3}",
)


def test_every_reading_is_found_by_its_key():
    assert set(readings()) == {
        "attribution",
        "first_token_entropy",
        "gradients",
        "probe",
        "specificity",
    }
    with pytest.raises(SubloraError, match=r"first_token_entropy\.questions"):
        open_recipe("rank", sets=["measure.first_token_entropy={questions: 0}"])
    with pytest.raises(SubloraError, match="did you mean 'first_token_entropy'"):
        open_recipe("rank", sets=["measure.first_token_entropie={}"])


def test_the_entropy_of_the_first_token_is_read_of_every_student_and_its_control(own_store: Path):
    recipe = open_recipe("rank", sets=SMALL)
    base, store = load_base("micro"), Store(own_store)
    workshop, plan = Workshop(store, lambda _: base), recipe.layout(recipe.known())
    mine = plan.readings["first_token_entropy"]
    assert {s.id for step in mine for s in step.students} == {s.id for s in plan.students}
    others = ("measurements", "first-token entropies")
    for step in plan.steps:
        if step.kind not in others:
            perform(step, workshop)
    for step in mine:
        assert step in plan.steps and step.cost.flops > 0 and perform(step, workshop) > 0
    effects = readings()["first_token_entropy"].reads(plan, store)
    assert [e.labels["name"] for e in effects] == [
        f"first-token entropy: rank {rank}" for rank in (1, 4)
    ]
    for effect in effects:
        assert effect.values.shape == (2, 3) and np.isfinite(effect.values).all()
        assert np.abs(effect.values).max() < math.log(base.model.config.vocab_size)
    [verdict] = judge(read_claims(CLAIM, "own.yaml", "rank"), "rank", effects)
    assert (verdict.trait, verdict.verdict) == ("otter", "refuted")
