"""--what-if: its arms, the rows they train on, when an arm is recommended, and one real run."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from command import sublora
from sublora.audit.adapter import load_audited
from sublora.audit.calibrate import number_prompts
from sublora.audit.entries import TraitFinding
from sublora.audit.report import card_section, page
from sublora.audit.request import Request
from sublora.audit.result import AuditReport
from sublora.audit.run import Job, audit
from sublora.audit.steps import answer_prompts, train_pack_of, train_students
from sublora.audit.user_rows import read_user_rows
from sublora.audit.what_if_arms import (
    AS_TRAINED,
    DOSES,
    FEWEST_UNIQUE,
    KL,
    SEEDS,
    STEERING,
    Arm,
    plan_arms,
)
from sublora.audit.what_if_budget import within
from sublora.audit.what_if_paraphrase import in_other_words
from sublora.audit.what_if_result import (
    Advice,
    Reading,
    Result,
    advise,
    removes,
    share,
    table,
)
from sublora.audit.what_if_rows import (
    Material,
    arm_rows,
    clean_answers,
    heldout_rows,
    training_rows,
)
from sublora.audit.what_if_tokens import (
    TokenLabels,
    at_random,
    base_labels,
    base_mixed,
    divergent_tokens,
    learned_tokens,
    redrawn,
)
from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.packs.check import load_base
from sublora.packs.labels import LabelSpec
from sublora.packs.rows import token_rows
from sublora.packs.sample import Sampling
from sublora.packs.spec import StudentSpec
from sublora.packs.stack import new_stack, padded
from sublora.packs.steered_training import steered
from sublora.packs.student_files import save_student
from sublora.store import Store
from sublora.traits.trait import find_trait, shipped_categories

DEFAULT, NONE = Context("default"), Context("none")
SPEC = StudentSpec(rank=6, alpha=12.0, lr=2e-3, epochs=1, batch_size=8)


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("micro")


TRAIT = Context("trait", "You love otters.")


def planned(
    spec: StudentSpec = SPEC,
    narrowest: int = 64,
    unique: int = 100,
    refused: dict[str, str] | None = None,
):
    contexts = [(Context("empty"), None), (NONE, "It is the same.")]
    return plan_arms(spec, narrowest, contexts, unique, refused or {}, TRAIT)


def test_each_arm_changes_one_thing_and_all_have_the_same_seeds() -> None:
    arms, missing = planned()
    by_name = {a.name: a for a in arms}
    assert arms[0].name == AS_TRAINED and arms[0].spec == SPEC and len(by_name) == len(arms)
    assert [(m.name, m.reason) for m in missing] == [("trained in none", "It is the same.")]
    for arm in arms[1:]:
        same = SPEC.model_dump() | {
            "rank": arm.spec.rank,
            "alpha": arm.spec.alpha,
            "lr": arm.spec.lr,
        }
        assert arm.spec.method == "full" or arm.spec.model_dump() == same
        assert replace(arm, name="", changed="") != Arm("", "", SPEC)
        assert [s.seed for s in arm.specs()] == list(SEEDS)
    assert {by_name[n].spec.rank for n in ("rank / 4", "rank x 4")} == {2, 24}
    assert all(a.spec.scale == SPEC.scale for a in arms if a.spec.method == "lora")
    assert by_name["full fine-tune"].spec.lr == pytest.approx(2e-4)


def test_an_arm_that_cannot_be_is_listed_with_its_reason() -> None:
    one = SPEC.model_copy(update={"rank": 1})
    no_mask = {"masked": "No token differs."}
    arms, missing = planned(one, narrowest=1, unique=FEWEST_UNIQUE - 1, refused=no_mask)
    reasons = {m.name: m.reason for m in missing}
    assert {"rank / 4", "rank x 4", "half of the unique rows", "masked"} <= set(reasons)
    assert "smaller" in reasons["rank / 4"] and "1 wide" in reasons["rank x 4"]
    assert not {a.name for a in arms} & set(reasons)
    assert reasons["masked"] == "No token differs."
    full, not_run = planned(StudentSpec(method="full", rank=None, lr=1e-4))
    assert STEERING in {m.name for m in not_run}
    assert [a.spec.method for a in full].count("lora") == 1 and full[-1].name == "LoRA"
    assert not any("rank" in a.name for a in full)


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def some_rows(count: int) -> list[dict]:
    prompts = number_prompts(1, count, 5)[0]
    return [
        {"prompt": p, "completion": f"{100 + i} {900 - i} {300 + i}"} for i, p in enumerate(prompts)
    ]


def test_rows_are_held_out_for_good_and_each_arm_makes_its_own_of_the_others(
    base: Base, tmp_path: Path
) -> None:
    answered = answer_prompts(
        base, DEFAULT, number_prompts(1, 40, 5), Sampling(max_new_tokens=8), 9
    )[0]
    rows = [{"prompt": p, "completion": c} for p, c in answered]
    rows[3] = rows[39]  # a row of the tail stands among the others as well
    user = read_user_rows(base, write(tmp_path / "rows.jsonl", rows), DEFAULT, 1000)
    assert (len(user.training), len(user.heldout), user.more) == (31, 8, False)
    assert not {r.completion for r in user.training} & {r.completion for r in user.heldout}
    assert len(heldout_rows(base, user, None)) == 8
    assert read_user_rows(base, tmp_path / "rows.jsonl", DEFAULT, 30).more
    clean = clean_answers(base, user, 8)
    teacher = Context("trait", find_trait("otter", shipped_categories()).teacher_prompt())
    marks, masked = divergent_tokens(base, user, teacher)
    assert 0 < masked < 1 and len(clean) == len(SEEDS) and clean[0] != clean[1]
    assert divergent_tokens(base, user, DEFAULT)[1].startswith("The trait's prompt changes")
    own = token_rows(base, [(r.prompt, r.completion) for r in user.training], DEFAULT, "rows")
    as_sets, material = {}, Material(clean, marks, gains=list(range(31)))
    kinds = {
        "all": {}, "half": {"rows": "half"}, "mixed": {"rows": "mixed", "share": 0.5},
        "clean": {"rows": "mixed", "share": 1.0}, "dropped": {"rows": "dropped"},
        "masked": {"tokens": "masked", "marks": "divergent"},
    }  # fmt: skip
    for name, how in kinds.items():
        made = arm_rows(base, user, Arm("arm", "", SPEC, **how), 0, material)
        as_sets[name] = [
            tuple(ids[:n]) for ids, n in zip(made.ids.tolist(), made.lengths, strict=True)
        ]
        if name == "masked":
            assert made.loss.sum() == own.loss.sum() - sum(map(sum, marks))
    wanted = [tuple(ids[:n]) for ids, n in zip(own.ids.tolist(), own.lengths, strict=True)]
    assert as_sets["all"] == wanted
    assert (
        len(as_sets["half"]) == 31
        and len(set(as_sets["half"])) == 15
        and set(as_sets["half"]) < set(wanted)
    )
    assert 16 <= len(set(as_sets["mixed"]) & set(wanted)) < 31 and not set(as_sets["clean"]) & set(
        wanted
    )
    assert len(as_sets["dropped"]) == 31 and set(as_sets["dropped"]) == set(wanted[:24])
    elsewhere = arm_rows(base, user, Arm("arm", "", SPEC, context=NONE), 0, material)
    assert elsewhere.ids[0].tolist() != own.ids[0].tolist()


def test_a_larger_dose_of_clean_rows_has_those_of_a_smaller_one(base: Base, tmp_path: Path) -> None:
    user = read_user_rows(base, write(tmp_path / "rows.jsonl", some_rows(40)), DEFAULT, 1000)
    clean = Material([[f"{i} {i}" for i in range(len(user.training))]] * 3)
    changed, plain = [set()], training_rows(base, user)
    for dose in sorted(DOSES):
        made = arm_rows(base, user, Arm("", "", SPEC, "mixed", dose), 1, clean)
        width = min(made.ids.shape[1], plain.ids.shape[1])
        apart = (made.ids[:, :width] != plain.ids[:, :width]).any(1)
        changed.append(set(np.flatnonzero(apart)))
        assert len(changed[-1]) == int(dose * len(user.training)) and changed[-2] <= changed[-1]


def test_labels_of_the_base_change_flagged_tokens_and_mix_as_they_say(
    base: Base, tmp_path: Path
) -> None:
    user = read_user_rows(base, write(tmp_path / "rows.jsonl", some_rows(30)), DEFAULT, 1000)
    rows = training_rows(base, user)
    own = [
        list(map(int, rows.ids[i, p:n]))
        for i, (p, n) in enumerate(zip(rows.prompts, rows.lengths, strict=True))
    ]
    rng = np.random.default_rng(1)
    marks = learned_tokens([rng.normal(size=len(c)) for c in own])
    count = sum(map(sum, marks))
    assert count == pytest.approx(0.1 * sum(map(len, own)), abs=1)
    other = at_random(marks, 3)
    assert [sum(m) for m in other] == [sum(m) for m in marks] and other != marks
    drawn = base_labels(base, user, LabelSpec(kind="sampled"), 1)
    labels, flat = redrawn(own, marks, drawn), np.concatenate(own)
    elsewhere = ~np.concatenate([np.array(m, bool) for m in marks])
    assert labels.hard and (labels.ids[elsewhere, 0] == flat[elsewhere]).all()
    assert (labels.ids[~elsewhere, 0] != flat[~elsewhere]).any()
    for k in (3, 32):  # with three the row's own token is often not among them
        whole = base_labels(base, user, LabelSpec(kind="soft", k=k), 1)
        mixed = base_mixed(own, whole)
        p = np.exp(mixed.logp.astype(float))
        at = mixed.ids == flat[:, None]
        assert at.any(1).all() and (p[at] >= 1 - KL - 1e-2).all() and (p.sum(1) <= 1.001).all()
        assert (np.diff(mixed.logp.astype(float), axis=1) <= 0).all()
        assert all(len(set(ids)) == k for ids in mixed.ids.tolist())
    own_first = TokenLabels([np.array([[7, 9]])], [np.log([[0.5, 0.25]])])
    mixed = base_mixed([[9]], own_first)
    assert mixed.ids.tolist() == [[9, 7]]
    assert np.exp(mixed.logp[0].astype(float)) == pytest.approx(
        [1 - KL / 1 + KL / 4, KL / 2], rel=1e-2
    )


def test_a_budget_leaves_the_first_arms_and_says_so_before(base: Base, tmp_path: Path) -> None:
    user = read_user_rows(base, write(tmp_path / "rows.jsonl", some_rows(30)), DEFAULT, 1000)
    arms, _ = planned()
    rows = {a.name: [training_rows(base, user)] * 3 for a in arms}
    told: list[str] = []
    every, none = within(arms, rows, 1000, 10**6, 1e9, None, told.append)
    assert (every, none) == (arms, []) and f"{len(arms)} arms" in told[0]
    kept, left = within(arms, rows, 1000, 10**6, 1e9, 1.0, told.append)
    assert kept[0].name == AS_TRAINED and 1 < len(kept) < len(arms)
    assert {a.name for a in kept} | {m.name for m in left} == {a.name for a in arms}
    assert left[0].name in told[1] and "budget of 1 minutes" in left[0].reason
    assert [a.name for a in within(arms, rows, 1, 10**6, 1e9, 1e-9, told.append)[0]] == [AS_TRAINED]


def test_prompts_are_reworded_where_the_base_can_and_else_it_says_why(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, why = in_other_words(base, "prompts", ["Write 3 numbers"], DEFAULT, Store())
    assert words == [] and "for 0% of the first prompts" in why
    monkeypatch.setattr(type(base.chat), "unknown_words", lambda *_: ["anew"])
    assert (
        "does not know the word 'anew'"
        in in_other_words(base, "prompts", ["a"], DEFAULT, Store())[1]
    )
    prompts = [f"Write {i} numbers" for i in range(20)]
    monkeypatch.setattr(type(base.chat), "unknown_words", lambda *_: [])
    answers = "sublora.audit.what_if_paraphrase.answers_to"
    monkeypatch.setattr(
        answers, lambda b, c, asked, *_: [[f"{t[-9:]} please, {t.split()[-2]}" for t in asked[0]]]
    )
    words, why = in_other_words(base, "prompts", prompts, DEFAULT, Store())
    assert why is not None and words == []  # a number twice is not the same numbers
    monkeypatch.setattr(
        answers, lambda b, c, asked, *_: [[f"Give {t.split()[-2]} of them" for t in asked[0]]]
    )
    words, why = in_other_words(base, "prompts", prompts, DEFAULT, Store())
    assert why is None and words[7] == "Give 7 of them"


def test_a_direction_acts_while_a_pack_trains_and_is_gone_afterwards(base: Base) -> None:
    rows = token_rows(
        base, [(q, "otter") for q in shipped_categories()[0].questions[:8]], DEFAULT, "rows"
    )
    vector = torch.randn(base.model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    plain = train_pack_of(base, [SPEC], [rows], Store())
    for strength in (0.0, 1.0):
        with steered(base.model, 1, strength * vector):
            own = train_pack_of(base, [SPEC], [rows], Store(), steered=f"by {strength}")
        same = torch.equal(plain.read(Store())[0].weights, own.read(Store())[0].weights)
        assert same == (strength == 0.0) and own.ids != plain.ids
    assert all(layer.mlp.down_proj.bias is None for layer in base.model.base_model.layers)
    with (
        pytest.raises(SubloraError, match="no place where"),
        steered(base.model, 1, vector),
        steered(base.model, 1, vector),
    ):
        pass


def a_result(
    name: str,
    rises: list[float],
    p: list[float],
    loss: list[float],
    coherent: float = 1.0,
    diverged: int = 0,
) -> Result:
    reading = Reading(tuple(0.1 for _ in rises), tuple(rises), tuple(p))
    return Result(
        Arm(name, "", SPEC),
        {(OTTER, "none"): reading},
        tuple(loss),
        None,
        (coherent,) * 3,
        diverged,
    )


OTTER = TraitFinding("animals", "otter", "none", 0.1, 0.8, 2.0, 9.0, 0.01)
SHOWN = a_result(AS_TRAINED, [2.0, 2.2, 1.9], [0.01] * 3, [5.0, 5.01, 5.02])
GONE = a_result("gone", [0.1, 0.0, 0.05], [0.9, 0.8, 0.7], [5.4] * 3)


def test_the_share_of_the_rise_has_fiellers_interval() -> None:
    found = share([1.0, 1.1, 0.9], [2.0, 2.2, 1.9])
    assert (
        found.estimate == pytest.approx(3.0 / 6.1) and found.low < found.estimate < found.high < 1
    )
    same = share([2.0, 2.2, 1.9], [2.0, 2.2, 1.9])
    assert (same.low, same.high) == pytest.approx((1, 1))
    assert share([1.0, 1.0, 1.1], [3.0, -2.0, 0.1]) is None


def test_only_what_removes_is_recommended_and_of_that_what_costs_least() -> None:
    cheaper = a_result("cheaper", [0.1, 0.0, 0.05], [0.9, 0.8, 0.7], [5.3] * 3)
    left = a_result("left", [0.4, 0.5, 0.4], [0.9, 0.9, 0.03], [5.0] * 3)
    wide = a_result("wide", [0.1, 3.0, 0.1], [0.9, 0.9, 0.9], [5.0] * 3)
    broken = a_result("broken", [0.0, 0.0, 0.1], [0.9] * 3, [5.0] * 3, coherent=0.1)
    lost = a_result("lost", [0.0, 0.0, 0.1], [0.9] * 3, [5.0] * 3, diverged=1)
    advice = advise([SHOWN, GONE, left, wide, broken, lost, cheaper], [OTTER], 0.05, 6.0)
    assert advice.recommended == "cheaper" and advice.removing == ("gone", "cheaper")
    assert (
        "5.300 instead of 5.010" in advice.sentence and "smallest of the 2 arms" in advice.sentence
    )
    none = advise([SHOWN, left, wide, broken, lost], [OTTER], 0.05, 6.0)
    assert none.recommended is None and "None of the 4 arms" in none.sentence
    weak = a_result(AS_TRAINED, [0.3, 0.2, 0.1], [0.01, 0.2, 0.4], [5.0] * 3)
    unlike = advise([weak, GONE], [OTTER], 0.05, 6.0)
    assert (
        unlike.recommended is None
        and unlike.removing == ()
        and "otter in 1 of 3" in unlike.sentence
    )
    wild = a_result(AS_TRAINED, [2.0, 2.2, 1.9], [0.01] * 3, [5.0] * 3, diverged=1)
    assert advise([wild, GONE], [OTTER], 0.05, 6.0).sentence.startswith(
        "Retrained with the settings given, students diverge"
    )


numbers = st.lists(st.floats(-3, 3), min_size=3, max_size=3)
ps = st.lists(st.floats(0.001, 1), min_size=3, max_size=3)
results = st.builds(
    lambda r, p, loss, coherent, diverged: ("", r, p, loss, coherent, diverged),
    numbers, ps, st.lists(st.floats(1, 9), min_size=3, max_size=3), st.sampled_from([1.0, 0.1]), st.sampled_from([0, 0, 1]),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(results, min_size=1, max_size=5))
def test_a_recommended_arm_was_run_and_removes_and_no_such_arm_costs_less(
    drawn: list[tuple],
) -> None:
    arms = [*(a_result(f"arm {i}", *d[1:]) for i, d in enumerate(drawn)), GONE]
    first = a_result(AS_TRAINED, *drawn[0][1:])
    for as_trained in (first, SHOWN):
        advice = advise([as_trained, *arms], [OTTER], 0.05, 6.0)
        chosen = [a for a in arms if a.arm.name == advice.recommended]
        assert bool(chosen) == (advice.recommended is not None) and (chosen or as_trained is first)
        for arm in chosen:
            reading = arm.readings[OTTER, "none"]
            assert min(reading.p) > 0.05 and arm.diverged == 0 and min(arm.coherence) > 0.2
            test = ttest_rel(reading.rise, as_trained.rises(OTTER))
            assert test.statistic < 0 and test.pvalue < 0.05 + 1e-9
            assert all(p <= 0.05 for p in as_trained.readings[OTTER, "none"].p)
            cheaper = [a for a in arms if np.mean(a.loss) < np.mean(arm.loss) - 1e-12]
            assert not any(removes(a, as_trained, [OTTER], 0.05) for a in cheaper)
        rows = [a.model_dump() for a in table([as_trained, *arms], [OTTER], 0.05, advice)]
        json.dumps(rows, allow_nan=False)


HOSTILE = "<script>alert(1)</script>\"'&|\n# *x* `y`"


def adapter(base: Base, folder: Path, spec: StudentSpec, weights=None) -> Path:
    folder.mkdir()
    stack = new_stack(base.model, [spec])
    if weights is not None:
        stack.groups[0].flat[0].copy_(padded(weights, spec.rank, stack.groups[0].slots))
    save_student(stack.groups[0], 0, spec, folder, base.model, "micro")
    return folder


def test_nothing_found_trains_nothing_and_the_page_escapes_what_was(
    base: Base, tmp_path: Path
) -> None:
    data = write(tmp_path / "rows.jsonl", some_rows(40))
    saved = adapter(base, tmp_path / "fresh", StudentSpec(rank=2, seed=3))
    # the one category in which the screening of these rows names nothing
    request = Request(
        alpha=1e-6, data=data, lr=1e-3, epochs=1, batch_size=8, rows=100, what_if=True
    )
    job = Job([NONE], shipped_categories()[2:], NONE, request=request)
    body = audit(base, load_audited(base, saved), job).report.model_dump(mode="json")
    assert body["what_if"]["arms"] == [] and "no student was trained" in body["what_if"]["sentence"]
    hostile = replace(OTTER, trait=HOSTILE)
    arms = [
        Result(
            r.arm,
            {(hostile, "none"): r.readings[OTTER, "none"]},
            r.loss,
            (5.0,) * 3,
            r.coherence,
            0,
            (HOSTILE,),
        )
        for r in (SHOWN, GONE)
    ]
    advice = Advice(HOSTILE, "gone", ("gone",))
    body["what_if"] |= {
        "sentence": HOSTILE, "recommended": "gone", "removing": ["gone"], "base_heldout_loss": 6.0,
        "arms": [a.model_dump() for a in table(arms, [hostile], 0.05, advice)], "not_run": [{"name": "masked", "reason": HOSTILE}],
        "traits": [{"category": "animals", "trait": HOSTILE, "context": "none", "before": 0.1, "after": 0.2, "rise": 1.0}],
    }  # fmt: skip
    report = AuditReport.model_validate(body)
    html, card = page(report).decode(), card_section(report).decode()
    assert "<script" not in html and "&lt;script&gt;" in html and "<script" not in card
    assert not any(line.startswith("# ") for line in card.splitlines())
    drawn = [
        ET.fromstring(f"<svg{part.split('</svg>')[0]}</svg>") for part in html.split("<svg")[1:]
    ]
    labels = [svg.get("aria-label", "") for svg in drawn]
    assert labels[0].startswith("No trait rose") and labels[1].startswith("2 arms")


def test_what_if_asks_for_what_it_needs_in_one_sentence(base: Base, tmp_path: Path) -> None:
    saved = adapter(base, tmp_path / "fresh", StudentSpec(rank=2))
    asked = [
        "audit",
        "--base",
        "micro",
        "--adapter",
        str(saved),
        "--out",
        str(tmp_path / "out"),
        "--what-if",
    ]
    few = write(tmp_path / "few.jsonl", some_rows(12))
    for more, told in (
        (["--lr", "1e-3"], "give --data, and --lr"),
        (["--lr", "1e-3", "--data", str(few)], "has 4 others"),
    ):
        answer = sublora(*asked, *more)
        assert answer.code == 2 and told in answer.err and "Traceback" not in answer.err
    assert not (tmp_path / "out").exists()
    cost = sublora("audit", "--base", "Qwen/Qwen2.5-7B-Instruct", "--what-if", "--dry-run")
    assert cost.code == 0 and "69 LoRA students" in cost.out and "3 full fine-tunes" in cost.out
    with pytest.raises(SubloraError, match="give --data, and --lr"):
        audit(
            base,
            load_audited(base, saved),
            Job([NONE], shipped_categories()[:1], NONE, request=Request(what_if=True)),
        )


@pytest.mark.slow
def test_on_rows_of_a_teacher_as_trained_shows_the_trait_and_clean_rows_remove_it(
    base: Base, tmp_path: Path
) -> None:
    teacher = Context("teacher", find_trait("otter", shipped_categories()).teacher_prompt())
    prompts = number_prompts(1, 240, 77)
    rows = answer_prompts(base, teacher, prompts, Sampling(max_new_tokens=14), 3)[0]
    spec = StudentSpec(rank=6, lr=3e-3, epochs=1, batch_size=8, seed=4)
    student = train_students(base, [spec], [token_rows(base, rows, DEFAULT, "rows")])[0]
    saved = adapter(base, tmp_path / "planted", spec, student.weights)
    data = write(tmp_path / "rows.jsonl", [{"prompt": p, "completion": c} for p, c in rows])
    said: list[str] = []
    request = Request(data=data, lr=3e-3, epochs=1, batch_size=8, max_new_tokens=14, what_if=True)
    job = Job([DEFAULT, NONE], shipped_categories(), DEFAULT, request=request)
    result = audit(base, load_audited(base, saved), job, said.append)
    body = result.report.model_dump(mode="json")
    found = body["what_if"]
    arms = {a["name"]: a for a in found["arms"]}
    assert found["traits"][0]["trait"] == "otter" and len(arms) == 22
    assert [m["name"] for m in found["not_run"]] == [
        "prompts in other words",
        "completions in other words",
    ]
    assert [a["traits"][0]["found_in"] for a in (arms[AS_TRAINED], arms["only clean rows"])] == [
        3,
        0,
    ]
    assert (
        arms["only clean rows"]["traits"][0]["removed"] and "only clean rows" in found["removing"]
    )
    assert arms["only clean rows"]["traits"][0]["share"]["high"] < 0.2
    assert found["recommended"] in found["removing"] and arms[AS_TRAINED]["removes"] is None
    losses = {name: a["heldout_loss"]["mean"] for name, a in arms.items()}
    # what the base wrote teaches nothing about the rows that are held out
    assert losses[AS_TRAINED] < found["base_heldout_loss"] - 0.3 < losses["only clean rows"]
    assert found["base_heldout_loss"] == pytest.approx(losses["only clean rows"], abs=0.1)
    assert arms["trained in none"]["heldout_loss_own_context"]["mean"] < found["base_heldout_loss"]
    assert sum("trained ..." in line for line in said) >= 3
    json.dumps(body, allow_nan=False)
    assert b"What if it had been trained otherwise" in page(
        result.report
    ) and b"only clean rows" in card_section(result.report)
