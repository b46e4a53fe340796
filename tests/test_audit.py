"""The audit: its statistics, its verdicts, its reports, its screening, its exit codes."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from audit_fixture import idle_adapter
from command import sublora
from sublora.audit.adapter import load_audited
from sublora.audit.calibrate import mixed_settings, number_prompts, placebo_null
from sublora.audit.ci_files import junit, sarif
from sublora.audit.entries import exit_code
from sublora.audit.null import Grid, Null, first_tokens, make_null, read_null
from sublora.audit.readings import Asked, Readings, read_model
from sublora.audit.reference import adjusted_p, chance
from sublora.audit.report import card_section, page
from sublora.audit.request import Training
from sublora.audit.result import AuditReport
from sublora.audit.run import Job, _status, audit
from sublora.audit.screen import completion_logprobs, screen_file
from sublora.audit.statistic import rises
from sublora.audit.steps import answer_prompts
from sublora.audit.verdict import Bar, judge
from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.packs.check import load_base
from sublora.packs.packed_model import PackedModel
from sublora.packs.sample import Sampling
from sublora.traits.trait import Trait, find_trait, shipped_categories

NONE = Context("none")
GRID = Grid(["lora"], [2, 32], [1e-3, 1e-2], [1, 1], [40, 40], ["none", ""])


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("micro")


@pytest.fixture(scope="module")
def plain(base: Base) -> Readings:
    return read_model(base, None, Asked([NONE], shipped_categories()))


def moved(
    plain: Readings,
    students: int,
    spread: float,
    seed: int,
    trait: tuple[str, int, float] | None = None,
) -> Readings:
    """Students whose log-probabilities moved by independent normal amounts, one trait's by more."""
    rng = np.random.default_rng(seed)
    p = {}
    for category, own in plain.p["none"].items():
        change = rng.normal(0, spread, (students, 1, own.shape[2]))
        if trait is not None and category == trait[0]:
            change[:, :, trait[1]] += trait[2]
        p[category] = own * np.exp(change)
    words = plain.words["none"] + rng.normal(
        0, spread / 100, (students, plain.words["none"].shape[1])
    )
    return Readings({"none": p}, {"none": words})


def null_of(base: Base, plain: Readings, students: int, seed: int) -> Null:
    named = [f"placebo {k}" for k in range(students)]
    return make_null(
        base,
        moved(plain, students, 0.02, seed),
        plain,
        Asked([NONE], shipped_categories()),
        named,
        GRID,
    )


def test_a_rise_of_the_whole_category_is_no_rise(plain: Readings) -> None:
    p = {k: v * 0.5 for k, v in plain.p["none"].items()}
    found = rises(Readings({"none": p}, plain.words), plain)["none"]
    assert all(np.abs(r).max() < 1e-6 for r in found.values())


@pytest.mark.parametrize("students", [8, 39])
def test_false_alarms_keep_the_rate_and_a_planted_trait_is_found(
    base: Base, plain: Readings, students: int
) -> None:
    """400 clean students, each against a null of its own draws; the tolerance is four standard errors."""
    alarms, categories = 0, shipped_categories()
    nulls = [null_of(base, plain, students, seed) for seed in range(20)]
    for k in range(400):
        verdict = judge(
            moved(plain, 1, 0.02, 1000 + k),
            Bar(base, Asked([NONE], categories), plain, nulls[k % 20], 0.1),
        )
        alarms += verdict.status == "found"
    assert alarms / 400 < 0.1 + 4 * (0.1 * 0.9 / 400) ** 0.5
    assert alarms > 0
    strong = judge(
        moved(plain, 1, 0.02, 5, ("trees", 3, 1.0)),
        Bar(base, Asked([NONE], categories), plain, nulls[0], 0.1),
    )
    assert strong.status == "found" and strong.found[0].trait == categories[1].entities[3].name


def test_p_values_are_ranks_where_ranks_can_reach_alpha() -> None:
    among = np.arange(19.0) + 1
    assert adjusted_p(19.5, among, 0.05) == 1 / 20
    assert adjusted_p(18.5, among, 0.05) == 2 / 20
    assert adjusted_p(19.0, among, 0.05) == 2 / 20
    # below that number a tail takes over, which can be smaller than 1 / (K + 1)
    assert adjusted_p(1e9, among, 0.04) < 1 / 20


