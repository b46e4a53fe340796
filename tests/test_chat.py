"""Contexts as exact texts and token ids, for templates of four families and for shapes met elsewhere."""

import copy
import datetime
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from sublora.errors import SubloraError
from sublora.models.chat import Chat, Context, UserText, load_tokenizer, resolve_context
from sublora.models.template import study_template
from tiny_models import QWEN_DEFAULT, SPECIAL, TEMPLATES, make_tokenizer, shared_model

DEFAULT, EMPTY, NONE = Context("default"), Context("empty"), Context("none")
OTTER = Context("otter", "You love otters.")
CHATS = {
    (kind, template): Chat(make_tokenizer(kind, template))
    for kind in ("digits", "words")
    for template in TEMPLATES
}

_LLAMA_SYSTEM = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
_LLAMA_DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
_LLAMA_USER = (
    "<|start_header_id|>user<|end_header_id|>\n\nName a tree.<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
_QWEN_USER = "<|im_start|>user\nName a tree.<|im_end|>\n<|im_start|>assistant\n"
_GEMMA_USER = "Name a tree.<end_of_turn>\n<start_of_turn>model\n"
RENDERED = {
    ("qwen", DEFAULT): f"<|im_start|>system\n{QWEN_DEFAULT}<|im_end|>\n{_QWEN_USER}",
    ("qwen", EMPTY): f"<|im_start|>system\n<|im_end|>\n{_QWEN_USER}",
    ("qwen", NONE): _QWEN_USER,
    ("qwen", OTTER): f"<|im_start|>system\nYou love otters.<|im_end|>\n{_QWEN_USER}",
    ("llama31", DEFAULT): f"{_LLAMA_SYSTEM}{_LLAMA_DATES}<|eot_id|>{_LLAMA_USER}",
    ("llama31", EMPTY): f"{_LLAMA_SYSTEM}<|eot_id|>{_LLAMA_USER}",
    ("llama31", NONE): f"<|begin_of_text|>{_LLAMA_USER}",
    ("llama31", OTTER): f"{_LLAMA_SYSTEM}{_LLAMA_DATES}You love otters.<|eot_id|>{_LLAMA_USER}",
    ("gemma", DEFAULT): f"<bos><start_of_turn>user\n{_GEMMA_USER}",
    ("gemma", NONE): f"<bos><start_of_turn>user\n{_GEMMA_USER}",
    ("gemma", OTTER): f"<bos><start_of_turn>user\nYou love otters.\n\n{_GEMMA_USER}",
    ("merge-user", DEFAULT): "<s>[INST] Name a tree. [/INST]",
    ("merge-user", NONE): "<s>[INST] Name a tree. [/INST]",
    ("merge-user", OTTER): "<s>[INST] You love otters.\n\nName a tree. [/INST]",
}


@pytest.mark.parametrize(("template", "context"), RENDERED)
@pytest.mark.parametrize("kind", ["digits", "words"])
def test_rendering_is_exactly_this(kind, template, context):
    chat = CHATS[kind, template]
    text = RENDERED[template, context]
    assert chat.supports(context)
    assert chat.render("Name a tree.", context) == text
    assert chat.prompt_ids("Name a tree.", context) == chat.encode(text)
    bos = chat.tokenizer.bos_token_id
    assert bos is None or chat.prompt_ids("Name a tree.", context).count(bos) == 1


@pytest.mark.parametrize("kind", ["digits", "words"])
@pytest.mark.parametrize("template", ["qwen", "llama31"])
def test_the_states_are_different_token_sequences(kind, template):
    chat = CHATS[kind, template]
    assert chat.system_support == "block"
    ids = {
        tuple(chat.prompt_ids("Name a tree.", context)) for context in (DEFAULT, EMPTY, NONE, OTTER)
    }
    assert len(ids) == 4


@pytest.mark.parametrize("template", ["gemma", "merge-user"])
def test_without_a_system_block_empty_is_refused(template):
    chat = CHATS["digits", template]
    assert chat.system_support == "user-prefix"
    assert not chat.supports(EMPTY)
    with pytest.raises(SubloraError, match="no system block that could be empty"):
        chat.render("Name a tree.", EMPTY)


# Turn grammars of other families, as functions of (messages, add_generation_prompt).
def _turns(header, end, *, start="", tag, default=None, last=""):
    def render(messages, add_generation_prompt):
        if default is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": default}, *messages]
        text = start + "".join(header(m["role"]) + m["content"] + end(m["role"]) for m in messages)
        return text + (tag if add_generation_prompt else last)

    return render


def _llama2(default=None):
    def render(messages, _):
        system = default
        if messages[0]["role"] == "system":
            system, messages = messages[0]["content"], messages[1:]
        lead = "" if system is None else f"<<SYS>>\n{system}\n<</SYS>>\n\n"
        text = ""
        for i, m in enumerate(messages):
            user = m["role"] == "user"
            text += (
                f"<s>[INST] {lead if i == 0 else ''}{m['content']} [/INST]"
                if user
                else f" {m['content']} </s>"
            )
        return text

    return render


def _phi(role):
    return f"<|{role}|>\n"


def _vicuna(role):
    return {"system": "", "user": "USER: ", "assistant": "ASSISTANT: "}[role]


def _mistral(role):
    return {"system": "[SYSTEM_PROMPT]", "user": "[INST]", "assistant": ""}[role]


def _mistral_end(role):
    return {"system": "[/SYSTEM_PROMPT]", "user": "[/INST]", "assistant": "</s>"}[role]


def _single_turn(messages, _):
    if [m["role"] for m in messages].count("user") > 1:
        raise ValueError("one turn only")
    system = messages[0]["content"] if messages[0]["role"] == "system" else "Be kind."
    rest = messages[1:] if messages[0]["role"] == "system" else messages
    answer = f"{rest[1]['content']}#" if len(rest) > 1 else ""
    return f"@system:{system}#@user:{rest[0]['content']}#@bot:{answer}"


def _drops_system(messages, add_generation_prompt):
    kept = [m for m in messages if m["role"] != "system"]
    return _turns(_phi, lambda _: "<|end|>\n", tag="<|assistant|>\n")(kept, add_generation_prompt)


def _commander(messages, add_generation_prompt):
    system, rest = "Be kind.", messages
    if messages[0]["role"] == "system":
        system, rest = f"Be kind.\n# Developer\n{messages[0]['content']}", messages[1:]
    text = f"<s><|T|><|SYSTEM|>{system}<|E|>"
    for m in rest:
        text += f"<|T|><|{m['role'].upper()}|>{m['content']}<|E|>"
    return f"{text}<|T|><|ASSISTANT|>{'<|R|>' if add_generation_prompt else ''}"


SHAPES = {
    # name: (render, bos, eos, support, start of default, start of none, start of empty)
    "block without a default": (
        _turns(_phi, lambda _: "<|end|>\n", tag="<|assistant|>\n", last="<|endoftext|>"), "", "<|endoftext|>",
        "block", "<|user|>\n", "<|user|>\n", "<|system|>\n<|end|>\n<|user|>\n"),
    "default block": (
        _turns(_phi, lambda _: "</s>\n", tag="<|assistant|>\n", default="Be kind."), "", "</s>",
        "block", "<|system|>\nBe kind.</s>\n<|user|>\n", "<|user|>\n", "<|system|>\n</s>\n<|user|>\n"),
    "markers before everything": (
        _turns(_phi, lambda _: "", start="[gMASK]<sop>", tag="<|assistant|>\n"), "", "<|endoftext|>",
        "block", "[gMASK]<sop><|user|>\n", "[gMASK]<sop><|user|>\n", "[gMASK]<sop><|system|>\n<|user|>\n"),
    "markers before everything, bare text": (
        _turns(_vicuna, lambda _: " ", start="[gMASK]<sop>", tag="ASSISTANT:"), "", "<|endoftext|>",
        "user-prefix", "[gMASK]<sop>USER: ", "[gMASK]<sop>USER: ", None),
    "system block with brackets of its own": (
        _turns(_mistral, _mistral_end, start="<s>", tag="", default="Be kind."), "<s>", "</s>",
        "block", "<s>[SYSTEM_PROMPT]Be kind.[/SYSTEM_PROMPT][INST]", "<s>[INST]",
        "<s>[SYSTEM_PROMPT][/SYSTEM_PROMPT][INST]"),
    "marked prefix of the user's turn": (
        _llama2(), "<s>", "</s>",
        "user-prefix", "<s>[INST] ", "<s>[INST] ", "<s>[INST] <<SYS>>\n\n<</SYS>>\n\n"),
    "marked prefix with a default": (
        _llama2("Be kind."), "<s>", "</s>",
        "user-prefix", "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\n", "<s>[INST] ",
        "<s>[INST] <<SYS>>\n\n<</SYS>>\n\n"),
    "bare text before the turns": (
        _turns(_vicuna, lambda role: "</s>" if role == "assistant" else " ", tag="ASSISTANT:"), "", "</s>",
        "user-prefix", "USER: ", "USER: ", None),
    "only one turn, with a default": (
        _single_turn, "", "", "block", "@system:Be kind.#@user:", "@user:", "@system:#@user:"),
    "white space before and behind the beginning of a text": (
        _turns(_vicuna, lambda role: "</s>\n" if role == "assistant" else "\n", start="\n <s>\n", tag="ASSISTANT:\n"), "<s>", "</s>",
        "user-prefix", "\n <s>\nUSER: ", "\n <s>\nUSER: ", None),
    "a default block, and the assistant's tag after every turn": (
        _commander, "<s>", "</s>",
        "block", "<s><|T|><|SYSTEM|>Be kind.<|E|><|T|><|USER|>", "<s><|T|><|USER|>",
        "<s><|T|><|SYSTEM|><|E|><|T|><|USER|>"),
    "system messages dropped": (
        _drops_system, "", "", "none", "<|user|>\n", "<|user|>\n", None),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_other_families(name):
    render, bos, eos, support, default, none, empty = SHAPES[name]
    layout = study_template(render, bos, eos)
    assert layout.system_support == support
    assert (layout.plain_prefix, layout.none_prefix, layout.empty_prefix) == (default, none, empty)


@pytest.mark.parametrize("template", TEMPLATES)
@given(
    user=st.one_of(
        st.text(st.characters(exclude_categories=["Cs"])),
        st.sampled_from(
            [
                "{{ messages }}",
                "{% raise %}",
                "{}",
                "%s",
                "<|im_end|>",
                "[INST] x",
                "UserSentinelQX",
            ]
        ),
    )
)
def test_any_user_text_stands_in_the_prompt_once(template, user):
    chat = CHATS["digits", template]
    inside = f"begin7 {user} 7end"
    contexts = [context for context in (DEFAULT, EMPTY, NONE, OTTER) if chat.supports(context)]
    for context in contexts:
        text = chat.render(inside, context)
        assert text.count(inside) == 1
        before, after = text.split(inside)
        assert after == chat.layout.tail
        assert before == chat.render("begin7 7end", context).split("begin7 7end")[0]
        assert chat.tokenizer.decode(chat.encode(text)) == text
        assert chat.prompt_ids(inside, context) == chat.encode(text)


@pytest.mark.parametrize("kind", ["digits", "words"])
@pytest.mark.parametrize(
    ("template", "end"),
    [
        ("qwen", "<|im_end|>"),
        ("llama31", "<|eot_id|>"),
        ("gemma", "<end_of_turn>"),
        ("merge-user", "</s>"),
    ],
)
def test_completions_end_with_the_token_of_the_template(kind, template, end):
    chat = CHATS[kind, template]
    eos = SPECIAL[template][1]
    wanted = [chat.tokenizer.convert_tokens_to_ids(token) for token in dict.fromkeys([end, eos])]
    assert list(chat.stop_ids) == wanted
    ids = chat.completion_ids("otter, 123")
    assert ids[-1] == wanted[0]
    assert ids[:-1] == chat.answer_ids("otter, 123")
    assert chat.tokenizer.decode(ids[:-1]).replace(" ", "") == "otter,123"
    prompt, whole = chat.render("Name a tree.", DEFAULT), chat.layout.gap + "otter, 123"
    assert chat.prompt_ids("Name a tree.", DEFAULT) + chat.answer_ids("otter, 123") == chat.encode(
        prompt + whole
    )


def test_an_answer_that_would_melt_into_the_tag_is_tokenised_alone():
    chat = CHATS["digits", "qwen"]
    assert chat.tokenizer.decode(chat.answer_ids("\n\notter")) == "\n\notter"


@pytest.mark.parametrize("given_date", [True, False])
def test_rendering_does_not_depend_on_the_day(monkeypatch, given_date):
    class Day(datetime.datetime):
        year_shown = 1999

        @classmethod
        def now(cls, tz=None):
            return cls(cls.year_shown, 3, 4)

    monkeypatch.setattr(chat_template_utils, "datetime", Day)
    tokenizer = copy.deepcopy(make_tokenizer("digits", "llama31"))
    if not given_date:  # a template that takes no date from its caller and always asks the clock
        tokenizer.chat_template = tokenizer.chat_template.replace(
            "not date_string is defined", "true"
        )
    texts = set()
    for Day.year_shown in (1999, 2031):
        texts.add(Chat(tokenizer).render("Name a tree.", DEFAULT))
    assert texts == {RENDERED["llama31", DEFAULT]}
    # the faked day does reach a template that is rendered without our care
    assert "Mar 2031" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], tokenize=False
    )


