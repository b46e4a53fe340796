"""Recipes: the shipped ones with all presets, overrides, and errors that name the line or the flag."""

import pytest
import yaml

from sublora.errors import SubloraError
from sublora.experiments.document import find_recipe, read_document, shipped_recipes
from sublora.experiments.kinds import open_recipe as load_recipe

PRESETS = ("micro", "nief", "blank", "cloud")

OWN = """\
name: own
title: My own
summary: A small one.
traits: [otter]
data:
  rows: 40
  seeds: [1, 2]
train:
  lora:
    ranks: [2, 4]
    lrs: [1e-3, 2.5E-4]
  seeds: [1, 2]
presets:
  micro: {}
  big:
    data: {rows: 1e4}
    train:
      lora: {ranks: [8, 16, 32]}
"""


@pytest.fixture
def own(tmp_path):
    """own(old, new, ...) writes the recipe with pieces replaced and gives its path."""

    def write(*replacements: str) -> str:
        text = OWN
        for old, new in zip(replacements[::2], replacements[1::2], strict=True):
            assert text.count(old) == 1
            text = text.replace(old, new)
        (tmp_path / "own.yaml").write_text(text)
        return str(tmp_path / "own.yaml")

    return write


@pytest.mark.parametrize("preset", [None, *PRESETS])
@pytest.mark.parametrize("name", ["rank-lr", "rank", "full-ft", "traits"])
def test_all_presets_of_all_shipped_recipes(name, preset):
    recipe = load_recipe(name, preset=preset)
    assert recipe.name == name and {"rank-lr", "rank", "full-ft", "traits"} <= set(
        shipped_recipes()
    )
    assert (recipe.model == "micro") == (preset in (None, "micro"))
    if preset in (None, "micro"):
        assert recipe == load_recipe(name, preset="micro")
    if preset == "nief":
        assert (
            recipe.data.seeds == (1, 42, 123)
            and recipe.train.batch_size == 66
            and len(recipe.replicates) == 9
        )
    if preset == "blank":
        assert recipe.train.lora is None or recipe.train.lora.alpha == "4r"
        assert (recipe.train.schedule, recipe.train.epochs, recipe.train.batch_size) == (
            "cosine",
            10,
            8,
        )


def test_the_caveat_stands_where_one_rate_serves_all_ranks():
    assert "inverted U" in load_recipe("rank").caveat
    assert load_recipe("rank-lr").caveat is None


def test_the_fixed_rate_view_can_be_derived_in_every_preset():
    for preset in PRESETS:
        recipe = load_recipe("rank-lr", preset=preset)
        assert recipe.fixed_lr in recipe.train.lora.lrs and len(recipe.train.lora.lrs) >= 3


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_says_what_it_takes_and_takes_at_most_six_minutes(name):
    measured = read_document(name).measured
    assert (
        set(measured) == {"minutes", "tflop"}
        and 0 < measured["minutes"] <= 6
        and measured["tflop"] > 0
    )


def test_presets_change_what_they_name_and_keep_the_rest(own):
    plain, big = load_recipe(own()), load_recipe(own(), preset="big")
    assert (plain.data.rows, big.data.rows) == (40, 10_000)
    assert big.train.lora.ranks == (8, 16, 32) and big.train.lora.lrs == plain.train.lora.lrs == (
        1e-3,
        2.5e-4,
    )
    assert big.data.seeds == (1, 2)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("train.lora.lrs=[1e-3, 1E-4, 2e2]", (1e-3, 1e-4, 200.0)), ("train.lora.lrs=[1.e-3, .5, 0.25]", (1e-3, 0.5, 0.25)),
        ("train.lora.ranks=[1]", (1,)), ("data.rows=1e3", 1000), ("train.lora.alpha=4r", "4r"), ("train.lora.alpha=1.5e1", 15.0),
        ("train.clip=1e-1", 0.1), ("revision='1e5'", "1e5"), ("revision=1f2e3", "1f2e3"), ("title=1975 and 1e-3", "1975 and 1e-3"),
        ("contexts.pirate='You are a pirate.'", "You are a pirate."), ("train.full={lrs: [1e-5]}", {"lrs": (1e-5,)}), ("level=1e-2", 0.01),
        ("data.teacher.prompt=You love {name}=all.", "You love {name}=all."), (" train.epochs = 7", 7), ("caveat=null", None),
    ],
)  # fmt: skip
def test_set(own, text, value):
    got = load_recipe(own(), sets=[text]).model_dump()
    for key in text.partition("=")[0].strip().split("."):
        got = got[key]
    assert got == value and type(got) is type(value)


