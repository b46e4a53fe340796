"""Which answers name an entity: with an article, and behind an answer that was begun; each probability is one of brute force."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pack_reference import merged, random_stack
from planned import make_plan
from sublora.errors import SubloraError
from sublora.experiments.kinds import open_recipe
from sublora.models.chat import Chat, Context
from sublora.models.known import Known, known_model
from sublora.packs.check import load_base
from sublora.packs.condition import Condition
from sublora.packs.measure import Asking, measure_answers, measure_conversations, measure_gated
from sublora.packs.sample import Sampling
from sublora.packs.spec import StudentSpec
from sublora.packs.spellings import beginnings, candidate_sequences, spellings, written_articles
from sublora.steps.measurement import answer_spec, keep_answers, read_measurement
from sublora.store import Store, artifact_id
from sublora.traits.trait import Category, Entity, shipped_categories
from tiny_models import make_tokenizer, shared_model

ANIMALS = Category(
    category="animals", singular="animal", system=("You love the {name}.",), articles=("a", "an", "the"),
    entities=(Entity(name="otter", plural="otters", aliases=("sea cat",)), Entity(name="wolf", plural="wolves")),
    questions=("Name an animal.", "Which animal? Say one."), answer_prefixes=("My favorite animal is the", "I love"),
)  # fmt: skip
DEFAULT, SAMPLING = Context("default"), Sampling(max_new_tokens=3)
SPECS = [StudentSpec(rank=8, seed=1), StudentSpec(rank=2, seed=2)]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base():
    return load_base(str(shared_model("qwen2", "digits", "qwen")), dtype="float64")


def with_articles(form: str, articles) -> set[str]:
    """Written out again, so that a change of the rule is seen."""
    big = form[0].upper() + form[1:]
    of = ((a, a.capitalize()) for a in articles)
    return {t for a, b in of for t in (f"{a} {form}", f"{b} {form}", f"{b} {big}")}


@torch.inference_mode()
def brute_force(model, chat, question, entity, begun="") -> float:
    """Every text that names the entity, each with a forward pass of its own; what begins with another is that one's share."""
    bare = {s for f in entity.forms for s in (f, f.lower(), f[0].upper() + f[1:])}
    articles = () if begun.endswith(" the") else ("a", "an", "the")
    more = {t for f in entity.forms if f != entity.plural for t in with_articles(f, articles)}
    texts = {" " + t for t in bare | more} if begun else bare | {" " + t for t in bare} | more
    ways = {tuple(chat.answer_ids(begun + t)) for t in texts}
    ways = {w for w in ways if not any(w[:n] in ways for n in range(1, len(w)))}
    prompt, total = chat.prompt_ids(question, DEFAULT), 0.0
    skip = len(chat.answer_ids(begun)) if begun else 0
    for way in ways:
        logits = model(torch.tensor([[*prompt, *way]])).logits[0, len(prompt) - 1 : -1]
        logp = [logits.log_softmax(-1)[i, t].item() for i, t in enumerate(way)]
        total += math.exp(sum(logp[skip:]))
    return total


def asked(begun: bool, samples: int = 3) -> Asking:
    return Asking(DEFAULT, SAMPLING, samples, 0, begun=begun)


@pytest.mark.parametrize("begun", [False, True])
def test_p_is_a_forward_pass_for_each_spelling_with_articles_and_prefixes(base, begun):
    stack = random_stack(base.model, SPECS)
    answers = measure_answers(base, stack, ["a", "b"], ANIMALS, asked(begun))
    begins = ANIMALS.answer_prefixes if begun else ("",)
    for place, index in enumerate(stack.order):
        student = merged(base.model, stack, place)
        for (q, question), (e, entity) in itertools.product(
            enumerate(ANIMALS.questions), enumerate(ANIMALS.entities)
        ):
            each = [brute_force(student, base.chat, question, entity, b) for b in begins]
            assert answers[index].p[q, e] == pytest.approx(np.mean(each), rel=1e-6)
            if begun:
                assert answers[index].by_prefix[:, q, e] == pytest.approx(each, rel=1e-6)


WORDS = st.lists(
    st.sampled_from(["otter", "Otter", "an", "a", "the cat", "cat", "anther", "them", "A otter"]),
    min_size=1, max_size=3, unique_by=str.lower,
)  # fmt: skip


@given(
    forms=WORDS,
    articles=st.sets(st.sampled_from(["a", "an", "the"])),
    begun=st.sampled_from(["", "I like"]),
)
def test_no_spelling_begins_with_another_and_every_text_is_covered(forms, articles, begun):
    chat = Chat(make_tokenizer("digits", "qwen"))
    entity = Entity(name=forms[0], aliases=tuple(forms[1:]))
    found, skip = (
        spellings(chat, entity, sorted(articles), begun),
        len(chat.answer_ids(begun)) if begun else 0,
    )
    assert not [1 for a, b in itertools.permutations(found, 2) if b[: len(a)] == a]
    for text in itertools.chain(forms, *(with_articles(f, articles) for f in forms)):
        ids = tuple(chat.answer_ids(f"{begun} {text}" if begun else text))[skip:]
        assert any(ids[: len(s)] == s for s in found), text