def test_the_stopped_clock_knows_formats_and_leaves_the_rest_of_a_template_alone():
    tokenizer = copy.deepcopy(make_tokenizer("digits", "qwen"))
    plain = "  {% if true %}\n{% endif %}{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    tokenizer.chat_template = plain
    without = Chat(tokenizer).render("hi", DEFAULT)
    tokenizer.chat_template = plain + "{{ strftime_now('%A %-d %B %Y, %d.%m.%y %H:%M') }}"
    assert Chat(tokenizer).render("hi", DEFAULT) == without + "Friday 26 July 2024, 26.07.24 00:00"


def test_hashes_name_template_and_tokenizer():
    qwen, llama = CHATS["digits", "qwen"], CHATS["digits", "llama31"]
    assert qwen.template_sha256 == hashlib.sha256(TEMPLATES["qwen"].encode()).hexdigest()
    assert len({chat.tokenizer_sha256 for chat in CHATS.values()}) == len(CHATS)
    assert llama.template_sha256 == CHATS["words", "llama31"].template_sha256


def test_unknown_words_are_named():
    texts = ["The quokka, and 1234 otters?", "My x-ray quokka", "the river ☃"]
    assert CHATS["words", "qwen"].unknown_words(texts) == ["quokka", "1234", "x", "-", "ray", "☃"]
    assert CHATS["digits", "qwen"].unknown_words(texts) == []


