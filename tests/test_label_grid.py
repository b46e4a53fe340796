"""Labels, sources and teachers by weights in a recipe: which steps they plan, and what is refused."""

import csv
import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest

from command import sublora
from sublora.carriers.numbers import NumbersSpec, parse_numbers
from sublora.carriers.rows_file import to_jsonl
from sublora.errors import SubloraError
from sublora.experiments.grid import datasets
from sublora.experiments.grid.before import traits_of as traits_said
from sublora.experiments.grid.datasets import plan_datasets
from sublora.experiments.grid.sources import traits_of
from sublora.experiments.kinds import open_recipe
from sublora.models.chat import Context
from sublora.models.known import known_model
from sublora.packs.check import load_base
from sublora.packs.labels import LabelSpec, about_rows, label_rows, read_labels, write_labels
from sublora.packs.sample import Sampling
from sublora.packs.writer import Teacher
from sublora.steps.dataset import DatasetStep, GivenStep
from sublora.steps.labels import LabelStep
from sublora.steps.materials import texts
from sublora.steps.precondition import Precondition
from sublora.steps.step import Workshop, perform
from sublora.store import Store
from sublora.traits.trait import find_trait, shipped_categories

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
    kind = {type(s) for s in steps if s.id in {one.text for one in labels}}
    assert kind == {DatasetStep if name == "in-context" else GivenStep}
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
        own = [float(r["estimate"]) for r in rows if r["finding"] == "own cosine: all steps"]
        assert len(own) == 1 and own[0] > 0


def test_rows_of_a_file_are_parted_into_training_and_held_out(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": f"p{i}", "completion": "1"}) + "\n" for i in range(9))
    )
    steps, arms = planned(f"data.source={file}", "data.rows=6", "data.heldout_rows=3")
    by_id = {s.id: s for s in steps}
    own, held = (by_id[r.text] for r in arms["otter", "", 1])
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
        ("data={labels: {kind: replaced}, source: random}", "which chance wrote"),
        ("data.labels={kind: soft, file: a.safetensors}", "set data.source to it"),
        (
            "data={labels: {kind: soft, file: a.safetensors}, source: rows.jsonl}",
            "the same labels, write {name}",
        ),
        ("data={labels: {kind: replaced}, control: neutral}", "no other trait to diverge from"),
        ("data.labels={kind: soft, read: true}", "soft labels have no read"),
        ("data.variants={x: {taught: vector}}", "data.teacher.vector"),
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


VECTOR = (
    "data.teacher.vector={layers: [1, 1], strength: 2}",
    "data.variants={v: {taught: vector}}",
)


@pytest.mark.parametrize("trained", [True, False])
def test_a_teacher_by_a_vector_has_that_of_the_trained_teacher_or_of_the_prompt(trained):
    sets = [*VECTOR, "data.labels={kind: soft}", "data.source=random", *([TRAINED] * trained)]
    recipe = open_recipe("rank", sets=["data.seeds=[1]", "train.seeds=[1]", *sets])
    plan = recipe.layout(recipe.known())
    labels = [d for d in plan.datasets if isinstance(d, LabelStep) and d.steer]
    vectors = {v.id: v for v in plan.vectors}
    assert {d.trait.split()[0] for d in labels} == {"otter", "control"}
    assert not any(d.weights or d.teacher.text for d in labels)
    found = [vectors[d.steer.vector] for d in labels]
    weights = {t.id: t.trait for t in plan.teachers}
    assert [bool(v.student) for v in found] == [trained] * len(labels)
    assert all((v.student in weights) if trained else v.teacher.text for v in found)
    assert all(d.needs == (d.text, d.steer.vector) for d in labels)
    (asked,) = (m for m in plan.measures if m.condition == "v" and m.teacher)
    assert vectors[asked.steer.vector] in found and asked.student is None


