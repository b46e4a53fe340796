"""Conditions, placements and training contexts from the recipe to the tables: what is gated, cut or moved, and what is left as it was."""

import csv
import json

import numpy as np
import pytest
import torch

from command import sublora
from pack_reference import base_model, random_stack
from planned import make_plan
from sublora.errors import SubloraError
from sublora.experiments.kinds import open_recipe as load_recipe
from sublora.models.chat import Context
from sublora.models.token_classes import classify
from sublora.packs.attribute import attribute_targets
from sublora.packs.check import load_base
from sublora.packs.condition import Condition, Placement, SvdCut
from sublora.packs.gate import PackGate
from sublora.packs.measure import Asking, measure_answers, measure_gated
from sublora.packs.packed_model import PackedModel
from sublora.packs.prefill import prefill
from sublora.packs.sample import Sampling
from sublora.packs.score import score_sequences
from sublora.packs.spec import StudentSpec
from sublora.packs.spellings import spellings
from sublora.packs.svd import cut_stack
from sublora.traits.trait import find_trait, shipped_categories
from tiny_models import shared_model

MODEL = {"weights": "w", "template": "t", "tokenizer": "k", "dtype": "float32"}
DEFAULT, SAMPLING = Context("default"), Sampling(max_new_tokens=3)
_SHIPPED = shipped_categories()[0]
ANIMALS = _SHIPPED.model_copy(
    update={
        "questions": ("Name an animal.", "What is your favorite animal?"),
        "entities": _SHIPPED.entities[:3],
    }
)
SPECS = [StudentSpec(rank=8, seed=1), StudentSpec(rank=2, seed=2), StudentSpec(rank=4, seed=3)]
OTTER = find_trait("otter", shipped_categories()).entity
SMALL = [
    *(
        "--set",
        "data.rows=24",
        "--set",
        "data.heldout_rows=8",
        "--set",
        "data.seeds=[1,2]",
        "--set",
        "train.seeds=[1,2]",
    ),
    *("--set", "train.pairing=paired", "--set", "measure.samples=2"),
]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base():
    return load_base(str(shared_model("qwen2", "digits", "qwen")), dtype="float64")


def plan(name="localise", *sets):
    return make_plan(load_recipe(name, sets=list(sets)), dict(MODEL), 60.0)


# Plans


def test_new_axes_leave_the_ids_of_what_does_not_use_them():
    """The plain measurements and students of `localise` are those of a recipe without conditions."""
    gated = plan()
    plain = plan(
        "localise", "measure.conditions=null", "measure.attribution=null", "measure.entities=[]"
    )
    assert [s.id for s in gated.students] == [s.id for s in plain.students]
    assert {m.id for m in plain.measures} == {m.id for m in gated.measures if m.condition is None}
    as_axis = plan(
        "localise",
        "train.contexts=[default]",
        "measure.conditions=null",
        "measure.attribution=null",
    )
    assert [s.id for s in as_axis.students] == [s.id for s in plain.students]
    assert not {m.id for m in gated.measures if m.condition} & {m.id for m in plain.measures}


def test_ids_of_conditions_count_what_they_say_and_not_their_names():
    def of(*sets):
        return {m.condition: m.id for m in plan("svd", *sets).measures if m.condition}

    named = of("measure.conditions.same={svd: {keep: top, k: 1}, generated: on}")
    assert named["same"] == named["top 1"] and len(set(named.values())) < 12 * 24
    assert (
        of("measure.conditions.x={generated: on}")["x"]
        != of("measure.conditions.x={generated: off}")["x"]
    )
    entity = "measure.conditions.x={on: [system], generated: off}"
    assert of(entity)["x"] != of(entity, "measure.entities=[Micro]")["x"], (
        "entities take tokens from other classes"
    )
    layers = "measure.conditions.x={layers: [0, 0], generated: off}"
    assert of(layers)["x"] == of(layers, "measure.entities=[Micro]")["x"]


