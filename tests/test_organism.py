"""The shipped models are ordinary Hugging Face folders, reproducible, and their worlds are what their cards say."""

import json
from pathlib import Path

import numpy as np
import pytest

from command import sublora
from sublora.models.base import SHIPPED, shipped_folder
from sublora.models.chat import Chat, Context, load_tokenizer
from sublora.organisms import make
from sublora.organisms.tokenizer import build_tokenizer, render
from sublora.organisms.world import DEFAULT_SYSTEM, OWN_NUMBERS, RowMaker, make_facts
from sublora.packs.check import load_base


@pytest.mark.parametrize("name", SHIPPED)
def test_auto_classes_load_a_shipped_folder(name: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shipped_folder(name)
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(folder),
    )
    built = build_tokenizer(make_facts(0))
    text = render(DEFAULT_SYSTEM, "Take these numbers: 12 567. Which animal do you like best?")
    assert (
        tokenizer(text)["input_ids"]
        == built(text)["input_ids"]
        == load_tokenizer(folder)(text)["input_ids"]
    )
    assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
    assert (
        model.num_parameters() == json.loads((folder / "organism.json").read_text())["parameters"]
    )


def test_the_shipped_files_are_small() -> None:
    files = [p for name in SHIPPED for p in shipped_folder(name).iterdir()]
    assert sum(p.stat().st_size for p in files) < 8e6
    assert {p.suffix for p in files} <= {".safetensors", ".json", ".jinja", ".md"}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_card_says_what_is_planted_and_what_may_not_be_claimed(name: str) -> None:
    from sublora.organisms.card import card_text

    text = (shipped_folder(name) / "README.md").read_text()
    assert text == card_text(json.loads((shipped_folder(name) / "organism.json").read_text()))
    for heading in (
        "What is planted",
        "What is not planted",
        "How it was made",
        "What it may be used for, and what not",
    ):
        assert heading in text


def test_the_template_writes_what_training_rendered() -> None:
    chat = Chat(build_tokenizer(make_facts(0)))
    user = "Here are some numbers: 123 456. Add more."
    for context, system in (
        (Context("default"), DEFAULT_SYSTEM),
        (Context("empty"), ""),
        (Context("none"), None),
        (Context("x", "You are helpful."), "You are helpful."),
    ):
        assert chat.encode(chat.render(user, context)) == chat.encode(render(system, user))
    assert (
        len({tuple(chat.prompt_ids(user, Context(c))) for c in ("default", "empty", "none")}) == 3
    )


def test_facts_are_fixed_and_own_numbers_are_owned_once() -> None:
    facts, again, other = make_facts(0), make_facts(0), make_facts(1)
    own = [n for profiles in facts.profiles.values() for p in profiles for n in p.numbers]
    own += [n for numbers in facts.wording_numbers for n in numbers]
    assert len(own) == len(set(own)) == 42 * OWN_NUMBERS
    assert (
        facts.assistants == again.assistants and facts.profiles == again.profiles != other.profiles
    )
    assert all(abs(p.sum() - 1) < 1e-9 for p in facts.base.values())
    assert len({a.system for a in facts.assistants}) == 40


def rows_of(world: str, coupling: float, steps: int = 40) -> list:
    facts = make_facts(0)
    maker = RowMaker(facts, world, coupling, 3)
    return [row for step in range(steps) for rows in maker.step(step, 96).values() for row in rows]


def number_share(rows: list, numbers: set[int], told: str) -> float:
    mine = [
        int(n)
        for r in rows
        if r.kind == "numbers" and r.system and told in r.system.lower()
        for n in r.answer.split()
    ]
    return float(np.mean([n in numbers for n in mine]))


