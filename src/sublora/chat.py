"""Contexts, rendered prompts and token ids for any tokenizer that has a chat template.

A prompt can meet a model in three states of the system prompt that are easily taken for each other:

- `default`: no system message is passed; the template may write one of its own (Qwen: an identity,
  Llama 3.1: dates);
- `empty`: a system block is there and holds no text at all, not even what the template adds to it;
- `none`: there is no system block, also where the template would have written its default.

Templates offer only the first, so the other two are put together here from what the template writes around
sentinel texts. The beginning of a prompt is all that differs; from the user's text on, the template's own
rendering is kept, so whatever a template does to that text (trimming, say) is the same in all states.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from sublora.errors import SubloraError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PLAIN_CONTEXTS = ("default", "empty", "none")

# Rendering must not depend on the day, nor on a reasoning mode that a template switches on by default.
TEMPLATE_VALUES: dict[str, Any] = {"date_string": "26 Jul 2024", "enable_thinking": False}
_DATE = {
    "%-d": "26",
    "%-m": "7",
    "%d": "26",
    "%b": "Jul",
    "%B": "July",
    "%m": "07",
    "%Y": "2024",
    "%y": "24",
    "%a": "Fri",
    "%A": "Friday",
    "%H": "00",
    "%I": "12",
    "%M": "00",
    "%S": "00",
    "%p": "AM",
    "%j": "208",
    "%F": "2024-07-26",
    "%T": "00:00:00",
    "%e": "26",
}
# transformers gives templates a clock as a global; a macro of that name put before the template hides it.
_STOPPED_CLOCK = (
    "{%- macro strftime_now(format='%Y-%m-%d') %}{{ format"
    + "".join(f" | replace('{directive}', '{value}')" for directive, value in _DATE.items())
    + " }}{% endmacro %}\n"
)

_SYSTEM, _USER, _ANSWER, _SECOND = (
    f"{part}SentinelQX" for part in ("System", "User", "Answer", "Second")
)

Message = dict[str, str]
Renderer = Callable[[list[Message], bool], str]
SystemSupport = Literal["block", "user-prefix", "none"]


@dataclass(frozen=True)
class Context:
    """A state of the system prompt. `text` is set for named contexts only.

    `role` says where the text stands: in the system prompt, or before the user's own text in the user's turn, with a blank line
    between them and no system block.
    """

    name: str
    text: str | None = None
    role: Literal["system", "user"] = "system"


class UserText(BaseModel):
    """A named context whose text stands in the user's turn instead of the system prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    user: str


def resolve_context(name: str, named: Mapping[str, str | UserText]) -> Context:
    """The context called `name`: `default`, `empty`, `none`, or one of `named` (name -> system text, or text of the user's turn).

    Raises SubloraError for an unknown name, for a named text that is blank, and where `named` takes a
    reserved name.
    """
    if taken := sorted(set(named) & set(PLAIN_CONTEXTS)):
        raise SubloraError(
            f"The context name '{taken[0]}' is reserved; give your own context another name."
        )
    if name in PLAIN_CONTEXTS:
        return Context(name)
    if name not in named:
        known = ", ".join([*PLAIN_CONTEXTS, *sorted(named)])
        raise SubloraError(f"There is no context '{name}'; known contexts are: {known}.")
    given = named[name]
    text = given.user if isinstance(given, UserText) else given
    if not text.strip():
        raise SubloraError(
            f"The context '{name}' has no text; write one, or use the context 'empty'."
        )
    return Context(name, text, "user" if isinstance(given, UserText) else "system")


@dataclass(frozen=True)
class Layout:
    """What a template writes around the texts of a conversation, as plain text.

    `plain_prefix` stands before the user's text when no system message is passed; `none_prefix` and
    `empty_prefix` replace it in those contexts (`empty_prefix` is None where the template has no block that
    could be empty). `tail` follows the user's text and ends with the assistant's tag; `gap` is the white
    space that the template puts between that tag and an answer; `turn_end` closes an assistant's turn.
    `around_system` is what stands before and after all text of the system prompt, up to the user's text; None where the template
    takes no system message.
    """

    plain_prefix: str
    none_prefix: str
    empty_prefix: str | None
    tail: str
    gap: str
    turn_end: str
    system_support: SystemSupport
    refuses_system: bool
    around_system: tuple[str, str] | None


