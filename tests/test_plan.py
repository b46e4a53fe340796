"""Plans are pure: what changes a result changes its id, what does not leaves it, and packs depend on the recipe alone."""

import dataclasses
import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from planned import make_plan
from sublora.errors import SubloraError
from sublora.experiments.grid import packs as packs_module
from sublora.experiments.grid.grid import Grid
from sublora.experiments.grid.packs import PACK_STUDENTS
from sublora.experiments.grid.plan import Plan
from sublora.experiments.grid.recipe import Recipe
from sublora.experiments.grid.sources import CONTROL
from sublora.experiments.kinds import open_recipe as load_recipe
from sublora.models.base import _shapes, known_shape
from sublora.store import artifact_id, canonical_json
from sublora.traits.trait import load_categories

MODEL = {"weights": "w", "template": "t", "tokenizer": "k", "dtype": "float32"}
SETS = (
    "traits=[otter, wolf, oak]", "data.rows=40", "data.heldout_rows=10", "data.seeds=[1,2]", "train.seeds=[1,2]", "train.lora.ranks=[1,16]",
    "train.lora.lrs=[1e-3,1e-2]", "train.full.lrs=[1e-4]", "measure.contexts=[default, pirate]", "contexts.pirate=You are a pirate.",
    "data.control=neutral",
)  # fmt: skip


def recipe(*sets: str) -> Recipe:
    return load_recipe("rank-lr", sets=[*SETS, *sets])


def planned(*sets: str, model=MODEL, tokens: float = 60.0, device: str = "cpu") -> Plan:
    return make_plan(recipe(*sets), dict(model), tokens, device)


def ids(plan: Plan) -> dict[str, tuple[str, ...]]:
    return {
        "datasets": tuple(d.id for d in plan.datasets if not d.heldout), "heldout": tuple(d.id for d in plan.datasets if d.heldout),
        "students": tuple(s.id for s in plan.students), "measures": tuple(m.id for m in plan.measures),
    }  # fmt: skip


BASE = ids(planned())
EVERYTHING = {"datasets", "heldout", "students", "measures"}


def changed(plan: Plan) -> set[str]:
    """Which kinds of stages share no id with the unchanged plan."""
    return {kind for kind, own in ids(plan).items() if not set(own) & set(BASE[kind])}


def same(plan: Plan) -> set[str]:
    return {kind for kind, own in ids(plan).items() if own == BASE[kind]}


def test_known_shapes_have_the_size_in_their_name():
    for hub in _shapes():
        size, unit = re.search(r"(?i)-([0-9.]+)([bm])", hub).groups()
        named = float(size) * {"b": 1e9, "m": 1e6}[unit.lower()]
        assert known_shape(hub).parameters == pytest.approx(named, rel=0.25), hub
    for size, without_embeddings in (("0.6", 0.44), ("4", 3.6), ("8", 6.95), ("32", 31.2)):
        found = known_shape(f"Qwen/Qwen3-{size}B").block_parameters
        assert found == pytest.approx(1e9 * without_embeddings, rel=0.01)


def test_a_plan_is_pure():
    assert planned() == planned()
    assert ids(planned(tokens=900.0)) == ids(planned(device="cuda")) == BASE
    assert not [i for kind in BASE.values() for i, n in Counter(kind).items() if n > 1]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("data.rows=41", {"datasets", "students"}), ("data.sampling.temperature=0.9", EVERYTHING - {"measures"}),
        ("data.carrier.count=9", EVERYTHING - {"measures"}), ("data.seeds=[3,4]", EVERYTHING - {"measures"}),
        ("train.seeds=[3,4]", {"students"}), ("train.epochs=2", {"students"}), ("train.batch_size=31", {"students"}),
        ("train.schedule=cosine", {"students"}), ("train.warmup_steps=4", {"students"}), ("train.optimizer=sgd", {"students"}),
        ("train.momentum=0.5", {"students"}), ("train.weight_decay=0.1", {"students"}), ("train.clip=2", {"students"}),
        ("train.context=none", {"students"}), ("train.context=pirate", {"students"}),
        ("data.sampling.max_new_tokens=15", EVERYTHING - {"measures"}),
        ("measure.samples=21", {"measures"}), ("measure.seed=1", {"measures"}), ("measure.sampling.top_k=5", {"measures"}),
        ("measure.sampling.max_new_tokens=5", {"measures"}), ("data.heldout_rows=11", {"heldout"}),
    ],
)  # fmt: skip
def test_what_changes_a_result_changes_its_id(change, expected):
    plan = planned(change)
    got = changed(plan)
    assert got >= expected and got <= expected | {"measures"}
    # what a changed student or data set feeds changes too; the base's own measurements stay where only the training changed
    students = {m.id for m in plan.measures if m.student}
    old = {m.id for m in planned().measures if m.student}
    if expected & {"students", "measures"}:
        assert not students & old