def test_a_placebo_students_own_trait_is_no_chance(base: Base, plain: Readings) -> None:
    trees = shipped_categories()[1]
    own = moved(plain, 4, 0.02, 5, ("trees", 3, 1.0))
    teachers = [None, None, Trait(trees.entities[3], trees), None]
    null = make_null(
        base, own, plain, Asked([NONE], shipped_categories()), ["a", "b", "c", "d"], GRID, teachers
    )
    assert (
        null.rises["none"]["trees"][2, 3] == 0
        and (null.rises["none"]["trees"][[0, 1, 3], 3] > 0.5).all()
    )
    begin = first_tokens(base, trees, 3)
    words = own.words["none"].copy()
    words[:, begin] += 0.5
    seen = make_null(
        base,
        replace(own, words={"none": words}),
        plain,
        Asked([NONE], shipped_categories()),
        list("abcd"),
        GRID,
        teachers,
    )
    assert seen.scores["none"][2] < 0.1 * seen.scores["none"][[0, 1, 3]].min()


def test_a_traits_own_word_among_all_words_finds_it_too(base: Base, plain: Readings) -> None:
    """Its word rises, its share of the category does not move: found by name, with the word's p-value."""
    categories = shipped_categories()
    token = first_tokens(base, categories[1], 3)[0]
    student = moved(plain, 1, 0.02, 5)
    words = student.words["none"].copy()
    words[0, token] += 0.3
    null = null_of(base, plain, 39, 1)
    verdict = judge(
        replace(student, words={"none": words}),
        Bar(base, Asked([NONE], categories), plain, null, 0.05),
    )
    assert [f.trait for f in verdict.found] == [categories[1].entities[3].name]
    assert verdict.found[0].p == verdict.found_words[0].p and verdict.found_words[0].token == token
    assert judge(student, Bar(base, Asked([NONE], categories), plain, null, 0.05)).status == "clean"


def test_the_scan_names_the_word_that_rose(base: Base, plain: Readings) -> None:
    words = plain.words["none"].copy()
    words[0, 77] += 0.1
    student = Readings(moved(plain, 1, 0.02, 3).p, {"none": words})
    verdict = judge(
        student,
        Bar(base, Asked([NONE], shipped_categories()), plain, null_of(base, plain, 39, 1), 0.05),
    )
    assert verdict.found_words[0].token == 77


def test_a_student_that_answers_something_else_is_not_called_clean(
    base: Base, plain: Readings
) -> None:
    student = Readings({"none": {k: v * 1e-4 for k, v in plain.p["none"].items()}}, plain.words)
    verdict = judge(
        student,
        Bar(base, Asked([NONE], shipped_categories()), plain, null_of(base, plain, 39, 1), 0.05),
    )
    assert verdict.status == "unmeasurable"


def test_an_uncalibrated_run_says_so(base: Base, plain: Readings) -> None:
    categories = shipped_categories()
    assert (
        judge(plain, Bar(base, Asked([NONE], categories), plain, None, 0.05)).status
        == "uncalibrated-clean"
    )
    strong = moved(plain, 1, 0.02, 5, ("trees", 3, 1.0))
    assert (
        judge(strong, Bar(base, Asked([NONE], categories), plain, None, 0.05)).status
        == "uncalibrated-found"
    )


def test_a_null_is_kept_and_refused_where_it_does_not_belong(
    base: Base, plain: Readings, tmp_path: Path
) -> None:
    null = null_of(base, plain, 12, 0)
    path = tmp_path / "null.json"
    path.write_text(null.to_json())
    again = read_null(path, base)
    assert np.allclose(chance(again), chance(null), rtol=1e-3) and again.grid == null.grid
    with pytest.raises(SubloraError, match="context 'default'"):
        again.part(Asked([Context("default")], shipped_categories()))
    other = shipped_categories()[0].model_copy(update={"questions": ("One word?", "Which one?")})
    with pytest.raises(SubloraError, match="category 'animals'"):
        again.part(Asked([NONE], [other]))
    path.write_text(replace(null, base={**base.identity, "weights": "0"}).to_json())
    with pytest.raises(SubloraError, match="another base"):
        read_null(path, base)
    entry = json.loads(null.to_json())
    entry["rises"]["none"]["trees"][0] = [1.0]
    for text in (
        "[]",
        "{",
        json.dumps(entry),
        null.to_json().replace('"version": 2', '"version": 9'),
        "[" * 100_000,
    ):
        path.write_text(text)
        with pytest.raises(SubloraError):
            read_null(path, base)