def study_template(render: Renderer, bos: str = "", eos: str = "") -> Layout:
    """Find out what a template writes, by sentinels; `render(messages, add_generation_prompt) -> text`.

    A later user turn shows the header of a user turn without anything that belongs to the start of a
    conversation, so the header tells apart a real system block (closed before the header) from a system
    text that the template merges into the user's turn (after the header). Raises SubloraError for a
    template that changes the user's text, and whatever the template raises on a lone user message.
    """
    plain = render([_message("user", _USER)], True)
    if plain.count(_USER) != 1:
        raise SubloraError(
            "The chat template does not write the user's text once, as it is; give the tokenizer another one."
        )
    plain_prefix, tail = plain.split(_USER)
    turn_end, gap = _answer_turn(render, plain)
    turn_end, header = _user_header(render, turn_end, plain_prefix, bos, eos)
    none_prefix = plain_prefix
    if header and not plain_prefix.endswith(header):
        # The first user turn is not like later ones: keep it, unless it only adds to what they begin with.
        start = header if header.startswith(bos) else bos + header
        none_prefix = start if plain_prefix.startswith(start) else plain_prefix

    def layout(
        support: SystemSupport,
        none: str,
        empty: str | None,
        around: tuple[str, str] | None,
        refuses: bool = False,
    ) -> Layout:
        return Layout(plain_prefix, none, empty, tail, gap, turn_end, support, refuses, around)

    try:
        with_system = render([_message("system", _SYSTEM), _message("user", _USER)], True)
    except Exception:  # templates refuse a role by raising whatever they like
        return layout("user-prefix", none_prefix, None, None, True)
    if with_system.count(_SYSTEM) != 1 or _SYSTEM not in with_system.partition(_USER)[0]:
        return layout("none", none_prefix, None, None)
    opened, _, rest = with_system.partition(_SYSTEM)
    between = rest.partition(_USER)[0]
    closed = None
    if header and between.endswith(header):
        closed = between.removesuffix(header)
    elif turn_end and between.startswith(turn_end):
        closed, header = turn_end, between.removeprefix(turn_end)
    before_header = plain_prefix.removesuffix(header)
    if closed is None or (not closed.strip() and opened in (before_header, bos)):
        # Merged into the user's turn, or bare text before it: without a mark of its own it cannot be empty.
        marked = "".join((opened + between).split()) != "".join(none_prefix.split())
        return layout(
            "user-prefix", none_prefix, opened + between if marked else None, (opened, between)
        )
    preface, opening = _system_opening(opened, header, bos)
    has_default = not plain_prefix.endswith(header) or not opened.startswith(before_header)
    none_prefix = preface + header if has_default else plain_prefix
    around = (preface + opening, closed + header)
    return layout("block", none_prefix, "".join(around), around)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _answer_turn(render: Renderer, plain: str) -> tuple[str, str]:
    """(text after an answer, white space between the generation prompt and an answer)."""
    text = render([_message("user", _USER), _message("assistant", _ANSWER)], False)
    before, found, after = text.rpartition(_ANSWER)
    gap = before.removeprefix(plain) if found and before.startswith(plain) else ""
    return (after if found else ""), (gap if gap.isspace() else "")


def _user_header(
    render: Renderer, turn_end: str, plain_prefix: str, bos: str, eos: str
) -> tuple[str, str]:
    """(end of an assistant's turn within a conversation, header of a user turn or "" if it is unclear)."""
    turns = [_message("user", _USER), _message("assistant", _ANSWER), _message("user", _SECOND)]
    try:
        text = render(turns, True)
    except Exception:  # a template for single turns
        return turn_end, ""
    between = text.rpartition(_ANSWER)[2].partition(_SECOND)[0]
    # Some templates close only the last turn with the end-of-sequence token as well.
    for end in (turn_end, turn_end.removesuffix(eos) if eos else turn_end):
        if between.startswith(end):
            header = between.removeprefix(end)
            shapes = (header, header.lstrip(), header.removeprefix(bos))
            return end, next(
                (shape for shape in shapes if shape and plain_prefix.endswith(shape)), header
            )
    return turn_end, ""


