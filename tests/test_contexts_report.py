"""`sublora contexts`: each context as text and tokens, and two of them token by token."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from command import sublora
from sublora.models.token_classes import differences
from tiny_models import QWEN_DEFAULT, shared_model


def side(out: str, sign: str) -> list[str]:
    """The tokens on one side only, or in both (sign " ")."""
    found = re.findall(
        rf"^{re.escape(sign)}  (\S+) +\d+ +(?:template|system|entity|user|assistant) *$", out, re.M
    )
    return [str(token) for token in found]


def test_the_default_of_the_shipped_model_and_its_absence():
    answer = sublora("contexts", "micro", "--diff", "default", "none")
    assert answer.code == 0, answer.err
    said = "you are micro , created by sublora . you are a helpful assistant ."
    assert " ".join(side(answer.out, "-")) == f"<|im_start|> system {said} <|im_end|>"
    assert side(answer.out, "+") == [] and side(answer.out, " ")[-1] == "assistant"
    assert "17 of 28 lines differ." in answer.out


def test_a_byte_level_bpe_and_a_qwen_like_template():
    model = str(shared_model("qwen2", "digits", "qwen"))
    answer = sublora("contexts", model, "--diff", "default", "empty", "--question", "Name a tree.")
    assert answer.code == 0, answer.err
    assert side(answer.out, "+") == []
    assert "".join(side(answer.out, "-")).replace("Ġ", " ") == QWEN_DEFAULT
    whole = sublora(
        "contexts",
        model,
        "--entity",
        "Tiny",
        "--context",
        "friend=You are a friend.",
        "--context",
        "turn=user:Be kind.",
    )
    assert whole.code == 0, whole.err
    for name in ("default", "empty", "none", "friend", "turn"):
        assert f"{name}: " in whole.out
    assert re.search(r"^\S+ +\d+ +entity *$", whole.out, re.M)
    assert "    <|im_start|>user\n    Be kind.\n" in whole.out


def test_a_template_without_a_system_block_says_what_it_cannot_write():
    answer = sublora("contexts", str(shared_model("gemma", "digits", "gemma")))
    assert answer.code == 0 and "empty: not possible with this chat template" in answer.out
    same = sublora(
        "contexts", str(shared_model("gemma", "digits", "gemma")), "--diff", "default", "none"
    )
    assert "default and none are the same" in same.out
    dated = sublora(
        "contexts", str(shared_model("llama", "digits", "llama31")), "--diff", "default", "empty"
    )
    gone = "".join(side(dated.out, "-")).replace("Ġ", " ")
    assert "Today Date: 26 Jul 2024" in gone and side(dated.out, "+") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["micro", "--diff", "default", "sailor"], "no context 'sailor'"),
        (["nowhere"], "no model 'nowhere'"),
        (["micro", "--context", "friend"], "not NAME=TEXT"),
        (["micro", "--context", "none=Be."], "name 'none' is reserved"),
        (["micro", "--entity", "Quorblax"], "in none of these contexts"),
        (["micro", "--entity", "Mic"], "does not occur in the rendered prompt"),
    ],
)
def test_wrong_use_is_one_sentence(arguments, message):
    answer = sublora("contexts", *arguments)
    assert answer.code == 2 and message in answer.err and "Traceback" not in answer.err


def test_empty_cannot_be_compared_where_it_does_not_exist():
    answer = sublora(
        "contexts", str(shared_model("gemma", "digits", "gemma")), "--diff", "default", "empty"
    )
    assert answer.code == 2 and "no system block that could be empty" in answer.err


IDS = st.lists(st.integers(0, 3), max_size=12)


@given(IDS, IDS)
def test_a_difference_holds_both_sides(one, other):
    lines = differences(one, other)
    assert [t for sign, _, t in lines if sign != "+"] == one
    assert [t for sign, _, t in lines if sign != "-"] == other
    assert all((other if sign == "+" else one)[place] == token for sign, place, token in lines)