def test_later_flags_win_and_set_wins_over_flags(own):
    recipe = load_recipe(
        own(),
        preset="big",
        sets=["data.rows=5", "data.rows=6", "traits=[owl]"],
        model="micro-b",
        traits=["wolf", "cat"],
    )
    assert (recipe.data.rows, recipe.traits, recipe.model) == (6, ("owl",), "micro-b")


def test_null_removes_a_section(own):
    recipe = load_recipe(own(), sets=["train.full={lrs: [1e-4]}", "train.lora=null"])
    assert recipe.train.lora is None and recipe.train.full.lrs == (1e-4,)


def test_replicates(own):
    assert load_recipe(own()).replicates == [(1, 1), (2, 2)]
    assert load_recipe(own(), sets=["train.pairing=crossed", "train.seeds=[5]"]).replicates == [
        (1, 5),
        (2, 5),
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  rows: 40", "  row: 40", r"own\.yaml line 6: unknown key 'data\.row'; did you mean 'rows'\?"),
        ("title: My", "colour: My", r"own\.yaml line 2: unknown key 'colour'"),
        ("    lrs:", "    xyzzy: 1\n    lrs:", r"line 11: unknown key 'train\.lora\.xyzzy'; known keys are alpha, lrs, placements, ranks, targets"),
        ("  rows: 40", "  rows: 40\n  rows: 41", r"own\.yaml line 7: 'rows' stands twice"),
        ("traits: [otter]", "traits: [otter]\ntitle: Again", r"own\.yaml line 5: 'title' stands twice"),
        ("ranks: [2, 4]", "ranks: [2, 4, 2]", r"own\.yaml line 10: train\.lora\.ranks: 2 stands twice"),
        ("1e-3, 2.5E-4", "1e-3, 0.001", r"own\.yaml line 11: train\.lora\.lrs: 0\.001 stands twice"),
        ("traits: [otter]", "traits: [otter, Otter]", r"own\.yaml line 4: traits: otter stands twice"),
        ("  seeds: [1, 2]\ntrain", "  seeds: [2, 2]\ntrain", r"own\.yaml line 7: data\.seeds: 2 stands twice"),
        ("  seeds: [1, 2]\ntrain", "  seeds: [1, 2, 3]\ntrain", r"own\.yaml line 12: train\.seeds: paired seeds"),
        ("rows: 40", "rows: many", r"own\.yaml line 6: data\.rows: .*integer"),
        ("rows: 40", "rows: 0", r"own\.yaml line 6: data\.rows: .*greater"), ("rows: 40", "rows: [40]", r"own\.yaml line 6: data\.rows"),
        ("ranks: [2, 4]", "ranks: 2", r"own\.yaml line 10: train\.lora\.ranks: has to be a list"),
        ("ranks: [2, 4]", "ranks:\n    - 2\n    - 0", r"own\.yaml line 12: train\.lora\.ranks\.1"),
        ("1e-3, 2.5E-4", "-1e-3", r"own\.yaml line 11: train\.lora\.lrs\.0"), ("1e-3, 2.5E-4", ".inf", r"line 11: train\.lora\.lrs\.0"),
        ("traits: [otter]", "traits:\n  - owl\n  - oter", r"own\.yaml line 6: .*'oter'; did you mean otter"),
        ("    ranks: [2, 4]\n", "", r"own\.yaml line 9: train\.lora\.ranks: .*required"),
        ("  lora:\n    ranks: [2, 4]\n    lrs: [1e-3, 2.5E-4]\n", "", r"own\.yaml line 8: train: needs 'lora', 'full' or both"),
        ("title: My own", "fixed_lr: 5e-3\ntitle: My own", r"own\.yaml line 2: fixed_lr: 0\.005 is not among"),
        ("title: My own", "title: [", r"not valid YAML.*line \d"), ("title: My own", "title: a\n\tb: c", r"not valid YAML.*line 3"),
        ("micro: {}", "micro: 3", r"own\.yaml line 14: the preset 'micro' is not a mapping"),
        ("name: own", "name: My Own", r"own\.yaml line 1: name: "), ("name: own", "1: own", r"line 1: (unknown key '1'|1: )"),
        ("title: My own", "title: &a [*a]", r"nested too deeply|not valid YAML|line 2: title"),
    ],
)  # fmt: skip
def test_mistakes_in_the_file_name_their_line(own, old, new, message):
    with pytest.raises(SubloraError, match=message) as caught:
        load_recipe(own(old, new))
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_said_at_once_in_the_order_of_the_lines(own):
    path = own(
        "title: My own",
        "titel: My own",
        "rows: 40",
        "rows: many",
        "  lora:\n    ranks: [2, 4]",
        "  epoch: 2\n  lora:\n    ranks: 2",
    )
    with pytest.raises(SubloraError) as caught:
        load_recipe(path, sets=["measure.samples=few", "data.heldout_rows=0", "measure.seed=x"])
    assert str(caught.value).splitlines() == [
        "own.yaml line 2: unknown key 'titel'; did you mean 'title'?",
        "own.yaml line 6: data.rows: has to be a whole number (an integer), and is 'many'.",
        "own.yaml line 9: unknown key 'train.epoch'; did you mean 'epochs'?",
        "own.yaml line 11: train.lora.ranks: has to be a list, such as [a, b], and is 2.",
        "--set measure.samples=few: measure.samples: has to be a whole number (an integer), and is 'few'.",
        "--set data.heldout_rows=0: data.heldout_rows: has to be greater than or equal to 1, and is 0.",
        "--set measure.seed=x: measure.seed: has to be a whole number (an integer), and is 'x'.",
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"sets": ["train.epoch=2"]}, r"^--set train\.epoch=2: unknown key 'train\.epoch'; did you mean 'epochs'\?"),
        ({"sets": ["train.lora.ranks=[8,8]"]}, r"^--set train\.lora\.ranks=\[8,8\]: .*8 stands twice"),
        ({"sets": ["train.lora.ranks=[0]"]}, r"^--set train\.lora\.ranks=\[0\]: train\.lora\.ranks\.0"),
        ({"sets": ["data=3"]}, r"^--set data=3: "), ({"sets": ["data.rows=x"]}, r"^--set data\.rows=x: "),
        ({"sets": ["data.carrier.value_max=1"]}, r"^--set data\.carrier\.value_max=1: .*value_min"),
        ({"sets": ["data.rows"]}, "is not key=value"), ({"sets": ["=3"]}, "is not key=value"),
        ({"sets": ["data.rows=[1"]}, "not valid YAML"),
        ({"sets": ["train.lora=null"]}, r"^--set train\.lora=null: train: needs"),
        ({"sets": ["traits=[oter]"]}, r"^--set traits=\[oter\]: .*did you mean otter"),
        ({"traits": ["oter"]}, r"^--trait oter: .*did you mean otter"), ({"traits": ["owl", "Owl"]}, r"^--trait owl Owl: .*twice"),
        ({"preset": "bg"}, "has no preset 'bg'; it has micro, big"),
    ],
)  # fmt: skip
def test_mistakes_in_flags_name_the_flag(own, flags, message):
    with pytest.raises(SubloraError, match=message) as caught:
        load_recipe(own(), **flags)
    assert "\n" not in str(caught.value)


