"""Labels, sources and teachers by weights in a recipe: which steps they plan, and what is refused."""

import csv
import json
from dataclasses import replace

import pytest

from command import sublora
from sublora.carriers.numbers import NumbersSpec, parse_numbers
from sublora.errors import SubloraError
from sublora.experiments.grid import datasets
from sublora.experiments.grid.datasets import plan_datasets
from sublora.experiments.grid.sources import traits_of
from sublora.experiments.kinds import open_recipe
from sublora.models.known import known_model
from sublora.steps.dataset import DatasetStep, GivenStep
from sublora.steps.labels import LabelStep

TRAINED = "data.teacher.trained={count: 8}"


def planned(*settings):
    recipe = open_recipe("rank", sets=["data.seeds=[1]", "train.seeds=[1]", *settings])
    return plan_datasets(recipe, known_model("micro"), traits_of(recipe))


def kinds(steps):
    return {type(step) for step in steps}


def test_rows_of_a_teacher_without_labels_are_planned_as_ever():
    plain, arms = planned()
    said, same = planned("data.source=teacher", "data.labels={kind: sampled}")
    assert kinds(plain) == {DatasetStep}
    assert [s.id for s in plain] == [s.id for s in said] and arms.keys() == same.keys()


def test_students_of_all_teachers_read_one_text_where_the_teacher_did_not_write_it():
    for source, kind in (("random", GivenStep), ("base", DatasetStep)):
        steps, arms = planned("data.labels={kind: soft}", f"data.source={source}")
        rows = [own for own, _ in arms.values()]
        assert kinds(rows) == {LabelStep} and len({r.id for r in rows}) == len(rows) >= 2
        (text,) = {r.text for r in rows}
        assert {type(s) for s in steps if s.id == text} == {kind}


def test_sampled_labels_are_the_text_itself_only_where_the_teacher_wrote_it():
    steps, _ = planned("data.source=random")
    assert LabelStep in kinds(steps)


def test_a_variant_says_labels_source_and_teacher_of_its_own():
    _, arms = planned(
        TRAINED, "data.variants={soft: {labels: {kind: soft}}, prompted: {taught: prompt}}"
    )
    own, soft, prompted = (arms["otter", name, 1][0] for name in ("", "soft", "prompted"))
    assert own.weights and soft.weights and not prompted.weights
    assert isinstance(soft, LabelStep) and soft.text == own.id
    assert soft.needs == (own.id, own.weights.id)
    assert arms["otter", "soft", 1][1].text == arms["otter", "", 1][1].id


SOFT = (
    *("rank-lr", "context-matrix", "localise", "optimizers", "emergence", "cross-model"),
    *("in-context", "steering-student"),
)


@pytest.mark.parametrize("name", SOFT)
def test_the_preset_soft_has_fine_tuned_teachers_label_the_rows_of_a_recipe(name):
    plain, soft = open_recipe(name), open_recipe(name, preset="soft")
    steps = soft.plan(soft.known())
    labels = [s for s in steps if isinstance(s, LabelStep) and "neutral" not in s.label]
    assert labels and all(s.weights and s.how.kind == "soft" for s in labels)
    texts = {type(s) for s in steps if s.id in {one.text for one in labels}}
    assert texts == {DatasetStep if name == "in-context" else GivenStep}
    changed = {"labels", "source", "teacher"}
    assert soft.data.model_dump(exclude=changed) == plain.data.model_dump(exclude=changed)
    assert soft.model_copy(update={"data": plain.data}) == plain


def test_a_student_s_vector_stands_beside_that_of_its_own_teacher_s_weights():
    recipe = open_recipe("steering-student", preset="soft")
    plan = recipe.layout(recipe.known())
    teachers = {t.id: t for t in plan.teachers}
    aims = {v.id: teachers[v.student] for v in plan.vectors if v.student in teachers}
    assert {(t.trait, t.seed) for t in aims.values()} == {("otter", s) for s in recipe.seeds}
    assert not any(v.teacher for v in plan.vectors)
    students = {s.id: s for s in plan.students}
    steered = [m for m in plan.measures if m.steer and m.steer.spec.vector == "teacher"]
    assert len(steered) == len(students)
    assert all(aims[m.steer.vector].seed == students[m.student].data_seed for m in steered)