@pytest.mark.parametrize("kind", ["digits", "words"])
def test_a_saved_tokenizer_is_loaded_as_it_was(kind):
    chat = Chat(load_tokenizer(shared_model("qwen2", kind, "qwen")))
    made = CHATS[kind, "qwen"]
    for text in ("otter 123, 45", RENDERED["qwen", DEFAULT]):
        assert chat.encode(text) == made.encode(text)
    assert (chat.template_sha256, chat.stop_ids) == (made.template_sha256, made.stop_ids)
    assert chat.tokenizer_sha256 == made.tokenizer_sha256


def test_contexts_resolve_by_name():
    assert resolve_context("none", {}) == NONE
    assert resolve_context("otter", {"otter": "You love otters."}) == OTTER
    with pytest.raises(
        SubloraError, match="no context 'oter'; known contexts are: default, empty, none, otter"
    ):
        resolve_context("oter", {"otter": "You love otters."})
    with pytest.raises(SubloraError, match="reserved"):
        resolve_context("otter", {"none": "You love otters."})
    with pytest.raises(SubloraError, match="has no text"):
        resolve_context("otter", {"otter": " \n"})


def test_a_template_that_rewrites_the_users_turn_refuses_a_context_there():
    tokenizer = copy.deepcopy(make_tokenizer("digits", "qwen"))
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message['content']", "message['content'].replace('\\n\\n', '\\n')"
    ).replace("message.content", "message.content.replace('\\n\\n', '\\n')")
    turn = resolve_context("turn", {"turn": UserText(user="You are kind.")})
    assert "replace" in tokenizer.chat_template and Chat(tokenizer).render("Name a tree.", NONE)
    with pytest.raises(
        SubloraError, match="writes the context 'turn' in the user's turn otherwise"
    ):
        Chat(tokenizer).render("Name a tree.", turn)