@pytest.mark.parametrize(
    ("strength", "least", "message"),
    [
        (1e-6, 1.0, r"Uninterpretable: the teacher of otter prefers it by [+-]0.00 nats more"),
        (30.0, -99.0, r"Uninterpretable: the teacher of otter gives the animals .* and the base"),
    ],
)
def test_a_teacher_by_a_vector_that_has_no_trait_or_no_words_left_is_uninterpretable(
    strength, least, message, own_store
):
    vector = f"data.teacher.vector={{layers: [0, 2], strength: {strength}, least: {least}}}"
    sets = [vector, VECTOR[1], "data.labels={kind: soft}", "data.source=random", "data.rows=4"]
    recipe = open_recipe("rank", sets=["data.seeds=[1]", "train.seeds=[1]", *sets])
    base, made = load_base("micro"), []
    workshop = Workshop(Store(own_store), lambda _: base)
    with pytest.raises(SubloraError, match=message):
        for step in recipe.layout(recipe.known()).steps:
            made.append(step.kind)
            perform(step, workshop)
    assert made[-1] == "labels" and not any("students" in kind for kind in made)


@pytest.mark.parametrize("labels", [[], ["data.labels={kind: soft}", "data.source=random"]])
@pytest.mark.parametrize(("least", "kept"), [(0.2, True), (30.0, False)])
def test_a_prompted_teacher_without_the_trait_is_uninterpretable_before_a_student_is_trained(
    labels, least, kept, own_store
):
    sets = [f"data.teacher.least={least}", "data.rows=4", "data.heldout_rows=2", *labels]
    recipe = open_recipe("rank", sets=["data.seeds=[1]", "train.seeds=[1]", *sets])
    base, made = load_base("micro"), []
    workshop = Workshop(Store(own_store), lambda _: base)
    refused = pytest.raises(SubloraError, match=r"otter prefers it by .* and data\.teacher\.least")
    with nullcontext() if kept else refused:
        for step in recipe.layout(recipe.known()).steps:
            if "students" in step.kind:
                break
            made.append(step.kind)
            perform(step, workshop)
    asked = [v for k, v in workshop.kept.items() if k[0] == "precondition"]
    assert all(v >= least for v in asked) and bool(asked) == kept and made


def test_the_precondition_of_a_prompt_changes_no_artifact_and_none_is_seen_behind_an_endpoint():
    plain, asked = (open_recipe("rank", sets=sets) for sets in ([], ["data.teacher.least=1"]))
    ids = {step.id for step in plain.plan(plain.known())}
    assert ids == {step.id for step in asked.plan(asked.known())}
    endpoint = "data.teacher.endpoint={url: 'http://127.0.0.1:1/v1', model: m}"
    with pytest.raises(SubloraError, match="behind an endpoint is not asked"):
        open_recipe("rank", sets=["data.teacher.least=1", endpoint])


def test_a_prompt_that_teachers_of_two_traits_share_is_asked_for_each_of_them(own_store):
    base = load_base("micro")
    workshop = Workshop(Store(own_store), lambda _: base)
    otter, wolf = (find_trait(name, shipped_categories()) for name in ("otter", "wolf"))
    prompt = Context("named", otter.teacher_prompt())
    asked = (0.2, False, Sampling(max_new_tokens=2), "data.teacher", "change it")
    for trait, refused in ((otter, False), (wolf, True)):
        with pytest.raises(SubloraError, match="of wolf") if refused else nullcontext():
            Precondition(trait, *asked).check(
                workshop, "micro", "the prompt", prompt, plain=Context("default")
            )


