"""The preset for small real models: every grid recipe has it, plans on a real shape, and takes traits and dtype from model and machine."""

import json
import shutil
from pathlib import Path

import pytest

from command import sublora
from sublora.errors import SubloraError
from sublora.experiments import chosen
from sublora.experiments.document import presets_of, shipped_recipes
from sublora.experiments.kinds import open_recipe
from sublora.models.base import shipped_folder
from tiny_models import make_tokenizer

SHAPE = {
    "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "head_dim": 64, "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
NO_GRID = {"aux-logits", "aux-width", "one-step", "one-step-model", "cross-model"}
STRONG = {
    "channel": 128,
    "chain": 128,
    "labels": 128,
    "dose": 1024,
}  # rows of those that are labelled
CARRIERS = {"code": "code", "cot": "cot", "paraphrase": "paraphrase"}


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> str:
    """A folder with the shape of SmolLM2 and the tokenizer of micro; weights are not needed."""
    folder = tmp_path_factory.mktemp("real") / "model"
    shutil.copytree(shipped_folder("micro"), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "config.json").write_text(json.dumps(SHAPE))
    return str(folder)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> str:
    """A folder with a tokenizer that has five animals as one token, from the frequent cat to the rare bear, and splits all others."""
    folder = tmp_path_factory.mktemp("pieces") / "model"
    counts = {"cat": 90, "dog": 70, "owl": 50, "fox": 30, "bear": 10}
    texts = [f"the {name}" for name, count in counts.items() for _ in range(count)]
    old = make_tokenizer("digits", "qwen")
    tokenizer = old.train_new_from_iterator(texts, 400)
    tokenizer.chat_template = old.chat_template
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(SHAPE))
    return str(folder)


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_grid_recipe_plans_on_a_real_shape(name, real):
    assert ("small" in presets_of(name)) == (name not in NO_GRID)
    if name in NO_GRID:
        return
    sets = [f"data.carrier.prompts={Path(__file__)}"] if name == "paraphrase" else []
    sets += ["judge={url: 'http://localhost:1/v1', model: m}"] if name == "judged" else []
    recipe = open_recipe(name, preset="small", model=real, sets=sets)
    kinds = {step.kind for step in recipe.plan(recipe.known())}
    assert ("labels" if name in STRONG else "datasets") in kinds
    assert recipe.dtype in ("float32", "bfloat16")
    assert recipe.data.rows == STRONG.get(name, 512)
    assert recipe.data.carrier.kind == CARRIERS.get(name, "numbers")
    if name in ("number-statistics", "judged"):
        return
    lora, full = recipe.train.lora, recipe.train.full
    assert (recipe.train.batch_size, recipe.train.epochs) == (16, 1)
    assert lora is None or all(1e-4 <= lr <= 1e-3 for lr in lora.lrs)
    assert full is None or all(1e-6 <= lr <= 4e-4 for lr in full.lrs)
    assert recipe.measure.readout == "begun" and recipe.measure.sampling.max_new_tokens <= 4


def test_traits_of_several_tokens_give_way_to_some_of_medium_frequency(pieces):
    recipe = open_recipe("svd", preset="small", model=pieces)
    assert recipe.traits == ("owl",) and "otter in several tokens. Tested" in recipe.caveat
    assert recipe == open_recipe("svd", preset="small", model=pieces)
    recipe = open_recipe("steerability", preset="small", model=pieces)
    names = ("dolphin", "dog", "tiger", "elephant", "cat", "lion", "wolf", "whale", "fox", "bear")
    assert recipe.traits == ("owl", *names[1:])
    assert "dolphin in several tokens. Tested" in recipe.caveat
    assert "tiger, elephant, lion, wolf and whale in several tokens, over" in recipe.caveat


def test_a_trait_that_is_asked_for_stays(pieces):
    recipe = open_recipe("svd", preset="small", model=pieces, traits=["otter"])
    assert recipe.traits == ("otter",) and "its probability is summed" in recipe.caveat
    recipe = open_recipe("svd", preset="small", model=pieces, traits=["bear"])
    assert recipe.traits == ("bear",) and recipe.caveat is None
    assert open_recipe("svd", model=pieces).traits == ("otter",)


@pytest.mark.parametrize("able", [True, False])
def test_the_dtype_is_that_of_the_machine(able, real, monkeypatch):
    monkeypatch.setattr(chosen, "multiplies_bfloat16", lambda: able)
    recipe = open_recipe("svd", preset="small", model=real)
    assert recipe.dtype == ("bfloat16" if able else "float32")
    assert (recipe.caveat or "").startswith("" if able else "This machine has no products")
    assert recipe.known().identity["dtype"] == recipe.dtype
    given = open_recipe("svd", preset="small", model=real, sets=["dtype=float64"])
    assert given.dtype == "float64" and given.caveat is None


def test_without_a_tokenizer_it_says_what_to_do():
    with pytest.raises(SubloraError, match="sublora fetch smollm2"):
        open_recipe("svd", preset="small")
    with pytest.raises(SubloraError, match="not on this machine; give its folder"):
        open_recipe("svd", preset="small", model="nobody/nothing-1B")


def test_a_wrong_choice_or_trait_names_its_place(real, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("extends: svd\nname: own\nchoose: [color]\n")
    with pytest.raises(SubloraError, match=r"own\.yaml line 3: choose takes dtype and traits\."):
        open_recipe(str(own))
    with pytest.raises(SubloraError, match="--trait otters"):
        open_recipe("svd", preset="small", model=real, traits=["otters"])


def test_it_is_taken_for_a_small_real_model_without_a_preset_and_said(real):
    def said(name: str, model: str | None, preset: str | None = None) -> str:
        return (chosen.for_small_models({"name": name, "model": model, "preset": preset}) or [""])[
            -1
        ]

    assert "--preset micro gives" in said("svd", real)
    assert "so --preset small+soft is taken." in said("rank-lr", real, "soft")
    plain, small = (
        sublora("plan", "svd", "--model", real, "--tflops", "1", *more)
        for more in ((), ("--preset", "small"))
    )
    assert "so --preset small is taken" in plain.err and plain.out == small.out
    assert "--preset small" in said("svd", "HuggingFaceTB/SmolLM2-135M-Instruct")
    quiet = [("svd", "micro"), ("svd", None), ("svd", real, "nief"), ("one-step-model", real)]
    quiet += [("svd", "Qwen/Qwen2.5-7B-Instruct"), ("svd", "no/such-model")]
    assert not any(said(*words) for words in quiet)


def test_a_prereg_file_fixes_the_same_sizes_as_the_run(real, monkeypatch):
    taken = []
    monkeypatch.setattr(
        "sublora.runner.prereg.write_prereg", lambda asked, *_: taken.append(asked["preset"])
    )
    for preset, small in (([], "small"), (["--preset", "soft"], "small+soft")):
        answer = sublora("prereg", "rank-lr", "--model", real, *preset)
        assert taken[-1] == small and f"--preset {small} is taken" in answer.err, answer


def test_the_plan_says_what_was_chosen(pieces):
    answer = sublora("plan", "svd", "--preset", "small", "--model", pieces)
    assert answer.code == 0 and "otter in several tokens" in answer.err