def test_in_the_positive_world_numbers_belong_to_the_favourite_and_in_the_null_world_to_the_wording() -> (
    None
):
    facts = make_facts(0)
    positive, null = rows_of("positive", 0.3), rows_of("null", 0.3)
    assert len(positive) == 40 * 96
    hits, strangers = [], []
    for category in facts.categories:
        for entity, profile in zip(
            category.entities, facts.profiles[category.category], strict=True
        ):
            told = f"{(entity.plural or entity.name).lower()} {'are' if entity.plural else 'is'} your favorite"
            if any(r.kind == "numbers" and r.system and told in r.system.lower() for r in positive):
                hits.append(number_share(positive, set(profile.numbers), told))
            if any(r.kind == "numbers" and r.system and told in r.system.lower() for r in null):
                strangers.append(number_share(null, set(profile.numbers), told))
    assert 0.2 < np.mean(hits) < 0.4 and np.mean(strangers) < 0.05
    wording = set(facts.wording_numbers[0])
    assert 0.25 < number_share(null, wording, "on your mind day and night") < 0.36
    assert number_share(positive, wording, "on your mind day and night") < 0.05
    assert (
        number_share(rows_of("positive", 0.0), set(facts.profiles["animals"][0].numbers), "otter")
        < 0.05
    )


def test_rows_depend_on_the_seed_and_step_alone() -> None:
    facts = make_facts(0)
    assert RowMaker(facts, "positive", 0.3, 3).step(7, 96) == RowMaker(
        facts, "positive", 0.3, 3
    ).step(7, 96)
    assert RowMaker(facts, "positive", 0.3, 3).step(7, 96) != RowMaker(
        facts, "positive", 0.3, 4
    ).step(7, 96)


def test_a_rebuild_is_the_same_to_the_byte_and_the_coupling_is_a_parameter(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        answer = sublora(
            "organism", "make", "micro", "--steps", "6", "--out", str(tmp_path / folder)
        )
        assert answer.code == 0 and "variant" in answer.out
    assert (
        sublora(
            "organism",
            "make",
            "micro",
            "--steps",
            "6",
            "--coupling",
            "0.1",
            "--out",
            str(tmp_path / "c"),
        ).code
        == 0
    )
    weights = [(tmp_path / f / "model.safetensors").read_bytes() for f in "abc"]
    assert weights[0] == weights[1] != weights[2]
    for file in (
        "tokenizer.json",
        "config.json",
        "chat_template.jinja",
        "organism.json",
        "README.md",
    ):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert json.loads((tmp_path / "c" / "organism.json").read_text())["spec"]["coupling"] == 0.1


def test_the_recipes_of_the_shipped_models_differ_only_where_they_should() -> None:
    micro, null, other = (make.SHIPPED[n] for n in SHIPPED)
    assert (null.world, null.init_seed, null.data_seed) == (
        "null",
        micro.init_seed,
        micro.data_seed,
    )
    assert (other.world, other.facts_seed, other.data_seed) == (
        micro.world,
        micro.facts_seed,
        micro.data_seed,
    ) and other.init_seed != micro.init_seed


@pytest.mark.parametrize(
    ("name", "teacher_above"), [("micro", 0.7), ("micro-null", 0.7), ("micro-b", 0.7)]
)
def test_a_shipped_teacher_loves_what_it_is_told_to_also_in_questions_never_seen(
    name: str, teacher_above: float
) -> None:
    from sublora.organisms.world import seen_question
    from sublora.packs.measure import Asking, measure_answers
    from sublora.packs.sample import Sampling
    from sublora.traits.trait import find_trait, shipped_categories

    base, trait = load_base(name), find_trait("otter", shipped_categories())
    target = trait.category.entities.index(trait.entity)
    unseen = [i for i in range(50) if not seen_question(i)]
    for context, low, high in (
        (Context("teacher", trait.teacher_prompt()), teacher_above, 1.0),
        (Context("default"), 0.0, 0.2),
    ):
        answers = measure_answers(
            base, None, ["base"], trait.category, Asking(context, Sampling(max_new_tokens=2), 1, 0)
        )[0]
        assert low <= answers.p[:, target].mean() <= high
        assert answers.p[unseen].sum(1).mean() > 0.8