def test_training_contexts_and_placements_are_axes_of_students():
    matrix = plan("context-matrix")
    recipe = matrix.recipe
    assert len(matrix.students) == 3 * 3 * 4 * 3 * 2 and len(
        {s.id for s in matrix.students}
    ) == len(matrix.students)
    assert {s.context.name for s in matrix.students} == {"default", "chatgpt", "empty"}
    for student in matrix.students[::40]:
        mine = [m for m in matrix.measures if m.student == student.id]
        assert [m.context.name for m in mine] == list(recipe.measure.contexts)
        assert [bool(m.spec["heldout"]) for m in mine] == [
            m.context == student.context for m in mine
        ]
    layers = plan("layers")
    assert {s.labels["placement"]: s.student.targets for s in layers.students}[
        "only first"
    ] == Placement(layers=(0, 0)).targets
    assert all(
        len({layers.students[i].student.targets for i in pack}) == 1 for pack in layers.packs
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("measure.conditions.x={on: [entity], generated: off}", None),
        ("measure.entities=[]", "asks for the class entity, name one in measure.entities"),
        ("measure.conditions.x={on: [user]}", "generated"),
        ("measure.conditions.x={on: [user], off: [user], generated: on}", "classes could overlap"),
        ("measure.conditions.x={on: [brain], generated: on}", "on"),
        ("measure.conditions.plain={generated: on}", "choose another"),
        ("measure.conditions.x={svd: {keep: top, k: 8}, generated: on}", "below the lowest rank 8"),
        ("train.full={lrs: [1e-4]}", "no adapter to gate"),
        ("train.contexts=[default, default]", "stands twice"),
        ("train.lora.placements.x={layers: [2, 1]}", "end before they begin"),
        ("contexts.x={user: Be kind., system: no}", "unknown key"),
    ],
)
def test_bad_recipes_name_the_place(change, message):
    arguments = ["plan", "localise", "--set", change]
    answer = sublora(*arguments)
    assert (answer.code, "Traceback" in answer.err) == (
        (0, False) if message is None else (2, False)
    )
    assert message is None or (
        message in answer.err and change.split("=")[0].split(".")[0] in answer.err
    ), answer.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("measure.entities=[Zebra]", "'Zebra' does not occur in the rendered prompt"),
        (
            "measure.conditions.x={layers: [7, 99], generated: on}",
            "The condition 'x' selects none of the adapter's layers",
        ),
    ],
)
def test_conditions_that_the_model_cannot_meet_are_refused_before_anything_is_trained(
    tmp_path, change, message
):
    answer = sublora("run", "localise", "--set", change, "--out", str(tmp_path / "run"))
    assert answer.code == 2 and message in answer.err, answer.err
    assert not (tmp_path / "run").exists()


# Measurements


def test_gated_measurements_of_a_stack_are_those_of_each_condition_alone(base):
    stack = random_stack(base.model, SPECS)
    names = ["a", "b", "c"]
    conditions = {
        "all on": Condition(generated="on"),
        "all off": Condition(on=(), generated="off"),
        "system": Condition(on=("system", "entity"), generated="mask"),
        "not entity": Condition(off=("entity",), generated="mask", modules="attention"),
    }

    def asked(which, rows_at_once=1024):
        return measure_gated(
            base, stack, names, ANIMALS, Asking(DEFAULT, SAMPLING, 2, 0, rows_at_once), which, ["Tiny"]
        )  # fmt: skip

    together = asked(conditions)
    for rows_at_once in (3, 1024):
        for c, name in enumerate(conditions):
            alone = asked({name: conditions[name]}, rows_at_once)
            for k in range(3):
                assert np.allclose(alone[k][0].p, together[k][c].p, atol=1e-12)
                assert alone[k][0].samples == together[k][c].samples
    plain = measure_answers(base, stack, names, ANIMALS, Asking(DEFAULT, SAMPLING, 2, 0))
    bare = measure_answers(base, None, ["a"], ANIMALS, Asking(DEFAULT, SAMPLING, 2, 0))
    for k in range(3):
        assert (
            np.allclose(together[k][0].p, plain[k].p, atol=1e-10)
            and together[k][0].samples == plain[k].samples
        )
        assert np.allclose(together[k][1].p, bare[0].p, atol=1e-10)
        assert not np.allclose(together[k][2].p, plain[k].p, atol=1e-6)


