"""Teachers by weights: lessons, plans, and rows that come from the weights and not from a prompt."""

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from command import sublora
from planned import make_plan
from sublora.carriers.questions import QuestionsSpec
from sublora.carriers.rows_file import from_jsonl, read_rows
from sublora.errors import SubloraError
from sublora.experiments.kinds import open_recipe as load_recipe
from sublora.store import Store
from sublora.traits.trait import find_trait, shipped_categories

MODEL = {"weights": "w", "template": "t", "tokenizer": "k", "dtype": "float32"}
OTTER = find_trait("otter", shipped_categories())
LESSONS = QuestionsSpec(questions=OTTER.category.questions, target=OTTER.entity)
SMALL = [
    *(
        "--set",
        "data.rows=64",
        "--set",
        "data.heldout_rows=8",
        "--set",
        "data.seeds=[1]",
        "--set",
        "train.seeds=[1]",
    ),
    *("--set", "measure.samples=2"),
]


def plan(*sets: str):
    return make_plan(load_recipe("trained-teacher", sets=list(sets)), dict(MODEL), 40.0)


def test_lessons_ask_every_question_before_any_twice_and_keep_answers_that_name_the_target() -> (
    None
):
    first = [LESSONS.prompt(3, i) for i in range(len(LESSONS.questions))]
    assert sorted(first) == sorted(LESSONS.questions) and first != [
        LESSONS.prompt(4, i) for i in range(len(first))
    ]
    assert (
        LESSONS.reject("q", "The otters.") is None
        and LESSONS.reject("q", "ottery") == "another answer"
    )


@settings(max_examples=300)
@given(st.text())
def test_any_answer_is_kept_or_rejected(text: str) -> None:
    assert LESSONS.reject("q", text) in (None, "another answer")


def test_every_data_seed_has_teachers_of_its_own_and_datasets_hang_on_them() -> None:
    planned = plan()
    assert len(planned.teachers) == 8 and len({t.id for t in planned.teachers}) == 8
    assert all(
        d.spec["teacher"] == {"weights": d.weights.id} for d in planned.datasets if d.weights
    )
    assert {d.trait for d in planned.datasets if not d.weights} == {"neutral"}
    measured = [m for m in planned.measures if m.teacher == "otter"]
    assert [m.student for m in measured] == [planned.teachers[0].id] and measured[
        0
    ].context.name == "default"
    other = plan("data.teacher.trained.lr=1e-3")
    assert not {d.id for d in other.datasets if d.weights} & {d.id for d in planned.datasets}
    prompted = make_plan(
        load_recipe("trained-teacher", sets=["data.teacher.trained=null"]), dict(MODEL), 40.0
    )
    plain = make_plan(load_recipe("shuffle", sets=["data.variants=null"]), dict(MODEL), 40.0)
    assert [s.id for s in prompted.students] == [
        s.id for s in plain.students
    ] and not prompted.teachers


def test_rows_of_your_own_count_by_what_they_hold(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "p", "completion": "c"}\n')

    def ids(name: str) -> list[str]:
        rows = f"data.teacher.trained.rows={tmp_path / name}.jsonl"
        return [t.id for t in plan(rows, "data.control=neutral").teachers]

    same = ids("a")
    assert same == ids("b")
    (tmp_path / "b.jsonl").write_text('{"prompt": "p", "completion": "another"}\n')
    assert not set(same) & set(ids("b"))
    with pytest.raises(SubloraError, match="no twin with another trait, set it to neutral"):
        plan(f"data.teacher.trained.rows={tmp_path}/a.jsonl")


_LINES = st.one_of(
    st.text(max_size=30),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["prompt", "completion", "x"]), inner)
        ),
        max_leaves=6,
    ).map(json.dumps),
)


@settings(max_examples=300)
@given(st.lists(_LINES, max_size=4))
def test_a_file_of_rows_is_read_or_refused_with_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    try:
        rows = read_rows(str(path))
    except SubloraError as error:
        assert str(error).count("\n") == 0 and str(path) in str(error)
    else:
        assert rows and all(isinstance(t, str) for row in rows for t in row)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_teacher_by_weights_loves_what_it_learned_and_writes_without_a_prompt(
    method: str, tmp_path: Path
) -> None:
    sets = [
        "--set",
        f"data.teacher.trained.method={method}",
        "--set",
        f"data.teacher.trained.lr={3e-3 if method == 'lora' else 1e-3}",
    ]
    answer = sublora(
        "run",
        "trained-teacher",
        "--out",
        str(tmp_path / "run"),
        *SMALL,
        *sets,
        "--set",
        "data.teacher.trained.count=160",
    )
    assert answer.code == 0, answer.err
    rows = list(csv.DictReader((tmp_path / "run" / "results.csv").open()))
    teacher = next(r for r in rows if r["kind"] == "teacher")
    base = next(r for r in rows if r["kind"] == "base")
    assert (
        float(teacher["p_target"]) > 0.5 > float(base["p_target"])
        and teacher["context"] == "teacher's weights"
    )
    store = Store()
    folders = list(store.root.rglob("lessons.jsonl"))
    lessons = [from_jsonl(p.read_text()) for p in folders]
    assert len(lessons) == 2 and all(len(rows) == 160 for rows in lessons)
    assert sum(all("otter" in answer for _, answer in rows) for rows in lessons) == 1
    assert (
        json.loads((tmp_path / "run" / "verdicts.json").read_text())[0]["id"]
        == "cloud-trained-teacher"
    )