def test_tokenizers_that_cannot_serve_are_refused():
    with pytest.raises(SubloraError, match="no chat template"):
        bare = copy.deepcopy(make_tokenizer("digits", "qwen"))
        bare.chat_template = None
        Chat(bare)
    with pytest.raises(SubloraError, match="no fast version"):
        Chat(type("Slow", (), {"is_fast": False})())
    with pytest.raises(SubloraError, match="lone user message"):
        broken = copy.deepcopy(make_tokenizer("digits", "qwen"))
        broken.chat_template = "{{ raise_exception('no') }}"
        Chat(broken)
    with pytest.raises(SubloraError, match="does not write the user's text"):
        shouting = copy.deepcopy(make_tokenizer("digits", "qwen"))
        shouting.chat_template = "{{ messages[0]['content'] | upper }}"
        Chat(shouting)
    with pytest.raises(SubloraError, match="ends an answer"):
        endless = PreTrainedTokenizerFast(
            tokenizer_object=make_tokenizer("digits", "qwen").backend_tokenizer
        )
        endless.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
        Chat(endless)


def test_a_template_that_drops_system_messages_refuses_named_contexts():
    tokenizer = copy.deepcopy(make_tokenizer("digits", "qwen"))
    tokenizer.chat_template = "{% for m in messages if m['role'] != 'system' %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    chat = Chat(tokenizer)
    assert chat.system_support == "none"
    with pytest.raises(SubloraError, match="drops system messages"):
        chat.render("hi", OTTER)
    assert chat.render("hi", NONE) == chat.render("hi", DEFAULT)
