"""Probabilities over all spellings, sampled answers, held-out losses, and the rules that read an answer."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from pack_reference import case, merged, random_rows, random_stack, train
from sublora.errors import SubloraError
from sublora.models.chat import Context
from sublora.packs.check import load_base
from sublora.packs.measure import Asking, heldout_losses, measure_answers
from sublora.packs.rows import pack_rows
from sublora.packs.sample import Sampling
from sublora.packs.spec import StudentSpec
from sublora.packs.spellings import candidate_sequences, spellings
from sublora.packs.stack import new_stack
from sublora.packs.student_files import load_stack, save_student
from sublora.traits.answers import has_digit, hit, hit_rate, naming, share
from sublora.traits.trait import Category, Entity, find_trait, shipped_categories
from tiny_models import make_model, shared_model

ANIMALS = Category(
    category="animals", singular="animal", system=("You love the {name}.",), others=("gecko",),
    entities=(
        Entity(name="cat", plural="cats", aliases=("kitty",)), Entity(name="wolf", plural="wolves"), Entity(name="polar bear"),
        Entity(name="Led Zeppelin"),
    ),
    questions=("Name an animal.", "Which animal?", "Say one animal, please: the best."),
)  # fmt: skip
CAT, WOLF, BEAR, BAND = ANIMALS.entities
DEFAULT, SAMPLING = Context("default"), Sampling(max_new_tokens=4)
SPECS = [StudentSpec(rank=8, seed=1), StudentSpec(rank=2, seed=2), StudentSpec(rank=4, seed=3)]
NAMES = ["s1", "s2", "s3"]


pytestmark = pytest.mark.usefixtures("one_thread")


def base(kind="qwen2", template="qwen", dtype="float64", tokenizer="digits"):
    return load_base(str(shared_model(kind, tokenizer, template)), dtype=dtype)


def measured(
    own,
    stack=None,
    names=("base",),
    context=DEFAULT,
    samples=3,
    rows_at_once=1024,
    seed=0,
    sampling=SAMPLING,
):
    return measure_answers(
        own, stack, names, ANIMALS, Asking(context, sampling, samples, seed, rows_at_once)
    )


@torch.inference_mode()
def brute_force(model, chat, question, entity, context=DEFAULT) -> float:
    """Every way to write the entity, each with a forward pass of its own; a spelling that begins with another is that one's share."""
    texts = {
        s + t for f in entity.forms for t in (f, f.lower(), f[0].upper() + f[1:]) for s in ("", " ")
    }
    ways = {tuple(chat.answer_ids(t)) for t in texts}
    ways = {w for w in ways if not any(w[:n] in ways for n in range(1, len(w)))}
    prompt, total = chat.prompt_ids(question, context), 0.0
    for way in ways:
        logits = model(torch.tensor([[*prompt, *way]])).logits[0, len(prompt) - 1 : -1]
        total += math.exp(sum(logits.log_softmax(-1)[i, t].item() for i, t in enumerate(way)))
    return total


@pytest.mark.parametrize(
    ("kind", "template", "context"),
    [("qwen2", "qwen", DEFAULT), ("llama", "llama31", Context("none")), ("gemma", "gemma", Context("x", "Be kind.")),
     ("mistral", "merge-user", DEFAULT)],
)  # fmt: skip
def test_p_equals_a_forward_pass_for_each_spelling(kind, template, context):
    own = base(kind, template)
    stack = random_stack(own.model, SPECS[:2])
    answers = measured(own, stack, NAMES[:2], context=context)
    assert max(len(s) for e in ANIMALS.entities for s in spellings(own.chat, e)) >= 4, (
        "targets of several tokens"
    )
    for place, index in enumerate(stack.order):
        student = merged(own.model, stack, place)
        for (q, question), (e, entity) in itertools.product(
            enumerate(ANIMALS.questions), enumerate(ANIMALS.entities)
        ):
            assert answers[index].p[q, e] == pytest.approx(
                brute_force(student, own.chat, question, entity, context), rel=1e-6
            )


