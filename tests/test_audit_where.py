"""Where a trait sits: parts and their complements are the whole and the base, and a real adapter is located."""

import json

import numpy as np
import pytest
import torch

from audit_students import micro, otter_adapter, random_stack
from sublora.audit.entries import TraitFinding
from sublora.audit.readings import Asked, read_model
from sublora.audit.report import page
from sublora.audit.request import Request
from sublora.audit.run import Job, audit
from sublora.audit.statistic import over_questions, question_rises, rises
from sublora.audit.verdict import Bar
from sublora.audit.where import (
    Part,
    base_in,
    module_parts,
    read_gated,
    token_parts,
    where_it_sits,
)
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.models.token_classes import classify
from sublora.packs.spec import StudentSpec
from sublora.packs.spellings import candidate_sequences
from sublora.packs.stack import Stack
from sublora.traits.trait import Category, shipped_categories

DEFAULT = Context("default")


def few(questions: int) -> Category:
    animals = shipped_categories()[0]
    return animals.model_copy(update={"questions": animals.questions[:questions]})


def gated(base: Base, stack: Stack, category: Category, parts: list[Part] | None = None):
    """(parts, P (2 * parts, Q, E)) in the default context."""
    tokens = [classify(base.chat, q, DEFAULT) for q in category.questions]
    sequences, _ = candidate_sequences(base.chat, category)
    groups = module_parts(
        list(stack.linears), lambda n: "attention" if "attn" in n else "feed-forward"
    )
    parts = [*token_parts(tokens, sequences), *groups] if parts is None else parts
    return parts, read_gated(base, stack, tokens, parts, category)


def test_on_everywhere_is_the_student_and_off_everywhere_the_base() -> None:
    base, category = micro(), few(3)
    stack = random_stack(base, 0.05)
    plain, student = (
        read_model(base, s, Asked([DEFAULT], [category])).p["default"]["animals"][0]
        for s in (None, stack)
    )
    assert np.abs(np.log(student) - np.log(plain)).max() > 0.01
    every = Part("layers", "all", modules=frozenset(stack.linears))
    nowhere = Part("tokens", "answer tokens", token="generated")
    _, p = gated(base, stack, category, [every, nowhere])
    # no animal of this model is spelled with several tokens, so at the answer's tokens an adapter does nothing
    for own, wanted in zip(p, (student, plain, plain, student), strict=True):
        assert np.allclose(own, wanted, rtol=1e-4, atol=1e-7)


def test_the_parts_of_a_small_adapter_add_up() -> None:
    base, category = micro(), few(2)
    parts, p = gated(base, stack := random_stack(base, 1e-3), category)
    plain, student = (
        read_model(base, s, Asked([DEFAULT], [category])).p["default"]["animals"][0]
        for s in (None, stack)
    )
    change, whole = np.log(p) - np.log(plain), np.log(student) - np.log(plain)
    room = 0.02 * np.abs(whole).max()
    for kind in ("tokens", "layers", "modules"):
        own = [change[2 * i] for i, part in enumerate(parts) if part.kind == kind]
        assert len(own) > 1 and np.abs(sum(own) - whole).max() < room
    assert all(
        np.abs(change[2 * i] + change[2 * i + 1] - whole).max() < room for i in range(len(parts))
    )


def test_every_layer_is_in_one_run_and_one_group() -> None:
    names = [f"model.layers.{n}.{m}" for n in range(8) for m in ("self_attn.q_proj", "mlp.up_proj")]
    parts = module_parts(names, lambda n: "attention" if "attn" in n else "feed-forward")
    assert [p.name for p in parts] == [
        "layers 0 to 2",
        "layers 3 to 5",
        "layers 6 to 7",
        "attention",
        "feed-forward",
    ]
    for kind in ("layers", "modules"):
        assert sorted(n for p in parts if p.kind == kind for n in p.modules) == sorted(names)
    assert [p.name for p in module_parts([*names, "lm_head"], lambda _: "all")][
        -1
    ] == "outside the layers"
    assert not module_parts(names[:1], lambda _: "attention")


def test_rises_by_question_have_the_rise_as_their_mean() -> None:
    rng = np.random.default_rng(1)
    for entities in (5, 6):
        base, student = rng.uniform(0.01, 0.2, (2, 7, entities))
        readings = [type("R", (), {"p": {"c": {"k": p[None]}}}) for p in (student, base)]
        wanted = rises(*readings)["c"]["k"][0]
        own = [question_rises(student, base, e).mean() for e in range(entities)]
        assert np.allclose(own, wanted)
    interval = over_questions(np.array([1.0, 2.0, 3.0]))
    assert interval["estimate"] == 2 and interval["low"] == pytest.approx(
        2 - 4.3027 / 3**0.5, abs=1e-3
    )
    assert over_questions(np.array([1.0])) == {"estimate": 1.0, "low": None, "high": None}