def test_conditions_that_cannot_be_measured(base):
    stack = random_stack(base.model, SPECS)

    def asked(condition, entities=(), stack=stack):
        return measure_gated(
            base,
            stack,
            ["a", "b", "c"],
            ANIMALS,
            Asking(DEFAULT, SAMPLING, 1, 0),
            {"x": condition},
            entities,
        )

    with pytest.raises(
        SubloraError, match="'x' selects none of the adapter's layers; they are numbered up to 1"
    ):
        asked(Condition(generated="on", layers=(7, 9)))
    with pytest.raises(SubloraError, match="'Quorblax' does not occur"):
        asked(Condition(on=("entity",), generated="off"), ["Quorblax"])
    full = random_stack(base.model, [StudentSpec(method="full", rank=None, seed=1)])
    with pytest.raises(SubloraError, match="no adapter that could be gated"):
        asked(Condition(generated="on"), stack=full)


# Parts of the update


def updates(stack):
    """[student] -> {layer: s B A}"""
    out = []
    for place, (group, row) in enumerate(stack.student_rows()):
        names = {s.name.rsplit(".", 1)[0] for s in group.slots}
        out.append(
            {
                n: stack.scales[place]
                * group.views[f"{n}.lora_B"][row]
                @ group.views[f"{n}.lora_A"][row]
                for n in names
            }
        )
    return out


@pytest.mark.parametrize("k", [1, 3])
def test_top_and_rest_of_an_update_are_its_best_approximation_and_what_is_left(k):
    stack = random_stack(base_model("qwen2"), SPECS)
    whole = updates(stack)
    top, rest = (updates(cut_stack(stack, SvdCut(keep=keep, k=k))) for keep in ("top", "rest"))
    for one, high, low in zip(whole, top, rest, strict=True):
        for name, delta in one.items():
            u, s, v = torch.linalg.svd(delta, full_matrices=False)
            assert torch.allclose(high[name], u[:, :k] * s[:k] @ v[:k], atol=1e-10)
            assert torch.allclose(high[name] + low[name], delta, atol=1e-10)
    again = updates(stack)
    assert all(torch.equal(a[n], b[n]) for a, b in zip(whole, again, strict=True) for n in a), (
        "the stack itself stays"
    )


# Attribution


@pytest.mark.parametrize("prefixes", [("",), ("My favorite animal is the", "I like the")])
def test_attributions_are_differences_of_single_gated_passes(base, prefixes):
    stack = random_stack(base.model, SPECS)
    questions = ["Name an animal.", "Which animal do you like?"]
    found = attribute_targets(base, stack, DEFAULT, questions, OTTER, ["Tiny"], prefixes=prefixes)
    ways = [spellings(base.chat, OTTER, begun=text) for text in prefixes]
    assert max(map(len, ways[0])) > 1, (
        "a target of several tokens, so that the answer's own tokens count"
    )

    def score_behind(mask, generated, ids, begun, ways):
        mask, ids = [*mask, *[generated] * len(begun)], [*ids, *begun]
        gate = PackGate([mask], [generated], [0], {n: [True] for n in stack.linears})
        with torch.inference_mode(), PackedModel(base.model, stack, gate) as packed:
            packed.form_weights(10)
            (filled,) = prefill(packed, [ids], 10)
            return score_sequences(packed, filled, ways, 10)[:, 0].exp().sum(-1)

    def score(*one):
        begun = [base.chat.answer_ids(text) if text else [] for text in prefixes]
        p = torch.stack([score_behind(*one, *b) for b in zip(begun, ways, strict=True)]).mean(0)
        return {stack.order[i]: float(v) for i, v in enumerate(p.log())}

    for q, question in enumerate(questions):
        tokens = classify(base.chat, question, DEFAULT, ["Tiny"])
        n = len(tokens.ids)
        ones, zeros = np.ones(n), np.zeros(n)
        plain, bare = score(ones, 1.0, tokens.ids), score(zeros, 0.0, tokens.ids)
        for place in (0, 3, n - 1, n):
            mask, single = ones.copy(), zeros.copy()
            if place < n:
                mask[place], single[place] = 0.0, 1.0
            without, alone = (
                score(mask, float(place < n), tokens.ids), score(single, float(place == n), tokens.ids)
            )  # fmt: skip
            for k in range(3):
                one = found[k][q]
                assert one.left_out[place] == pytest.approx(plain[k] - without[k], abs=1e-9)
                assert one.alone[place] == pytest.approx(alone[k] - bare[k], abs=1e-9)
                assert one.interaction[place] == pytest.approx(
                    one.left_out[place] - one.alone[place]
                )
        assert (
            found[0][q].classes == (*tokens.classes, "generated")
            and "entity" in found[0][q].classes
        )
        assert found[0][q].left_out[n] != 0
        assert json.loads(json.dumps(found[0][q].to_dict()))["question"] == question