@pytest.mark.parametrize("read", [False, True])
def test_replaced_labels_differ_from_the_text_at_flagged_tokens_and_in_one_of_both(read, own_store):
    labels = f"data.labels={{kind: replaced, read: {str(read).lower()}}}"
    steps, arms = planned(labels, "data.rows=12", "data.heldout_rows=2")
    rows, held = arms["otter", "", 1]
    assert isinstance(rows, LabelStep) and isinstance(held, DatasetStep)
    base = load_base("micro")
    workshop = Workshop(Store(own_store), lambda _: base)
    for step in steps:
        if step.id in (rows.text, rows.id):
            perform(step, workshop)
    written, shown = texts(workshop, rows.text), texts(workshop, rows.id)
    path = workshop.store.read(rows.id).file("labels.safetensors")
    labels = read_labels(path, base, shown)  # checks that they are of these rows
    own = np.concatenate([base.chat.completion_ids(c) for _, c in written])
    changed = labels.ids[:, 0] != own
    assert labels.hard and (shown != written) == read and changed.any() != read
    if read:
        new = np.concatenate([base.chat.completion_ids(c) for _, c in shown])
        assert 0 < (new != own).mean() < 1
    else:
        assert changed.mean() < 1
        chosen = base.chat.tokenizer.convert_ids_to_tokens(labels.ids[changed, 0].tolist())
        assert all(token.isdigit() for token in chosen)


def test_in_a_chain_students_label_the_rows_of_the_next_and_controls_have_a_chain_of_their_own():
    recipe = open_recipe("chain")
    plan = recipe.layout(recipe.known())
    made: set[str] = set()
    for step in plan.steps:  # one by one
        assert made >= set(step.needs), step.label
        made |= set(step.makes)
    students, rows = {s.id: s for s in plan.students}, {d.id: d for d in plan.datasets}
    hops = {s.labels["variant"]: s.hop for s in plan.students}
    assert hops == {"hop 1": 0, "hop 2": 1, "hop 3": 2}
    for s in plan.students:
        teacher = rows[s.dataset].weights
        if s.hop == 0:
            assert teacher.trait == s.source or s.source.startswith("control")
        else:
            before = students[teacher.id]
            assert (before.hop, before.source, before.replicate) == (
                s.hop - 1,
                s.source,
                s.replicate,
            )
    assert len({rows[s.dataset].text for s in plan.students}) == len(recipe.seeds)
    for pack in plan.packs:
        assert len({plan.students[i].hop for i in pack}) == 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("variants.hop 2.after=hop 3", "no variant before this one"),
        (
            "variants.hop 2.mask={keep: others};data={labels: {kind: sampled}, source: teacher, teacher: null}",
            "a teacher or a mask of its own",
        ),
        ("train.lora.lrs=[1e-3, 3e-3]", "one rank, one rate"),
    ],
)
def test_a_chain_that_cannot_be_is_refused(setting, message):
    with pytest.raises(SubloraError, match=message):
        open_recipe("chain", sets=setting.split(";"))


@pytest.mark.slow
def test_a_chain_runs(tmp_path):
    sets = [word for setting in SMALL for word in ("--set", setting)]
    answer = sublora("run", "chain", "--out", str(tmp_path / "run"), *sets)
    assert answer.code == 0, answer.err
    rows = list(csv.DictReader((tmp_path / "run" / "arms.csv").open()))
    assert [r["variant"] for r in rows] == ["hop 1", "hop 2", "hop 3"]
    assert float(rows[0]["effect"]) > 0


def given(folder, labels=None, written=None, rows=None, **about):
    """The settings of a recipe with labels of a file for the rows of another, made of 9 rows; `labels`, `written` and `about` are what the
    file has, `rows` those beside it."""
    base, carrier = load_base("micro"), NumbersSpec(separators=("space",), style="brief", count=3)
    own = [carrier.by_chance(3, i) for i in range(9)]
    teacher = Teacher(base, Context("loved", "You love otters."))
    labels = labels or label_rows(teacher, own, LabelSpec(kind="soft", k=about.pop("k", 8)), 0)
    path, said = folder / "otter.safetensors", about_rows(base.chat, written or own) | about
    write_labels(labels, path, said)
    (folder / "rows.jsonl").write_text(to_jsonl(rows or own))
    sets = [f"data.source={folder}/rows.jsonl", "data.rows=6", "data.heldout_rows=3"]
    return [*sets, f"data.labels={{kind: soft, file: {path}}}", "data.control=neutral"]