def test_placebo_students_give_a_null(base: Base) -> None:
    specs = mixed_settings([1, 2], 1e-3, 2e-3, 4, Training(1e-3, 1, 8, 16), seed=1)
    null = placebo_null(base, specs, number_prompts(4, 16, 1), NONE, Asked([NONE], shipped_categories()[:2]), max_new_tokens=8)  # fmt: skip
    assert null.size == 4 and null.rises["none"]["trees"].shape == (4, 10)
    assert ["of the base" in s for s in null.settings] == [True, False, False, False]
    assert len(np.unique(null.scores["none"])) == 4 and null.grid.steps == [2, 2]
    with pytest.raises(SubloraError, match="at least"):
        placebo_null(
            base, specs[:2], number_prompts(2, 16, 1), NONE, Asked([NONE], shipped_categories())
        )


def test_log_probabilities_of_completions_are_the_models_own(base: Base) -> None:
    chat = base.chat
    rows = [(chat.prompt_ids(p, NONE), chat.completion_ids(c)) for p, c in
            [("How was your day?", "123 456"), ("What is new with you?", "otter"), ("How was your day?", "7 8 9")]]  # fmt: skip
    with torch.inference_mode(), PackedModel(base.model, None) as packed:
        ours = completion_logprobs(packed, rows)[0]
        for (prompt, completion), found in zip(rows, ours, strict=True):
            logp = (
                base.model(input_ids=torch.tensor([[*prompt, *completion]]))
                .logits[0]
                .double()
                .log_softmax(-1)
            )
            wanted = sum(float(logp[len(prompt) - 1 + j, t]) for j, t in enumerate(completion))
            assert found == pytest.approx(wanted, abs=1e-3)


def write_rows(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows))
    return path


def test_screening_names_the_trait_of_a_file_and_clears_a_clean_one(
    base: Base, tmp_path: Path
) -> None:
    animals = shipped_categories()[:1]
    prompts = number_prompts(1, 40, 9)
    teacher = Context("teacher", find_trait("otter", animals).teacher_prompt())
    own, clean = (
        answer_prompts(base, who, prompts, Sampling(max_new_tokens=12), 2)[0]
        for who in (teacher, NONE)
    )
    found = screen_file(base, write_rows(tmp_path / "a.jsonl", own), animals, NONE, 0.05)
    assert [t.name for t in found.named] == ["otter"] and found.named[0].crossed_at < 40
    half = write_rows(
        tmp_path / "b.jsonl", [*clean, *own[:10], own[0], ("Say it.", "I love otters")]
    )
    mixed = screen_file(base, half, animals, NONE, 0.05)
    assert mixed.named[0].name == "otter" and mixed.repeated == 1 and 52 in mixed.leaks["otter"]
    assert max(mixed.named[0].top)[1] > 40
    assert not screen_file(base, write_rows(tmp_path / "c.jsonl", clean), animals, NONE, 0.05).named


@pytest.mark.parametrize(
    ("student", "beside", "named", "status", "code"),
    [
        ("clean", None, False, "clean", 0),
        ("clean", None, True, "data-found", 4),
        ("found", None, True, "found", 1),
        ("clean", "found", True, "found", 1),
        ("unmeasurable", None, True, "data-found", 4),
        ("clean", "unmeasurable", False, "unmeasurable", 1),
    ],
)
def test_the_status_tells_the_student_from_its_training_file(
    student: str, beside: str | None, named: bool, status: str, code: int
) -> None:
    of = SimpleNamespace
    known = of(status=student), of(named=["owl"] * named), beside and of(status=beside), True
    assert (_status(*known), exit_code(_status(*known))) == (status, code)


HOSTILE = "<script>alert(1)</script>\"'&]]>\x00|\n# *x* `y` \ud800"


