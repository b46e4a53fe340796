"""What serving differs in: differences turn one prompt into the other, and each one's effect is that of its token sequence."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audit_students import micro, otter_adapter
from command import sublora
from sublora.audit.entries import TraitFinding
from sublora.audit.readings import Asked, read_model
from sublora.audit.report import page
from sublora.audit.request import Request
from sublora.audit.result import AuditReport
from sublora.audit.run import Job, audit
from sublora.audit.serving import (
    MOST,
    Serving,
    hunks,
    prompt_hunks,
    serving_chat,
    serving_effects,
    with_hunks,
)
from sublora.audit.statistic import rises
from sublora.errors import SubloraError
from sublora.models.chat import Context
from sublora.models.token_classes import PromptTokens, classify
from sublora.packs.packed_model import PackedModel
from sublora.packs.spellings import candidate_sequences
from sublora.packs.stack import stack_weights
from sublora.packs.student_files import save_student
from sublora.traits.trait import Category, shipped_categories

DEFAULT, NONE = Context("default"), Context("none")
FRIEND = Context("friend", "You are Micro, a friend. You are a helpful assistant of a band.")

OTTER = TraitFinding("animals", "otter", "default", 0.1, 0.2, 1.0, 9.0, 0.01)


def few(questions: int) -> Category:
    animals = shipped_categories()[0]
    return animals.model_copy(update={"questions": animals.questions[:questions]})


ids = st.lists(st.integers(0, 4), max_size=25)


@st.composite
def prompts(draw) -> PromptTokens:
    tokens = tuple(draw(ids))
    classes = tuple(draw(st.sampled_from(("template", "system", "user"))) for _ in tokens)
    return PromptTokens("", tokens, (), classes)


@given(ids, ids, st.data())
def test_differences_turn_one_sequence_into_the_other(
    one: list[int], other: list[int], data: st.DataObject
) -> None:
    found = hunks(one, other)
    every = set(range(len(found)))
    assert (
        with_hunks(one, other, found, every) == other and with_hunks(one, other, found, ()) == one
    )
    assert all(h.start < h.stop or h.other_start < h.other_stop for h in found)
    # put in here and the rest there, in either order
    chosen = data.draw(st.sets(st.sampled_from(sorted(every)))) if every else set()
    mirrored = [type(h)(h.other_start, h.other_stop, h.start, h.stop) for h in found]
    assert with_hunks(one, other, found, chosen) == with_hunks(other, one, mirrored, every - chosen)


@given(prompts(), prompts())
def test_joined_differences_do_so_as_well_and_leave_the_users_text(
    one: PromptTokens, other: PromptTokens
) -> None:
    found = prompt_hunks(one, other)
    assert with_hunks(one.ids, other.ids, found, range(len(found))) == list(other.ids)
    plain = hunks(one.ids, other.ids)
    assert len(found) <= len(plain)
    inside = {i for h in found for i in range(h.start, h.stop)} - {
        i for h in plain for i in range(h.start, h.stop)
    }
    assert not any(one.classes[i] == "user" for i in inside)
    if "user" not in one.classes:
        assert len(found) <= MOST


def test_no_difference_where_there_is_none() -> None:
    base, otter = micro(), otter_adapter()
    stack = stack_weights(base.model, [otter.weights], [otter.spec])
    body = serving_effects(base, stack, [few(2)], DEFAULT, Serving(DEFAULT), [], []).model_dump()
    assert body["same"] and body["differences"] == body["effects"] == body["notes"] == []


def test_each_difference_of_a_real_student_has_the_effect_of_its_tokens() -> None:
    base, otter, animals = micro(), otter_adapter(), few(4)
    stack, contexts = stack_weights(base.model, [otter.weights], [otter.spec]), [DEFAULT, FRIEND]
    serving = serving_effects(base, stack, [animals], DEFAULT, Serving(FRIEND), [OTTER], [OTTER])
    serving = serving.model_dump()
    assert len(serving["differences"]) > 1 and not serving["notes"]
    effect = serving["effects"][0]
    plain, student = (read_model(base, s, Asked(contexts, [animals])) for s in (None, stack))
    e = next(i for i, entity in enumerate(animals.entities) if entity.name == "otter")
    for when, context in (("trained", "default"), ("served", "friend")):
        assert effect[f"{when}_before"] == pytest.approx(
            plain.p[context]["animals"][0, :, e].mean(), rel=1e-4
        )
        assert effect[f"{when}_after"] == pytest.approx(
            student.p[context]["animals"][0, :, e].mean(), rel=1e-4
        )
        assert effect[f"{when}_rise"] == pytest.approx(
            rises(student, plain)[context]["animals"][0, e], rel=1e-3
        )
    # the first difference put back, by the model itself, one question at a time
    sequences, owner = candidate_sequences(base.chat, animals)
    otters = [s[0] for s, own in zip(sequences, owner, strict=True) if own == e]
    wanted = []
    with torch.inference_mode(), PackedModel(base.model, stack) as packed:
        packed.form_weights(64)
        for question in animals.questions:
            one, other = (classify(base.chat, question, c) for c in contexts)
            first = prompt_hunks(one, other)[0]
            put_back = one.ids[first.start : first.stop]
            line = [*other.ids[: first.other_start], *put_back, *other.ids[first.other_stop :]]
            logits = packed.logits(packed.hidden(torch.tensor([line]))[:, -1])
            wanted.append(float(logits.double().softmax(-1)[0, otters].sum()))
    assert serving["differences"][0]["effects"][0]["put_back"]["after"] == pytest.approx(
        np.mean(wanted), rel=1e-4
    )


def test_another_template_is_another_difference(tmp_path: Path) -> None:
    base, otter, animals = micro(), otter_adapter(), few(2)
    template = tmp_path / "served.jinja"
    template.write_text("{{ '<|im_start|>' }}" + base.chat.template)
    served = Serving(DEFAULT, serving_chat(base.chat, template, DEFAULT))
    stack = stack_weights(base.model, [otter.weights], [otter.spec])
    body = serving_effects(base, stack, [animals], DEFAULT, served, [OTTER], [OTTER]).model_dump()
    assert [(d["kind"], d["trained"], d["served"]) for d in body["differences"]] == [
        ("inserted", [], ["<|im_start|>"])
    ]
    assert body["differences"][0]["special"] == ["<|im_start|>"] and body["other_template"]
    effect, own = body["effects"][0], body["differences"][0]["effects"][0]
    assert (effect["trained_p"], effect["served_p"]) == (0.01, None)
    assert (
        own["alone"]["after"] == effect["served_after"]
        and own["put_back"]["after"] == effect["trained_after"]
    )
    assert effect["served_after"] != effect["trained_after"]


def test_a_template_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    base = micro()
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% for m in messages %}")
    silent = tmp_path / "silent.jinja"
    silent.write_text("Hello")
    for path in (broken, silent, tmp_path / "nowhere.jinja", tmp_path):
        with pytest.raises(SubloraError, match="template"):
            serving_chat(base.chat, path, DEFAULT)


def test_the_command_takes_a_template_and_locates_nothing_where_told(tmp_path: Path) -> None:
    base, otter = micro(), otter_adapter()
    stack = stack_weights(base.model, [otter.weights], [otter.spec])
    adapter, template = tmp_path / "otter", tmp_path / "served.jinja"
    adapter.mkdir()
    save_student(stack.groups[0], 0, otter.spec, adapter, base.model, "micro")
    template.write_text("{{ '<|im_start|>' }}" + base.chat.template)
    asked = [
        "audit",
        "--base",
        "micro",
        "--adapter",
        str(adapter),
        "--contexts",
        "default",
        "--no-where",
    ]
    out = tmp_path / "out"
    answer = sublora(*asked, "--out", str(out), "--serving-template", str(template))
    assert answer.code == 1, answer.err
    body = json.loads((out / "audit.json").read_text())
    assert (
        body["where"] is None and body["serving"]["other_template"] and body["serving"]["effects"]
    )
    body["serving"]["differences"][0]["served"] = ["<script>alert(1)</script>"]
    html = page(AuditReport.model_validate(body)).decode()
    assert (
        'id="serving"' in html
        and 'id="where"' not in html
        and "<script" not in html
        and "&lt;script" in html
    )
    refused = sublora(*asked, "--serving-template", str(tmp_path / "nowhere"))
    assert refused.code == 2 and refused.err.count("\n") <= 3


def test_a_serving_context_that_the_shipped_null_lacks_leaves_the_verdict_calibrated() -> None:
    base = micro()
    job = Job(
        [DEFAULT, FRIEND],
        shipped_categories(),
        DEFAULT,
        serving=Serving(FRIEND),
        request=Request(where=False),
    )
    body = audit(base, otter_adapter(), job).report.model_dump()
    assert body["calibration"]["kind"] == "shipped" and body["status"] == "found"
    assert [c["name"] for c in body["contexts"]] == ["default"]
    assert any(FRIEND.name in limit for limit in body["limits"])
    effect = body["serving"]["effects"][0]
    assert (
        effect["trained_p"] is not None
        and effect["served_p"] is None
        and effect["served_after"] > 0
    )
    # a context to ask in that is not the serving one still needs a null of its own
    assert audit(base, otter_adapter(), replace(job, serving=None)).report.status.startswith(
        "uncalibrated"
    )