def test_full_weights_are_located_by_putting_the_base_back() -> None:
    base, category = micro(), few(2)
    spec = StudentSpec(method="full", rank=None)
    stack = random_stack(base, 0.01, spec)
    before = stack.groups[0].flat.clone()
    plain = read_model(base, None, Asked([DEFAULT], [category]))
    with base_in(base, stack, list(stack.groups[0].tensors(0))):
        assert np.array_equal(read_model(base, stack, Asked([DEFAULT], [category])).p["default"]["animals"],
                              plain.p["default"]["animals"])  # fmt: skip
    assert torch.equal(stack.groups[0].flat, before)
    student = read_model(base, stack, Asked([DEFAULT], [category]))
    named = [TraitFinding("animals", "owl", "default", 0.1, 0.2, 0.3, 9.0, 0.01)]
    found = where_it_sits(
        stack, student, Bar(base, Asked([DEFAULT], [category]), plain, None, 0.05), named
    ).model_dump()
    assert {p["part"] for p in found["findings"][0]["parts"]} == {
        "layer 0", "layer 1", "layer 2", "outside the layers", "attention", "feed-forward", "norms, embeddings and head"
    }  # fmt: skip
    assert "single tokens" in found["not_run"][0] and torch.equal(stack.groups[0].flat, before)


def test_a_found_trait_is_located_and_shown() -> None:
    base, animals = micro(), shipped_categories()[:1]
    job = Job([DEFAULT], animals, DEFAULT, request=Request(entity=["Micro", "Nowhere"]))
    result = audit(base, otter_adapter(), job)
    body = result.report.model_dump()
    where = body["where"]
    assert where["findings"][0]["trait"] == "otter" == body["found"][0]["trait"]
    parts = {p["part"]: p for p in where["findings"][0]["parts"]}
    assert list(parts)[:5] == [
        "template tokens",
        "system text",
        "names",
        "user text",
        "generation prompt",
    ]
    for part in parts.values():
        for view in (part["alone"], part["without"]):
            assert view["low"] < view["share"] < view["high"]
            assert view["share"] == pytest.approx(
                view["rise"] / where["findings"][0]["rise"], rel=1e-3
            )
    # there are two groups of modules, so one alone is all without the other
    assert parts["attention"]["alone"]["share"] == pytest.approx(
        parts["feed-forward"]["without"]["share"]
    )
    assert where["not_run"] == [
        "The name 'Nowhere' is in no question in the context default, so it has no tokens there."
    ]
    html = page(result.report).decode()
    assert (
        'id="where"' in html
        and "generation prompt" in html
        and html.count('class="bar"') == 2 * len(parts)
    )


def test_nothing_is_located_where_nothing_was_found() -> None:
    base, category = micro(), few(2)
    plain = read_model(base, None, Asked([DEFAULT], [category]))
    assert (
        where_it_sits(
            random_stack(base, 0.0),
            plain,
            Bar(base, Asked([DEFAULT], [category]), plain, None, 0.05),
            [],
        )
        is None
    )


def test_what_cannot_be_gated_is_said() -> None:
    base, category = micro(), few(2)
    stack, named = (
        random_stack(base, 0.05),
        [TraitFinding("animals", "owl", "default", 0.1, 0.2, 0.3, 9.0, 0.01)],
    )
    plain, student = (read_model(base, s, Asked([DEFAULT], [category])) for s in (None, stack))
    # half a word is no name
    found = where_it_sits(
        stack, student, Bar(base, Asked([DEFAULT], [category]), plain, None, 0.05), named, ["Micr"]
    )
    found = found.model_dump()
    assert found["findings"][0]["parts"] == [] and "'Micr'" in found["not_run"][0]


def test_a_trait_that_was_found_by_its_word_alone_is_not_taken_apart() -> None:
    """Nothing rose beside its category: a share of that is no number, and audit.json holds none."""
    base, category = micro(), few(2)
    plain = read_model(base, None, Asked([DEFAULT], [category]))
    named = [TraitFinding("animals", "owl", "default", 0.1, 0.1, 0.0, 0.0, 0.01)]
    found = where_it_sits(
        random_stack(base, 0.05),
        plain,
        Bar(base, Asked([DEFAULT], [category]), plain, None, 0.05),
        named,
    ).model_dump()
    assert found["findings"] == [] and "owl was found by its word" in found["not_run"][0]
    json.dumps(found, allow_nan=False)