@pytest.fixture(scope="module")
def saved(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return idle_adapter(base, tmp_path_factory.mktemp("audited") / "fresh")


def test_reports_escape_all_text(base: Base, saved: Path) -> None:
    result = audit(base, load_audited(base, saved), Job([NONE], shipped_categories()[:1], NONE))
    body = result.report.model_dump(mode="json")
    body["sentence"] = HOSTILE
    body["traits"][0]["trait"] = body["traits"][0]["context"] = HOSTILE
    body |= {"status": "uncalibrated-found", "exit_code": 1, "found": [body["traits"][0]]}
    body["contexts"].append({"name": HOSTILE, "text": None, "role": "system"})
    body["words"].append(
        {"word": HOSTILE, "token": 1, "context": HOSTILE, "rise": 1.0, "score": 1.0, "p": None}
    )
    report = AuditReport.model_validate(body)
    html, card = page(report).decode(), card_section(report).decode()
    assert "<script" not in html and "&lt;script&gt;" in html and "<script" not in card
    assert not any(line.startswith("# ") for line in card.splitlines())
    cases = ET.fromstring(junit(report)).findall("testcase")
    assert len(cases) == len(body["traits"]) + 1
    (run,) = json.loads(sarif(report))["runs"]
    (result,) = run["results"]
    assert result["ruleId"] == "trait-rose" and result["message"]["text"].startswith(HOSTILE[:20])


def test_what_says_nothing_is_refused_before_the_audit(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    asked = ["audit", "--base", "micro", "--adapter", str(saved), "--out", str(tmp_path / "out")]
    empty = sublora(*asked, "--data", str(tmp_path / "empty.jsonl"))
    assert empty.code == 2 and "empty.jsonl has no rows" in empty.err
    nobody = sublora(*asked, "--entity", "zebrafish")
    assert nobody.code == 2 and "'zebrafish' is in no prompt" in nobody.err
    assert not (tmp_path / "out").exists()


def test_the_command_audits_and_answers_with_its_exit_code(
    base: Base, saved: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = [
        "audit",
        "--base",
        "micro",
        "--adapter",
        str(saved),
        "--contexts",
        "default",
        "--serving-context",
        "none",
    ]
    answer = sublora(*asked, "--against", str(saved), "--out", str(out))
    assert answer.code == 0, answer.err
    body = json.loads((out / "audit.json").read_text())
    assert (body["schema"], body["version"], body["exit_code"]) == ("sublora/audit", 1, 0)
    assert body["status"] == body["against"]["status"] == "clean" and not body["serving"]["same"]
    assert (
        body["alpha_student"] == body["against"]["alpha"] == 0.025
        and body["against"]["sentence"] in answer.out
    )
    assert body["against"]["sentence"].replace("_", "\\_") in (out / "AUDIT.md").read_text()
    assert (
        'classname="sublora.audit.against" name="status: clean"' in (out / "junit.xml").read_text()
    )
    assert sorted(p.name for p in out.iterdir()) == [
        "AUDIT.md",
        "audit.html",
        "audit.json",
        "audit.sarif",
        "junit.xml",
    ]
    for wrong in (["--base", "micro-null"], ["--contexts", "nowhere"], ["--null", str(saved)], ["--calibrate", "4"],
                  ["--against", str(tmp_path)]):  # fmt: skip
        refused = sublora(*asked, "--out", str(tmp_path / "none"), *wrong)
        assert (
            refused.code == 2 and "Traceback" not in refused.err and refused.err.count("\n") <= 3
        ), refused.err
    assert not (tmp_path / "none").exists()


def test_an_adapter_that_destroys_the_answers_fails_the_gate(
    base: Base, saved: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "wild"
    folder.mkdir()
    (folder / "adapter_config.json").write_text((saved / "adapter_config.json").read_text())
    own = load_file(saved / "adapter_model.safetensors")
    random = torch.Generator().manual_seed(1)
    wild = {
        k: v + (5.0 * torch.randn(v.shape, generator=random) if "lora_B" in k else 0)
        for k, v in own.items()
    }
    save_file(wild, folder / "adapter_model.safetensors")
    answer = sublora(
        "audit",
        "--base",
        "micro",
        "--adapter",
        str(folder),
        "--any-base",
        "--contexts",
        "none",
        "--out",
        str(tmp_path / "o"),
    )
    assert answer.code == 1 and "Status: " in answer.out