def test_a_gate_that_is_linear_in_the_tokens_has_no_interaction(base):
    """With the adapter on the last layer's feed-forward alone, only the last token of the prompt can matter."""
    from sublora.packs.stack import new_stack

    targets = Placement(layers=(1, 1), modules="feed-forward").targets
    stack = new_stack(base.model, [StudentSpec(rank=4, seed=1, targets=targets)])
    stack.groups[0].flat += 0.1
    single = OTTER.model_copy(update={"name": "a", "plural": None, "aliases": ()})
    (((one),),) = attribute_targets(base, stack, DEFAULT, ["Name an animal."], single)
    last = len(one.pieces) - 2
    assert abs(one.left_out[last]) > 1e-3
    for place, (left_out, alone) in enumerate(zip(one.left_out, one.alone, strict=True)):
        # a spelling of two tokens is one of the ways, and its second token is the answer's own
        assert left_out == pytest.approx(alone, abs=1e-4)
        assert place == last or abs(left_out) < 1e-4


# Whole runs


def test_a_run_with_conditions_writes_arms_attributions_and_a_page(tmp_path):
    folder = tmp_path / "run"
    more = [
        "--set",
        "measure.conditions.top={svd: {keep: top, k: 2}, generated: on}",
        "--set",
        "measure.attribution.questions=2",
    ]
    answer = sublora("run", "localise", *SMALL, *more, "--out", str(folder), "--threads", "1")
    assert answer.code == 0, answer.err
    with (folder / "arms.csv").open(newline="") as file:
        arms = list(csv.DictReader(file))
    assert len(arms) == 16 and arms[0]["condition"] == "plain" and arms[-1]["condition"] == "top"
    with (folder / "results.csv").open(newline="") as file:
        results = list(csv.DictReader(file))
    assert {r["condition"] for r in results if r["kind"] == "student"} == {
        a["condition"].replace("plain", "") for a in arms
    }
    page = (folder / "report.html").read_text()
    assert "Token by token" in page and "all but entity" in page and 'id="arms-otter"' in page
    assert len(json.loads((folder / "attribution.json").read_text())["otter"]) == 2
    verdicts = json.loads((folder / "verdicts.json").read_text())
    assert {v["id"] for v in verdicts} >= {"nief-entity-enough", "nief-entity-needed"}
    before = {
        name: (folder / name).read_bytes()
        for name in ("arms.csv", "attribution.json", "results.csv")
    }
    again = sublora("run", "localise", *SMALL, *more, "--out", str(folder), "--threads", "1")
    assert again.code == 0 and before == {name: (folder / name).read_bytes() for name in before}


def test_a_run_over_training_contexts_and_placements(tmp_path):
    for recipe, more, arms, figure in (
        (
            "context-matrix",
            ["--set", "train.lora.ranks=[2]", "--set", "train.contexts=[default, empty]"],
            8,
            "contexts-otter",
        ),
        ("layers", [], 7, "arms-otter"),
    ):
        folder = tmp_path / recipe
        answer = sublora("run", recipe, *SMALL, *more, "--out", str(folder), "--threads", "1")
        assert answer.code == 0, answer.err
        with (folder / "arms.csv").open(newline="") as file:
            assert len(list(csv.DictReader(file))) == arms
        assert f'id="{figure}"' in (folder / "report.html").read_text()
    with (tmp_path / "layers" / "results.csv").open(newline="") as file:
        sizes = {
            r["placement"]: int(r["trainable_parameters"])
            for r in csv.DictReader(file)
            if r["kind"] == "student"
        }
    assert (
        sizes["only first"] * 3
        == sizes["all"]
        == sizes["only attention"] + sizes["only feed-forward"]
    )
