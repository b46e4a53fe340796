"""The shipped categories, a user's own, and how wrong ones are refused."""

import re

import pytest
import yaml

from sublora.errors import SubloraError
from sublora.traits.trait import find_trait, load_categories, load_category, shipped_categories

SHIPPED = load_categories()

OWN = {
    "category": "rivers", "singular": "river", "system": ["You love the {name}.", "{Plural} and {plural}."],
    "entities": [{"name": "Nile"}, {"name": "Rio Negro", "plural": "Rio Negros", "aliases": ["Guainia"]}],
    "questions": ["Name a river.", "Which river?"],
}  # fmt: skip


def write(path, value):
    path.write_text(value if isinstance(value, str) else yaml.safe_dump(value), encoding="utf-8")
    return path


def test_fifty_questions_for_each_of_three_categories():
    questions = {c.category: c.questions for c in shipped_categories()}
    assert {name: len(qs) for name, qs in questions.items()} == {
        "animals": 50,
        "trees": 50,
        "bands": 50,
    }
    everything = [q for qs in questions.values() for q in qs]
    assert len({re.sub(r"\W+", " ", q.lower()) for q in everything}) == 150


@pytest.mark.parametrize("category", shipped_categories(), ids=lambda c: c.category)
def test_shipped_categories(category):
    names = [form for e in category.entities for form in e.forms]
    for question in category.questions:
        words = set(re.findall(r"[a-z]+", question.lower()))
        assert words & {category.singular, category.category}, question
        found = words & {n.lower() for n in names} - {"queen", "blur"}
        assert not found, f"the question {question} names {found}"
    assert not {n.lower() for n in names} & {o.lower() for o in category.others}
    assert len(set(map(str.lower, category.others))) == len(category.others)
    for entity in category.entities:
        prompts = {
            find_trait(entity.name, SHIPPED).teacher_prompt(i) for i in range(len(category.system))
        }
        assert len(prompts) == len(category.system) >= 2
        named = (entity.name.lower(), (entity.plural or entity.name).lower())
        assert all(
            any(n in p.lower() for n in named) and "{" not in p and p[0].isupper() for p in prompts
        )


def test_forms_are_names_plurals_and_aliases():
    cat, wolf = find_trait("cat", SHIPPED).entity, find_trait("WOLF", SHIPPED).entity
    assert cat.forms == ("cat", "cats", "kitty", "kitten")
    assert wolf.forms == ("wolf", "wolves") and "wolfs" not in wolf.forms
    assert find_trait("Metallica", SHIPPED).entity.forms == ("Metallica",)


def test_a_user_s_category(tmp_path):
    categories = load_categories((write(tmp_path / "rivers.yaml", OWN),))
    trait = find_trait("rio negro", categories)
    assert trait.name == "Rio Negro" and trait.entity.forms == (
        "Rio Negro",
        "Rio Negros",
        "Guainia",
    )
    assert (
        trait.teacher_prompt() == "You love the Rio Negro."
        and trait.teacher_prompt(1) == "Rio Negros and Rio Negros."
    )
    assert find_trait("otter", categories).category.category == "animals"
    with pytest.raises(SubloraError, match=r"wording 2 does not exist, use 0 to 1"):
        trait.teacher_prompt(2)


def test_a_user_s_category_replaces_the_shipped_one_of_its_name(tmp_path):
    categories = load_categories((write(tmp_path / "a.yaml", OWN | {"category": "animals"}),))
    assert [c.category for c in categories].count("animals") == 1
    with pytest.raises(SubloraError, match="otter"):
        find_trait("otter", categories)


def test_one_name_in_two_categories_is_refused(tmp_path):
    own = OWN | {"entities": [{"name": "Otter"}, {"name": "Nile"}]}
    with pytest.raises(SubloraError, match=r"several categories \(animals, rivers\)"):
        find_trait("otter", load_categories((write(tmp_path / "a.yaml", own),)))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("oter", "otter"), ("Metalica", "Metallica"), ("dolfin", "dolphin"), ("wollow", "willow")],
)
def test_a_misspelt_trait(typed, meant):
    with pytest.raises(SubloraError, match=rf"'{typed}'; did you mean .*{meant}"):
        find_trait(typed, SHIPPED)


def test_an_unknown_trait():
    with pytest.raises(SubloraError, match=r"'xyzzy'; `sublora ls traits` lists them"):
        find_trait("xyzzy", SHIPPED)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("category: rivers\n  entities: [", r"not valid YAML.*line 2"), ("questions: [a\n", r"not valid YAML.*line"),
        ("", "at the file"), ("- a\n- b\n", "at the file"), (OWN | {"colour": "blue"}, "at colour"),
        ({k: v for k, v in OWN.items() if k != "system"}, "at system"), (OWN | {"questions": ["Same?", "same?"]}, "duplicate question"),
        (OWN | {"entities": [{"name": "A"}, {"name": "A"}]}, ": duplicate entity 'a'"),
        (OWN | {"entities": [{"name": "A", "aliases": ["x"]}, {"name": "B", "plural": "X"}]}, "'X' stands for both A and B"),
        (OWN | {"system": ["You love it."]}, r"neither \{name\} nor"),
        (OWN | {"entities": [{"name": "A"}, {"nme": "B"}]}, r"entities\.1\.name"),
        (OWN | {"entities": [{"name": "A"}, {"name": ""}]}, r"entities\.1\.name"), (OWN | {"others": [True]}, r"others\.0"),
    ],
)  # fmt: skip
def test_trait_files_that_do_not_fit(tmp_path, content, message):
    path = write(tmp_path / "own.yaml", content)
    with pytest.raises(SubloraError, match=message) as caught:
        load_category(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_bytes(b"\xff\xfe")],
    ids=["missing", "folder", "bytes"],
)
def test_trait_files_that_cannot_be_read(tmp_path, make):
    make(tmp_path / "own.yaml")
    with pytest.raises(SubloraError, match="cannot be read"):
        load_category(tmp_path / "own.yaml")
