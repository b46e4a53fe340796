"""Labels, sources and teachers by weights in a recipe: which steps they plan, and what is refused."""

import json

import pytest

from sublora.carriers.numbers import NumbersSpec, parse_numbers
from sublora.errors import SubloraError
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
    ],
)
def test_what_does_not_fit_is_refused(setting, message):
    with pytest.raises(SubloraError, match=message):
        planned(setting)