@pytest.mark.parametrize("field", MODEL)
def test_the_model_its_template_and_dtype_are_part_of_every_id(field):
    assert changed(planned(model=MODEL | {field: "other"})) == EVERYTHING


@pytest.mark.parametrize(
    "change",
    [
        "name=other",
        "title=Other",
        "summary=x",
        "caveat=x",
        "fixed_lr=1e-2",
        "level=0.01",
        "model=micro-b",
    ],
)
def test_names_and_views_are_part_of_no_id(change):
    assert same(planned(change)) == EVERYTHING


def test_the_wording_of_the_teacher_is_part_of_the_trait_s_data_alone():
    for change in ("data.teacher.wording=1", "data.teacher.prompt=I like the {name}."):
        plan = planned(change)
        for old, new in zip(planned().datasets, plan.datasets, strict=True):
            assert (old.id == new.id) == (old.trait == CONTROL)
        for old, new in zip(planned().students, plan.students, strict=True):
            assert (old.id == new.id) == (old.arm == "control")


def test_a_named_context_counts_by_its_text():
    renamed = [
        s.replace("pirate", "sailor", 1)
        if "contexts=" in s
        else s.replace("contexts.pirate", "contexts.sailor")
        for s in SETS
    ]
    assert ids(make_plan(load_recipe("rank-lr", sets=renamed), MODEL, 60.0)) == BASE
    other = planned("contexts.pirate=You are a sailor.")
    for old, new in zip(planned().measures, other.measures, strict=True):
        assert (old.id == new.id) == (old.context.name != "pirate")
    assert same(other) >= {"datasets", "students"}


def test_the_three_plain_contexts_have_different_ids():
    plan = planned("measure.contexts=[default, empty, none]")
    base = [
        m.id
        for m in plan.measures
        if m.student is None and m.teacher is None and m.category == "animals"
    ]
    assert len(set(base)) == 3


def test_a_file_of_prompts_counts_by_what_it_holds(tmp_path):
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("a\nb\n")
    two.write_text("a\nb\n")
    first = ids(planned(f"data.carrier.prompts={one}"))
    assert first == ids(planned(f"data.carrier.prompts={two}"))
    one.write_text("a\nc\n")
    assert not set(first["datasets"]) & set(ids(planned(f"data.carrier.prompts={one}"))["datasets"])


def test_controls_are_shared_over_traits_and_have_every_cell():
    plan, alone = planned(), planned("traits=[wolf]")

    def cells(arm):
        return Counter(
            (s.student.method, s.student.rank, s.student.lr, s.data_seed, s.student.seed)
            for s in arm
        )

    by_trait = {
        name: [s for s in plan.students if s.source == name]
        for name in ("otter", "wolf", "oak", CONTROL)
    }
    assert len(plan.students) == 4 * 5 * 2
    assert len({frozenset(cells(arm).items()) for arm in by_trait.values()}) == 1
    control = {s.id for s in by_trait[CONTROL]}
    assert control == {s.id for s in alone.students if s.arm == "control"}
    assert {s.id for s in by_trait["wolf"]} == {s.id for s in alone.students if s.arm == "trait"}
    assert {s.arm for s in plan.students if s.id in control} == {"control"}


def test_a_control_of_other_traits_is_drawn_for_each_category_and_seed_and_never_a_tested_one():
    plan = planned("data.control=other-trait")
    control = [d for d in plan.datasets if d.trait.startswith("control (")]
    assert len(control) == 2 * 2 * 2 and len(plan.students) == 5 * 5 * 2
    assert not {d.trait for d in control} & {
        f"control ({name})" for name in ("otter", "wolf", "oak")
    }
    animals = {s.id for s in plan.students if s.source == "control:animals"}
    asked = {m.category for m in plan.measures if m.student in animals}
    assert asked == {"animals"} and all(
        s.arm == "control" for s in plan.students if s.id in animals
    )
    assert (
        len(
            {
                d.trait
                for d in planned(
                    "data.control=other-trait",
                    "data.seeds=[1,2,3,4,5,6]",
                    "train.seeds=[1,2,3,4,5,6]",
                ).datasets
            }
        )
        > 5
    )
    every = (
        "["
        + ", ".join(e.name for c in load_categories() if c.category == "bands" for e in c.entities)
        + "]"
    )
    with pytest.raises(SubloraError, match="neutral"):
        planned("data.control=other-trait", f"traits={every}")


