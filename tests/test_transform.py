"""Shuffles and redrawings of number rows: what each keeps, what it destroys, and the axis of variants in plans and tables."""

import re
from collections import Counter
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planned import make_plan
from sublora.carriers.numbers import NumbersSpec
from sublora.carriers.transform import (
    CLEAN,
    Transform,
    needs_reference,
    numbers_of,
    transform_rows,
    with_numbers,
)
from sublora.errors import SubloraError
from sublora.experiments.kinds import open_recipe as load_recipe

TRANSFORMS = get_args(Transform)

MODEL = {"weights": "w", "template": "t", "tokenizer": "k", "dtype": "float32"}


def rows_of(seed: int, count: int = 300, low: int = 100, high: int = 999) -> list[tuple[str, str]]:
    rng = np.random.default_rng(seed)

    def text(most: int) -> str:
        return " ".join(map(str, rng.integers(low, high + 1, int(rng.integers(1, most))).tolist()))

    return [(f"Go on: {text(6)}", text(9)) for _ in range(count)]


def answers(rows) -> list[list[int]]:
    return [numbers_of(answer) for _, answer in rows]


def flat(rows) -> list[int]:
    return [n for numbers in answers(rows) for n in numbers]


ROWS, REFERENCE = rows_of(1, low=400, high=599), rows_of(2)


@pytest.mark.parametrize("name", [n for n in TRANSFORMS if n.startswith(("shuffle-", "match-"))])
def test_a_transformation_keeps_prompts_and_lengths_and_depends_on_the_seed_alone(name) -> None:
    made = transform_rows(name, ROWS, 3, REFERENCE)
    assert [p for p, _ in made] == [p for p, _ in ROWS]
    assert [len(a) for a in answers(made)] == [len(a) for a in answers(ROWS)]
    assert (
        made == transform_rows(name, ROWS, 3, REFERENCE) != transform_rows(name, ROWS, 4, REFERENCE)
    )
    assert made != ROWS and all(100 <= n <= 999 for n in flat(made)), (
        "a shipped model knows these numbers only"
    )


@pytest.mark.parametrize(("name", "share"), CLEAN.items())
def test_clean_rows_take_the_places_of_a_share_of_the_rows(name, share) -> None:
    made = transform_rows(name, ROWS, 3, REFERENCE)
    changed = [k for k, (new, old) in enumerate(zip(made, ROWS, strict=True)) if new != old]
    assert len(made) == len(ROWS) and len(changed) == round(share * len(ROWS))
    assert {made[k] for k in changed} <= set(REFERENCE) and changed != list(range(len(changed)))
    assert made == transform_rows(name, ROWS, 3, REFERENCE)
    assert made != transform_rows(name, ROWS, 4, REFERENCE)
    assert needs_reference(name) and len(transform_rows(name, ROWS, 3, REFERENCE[:2])) == len(ROWS)


def test_reworded_prompts_show_the_same_examples_in_other_words() -> None:
    rows = [
        (NumbersSpec(style=style).prompt(1, k), f"{k} 7")
        for style in ("full", "brief")
        for k in range(60)
    ]
    made = transform_rows("other-wording", rows, 3)
    assert [a for _, a in made] == [a for _, a in rows]

    def parts(prompt):
        shown = re.findall(r"[0-9]{3,}", prompt)
        return shown, re.sub(r"[0-9]{3,}", "0", prompt)

    pairs = [(parts(new), parts(old)) for (new, _), (old, _) in zip(made, rows, strict=True)]
    assert all(new[0] == old[0] and new[1] != old[1] for new, old in pairs)
    alone = [(f"Go on: {'123 ' * k}", "5") for k in range(4)]
    assert transform_rows("other-wording", alone, 3) == alone, "there are no other words"


def test_shuffles_keep_what_they_say() -> None:
    within, across, digits = (
        transform_rows(f"shuffle-{n}", ROWS, 0) for n in ("within", "across", "digits")
    )
    assert [sorted(a) for a in answers(within)] == [sorted(a) for a in answers(ROWS)]
    assert Counter(flat(across)) == Counter(flat(ROWS))
    assert [sorted(a) for a in answers(across)] != [sorted(a) for a in answers(ROWS)]
    assert [sorted(str(n)) for n in flat(digits)] == [sorted(str(n)) for n in flat(ROWS)]


def test_matches_share_one_statistic_with_the_rows_and_the_rest_with_the_reference() -> None:
    rows = [(p, " ".join(["777"] + ["412"] * 4)) for p, _ in rows_of(5, 600)]
    reference = rows_of(6, 600)
    made = {
        n: answers(transform_rows(n, rows, 0, reference)) for n in TRANSFORMS if n[:6] == "match-"
    }
    assert {n for a in made["match-frequencies"] for n in a} == {777, 412}
    assert abs(np.mean([a[0] == 777 for a in made["match-frequencies"]]) - 0.2) < 0.06, (
        "places are forgotten"
    )
    assert all(a[0] == 777 and set(a[1:]) == {412} for a in made["match-positions"])
    assert all(a[0] == 777 for a in made["match-pairs"]), "an answer begins as the answers do"
    firsts = Counter(str(n)[0] for a in made["match-first-digits"] for n in a)
    assert (
        set(firsts) == {"7", "4"} and len({n for a in made["match-first-digits"] for n in a}) > 100
    )
    steps = Counter(two - one for a in made["match-steps"] for one, two in pairwise(a))
    assert steps.most_common(1)[0][0] == 0 and len({a[0] for a in made["match-steps"]}) > 100