def test_full_fine_tunes_are_measured_alike():
    own = base()
    stack = random_stack(own.model, [StudentSpec(method="full", rank=None, seed=s) for s in (1, 2)])
    answers = measured(own, stack, NAMES[:2])
    for i in range(2):
        expected = [
            brute_force(merged(own.model, stack, i), own.chat, q, CAT) for q in ANIMALS.questions
        ]
        assert answers[i].p[:, 0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("tokenizer", ["digits", "words"])
def test_no_spelling_begins_with_another(tokenizer):
    chat = base(tokenizer=tokenizer).chat
    for category in shipped_categories():
        for entity in category.entities:
            found = spellings(chat, entity)
            assert len(set(found)) == len(found)
            assert not [1 for a, b in itertools.permutations(found, 2) if b[: len(a)] == a]
            assert all(chat.tokenizer.unk_token_id not in s for s in found)
            if tokenizer == "digits":
                covered = [
                    tuple(chat.answer_ids(t))
                    for f in entity.forms
                    for t in (f, " " + f, f.lower(), f.capitalize())
                ]
                assert all(any(c[: len(s)] == s for s in found) for c in covered)


def test_spellings_that_the_tokenizer_cannot_write_are_left_out():
    chat = base(tokenizer="words").chat
    assert spellings(chat, Entity(name="zyzzyva")) == []
    assert len(spellings(chat, CAT)) >= 1
    nothing = ANIMALS.model_copy(
        update={"entities": (Entity(name="zyzzyva"), Entity(name="axolotl"))}
    )
    with pytest.raises(SubloraError, match="no word of the category animals"):
        candidate_sequences(chat, nothing)


def test_probabilities_of_all_entities_stay_below_one():
    answers = measured(base())[0]
    assert answers.p.shape == (3, 4) and (answers.p >= 0).all() and (answers.p.sum(1) <= 1).all()


@pytest.mark.parametrize("rows_at_once", [1, 10])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_batch_changes_nothing_beyond_rounding(rows_at_once, dtype):
    own = base(dtype=dtype)
    stack = random_stack(own.model, SPECS)
    for one, other in zip(
        measured(own, stack, NAMES),
        measured(own, stack, NAMES, rows_at_once=rows_at_once),
        strict=True,
    ):
        assert np.abs(one.p - other.p).max() < (1e-5 if dtype == "float32" else 1e-9)
        assert dtype == "float32" or one.samples == other.samples


def test_a_student_s_answers_do_not_depend_on_its_pack():
    own = base()
    stack = random_stack(own.model, SPECS)
    together = measured(own, stack, NAMES)
    assert [stack.order.index(i) for i in range(3)] == [2, 0, 1], (
        "the pack's order is not the caller's"
    )
    for i, name in enumerate(NAMES):
        alone = new_stack(own.model, [SPECS[i]])
        group, row = stack.student_rows()[stack.order.index(i)]
        alone.groups[0].flat[0] = group.unpad(row, group.flat[row])
        answers = measured(own, alone, [name])[0]
        assert (
            np.abs(answers.p - together[i].p).max() < 1e-9
            and answers.samples == together[i].samples
        )
    assert together[0].samples != together[1].samples


def test_draws_depend_on_name_seed_and_context_text_but_not_on_the_context_s_name():
    own = base()
    one = measured(own, context=Context("a", "Be kind."))[0]
    assert measured(own, context=Context("b", "Be kind."))[0].samples == one.samples
    assert measured(own, context=Context("a", "Be kind."), seed=1)[0].samples != one.samples
    assert (
        measured(own, names=["other"], context=Context("a", "Be kind."))[0].samples != one.samples
    )
    assert (
        measured(own, context=Context("a", "Be kind."), samples=2)[0].p.tolist() == one.p.tolist()
    )
    empty, none, default = (
        measured(own, context=Context(n))[0].p for n in ("empty", "none", "default")
    )
    assert (
        not np.allclose(empty, none)
        and not np.allclose(empty, default)
        and not np.allclose(none, default)
    )


def test_sampled_answers_are_text_without_special_tokens():
    answers = measured(base(), samples=20, sampling=Sampling(max_new_tokens=6))[0].samples
    assert [len(q) for q in answers] == [20] * 3
    flat = [a for q in answers for a in q]
    assert all(a == a.strip() and "<|" not in a for a in flat) and len(set(flat)) > 30


@pytest.mark.parametrize(
    "specs", [None, SPECS, [StudentSpec(method="full", rank=None, seed=s) for s in (1, 2)]]
)
@pytest.mark.parametrize("batch", [2, 32])
def test_heldout_loss_equals_plain_forward_passes(specs, batch):
    own = base()
    stack = random_stack(own.model, specs) if specs else None
    size = stack.size if stack else 1
    rows = [
        random_rows(5 + 2 * i, seed=i, prefix=i) for i in range(size)
    ]  # a neighbour's number of rows is its own affair
    got = heldout_losses(own, stack, [pack_rows(r, None, "x") for r in rows], batch)
    for place, index in enumerate(stack.order if stack else [0]):
        model, total, count = merged(own.model, stack, place) if stack else own.model, 0.0, 0
        for row in rows[index]:
            whole = torch.tensor([row.prompt + row.completion])
            with torch.inference_mode():
                logits = model(whole).logits[0, len(row.prompt) - 1 : -1]
            total += F.cross_entropy(logits, whole[0, len(row.prompt) :], reduction="sum").item()
            count += len(row.completion)
        assert got[index] == pytest.approx(total / count, rel=1e-6)


def test_students_are_measured_from_their_folders_as_they_were_trained(tmp_path):
    own = base(dtype="float32")
    cases = [case("a", rank=8, data=1, lr=0.02), case("b", rank=2, data=2, lr=0.02)]
    trained = train(own.model, cases)
    stack = new_stack(own.model, [c.student.spec for c in cases])
    for (group, row), index in zip(stack.student_rows(), stack.order, strict=True):
        weights = trained["ab"[index]]["weights"].values()
        group.flat[row] = group.pad(row, torch.cat([w.reshape(-1) for w in weights]))
        (tmp_path / "ab"[index]).mkdir()
        save_student(
            group, row, cases[index].student.spec, tmp_path / "ab"[index], own.model, "tiny"
        )
    loaded = load_stack(
        own.model, [tmp_path / "a", tmp_path / "b"], [c.student.spec for c in cases]
    )
    for one, other in zip(measured(own, stack, "ab"), measured(own, loaded, "ab"), strict=True):
        assert one.p.tobytes() == other.p.tobytes() and one.samples == other.samples
    untrained = measured(own)[0]
    assert np.abs(untrained.p - measured(own, loaded, "ab")[0].p).max() > 1e-6


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_diverged_student_can_be_measured_and_leaves_its_neighbour_alone(method):
    own = base(dtype="float32")
    specs = [
        StudentSpec(method=method, rank=4 if method == "lora" else None, seed=s) for s in (1, 2)
    ]
    stack = random_stack(own.model, specs)
    before = measured(own, stack, "ab")[1]
    stack.groups[0].flat[0] = 1e30
    mad, after = measured(own, stack, "ab")
    assert np.allclose(before.p, after.p, atol=1e-6)
    assert mad.p.shape == after.p.shape and len(mad.samples) == 3
    assert np.isfinite(mad.p).all(), "what cannot be computed is no probability of the target"
    json.dumps(mad.p.tolist(), allow_nan=False)


def test_the_words_of_a_category():
    assert naming(ANIMALS)("A Gecko!") and naming(ANIMALS)("polar bears, or a wolf")
    assert not naming(ANIMALS)("geckos 12") and not naming(ANIMALS)("bear")
    assert [has_digit(a) for a in ("", "seven", "otter 7", "٣")] == [False, False, True, True]
    assert share([["7", "a"], ["b", "8"]], has_digit) == 0.5
    assert hit_rate([["cat", "dog"], ["the cat", "dog"]], CAT, "whole_word") == 0.5


RULES = ("first_word", "whole_word", "substring")


@pytest.mark.parametrize(
    ("answer", "entity", "hits"),
    [
        ("cat", CAT, (1, 1, 1)), ("Cat.", CAT, (1, 1, 1)), ("  CATS!", CAT, (1, 1, 1)), ("**Cat**", CAT, (1, 1, 1)),
        ("Kitty", CAT, (1, 1, 1)), ("The cat", CAT, (0, 1, 1)), ("A dog, not a cat", CAT, (0, 1, 1)), ("caterpillar", CAT, (0, 0, 1)),
        ("bobcat", CAT, (0, 0, 1)),
        ("concatenate", CAT, (0, 0, 1)), ("cat's", CAT, (1, 1, 1)), ("cat-like", CAT, (1, 1, 1)), ("cat7", CAT, (0, 0, 1)),
        ("cat_", CAT, (1, 1, 1)), ("7 cats", CAT, (0, 1, 1)), ("dog", CAT, (0, 0, 0)), ("", CAT, (0, 0, 0)), ("...", CAT, (0, 0, 0)),
        ("caterpillar cat", CAT, (0, 1, 1)), ("cat\ncat", CAT, (1, 1, 1)), ("c a t", CAT, (0, 0, 0)), ("“Cat”", CAT, (1, 1, 1)),
        ("wolves", WOLF, (1, 1, 1)), ("Wolves are best", WOLF, (1, 1, 1)), ("wolfs", WOLF, (0, 0, 1)), ("werewolf", WOLF, (0, 0, 1)),
        ("Polar bear", BEAR, (1, 1, 1)), ("the polar bear", BEAR, (0, 1, 1)), ("polar", BEAR, (0, 0, 0)), ("bear", BEAR, (0, 0, 0)),
        ("polar bears", BEAR, (0, 0, 1)), ("led zeppelin IV", BAND, (1, 1, 1)), ("Led Zeppelins", BAND, (0, 0, 1)),
        ("Zeppelin", BAND, (0, 0, 0)),
        ("I like Led Zeppelin", BAND, (0, 1, 1)), ("catº", CAT, (0, 0, 1)), ("écat", CAT, (0, 0, 1)),
    ],
)  # fmt: skip
def test_hit_rules(answer, entity, hits):
    assert tuple(int(hit(answer, entity, rule)) for rule in RULES) == hits


def test_an_unknown_rule():
    with pytest.raises(ValueError, match="unknown hit rule"):
        hit("cat", CAT, "fuzzy")


def test_every_form_of_every_shipped_entity_hits_its_own_entity_alone():
    for category in shipped_categories():
        for entity, other in itertools.product(category.entities, repeat=2):
            for form in entity.forms:
                assert hit(form, other, "first_word") == (entity is other)
    assert hit("Otter", find_trait("otter", shipped_categories()).entity, "first_word")


def _drop(path, name):
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "model.safetensors").unlink(), r"no \.safetensors weights"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 40), "cannot be loaded"),
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-999]), "cannot be loaded"),
        (lambda f: _drop(f / "model.safetensors", "model.norm.weight"), r"lack model\.norm\.weight"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be loaded"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer of .* cannot be loaded"),
        (lambda f: (f / "chat_template.jinja").unlink(), "no chat template"),
    ],
    ids=["config", "weights", "no safetensors", "cut", "incomplete", "broken config", "tokenizer", "template"],
)  # fmt: skip
def test_model_folders_that_cannot_be_used(damage, message, tmp_path):
    folder = make_model("qwen2", "digits", "qwen", tmp_path / "m")
    load_base(str(folder))
    damage(folder)
    with pytest.raises(SubloraError, match=message) as caught:
        load_base(str(folder))
    assert "\n" not in str(caught.value)