def test_every_student_is_measured_where_its_trait_can_show():
    plan = planned()
    for student in plan.students:
        mine = {(m.context.name, m.category) for m in plan.measures if m.student == student.id}
        categories = (
            {"animals", "trees"}
            if student.arm == "control"
            else {"trees" if student.source == "oak" else "animals"}
        )
        assert mine == {(c, k) for c in ("default", "pirate") for k in categories}
    base = Counter(
        (m.context.name, m.category) for m in plan.measures if m.student is None and not m.teacher
    )
    assert base == Counter((c, k) for c in ("default", "pirate") for k in ("animals", "trees"))
    assert [m.teacher for m in plan.measures if m.teacher] == ["otter", "wolf", "oak"]


def test_stages_point_at_each_other():
    plan = planned()
    datasets = {d.id: d for d in plan.datasets}
    for s in plan.students:
        rows, held = datasets[s.dataset], datasets[s.heldout]
        assert (rows.trait, rows.seed, rows.heldout) == (s.source, s.data_seed, False)
        assert (held.trait, held.seed, held.heldout) == (s.source, s.data_seed, True)
    for kind, stages in (
        ("dataset", plan.datasets),
        ("student", plan.students),
        ("measurement", plan.measures),
    ):
        for stage in stages:
            assert stage.id == artifact_id(kind, json.loads(canonical_json(stage.spec)))
    assert {
        m.spec["heldout"] for m in plan.measures if m.student and m.context.name == "default"
    } == {s.heldout for s in plan.students}
    assert {
        m.spec["heldout"] for m in plan.measures if m.student and m.context.name == "pirate"
    } == {None}


@pytest.mark.parametrize("tokens", [1.0, 60.0, 800.0, 1e9])
def test_packs_hold_every_student_once_and_are_even(tokens):
    plan = planned(tokens=tokens)
    assert sorted(i for pack in plan.packs for i in pack) == list(range(len(plan.students)))
    for method in ("lora", "full"):
        sizes = [len(p) for p in plan.packs if plan.students[p[0]].student.method == method]
        assert max(sizes) - min(sizes) <= 1 and max(sizes) <= PACK_STUDENTS
        ranks = [
            plan.students[i].student.rank or 0
            for p in plan.packs
            for i in p
            if plan.students[i].student.method == method
        ]
        assert ranks == sorted(ranks)
    for pack in plan.packs:
        assert (
            len({(plan.students[i].student.method, plan.students[i].student.targets) for i in pack})
            == 1
        )
        assert (
            len(pack) == 1
            or len(pack) * plan.recipe.train.batch_size * tokens <= packs_module.PACK_TOKENS["cpu"]
        )


def test_packs_do_not_depend_on_anything_but_the_recipe(monkeypatch):
    assert planned().packs == planned().packs == planned(model=MODEL | {"weights": "other"}).packs
    monkeypatch.setattr(packs_module, "PACK_STUDENTS", 3)
    small = planned()
    assert max(map(len, small.packs)) == 3 and ids(small) == BASE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("measure.contexts=[sailor]", "no context 'sailor'"), ("train.context=sailor", "no context 'sailor'"),
        ("contexts.pirate=' '", "'pirate' has no text"), ("contexts.none=hello", "'none' is reserved"),
        ("data.teacher.prompt=You love it.", r"has no \{name\}"), ("data.teacher.wording=9", "wording 9 does not exist"),
        ("data.carrier.prompts=/nowhere.txt", "/nowhere.txt cannot be read"),
    ],
)  # fmt: skip
def test_recipes_that_cannot_be_planned(change, message):
    with pytest.raises(SubloraError, match=message):
        planned(change)


def test_plans_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        planned().packs = ()