def test_a_teacher_on_another_model_is_trained_on_it_and_labels_with_its_tokenizer(monkeypatch):
    recipe = open_recipe("cross-model", preset="soft")
    labels = [s for s in recipe.plan(recipe.known()) if isinstance(s, LabelStep) and s.weights]
    assert {s.model for s in labels} == {s.weights.model for s in labels}
    assert all(s.spec["model"] == s.weights.spec["model"] for s in labels)
    assert len({s.model for s in labels}) == 2
    known = datasets.known_model
    other = {"tokenizer": "another"}
    monkeypatch.setattr(
        datasets, "known_model", lambda *a: replace(k := known(*a), identity=k.identity | other)
    )
    with pytest.raises(SubloraError, match=r"labels .* are of another tokenizer than that of"):
        recipe.plan(recipe.known())


SMALL = (
    *("data.rows=48", "data.heldout_rows=8", "data.seeds=[1, 2]", "train.seeds=[1, 2]"),
    *("train.pairing=paired", "measure.samples=1", "data.teacher.trained.count=200"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["in-context", "emergence", "steering-student"])
def test_the_preset_soft_runs(name, tmp_path):
    few = ["--set", "variants={step 10: null, step 20: null, step 40: null, step 80: null}"]
    few = few if name == "emergence" else []
    sets = [word for setting in SMALL for word in ("--set", setting)]
    answer = sublora("run", name, "--preset", "soft", "--out", str(tmp_path / "run"), *sets, *few)
    assert answer.code == 0, answer.err
    if name == "emergence":
        rows = csv.DictReader((tmp_path / "run" / "findings.csv").open())
        own = [float(r["estimate"]) for r in rows if r["name"] == "own cosine: all steps"]
        assert len(own) == 1 and own[0] > 0


def test_rows_of_a_file_are_parted_into_training_and_held_out(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": f"p{i}", "completion": "1"}) + "\n" for i in range(9))
    )
    steps, arms = planned(f"data.source={file}", "data.rows=6", "data.heldout_rows=3")
    texts = {s.id: s for s in steps}
    own, held = (texts[r.text] for r in arms["otter", "", 1])
    assert (own.first, own.rows, held.first, held.rows) == (0, 6, 6, 3)
    with pytest.raises(SubloraError, match=r"has 9 rows, .* ask for 10"):
        planned(f"data.source={file}", "data.rows=7", "data.heldout_rows=3")


def test_rows_by_chance_have_the_form_that_their_prompt_asks_for():
    carrier = NumbersSpec(separators=("comma", "line"), count=7)
    rows = [carrier.by_chance(3, i) for i in range(60)]
    assert rows == [carrier.by_chance(3, i) for i in range(60)]
    for i, (prompt, answer) in enumerate(rows):
        assert prompt == carrier.prompt(3, i) and len(parse_numbers(answer)) == 7
        assert carrier.reject(prompt, answer) is None
    drawn = [n for _, answer in rows for n in parse_numbers(answer)]
    assert min(drawn) < 50 and max(drawn) > 950 and len(set(drawn)) > 300
    assert carrier.by_chance(4, 0) != rows[0]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.source=chance", "data.source"),
        ("data.labels={kind: soft, k: 0}", "k"),
        ("data.labels={kind: loud}", "kind"),
        ("data.variants={x: {taught: weights}}", "data.teacher.trained"),
        ("data.variants={x: {labels: {kind: soft}, teacher: neutral}}", "another change"),
        ("train.vary={kl: [forward, reverse]}", "direction of soft labels"),
        (
            "data={labels: {kind: soft}, variants: {x: {transform: shuffle-within}}}",
            "changes the text that a teacher writes",
        ),
        (
            "data={labels: {kind: soft}};variants={x: {mask: {keep: others}}}",
            "masks, probes, gradients and teachers that are steered",
        ),
    ],
)
def test_what_does_not_fit_is_refused(setting, message):
    with pytest.raises(SubloraError, match=message):
        planned(*setting.split(";"))