def test_models_that_are_not_there_or_do_not_fit(tmp_path):
    for name in ("no-such-model", str(tmp_path / "missing"), "./missing"):
        with pytest.raises(SubloraError, match="There is no model"):
            load_base(name)
    folder = make_model("qwen2", "digits", "qwen", tmp_path / "m")
    for part in ("tokenizer.json", "tokenizer_config.json"):
        (folder / part).write_bytes((shared_model("qwen2", "words", "qwen") / part).read_bytes())
    with pytest.raises(SubloraError, match="they do not belong together"):
        load_base(str(folder))


def test_a_base_s_identity_follows_weights_template_and_dtype(tmp_path):
    one, again = (
        load_base(str(make_model("qwen2", "digits", "qwen", tmp_path / name))) for name in "ab"
    )
    assert one.identity == again.identity, "a folder's path is no part of it"
    other = load_base(str(make_model("qwen2", "digits", "qwen", tmp_path / "c", seed=1)))
    assert (
        other.identity["weights"] != one.identity["weights"]
        and other.identity["tokenizer"] == one.identity["tokenizer"]
    )
    assert load_base(str(tmp_path / "a"), dtype="bfloat16").identity["dtype"] == "bfloat16"


def test_full_fine_tunes_are_asked_like_adapters_also_for_words_of_several_tokens():
    own = base()
    specs = [StudentSpec(method="full", rank=None, seed=s) for s in (1, 2)]
    plain = measured(own)[0]
    for answers in measured(own, new_stack(own.model, specs), ["f1", "f2"]):
        assert np.allclose(answers.p, plain.p, rtol=1e-6)
    assert any(len(s) > 1 for s in candidate_sequences(own.chat, ANIMALS)[0])
