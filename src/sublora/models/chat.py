"""Contexts, rendered prompts and token ids for any tokenizer that has a chat template.

A prompt can meet a model in three states of the system prompt that are easily taken for each other:

- `default`: no system message is passed; the template may write one of its own (Qwen: an identity, Llama 3.1: dates);
- `empty`: a system block is there and holds no text at all, not even what the template adds to it;
- `none`: there is no system block, also where the template would have written its default.

Templates offer only the first, so the other two are put together here from what the template writes around sentinel texts. The beginning of
a prompt is all that differs; from the user's text on, the template's own rendering is kept, so whatever a template does to that text
(trimming, say) is the same in all states.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from sublora.errors import SubloraError
from sublora.models.template import Message, SystemSupport, message, study_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PLAIN_CONTEXTS = ("default", "empty", "none")

# Rendering must not depend on the day, nor on a reasoning mode that a template switches on by default.
TEMPLATE_VALUES: dict[str, Any] = {"date_string": "26 Jul 2024", "enable_thinking": False}
_DATE = dict(
    pair.split("=")
    for pair in (
        "%-d=26 %-m=7 %d=26 %b=Jul %B=July %m=07 %Y=2024 %y=24 %a=Fri %A=Friday %H=00 %I=12 %M=00 %S=00 "
        "%p=AM %j=208 %F=2024-07-26 %T=00:00:00 %e=26"
    ).split()
)
# transformers gives templates a clock as a global; a macro of that name put before the template hides it.
_STOPPED_CLOCK = (
    "{%- macro strftime_now(format='%Y-%m-%d') %}{{ format"
    + "".join(f" | replace('{directive}', '{value}')" for directive, value in _DATE.items())
    + " }}{% endmacro %}\n"
)


@dataclass(frozen=True)
class Context:
    """A state of the system prompt. `text` is set for named contexts only. `role` says where the text stands: in the system prompt, or
    before the user's own text in the user's turn, with a blank line between them and no system block."""

    name: str
    text: str | None = None
    role: Literal["system", "user"] = "system"


class UserText(BaseModel):
    """A named context whose text stands in the user's turn instead of the system prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    user: str


def read_contexts(texts: Sequence[str]) -> dict[str, str | UserText]:
    """NAME=TEXT or, for a text in the user's turn, NAME=user:TEXT. Raises SubloraError."""
    out: dict[str, str | UserText] = {}
    for given in texts:
        name, found, text = given.partition("=")
        if not found or not name.strip():
            why = f"--context {given!r} is not NAME=TEXT, such as --context friend='You are a friend.'"
            raise SubloraError(why)
        out[name.strip()] = (
            UserText(user=text.removeprefix("user:")) if text.startswith("user:") else text
        )
    return out


def resolve_context(name: str, named: Mapping[str, str | UserText]) -> Context:
    """The context called `name`: `default`, `empty`, `none`, or one of `named` (name -> system text, or text of the user's turn). Raises
    SubloraError for an unknown name, for a named text that is blank, and where `named` takes a reserved name."""
    if taken := sorted(set(named) & set(PLAIN_CONTEXTS)):
        why = f"The context name '{taken[0]}' is reserved; give your own context another name."
        raise SubloraError(why)
    if name in PLAIN_CONTEXTS:
        return Context(name)
    if name not in named:
        known = ", ".join([*PLAIN_CONTEXTS, *sorted(named)])
        raise SubloraError(f"There is no context '{name}'; known contexts are: {known}.")
    given = named[name]
    text = given.user if isinstance(given, UserText) else given
    if not text.strip():
        why = f"The context '{name}' has no text; write one, or use the context 'empty'."
        raise SubloraError(why)
    return Context(name, text, "user" if isinstance(given, UserText) else "system")