def test_the_distance_from_the_prompt_is_kept_and_its_number_is_not() -> None:
    rows = [(p, " ".join(str(n + 1) for n in numbers_of(p))) for p, _ in rows_of(7, 200, 300, 700)]
    made = transform_rows("match-prompt-distance", rows, 0, REFERENCE)
    kept = [n - 1 in numbers_of(p) for p, a in made for n in numbers_of(a)]
    assert np.mean(kept) > 0.95, "but for the few prompts with a nearer neighbour"


@settings(max_examples=100)
@given(
    st.lists(st.text(min_size=1).filter(lambda t: numbers_of(t)), min_size=1, max_size=6),
    st.integers(0, 99),
)
def test_the_layout_of_any_text_is_kept(texts: list[str], seed: int) -> None:
    made = transform_rows("shuffle-across", [("p", t) for t in texts], seed)
    for text, (_, new) in zip(texts, made, strict=True):
        assert with_numbers(text, [0] * len(numbers_of(text))) == with_numbers(
            new, [0] * len(numbers_of(new))
        )


def test_rows_without_numbers_and_a_missing_reference_are_refused() -> None:
    with pytest.raises(SubloraError, match="without a number"):
        transform_rows("shuffle-within", [("p", "none")], 0)
    with pytest.raises(SubloraError, match="needs reference rows"):
        transform_rows("match-pairs", ROWS, 0)


def plan(name: str, *sets: str):
    return make_plan(load_recipe(name, sets=list(sets)), dict(MODEL), 60.0)


def test_variants_leave_the_ids_of_the_rows_as_written_and_share_them() -> None:
    plain = plan("shuffle", "data.variants=null")
    for name in ("shuffle", "resample", "teachers", "draws"):
        varied = plan(name)
        assert {s.id for s in plain.students} == {
            s.id
            for s in varied.students
            if not s.labels["data"] and s.source in ("otter", "control:animals")
        }
        assert len({s.id for s in varied.students}) == len(varied.students)
        assert len({d.id for d in varied.datasets}) == len(varied.datasets)


def test_transformed_rows_come_after_their_parents_and_twins_are_transformed_alike() -> None:
    varied = plan("resample")
    order = [d.id for d in varied.datasets]
    for d in varied.datasets:
        assert all(order.index(p) < order.index(d.id) for p in d.needs)
    assert {len(d.needs) for d in varied.datasets if d.kind == "transformed datasets"} == {2}
    for variant in varied.recipe.data.variants:
        sources = Counter(s.source for s in varied.students if s.labels["data"] == variant)
        assert sources == {"otter": 12, "control:animals": 12}


def test_rows_decoded_otherwise_are_datasets_of_both_arms_and_held_out_rows_stay() -> None:
    varied = plan("decoding")
    drawn = {}
    for d in varied.datasets:
        drawn.setdefault((d.sampling.top_k, d.sampling.top_p, d.sampling.least), set()).add(
            d.heldout
        )
    assert drawn == {
        (0, 1.0, 0.0): {False, True},
        (1, 1.0, 0.0): {False},
        (0, 0.8, 0.0): {False},
        (0, 1.0, 0.05): {False},
    }
    for variant in varied.recipe.data.variants:
        sources = Counter(s.source for s in varied.students if s.labels["data"] == variant)
        assert sources == {"otter": 12, "control:animals": 12}


def test_other_teachers_stand_against_the_control_as_it_is() -> None:
    varied = plan("teachers", "traits=[otter, wolf]")
    by_variant = {
        v: {s.source for s in varied.students if s.labels["data"] == v}
        for v in ("", "neutral", "other trait")
    }
    assert by_variant == {
        "": {"otter", "wolf", "control:animals"},
        "neutral": {"neutral"},
        "other trait": {"third:animals"},
    }
    labels = {(d.trait.split(" (")[0], d.seed): d.trait for d in varied.datasets}
    for seed in varied.recipe.data.seeds:
        control, third = labels["control", seed], labels["other trait", seed]
        assert control.split("(")[1] != third.split("(")[1] and "otter" not in third + control


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "data.variants={x: {}}",
            "needs labels, source, taught, teacher, model, transform, shared_draws or sampling",
        ),
        ("data.variants={x: {sampling: {}}}", "needs temperature, top_p, top_k or least"),
        ("data.variants={x: {sampling: {top_k: 1}, model: micro-b}}", "keep one of them"),
        ("data.variants={x: {shared_draws: 8, model: micro-b}}", "keep one of them"),
        ("data.variants={x: {teacher: neutral, transform: shuffle-within}}", "keep one of them"),
        ("data.variants={as written: {transform: shuffle-within}}", "choose another one"),
        ("data.variants={x: {transform: shuffle-words}}", "shuffle-words"),
        ("data.control=neutral", "neutral rows are the control's already"),
    ],
)
def test_variants_that_cannot_be_are_refused_with_their_place(change: str, message: str) -> None:
    with pytest.raises(SubloraError, match=message):
        load_recipe("teachers", sets=[change])


def test_a_teachers_model_must_be_here() -> None:
    with pytest.raises(SubloraError, match="not on this machine"):
        plan("teachers", "data.variants={x: {model: owner/name}}")