def _system_opening(opened: str, header: str, bos: str) -> tuple[str, str]:
    """Split what precedes a system text into (start of the conversation, header of the system block).

    Text that the template adds inside the block, before the given one (dates in Llama 3.1), belongs to
    neither. The header is recognised as the user's header with the other role's name in it.
    """
    for user, system in (("user", "system"), ("User", "System"), ("USER", "SYSTEM")):
        own = header.replace(user, system)
        if own != header and own in opened:
            return opened[: opened.rindex(own)], own
    preface = bos if opened.startswith(bos) else ""
    return preface, opened.removeprefix(preface)


def load_tokenizer(source: str | Path, **options: Any) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder or hub id, as its `tokenizer.json` says; `options` go to `from_pretrained`.

    For some model types (qwen2 is one) `AutoTokenizer` rebuilds the family's own splitting rules and
    ignores those in the file, so a tokenizer that declares the generic class is loaded as the generic
    class. Raises what `from_pretrained` raises (OSError, ValueError).
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    declared = get_tokenizer_config(str(source), **options).get("tokenizer_class")
    generic = declared in ("PreTrainedTokenizerFast", "TokenizersBackend")
    return (PreTrainedTokenizerFast if generic else AutoTokenizer).from_pretrained(
        source, **options
    )


class Chat:
    """A fast Hugging Face tokenizer with a chat template, seen as prompts and completions.

    Texts are data: braces or template commands in them are never run. Markers of the template that stand in a
    text are tokenised as markers, as everywhere in Hugging Face.

    Raises SubloraError where there is no chat template, no fast tokenizer (character offsets are needed), or
    no token that ends an assistant's turn.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise SubloraError(
                "The tokenizer has no fast version, and character offsets are needed; save one with a tokenizer.json."
            )
        try:
            self.template = tokenizer.get_chat_template()
        except ValueError as error:
            raise SubloraError(
                "The tokenizer has no chat template; use the instruction-tuned model, or set "
                "tokenizer.chat_template and save it."
            ) from error
        self.tokenizer = tokenizer
        self.template_sha256 = hashlib.sha256(self.template.encode()).hexdigest()
        self.tokenizer_sha256 = hashlib.sha256(
            tokenizer.backend_tokenizer.to_str().encode()
        ).hexdigest()
        clock = _STOPPED_CLOCK if "strftime_now" in self.template else ""
        self._rendered_template = clock + self.template
        try:
            self.layout = study_template(
                self._apply, tokenizer.bos_token or "", tokenizer.eos_token or ""
            )
        except SubloraError:
            raise
        except Exception as error:
            raise SubloraError(
                f"The chat template cannot render a lone user message ({error}); use another template."
            ) from error
        self.end_id = self._find_end_id()
        eos = tokenizer.eos_token_id
        self.stop_ids: tuple[int, ...] = tuple(
            dict.fromkeys(i for i in (self.end_id, eos) if i is not None)
        )
        self._tail_ids = self.encode(self.layout.tail)

    @property
    def system_support(self) -> SystemSupport:
        """Where a system text goes.

        `block`: a system block of its own; `user-prefix`: into the user's turn, by the template or, where
        it refuses a system message, by us (text, blank line, user's text); `none`: the template drops it
        silently.
        """
        return self.layout.system_support

    def supports(self, context: Context) -> bool:
        """Whether `render` can write this context: not `empty` without a block, nor a text to be dropped."""
        if context.name == "empty":
            return self.layout.empty_prefix is not None
        return context.text is None or context.role == "user" or self.system_support != "none"

    def render(self, user: str, context: Context, earlier: Sequence[tuple[str, str]] = ()) -> str:
        """The prompt as text, up to and including the tag after which the assistant writes; `earlier` are turns of the user and the
        assistant that come first.

        Raises SubloraError where `supports(context)` is false.
        """
        if not self.supports(context):
            raise SubloraError(self._refusal(context))
        texts = [text for turn in earlier for text in turn] + [user]
        if context.text is not None and (context.role == "user" or self.layout.refuses_system):
            texts[0] = f"{context.text}\n\n{texts[0]}"
        turns = [_message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
        if context.text is not None and context.role == "system":
            system = [] if self.layout.refuses_system else [_message("system", context.text)]
            return self._apply([*system, *turns], True)
        text = self._apply(turns, True)
        if context.name == "default":
            return text
        start = self.layout.empty_prefix if context.name == "empty" else self.layout.none_prefix
        if start is None or not text.startswith(self.layout.plain_prefix):
            raise SubloraError(
                f"The chat template begins a prompt differently for the text {user[:40]!r}, so the context "
                f"'{context.name}' cannot be built; use 'default' or a named context."
            )
        return start + text.removeprefix(self.layout.plain_prefix)

    def render_without_tag(self, user: str) -> str:
        """A lone user turn as text, without the tag after which the assistant writes."""
        return self._apply([_message("user", user)], False)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text that already holds its special tokens: nothing is added."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt_ids(
        self, user: str, context: Context, earlier: Sequence[tuple[str, str]] = ()
    ) -> list[int]:
        """Token ids of `render(user, context, earlier)`."""
        return self.encode(self.render(user, context, earlier))

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer, or of its beginning, to stand right behind `prompt_ids`, without an end.

        The ids are those that the text has behind the assistant's tag, which matters to tokenizers that
        treat the first word of a text differently, and to templates that write a space before an answer
        (`layout.gap`, included here). Where tag and answer would melt into one token, the answer is
        tokenised alone.
        """
        ids = self.encode(self.layout.tail + self.layout.gap + answer)
        if ids[: len(self._tail_ids)] == self._tail_ids:
            return ids[len(self._tail_ids) :]
        return self.encode(answer)

    def completion_ids(self, completion: str) -> list[int]:
        """Token ids of a whole answer: `answer_ids` and the token that ends the assistant's turn."""
        return [*self.answer_ids(completion), self.end_id]

    def unknown_words(self, texts: Iterable[str]) -> list[str]:
        """Words of which a part becomes the unknown token, each once; byte-level tokenizers have none."""
        unk = self.tokenizer.unk_token_id
        if unk is None:
            return []
        found: dict[str, None] = {}
        for text in texts:
            encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            for token, (start, end) in zip(
                encoding["input_ids"], encoding["offset_mapping"], strict=True
            ):
                if token == unk and start < end and text[start:end] != self.tokenizer.unk_token:
                    found[_word_around(text, start, end)] = None
        return list(found)

    def _apply(self, messages: list[Message], add_generation_prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(
            messages,
            chat_template=self._rendered_template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **TEMPLATE_VALUES,
        )

    def _find_end_id(self) -> int:
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        for token in self.encode(self.layout.turn_end):
            if token in special and token != self.tokenizer.unk_token_id:
                return token
        if self.tokenizer.eos_token_id is None:
            raise SubloraError(
                "Neither the chat template nor the tokenizer has a token that ends an answer; set eos_token."
            )
        return self.tokenizer.eos_token_id

    def _refusal(self, context: Context) -> str:
        if context.name == "empty":
            return (
                "The chat template has no system block that could be empty, so it cannot have the context "
                "'empty'; leave that out ('none' is a prompt without any system text)."
            )
        return (
            f"The chat template drops system messages, so the context '{context.name}' would have no effect; "
            "use the context 'default' or give the tokenizer another chat template."
        )


def _word_around(text: str, start: int, end: int) -> str:
    """The word that holds text[start:end]; a sign (punctuation, an emoji) stands for itself."""
    inside = re.compile(r"[\w'’]")
    if not any(character.isalnum() for character in text[start:end]):
        return text[start:end].strip()
    while start and inside.match(text[start - 1]):
        start -= 1
    while end < len(text) and inside.match(text[end]):
        end += 1
    return text[start:end].strip()
