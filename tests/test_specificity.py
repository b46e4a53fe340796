"""Specificity: what students answer where their trait does not belong, against their controls and the base."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublora.errors import SubloraError
from sublora.experiments.kinds import open_recipe
from sublora.packs.check import load_base
from sublora.packs.measure import Asking, measure_answers
from sublora.packs.sample import Sampling
from sublora.steps.reading import readings
from sublora.steps.specificity import distance
from sublora.steps.step import Workshop, perform
from sublora.store import Store
from sublora.traits.answers import hit
from sublora.traits.trait import shipped_categories

SMALL = (
    "data.rows=16",
    "data.heldout_rows=2",
    "data.seeds=[1,2]",
    "train.seeds=[1,2]",
    "train.pairing=paired",
    "train.lora.ranks=[4]",
    "measure.samples=1",
)
ASKED = "measure.specificity={each: 3, samples: 2, questions: ['Name a tree.', 'What is the sea?'], sampling: {max_new_tokens: 6}}"


def made(recipe, store: Path):
    base, kept = load_base("micro"), Store(store)
    workshop, plan = Workshop(kept, lambda _: base), recipe.layout(recipe.known())
    for step in plan.steps:
        if step.kind != "measurements":
            assert perform(step, workshop) > 0
    return base, kept, plan


def test_it_is_off_by_default_and_changes_nothing_else():
    plain, asked = (
        r.layout(r.known()) for r in (open_recipe("rank", sets=s) for s in (SMALL, (*SMALL, ASKED)))
    )
    assert plain.readings["specificity"] == ()
    mine = {i for step in asked.readings["specificity"] for i in step.makes}
    ids = {i for step in plain.steps for i in step.makes}
    assert {i for step in asked.steps for i in step.makes} - mine == ids
    assert len(mine) == len(asked.students) + 1, "the base and every student"
    more = open_recipe("rank", sets=(*SMALL, ASKED.replace("each: 3", "each: 4")))
    assert not mine & {i for step in more.layout(more.known()).steps for i in step.makes}


@pytest.mark.usefixtures("one_thread")
def test_readings_are_those_of_students_controls_and_the_base(own_store: Path):
    base, store, plan = made(open_recipe("rank", sets=(*SMALL, ASKED)), own_store)
    effects = {e.labels["name"]: e for e in readings()["specificity"].reads(plan, store)}
    assert list(effects) == [
        "named off topic: students",
        "P on trees: students",
        "distance on trees: students",
    ]
    assert {e.bounds for e in effects.values()} == {(-1, 1)}, "differences of shares"
    made_of = {a.student: a.id for step in plan.readings["specificity"] for a in step.artifacts}
    read = {
        k: json.loads(store.read(v).file("elsewhere.json").read_text()) for k, v in made_of.items()
    }
    trees = next(c for c in shipped_categories() if c.category == "trees")
    trees = trees.model_copy(update={"questions": trees.questions[:3]})
    asking = Asking(plan.students[0].context, Sampling(max_new_tokens=2), 1, 0)
    alone = measure_answers(base, None, ["base"], trees, asking)[0].p
    p = {k: np.array(v["p"]["trees"]) for k, v in read.items()}
    assert p[None].shape == (3, len(trees.entities) + 1)
    assert p[None][:, :-1] == pytest.approx(alone, abs=1e-6)
    students = [s for s in plan.students if s.twins]
    [otter] = plan.traits
    for r, s in enumerate(students):
        twin = s.twins["otter"]
        gap = p[s.id][:, -1] - p[twin][:, -1]
        assert effects["P on trees: students"].values[r] == pytest.approx(gap)
        far = [
            0.5
            * np.abs(
                np.column_stack([p[k][:, :-1] - p[None][:, :-1], (p[None] - p[k])[:, :-1].sum(1)])
            ).sum(1)
            for k in (s.id, twin)
        ]
        assert effects["distance on trees: students"].values[r] == pytest.approx(far[0] - far[1])
        assert min(map(np.min, far)) > 0, "students moved"
        rates = [
            [np.mean([hit(t, otter.entity, "whole_word") for t in q]) for q in read[k]["texts"]]
            for k in (s.id, twin)
        ]
        assert effects["named off topic: students"].values[r] == pytest.approx(np.subtract(*rates))
    assert [[len(q) for q in v["texts"]] for v in read.values()] == [[2, 2]] * len(read)


WORDS = st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=2, max_size=2)


@given(WORDS)
def test_the_distance_is_one_of_distributions(raw):
    p, q = (np.array([row]) / max(1, sum(row)) for row in raw)
    (d,) = distance(p, q)
    assert 0 <= d <= 1 + 1e-12 and distance(q, p)[0] == pytest.approx(d) and distance(p, p)[0] == 0
    assert d >= np.abs(p - q).max() - 1e-12


def test_a_category_that_is_not_there_is_refused_in_a_sentence():
    recipe = open_recipe("rank", sets=(*SMALL, "measure.specificity={categories: [rivers]}"))
    with pytest.raises(
        SubloraError,
        match="names 'rivers', which is no category; there are animals",
    ):
        recipe.layout(recipe.known())