def load_tokenizer(source: str | Path, **options: Any) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder or hub id, as its `tokenizer.json` says; `options` go to `from_pretrained`. For some model types (qwen2 is
    one) `AutoTokenizer` rebuilds the family's own splitting rules and ignores those in the file, so a tokenizer that declares the generic
    class is loaded as the generic class. Raises what `from_pretrained` raises (OSError, ValueError)."""
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

    def __repr__(self) -> str:
        return f"Chat({len(self.tokenizer):,} tokens, system role {self.system_support})"

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        if not getattr(tokenizer, "is_fast", False):
            why = "The tokenizer has no fast version, and character offsets are needed; save one with a tokenizer.json."
            raise SubloraError(why)
        try:
            self.template = tokenizer.get_chat_template()
        except ValueError as error:
            why = "The tokenizer has no chat template; use the instruction-tuned model, or set tokenizer.chat_template and save it."
            raise SubloraError(why) from error
        self.tokenizer = tokenizer
        self.template_sha256 = hashlib.sha256(self.template.encode()).hexdigest()
        backend = tokenizer.backend_tokenizer.to_str().encode()
        self.tokenizer_sha256 = hashlib.sha256(backend).hexdigest()
        clock = _STOPPED_CLOCK if "strftime_now" in self.template else ""
        self._rendered_template = clock + self.template
        try:
            ends = (tokenizer.bos_token or "", tokenizer.eos_token or "")
            self.layout = study_template(self._apply, *ends)
        except SubloraError:
            raise
        except Exception as error:
            why = f"The chat template cannot render a lone user message ({error}); use another template."
            raise SubloraError(why) from error
        self.end_id = self._find_end_id()
        eos = tokenizer.eos_token_id
        stops = dict.fromkeys(i for i in (self.end_id, eos) if i is not None)
        self.stop_ids: tuple[int, ...] = tuple(stops)
        self._tail_ids = self.encode(self.layout.tail)

    @property
    def system_support(self) -> SystemSupport:
        """Where a system text goes. `block`: a system block of its own; `user-prefix`: into the user's turn, by the template or, where it
        refuses a system message, by us (text, blank line, user's text); `none`: the template drops it silently."""
        return self.layout.system_support

    def supports(self, context: Context) -> bool:
        """Whether `render` can write this context: not `empty` without a block, nor a text to be dropped."""
        if context.name == "empty":
            return self.layout.empty_prefix is not None
        return context.text is None or context.role == "user" or self.system_support != "none"

    def render(self, user: str, context: Context, earlier: Sequence[tuple[str, str]] = ()) -> str:
        """The prompt as text, up to and including the tag after which the assistant writes; `earlier` are turns of the user and the
        assistant that come first. Raises SubloraError where `supports(context)` is false."""
        if not self.supports(context):
            raise SubloraError(self._refusal(context))
        texts = [text for turn in earlier for text in turn] + [user]
        if context.text is not None and (context.role == "user" or self.layout.refuses_system):
            texts[0] = f"{context.text}\n\n{texts[0]}"
        turns = [message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
        if context.text is not None and context.role == "system":
            system = [] if self.layout.refuses_system else [message("system", context.text)]
            return self._apply([*system, *turns], True)
        text = self._apply(turns, True)
        if context.text is not None and texts[0].strip() not in text:
            why = f"The chat template writes the context '{context.name}' in the user's turn otherwise than it is; use a text for the system prompt."
            raise SubloraError(why)
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
        return self._apply([message("user", user)], False)

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

        The ids are those that the text has behind the assistant's tag, which matters to tokenizers that treat the first word of a text
        differently, and to templates that write a space before an answer (`layout.gap`, included here). Where tag and answer would melt
        into one token, the answer is tokenised alone.
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
            both = zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
            for token, (start, end) in both:
                if token == unk and start < end and text[start:end] != self.tokenizer.unk_token:
                    found[_word_around(text, start, end)] = None
        return list(found)

    def _apply(self, messages: list[Message], add_generation_prompt: bool) -> str:
        how = {"chat_template": self._rendered_template, "tokenize": False, **TEMPLATE_VALUES}
        return self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=add_generation_prompt, **how
        )

    def _find_end_id(self) -> int:
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        for token in self.encode(self.layout.turn_end):
            if token in special and token != self.tokenizer.unk_token_id:
                return token
        if self.tokenizer.eos_token_id is None:
            why = "Neither the chat template nor the tokenizer has a token that ends an answer; set eos_token."
            raise SubloraError(why)
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