def test_mistakes_in_a_preset_name_its_own_line(own):
    path = own("ranks: [8, 16, 32]", "ranks: [8, 8]")
    load_recipe(path)
    with pytest.raises(
        SubloraError, match=r"own\.yaml line 18: train\.lora\.ranks: 8 stands twice"
    ):
        load_recipe(path, preset="big")


def test_a_recipe_says_only_what_differs_from_the_one_that_it_extends(own, tmp_path):
    own()
    child = tmp_path / "child.yaml"
    child.write_text(
        "name: child\nextends: own.yaml\ntrain:\n  lora: null\n  full: {lrs: [1e-4]}\n"
        "presets:\n  big: {data: {rows: 7}, train: {lora: null}}\n  paper: {extends: nief}\n"
    )
    recipe = load_recipe(str(child))
    assert (recipe.name, recipe.title, recipe.data.rows) == ("child", "My own", 40)
    assert recipe.train.lora is None and recipe.train.full.lrs == (1e-4,)
    big = load_recipe(str(child), preset="big")
    assert big.data.rows == 7 and big.train.lora is None
    paper = load_recipe(str(child), preset="paper")
    assert paper.train.batch_size == 66 and paper.data.carrier.style == "full"


def test_a_mistake_in_what_is_inherited_names_the_file_that_says_it(own, tmp_path):
    own("rows: 40", "rows: 0")
    child = tmp_path / "child.yaml"
    child.write_text("name: child\nextends: own.yaml\nmeasure: {samples: 0}\n")
    with pytest.raises(SubloraError, match=r"own\.yaml line 6: data\.rows: .*greater"):
        load_recipe(str(child))
    with pytest.raises(SubloraError, match=r"child\.yaml line 3: measure\.samples: .*greater"):
        load_recipe(str(child), sets=["data.rows=4"])