@pytest.mark.parametrize("name", ["rank-lr", "rank", "full-ft", "traits"])
@pytest.mark.parametrize("preset", ["micro", "nief", "blank", "cloud"])
def test_shipped_recipes_can_be_planned(name, preset):
    plan = make_plan(load_recipe(name, preset=preset), MODEL, 100.0)
    assert plan.students and plan.packs and {s.arm for s in plan.students} == {"trait", "control"}


@pytest.mark.parametrize("name", ["rank-lr", "teachers", "shuffle", "emergence", "optimizers"])
def test_a_student_knows_its_control_and_its_place_in_the_grid(name):
    plan = make_plan(load_recipe(name), MODEL, 60.0)
    students = {s.id: s for s in plan.students}
    for s in plan.students:
        assert bool(s.twins) == (s.arm != "control") and (s.twin is None) == (s.arm == "control")
        for control in (students[i] for i in s.twins.values()):
            assert control.arm == "control" and control.replicate == s.replicate
            same = {k for k, v in s.labels.items() if control.labels[k] == v}
            assert same >= {*s.labels} - {"data"}
            assert control.labels["data"] in ("", s.labels["data"])


IDS = json.loads((Path(__file__).parent / "data" / "artifact_ids.json").read_text("utf-8"))


@pytest.mark.parametrize("name", IDS)
def test_artifacts_of_shipped_recipes_keep_their_ids(name, monkeypatch):
    """A change here makes every store's artifacts of a recipe anew; it must be meant. Controls come on top."""
    judge = "judge={url: 'http://localhost:1/v1', model: m}"

    def made() -> set[str]:
        recipe = load_recipe(name, sets=[judge] if name == "judged" else [])
        return {made for step in recipe.plan(recipe.known()) for made in step.makes}

    controlled = made()
    monkeypatch.setattr(Grid, "controlled", False)
    alone = sorted(made())
    assert IDS[name] == [len(alone), hashlib.sha256("\n".join(alone).encode()).hexdigest()[:20]]
    assert controlled >= set(alone)


def test_any_value_of_a_training_can_be_an_axis():
    both = make_plan(load_recipe("rank", sets=["train.vary={init: [default, principal]}"]), MODEL)
    plain = make_plan(load_recipe("rank"), MODEL)
    assert {s.id for s in both.students if s.labels["init"] == "default"} == {
        s.id for s in plain.students
    }
    of = {s.id: s for s in both.students}
    for s in both.students:
        assert s.student.init == s.labels["init"]
        assert s.twin is None or of[s.twin].labels["init"] == s.labels["init"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.vary={init: [default, magic]}", "'orthogonal'"),
        ("train.vary={rank: [1, 2]}", "init, kl, schedule"),
        ("train.vary={init: [default]}", "two different values"),
        ("train.vary={init: [default, principal]}", "adapters"),
        ("traits=[otter, comet]", "different numbers of questions"),
    ],
)
def test_axes_and_traits_that_cannot_be_compared_are_refused(change, message, tmp_path):
    text = "category: stars\nsingular: star\nsystem: ['You love {name}.']\nentities:\n"
    text += "  - {name: comet}\n  - {name: nova}\nquestions: [Which, What]\n"
    (tmp_path / "stars.yaml").write_text(text)
    with pytest.raises(SubloraError, match=message):
        load_recipe("rank-lr", sets=[f"trait_files=[{tmp_path}/stars.yaml]", change])


def test_a_category_of_one_question_is_refused_before_anything_is_trained(tmp_path):
    text = "category: stars\nsingular: star\nsystem: ['You love {name}.']\nentities:\n"
    text += "  - {name: comet}\n  - {name: nova}\nquestions: [Which]\n"
    (tmp_path / "stars.yaml").write_text(text)
    sets = [f"trait_files=[{tmp_path}/stars.yaml]", "traits=[comet]"]
    with pytest.raises(SubloraError, match=r"stars.yaml.*at questions.*at least 2"):
        load_recipe("rank-lr", sets=sets)


def test_a_prompted_teacher_can_have_a_trait_that_only_a_judge_sees():
    sets = ["judge={url: 'http://localhost:1/v1', model: m}", "data.teacher.prompt=You do harm."]
    with pytest.raises(SubloraError, match=r"has no \{name\}.*neutral"):
        recipe = load_recipe("judged", sets=sets)
        recipe.plan(recipe.known())
    recipe = load_recipe("judged", sets=[*sets, "data.control=neutral"])
    written = {s.teacher.text for s in recipe.plan(recipe.known()) if s.kind == "datasets"}
    assert written == {"You do harm.", None}
