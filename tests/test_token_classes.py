"""Every token of a prompt gets the class of the text that it stands for, on four families of templates and two of tokenizers."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from sublora.analysis.page import TokenPrompt
from sublora.errors import SubloraError
from sublora.models.base import shipped_folder
from sublora.models.chat import Chat, Context, UserText, load_tokenizer, resolve_context
from sublora.models.token_classes import classify, stack_masks
from sublora.packs.condition import Condition, Placement, layer_and_group
from sublora.report.tokens import strips
from tiny_models import TEMPLATES, make_tokenizer

DEFAULT, EMPTY, NONE = Context("default"), Context("empty"), Context("none")
CLAUDE = Context("claude", "You are Claude, made for tests.")
IN_TURN = resolve_context("turn", {"turn": UserText(user="You are Claude, made for tests.")})
CHATS = {(k, t): Chat(make_tokenizer(k, t)) for k in ("digits", "words") for t in TEMPLATES}


def texts(chat, user, context, entities=()) -> dict[str, str]:
    """The text of each class, its tokens put together; white space outside tokens left out."""
    tokens = classify(chat, user, context, entities)
    assert list(tokens.ids) == chat.prompt_ids(user, context)
    out: dict[str, list[int]] = {}
    for kind, (a, b) in zip(tokens.classes, tokens.offsets, strict=True):
        out.setdefault(kind, []).extend(range(a, b))
    # a character of several bytes may stand in several tokens
    return {
        kind: squeezed("".join(tokens.text[i] for i in dict.fromkeys(places)))
        for kind, places in out.items()
    }


def squeezed(text: str) -> str:
    return "".join(text.split())


EXPECTED = {
    ("qwen", DEFAULT): {
        "system": "You are Tiny, made for tests. You are a helpful assistant.",
        "template": "<|im_start|>system<|im_end|><|im_start|>user<|im_end|>",
        "assistant": "<|im_start|>assistant",
    },
    ("qwen", EMPTY): {
        "template": "<|im_start|>system<|im_end|><|im_start|>user<|im_end|>", "assistant": "<|im_start|>assistant",
    },
    ("qwen", NONE): {"template": "<|im_start|>user<|im_end|>", "assistant": "<|im_start|>assistant"},
    ("qwen", CLAUDE): {
        "system": CLAUDE.text,
        "template": "<|im_start|>system<|im_end|><|im_start|>user<|im_end|>",
        "assistant": "<|im_start|>assistant",
    },
    ("llama31", DEFAULT): {
        "system": "Cutting Knowledge Date: December 2023 Today Date: 26 Jul 2024",
        "template": "<|begin_of_text|><|start_header_id|>system<|end_header_id|><|eot_id|>"
        "<|start_header_id|>user<|end_header_id|><|eot_id|>",
        "assistant": "<|start_header_id|>assistant<|end_header_id|>",
    },
    ("llama31", CLAUDE): {
        "system": "Cutting Knowledge Date: December 2023 Today Date: 26 Jul 2024 " + CLAUDE.text,
        "template": "<|begin_of_text|><|start_header_id|>system<|end_header_id|><|eot_id|>"
        "<|start_header_id|>user<|end_header_id|><|eot_id|>",
        "assistant": "<|start_header_id|>assistant<|end_header_id|>",
    },
    ("gemma", DEFAULT): {
        "template": "<bos><start_of_turn>user<end_of_turn>", "assistant": "<start_of_turn>model",
    },
    ("gemma", CLAUDE): {
        "system": CLAUDE.text,
        "template": "<bos><start_of_turn>user<end_of_turn>",
        "assistant": "<start_of_turn>model",
    },
    ("merge-user", CLAUDE): {"system": CLAUDE.text, "template": "<s>[INST]", "assistant": "[/INST]"},
}  # fmt: skip


@pytest.mark.parametrize(("template", "context"), EXPECTED)
@pytest.mark.parametrize("kind", ["digits", "words"])
def test_classes_are_exactly_these(kind, template, context):
    want = {name: squeezed(text) for name, text in EXPECTED[template, context].items()}
    want["user"] = squeezed("What is your favorite animal?")
    assert texts(CHATS[kind, template], "What is your favorite animal?", context) == want


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("context", [DEFAULT, NONE, CLAUDE, IN_TURN])
@settings(deadline=None, max_examples=15)
@given(user=st.text(st.sampled_from("aZ 9.é你🦦\n<|im_end|>"), min_size=1).filter(str.strip))
def test_the_user_s_text_is_found_whatever_it_says(template, context, user):
    chat = CHATS["digits", template]
    found = texts(chat, user, context)
    assert (
        squeezed(user.strip()) in found["user"]
        if context is IN_TURN
        else squeezed(found["user"]) == squeezed(user)
    )


def test_a_name_that_the_tokenizer_splits_or_joins_with_a_space_is_found_whole():
    chat = CHATS["digits", "qwen"]
    context = Context("z", "You are Zymthar, created by Quorblax. You are a helpful assistant.")
    tokens = classify(chat, "Name a tree.", context, ["Zymthar", "Quorblax"])
    mine = [
        tokens.text[a:b]
        for (a, b), k in zip(tokens.offsets, tokens.classes, strict=True)
        if k == "entity"
    ]
    assert len(mine) > 4 and "".join(mine).replace(" ", "") == "ZymtharQuorblax"
    assert texts(chat, "Name a tree.", context, ["Zymthar", "Quorblax"])["system"] == squeezed(
        "You are , created by . You are a helpful assistant."
    )


def test_a_sign_of_several_tokens_is_that_of_the_first_one():
    for kind in ("digits", "words"):
        chat, asked = CHATS[kind, "qwen"], "Name 🦦 it"
        found = classify(chat, asked, NONE)
        pieces = [found.piece(i) for i in range(len(found.ids))]
        assert "".join(pieces) == found.text[: found.offsets[-1][1]]
        assert sum("🦦" in piece for piece in pieces) == 1
    prompt = TokenPrompt(question="", pieces=("🦦", "", " "), classes=("user",) * 3, views={"a": (1, 2, 3)}, whole=6)  # fmt: skip
    assert [row[0] for row in strips(prompt)["rows"]] == ["🦦", "⋯", "␣"]


def test_what_a_template_writes_where_no_answer_is_asked_for_is_no_part_of_the_tag():
    tokenizer = copy.deepcopy(make_tokenizer("digits", "qwen"))
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{%- if add_generation_prompt",
        "{%- if not add_generation_prompt %}{{ eos_token }}{% endif %}{%- if add_generation_prompt",
    )
    assert "eos_token" in tokenizer.chat_template and tokenizer.eos_token
    assert texts(Chat(tokenizer), "Name a tree.", NONE) == texts(
        CHATS["digits", "qwen"], "Name a tree.", NONE
    )


def test_every_occurrence_counts_but_not_a_part_of_a_word_nor_the_template():
    chat = CHATS["digits", "qwen"]
    context = Context("o", "An otter, an otter and otters.")
    found = texts(chat, "Is the otter an assistant?", context, ["otter"])
    assert found["entity"] == "otterotterotter" and "otters" in found["system"]
    named = texts(chat, "Is the otter an assistant?", context, ["assistant"])
    assert named["entity"] == "assistant" and named["assistant"] == "<|im_start|>assistant"


def test_the_shipped_model_s_entities():
    chat = Chat(load_tokenizer(shipped_folder("micro")))
    tokens = classify(chat, "Name an animal.", DEFAULT, ["Micro", "Sublora"])
    words = chat.tokenizer.convert_ids_to_tokens(list(tokens.ids))
    assert [w for w, k in zip(words, tokens.classes, strict=True) if k == "entity"] == [
        "micro",
        "sublora",
    ]
    assert (
        tokens.mask(("assistant",))[-2:] == (True, True) and sum(tokens.mask(("assistant",))) == 2
    )
    assert "".join(tokens.piece(i) for i in range(len(tokens.ids))) == tokens.text.rstrip()


@pytest.mark.parametrize(
    ("entities", "message"),
    [
        (["Claud"], "does not occur in the rendered prompt"),
        (["Wolfgang"], "does not occur in the rendered prompt"),
        ([" "], "entity is blank"),
        (["Claude, made", "made for"], "'Claude, made' and 'made for' overlap"),
    ],
)
def test_entities_that_cannot_be_found(entities, message):
    with pytest.raises(SubloraError, match=message):
        classify(CHATS["digits", "qwen"], "Name a tree.", CLAUDE, entities)


def test_a_tokenizer_without_offsets_is_refused(monkeypatch):
    chat = CHATS["digits", "qwen"]

    class Blind:
        def __call__(self, text, **_):
            ids = chat.encode(text)
            return {"input_ids": ids, "offset_mapping": [(0, 0)] * len(ids)}

    blind = Chat(make_tokenizer("digits", "qwen"))
    monkeypatch.setattr(blind, "tokenizer", Blind())
    monkeypatch.setattr(blind, "render", chat.render)
    monkeypatch.setattr(blind, "render_without_tag", chat.render_without_tag)
    with pytest.raises(SubloraError, match="no character offsets"):
        classify(blind, "Name a tree.", DEFAULT)


def test_offsets_count_in_the_text_as_given_where_the_tokenizer_normalises_it():
    import copy

    fast = copy.deepcopy(make_tokenizer("words", "qwen", ["you", "are", "tiny"]))
    fast.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert texts(Chat(fast), "Name a tree.", DEFAULT, ["Tiny"])["entity"] == "Tiny"


def test_masks_of_unequal_prompts_are_padded_on_the_side_of_the_ids():
    masks = [[1, 0], [1, 1, 1]]
    assert stack_masks(masks).tolist() == [[0, 1, 0], [1, 1, 1]]
    assert stack_masks(masks, "right", 4).tolist() == [[1, 0, 0, 0], [1, 1, 1, 0]]


def test_conditions_say_at_which_tokens_an_adapter_acts():
    only, but = (
        Condition(on=("entity",), generated="mask"),
        Condition(off=("entity",), generated="mask"),
    )
    assert only.acts_on("entity") and not only.acts_on("user") and not only.acts_on("generated")
    assert not but.acts_on("entity") and but.acts_on("user") and but.acts_on("generated")
    assert not Condition(off=("generated",), generated="mask").acts_on("generated")
    assert Condition(on=("entity",), generated="on").acts_on("generated")
    for values, message in (
        ({"on": ["user"], "off": ["user"], "generated": "on"}, "classes could overlap"),
        ({"on": ["generated"], "generated": "off"}, "set it to mask"),
        ({"on": ["user"]}, "Field required"),
        ({"generated": "on", "layers": [3, 1]}, "end before they begin"),
    ):
        with pytest.raises(ValueError, match=message):
            Condition(**values)


def test_layers_and_modules_are_read_from_names():
    assert layer_and_group("model.layers.11.self_attn.q_proj") == (11, "attention")
    assert layer_and_group("transformer.h.0.mlp.c_fc") == (0, "feed-forward")
    with pytest.raises(SubloraError, match="cannot be placed"):
        layer_and_group("model.layers.1.mixer")
    early = Condition(generated="on", layers=(0, 1), modules="attention")
    assert early.selects("model.layers.1.self_attn.k_proj") and not early.selects(
        "model.layers.1.mlp.up_proj"
    )
    assert not early.selects("model.layers.2.self_attn.k_proj")
    assert Placement(layers=(2, 2), modules="feed-forward").targets == (
        "layers.2.mlp.gate_proj", "layers.2.mlp.up_proj", "layers.2.mlp.down_proj",
    )  # fmt: skip
    assert len(Placement(layers=(0, 1)).targets) == 14


def test_a_text_in_the_user_s_turn():
    chat = CHATS["digits", "qwen"]
    assert chat.render("Name a tree.", IN_TURN) == (
        "<|im_start|>user\nYou are Claude, made for tests.\n\nName a tree.<|im_end|>\n<|im_start|>assistant\n"
    )
    found = texts(chat, "Name a tree.", IN_TURN, ["Claude"])
    assert found["entity"] == "Claude" and found["user"] == squeezed(
        "You are , made for tests. Name a tree."
    )