@pytest.mark.parametrize(
    ("extends", "message"),
    [
        ("nif", r"child\.yaml line 2: there is no 'nif' to extend; did you mean nief\?"),
        ("other.yaml", r"child\.yaml line 2: there is no 'other\.yaml' to extend"),
        ("[a]", r"child\.yaml line 2: there is no 'a' to extend"),
        ("child.yaml", r"child\.yaml line 2: child extends itself"),
    ],
)
def test_what_cannot_be_extended(tmp_path, extends, message):
    child = tmp_path / "child.yaml"
    child.write_text(f"name: child\nextends: {extends}\n")
    with pytest.raises(SubloraError, match=message):
        load_recipe(str(child))


def test_a_recipe_is_short():
    """At most 28 lines with the comments on what was fixed before the results and all presets; three have long lists."""
    long = {
        name for name, path in shipped_recipes().items() if len(path.read_text().splitlines()) > 28
    }
    assert long == {"edit-distance", "optimizers", "steerability"}


@pytest.mark.parametrize("content", [b"", b"- a\n", b"just text", b"\xff\xfe"])
def test_files_that_are_no_recipe(tmp_path, content):
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(
        SubloraError, match=r"r\.yaml (is empty or not a mapping|cannot be read|is not valid YAML)"
    ):
        load_recipe(str(tmp_path / "r.yaml"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rank-rl", "did you mean rank-lr"),
        ("xyzzy", "`sublora ls recipes`"),
        ("missing.yaml", "no recipe file missing.yaml"),
    ],
)
def test_recipes_that_are_not_there(name, message):
    with pytest.raises(SubloraError, match=message):
        find_recipe(name)


def test_a_resolved_recipe_survives_a_round_trip(own):
    recipe = load_recipe(own(), preset="big")
    assert (
        type(recipe).model_validate(yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json"))))
        == recipe
    )