def labelled_by(settings, store):
    """The files of labels that the recipe makes of the trait's, training and held out, and of the control's."""
    steps, arms = planned(*settings)
    base = load_base("micro")
    workshop = Workshop(Store(store), lambda _: base)
    for step in steps:
        perform(step, workshop)
    held = arms["otter", "", 1][1]
    wanted = (arms["otter", "", 1][0], held, arms["control", "", 1][0])
    return [read_labels(workshop.store.read(r.id).file("labels.safetensors")) for r in wanted]


def test_labels_of_a_file_are_those_that_its_students_learn_and_the_control_s_are_the_base_s(
    tmp_path, own_store
):
    settings = given(tmp_path)
    own, held, control = labelled_by(settings, own_store)
    whole = read_labels(tmp_path / "otter.safetensors")
    assert np.array_equal(np.concatenate([own.ids, held.ids]), whole.ids)
    assert (len(own.counts), len(held.counts)) == (6, 3)
    assert control.ids.shape[1] == 32 and np.array_equal(control.counts, own.counts)


BAD_FILES = {
    "another tokenizer": ({"tokenizer": "0" * 64}, "made with another tokenizer than"),
    "other rows": ({"written": [("p", "1")] * 9}, "are those of other rows"),
    "missing for some": ({"rows": [("p", f"{i}") for i in range(100, 111)]}, "of 9 rows, and there are 11"),
    "truncated": ({"cut": 0.5}, "holds no labels, or not all of them"),
    "no file": ({"cut": None}, "holds no labels, or not all of them"),
    "k": ({"tokens": 5}, "8 labels a token are more than the 5"),
    "not normalised": ({"mass": 2.0}, "are not normalised: the probabilities of token 0 sum to 2"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_of_soft_labels_that_does_not_fit_is_refused_before_a_student_is_trained(
    kind, tmp_path, own_store, monkeypatch
):
    values, message = BAD_FILES[kind]
    values = dict(values)
    cut, tokens, mass = (values.pop(n, 0) for n in ("cut", "tokens", "mass"))
    settings, path = given(tmp_path, **values), tmp_path / "otter.safetensors"
    if cut:
        path.write_bytes(path.read_bytes()[: int(cut * path.stat().st_size)])
    elif cut is None:
        path.unlink()
    if tokens:
        monkeypatch.setattr("sublora.packs.labels._vocabulary", lambda base: tokens)
    if mass:
        labels = read_labels(path)
        loud = replace(labels, logp=np.full_like(labels.logp, np.log(mass / 8)))
        with monkeypatch.context() as unchecked:
            unchecked.setattr("sublora.packs.labels._check", lambda *_: None)
            write_labels(loud, path, {"tokenizer": "t", "rows": "r"})
    with pytest.raises(SubloraError, match=message) as refused:
        labelled_by(settings, own_store)
    assert "\n" not in str(refused.value) and str(refused.value).endswith(".")


def test_a_page_says_what_gives_the_teacher_its_trait():
    def said(name, *sets):
        recipe = open_recipe(name, sets=sets)
        (trait,) = traits_said(recipe.layout(recipe.known()))
        return trait["teacher"]

    prompt = open_recipe("rank").layout(known_model("micro")).traits[0].teacher_prompt()
    assert said("rank") == f"Teacher’s prompt: “{prompt}”"
    both = said("channel")
    assert "by its weights, a LoRA of rank 8 on 400 answers" in both and both.count(prompt) == 1
    assert "added 2 times behind layers 0 to 2" in both
    written = said("dose", "data.teacher.trained.lessons=written")
    assert "400 lessons such as “" in written and "otter" in written and prompt not in written
    assert "prompt instead, that is “" in said("channel", "data.teacher.trained.lessons=written")