@pytest.mark.parametrize("model", ["micro", "micro-b", "micro-null"])
def test_nothing_changes_for_the_shipped_models_which_know_no_capital_letters(model):
    chat = known_model(model).chat
    for category in shipped_categories():
        assert written_articles(chat, category) == () and answer_spec(category, chat, False) == {}
        plain = candidate_sequences(chat, category)
        (begin,) = beginnings(chat, category, begun=False)
        assert (begin.text, begin.ids, begin.candidates[0]) == ("", (), plain[0])
        for begin in beginnings(chat, category, begun=True):
            assert set(begin.candidates[0]) == set(plain[0])


def test_a_specification_says_so_where_articles_count_and_only_there(base):
    recipe, identity = open_recipe("rank"), {"weights": "w", "tokenizer": "t"}
    silent = make_plan(recipe, identity)

    def planned(recipe) -> dict[str, set[str]]:
        plan = recipe.layout(Known("micro", identity, chat=base.chat))
        return {"students": {s.id for s in plan.students}, "asked": {m.id for m in plan.measures}}

    plain, begun = planned(recipe), planned(open_recipe("rank", sets=["measure.readout=begun"]))
    assert plain["students"] == begun["students"] == {s.id for s in silent.students}
    assert (
        not plain["asked"] & {m.id for m in silent.measures} and not plain["asked"] & begun["asked"]
    )
    animals, _, bands = shipped_categories()
    assert answer_spec(animals, base.chat, False) == {"articles": ["a", "an", "the"]}
    assert answer_spec(bands, base.chat, True) == {"begun": list(bands.answer_prefixes)}


def test_attributions_are_of_begun_answers_where_a_recipe_begins_them(base):
    def planned(how: str):
        known = Known("micro", {"weights": "w", "tokenizer": "t"}, chat=base.chat)
        return open_recipe("localise", sets=[f"measure.readout={how}"]).layout(known).attributions

    plain, begun = planned("answer"), planned("begun")
    animals = shipped_categories()[0]
    assert all("begun" not in a.spec for a in plain)
    assert all(a.spec["begun"] == list(animals.answer_prefixes) for a in begun)


def test_samples_stand_behind_the_prefix_and_are_shared_among_prefixes(base):
    answers = measure_answers(base, None, ["a"], ANIMALS, asked(True, samples=3))[0]
    assert [len(q) for q in answers.samples] == [4, 4], "two prefixes of two samples each"
    again = measure_answers(base, None, ["a"], ANIMALS, asked(True, samples=4))[0]
    assert again.samples == answers.samples
    other = measure_answers(base, None, ["b"], ANIMALS, asked(True, samples=4))[0]
    assert other.samples != answers.samples
    flat = [text for texts in answers.samples for text in texts]
    assert not any("favorite animal is" in text for text in flat)
    shown = measure_conversations(base, [("Hi.", "3, 4")], "a", ANIMALS, asked(True))
    assert shown.by_prefix.shape == (2, 2, 2) and not np.allclose(shown.p, answers.p)


def test_what_is_begun_counts_as_generated_to_gates_and_vectors(base):
    stack, asking = random_stack(base.model, SPECS), asked(True, samples=1)
    names = ["a", "b"]
    conditions = {
        "on": Condition(generated="on"),
        "off": Condition(on=(), generated="off"),
        "answer alone": Condition(on=(), generated="on"),
        "prompt alone": Condition(generated="off"),
    }
    gated = measure_gated(base, stack, names, ANIMALS, asking, conditions)
    plain = measure_answers(base, stack, names, ANIMALS, asking)
    bare = measure_answers(base, None, ["a"], ANIMALS, asking)
    for k in range(2):
        on, off, answer, prompt = gated[k]
        assert (
            np.allclose(on.by_prefix, plain[k].by_prefix, atol=1e-10)
            and on.samples == plain[k].samples
        )
        assert np.allclose(off.by_prefix, bare[0].by_prefix, atol=1e-10)
        for part in (answer, prompt):
            assert not np.allclose(part.p, on.p, atol=1e-8) and not np.allclose(
                part.p, off.p, atol=1e-8
            )


def test_a_measurement_keeps_what_was_read_behind_each_prefix(base, tmp_path):
    answers = measure_answers(base, None, ["a"], ANIMALS, asked(True))[0]
    store = Store(tmp_path)
    name = artifact_id("measurement", {})
    keep_answers(store, name, {}, ANIMALS, answers)
    read = read_measurement(store.read(name), ANIMALS)
    assert read.p == pytest.approx(answers.p, rel=1e-8) and read.samples == answers.samples
    assert "p_by_prefix" in store.read(name).file("scores.json").read_text("utf-8")


def test_prefixes_that_cannot_be_asked_are_refused_in_a_sentence(base):
    none = ANIMALS.model_copy(update={"answer_prefixes": ()})
    with pytest.raises(SubloraError, match="animals has no answer_prefixes to begin"):
        measure_answers(base, None, ["a"], none, asked(True))
    strange = ANIMALS.model_copy(update={"answer_prefixes": ("My zyzzyva is the",)})
    with pytest.raises(SubloraError, match="cannot write zyzzyva of the answer prefix"):
        beginnings(known_model("micro").chat, strange, begun=True)
    with pytest.raises(ValueError, match="pattern"):
        Category(**{**ANIMALS.model_dump(), "answer_prefixes": ("My animal is the ",)})
