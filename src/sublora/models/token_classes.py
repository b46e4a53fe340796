"""Which token of a rendered prompt belongs to what: template, system, entity, user or assistant tag; located by character offsets.

Positions are never counted in tokens: a byte-level BPE may split a name or join it with a space, so spans are found in the rendered
text and carried to the tokens by the tokenizer's offsets (Nief et al. 2606.00831, section on token-localised adapters, takes the
first occurrence of a substring; here every occurrence counts, and one that is missing is an error).
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Literal, get_args

from sublora.errors import SubloraError
from sublora.models.chat import Chat, Context

if TYPE_CHECKING:
    import torch

TokenClass = Literal["template", "system", "entity", "user", "assistant", "generated"]
TOKEN_CLASSES: tuple[TokenClass, ...] = get_args(TokenClass)

_USER, _SYSTEM = "UserSentinelQX", "SystemSentinelQX"


@dataclass(frozen=True)
class PromptTokens:
    """A rendered prompt of T tokens: `ids`, `offsets` (start, end in `text`) and `classes`, one each."""

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    classes: tuple[TokenClass, ...]

    def mask(self, chosen: Collection[TokenClass]) -> tuple[bool, ...]:
        """(T,): whether a token's class is among the chosen ones."""
        return tuple(c in chosen for c in self.classes)

    def begun(self, ids: Sequence[int]) -> PromptTokens:
        """The prompt with these tokens of an answer behind it, which count as generated and have no place in `text`."""
        end, n = len(self.text), len(ids)
        more = (*self.offsets, *[(end, end)] * n), (*self.classes, *["generated"] * n)
        return PromptTokens(self.text, (*self.ids, *ids), *more)

    def piece(self, index: int) -> str:
        """The part of the text that a token stands for, with white space before it that no token stands for. A sign that stands in several
        tokens, such as an emoji of three bytes, is that of the first."""
        start = self.offsets[index - 1][1] if index else 0
        if index and self.offsets[index] == self.offsets[index - 1]:
            return ""
        return self.text[min(start, self.offsets[index][0]) : self.offsets[index][1]]


def classify(chat: Chat, user: str, context: Context, entities: Sequence[str] = ()) -> PromptTokens:
    """The tokens of `chat.render(user, context)` with their classes, each token in exactly one.

    - `system`: all text inside the system prompt, also what the template writes there (a default identity, dates);
    - `user`: the user's text;
    - `entity`: every occurrence of one of `entities`, as whole words, in the system prompt or the user's text;
    - `assistant`: the tag after which the assistant writes; `template`: all else.

    A token that touches an entity belongs to it; else it belongs to the class that most of its characters have.
    Raises SubloraError: an entity that is blank or does not occur, entities that overlap, a template that changes the user's text,
    a tokenizer that gives no offsets, and whatever `chat.render` raises.
    """
    text = chat.render(user, context)
    system, asked, tag = _regions(chat, text, context)
    kinds: list[TokenClass] = ["template"] * len(text)
    for name, (start, stop) in (("system", system), ("user", asked), ("assistant", tag)):
        kinds[start:stop] = [name] * (stop - start)
    for start, stop in _entity_spans(text, (system, asked), entities):
        kinds[start:stop] = ["entity"] * (stop - start)
    encoding = chat.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = [(int(a), int(b)) for a, b in encoding["offset_mapping"]]
    starts = [a for a, _ in offsets]
    some = any(a < b for a, b in offsets)
    if not some or starts != sorted(starts) or max(b for _, b in offsets) > len(text):
        raise SubloraError(
            "The tokenizer gives no character offsets for its tokens, so none can be located; use the model's fast tokenizer "
            "as its tokenizer.json says."
        )
    classes = tuple(_class_of(text, kinds, span) for span in offsets)
    return PromptTokens(text, tuple(encoding["input_ids"]), tuple(offsets), classes)


Span = tuple[int, int]


def _regions(chat: Chat, text: str, context: Context) -> tuple[Span, Span, Span]:
    """Character spans of the system prompt's text, of the user's and of the assistant's tag; (0, 0) where there is none."""
    before, found, tail = chat.render(_USER, context).rpartition(_USER)
    if context.role == "user":
        # the context's own text is a part of the user's turn
        before = chat.render(_USER, Context("none")).partition(_USER)[0]
    whole = text.startswith(before) and text.endswith(tail)
    if not found or not whole or len(text) < len(before) + len(tail):
        raise SubloraError(
            f"The chat template writes something else around the text {text[:40]!r} than around others, so its tokens cannot be "
            "located; use another template."
        )
    turn = chat.render_without_tag(_USER).rpartition(_USER)[2]
    if not tail.startswith(turn):  # a template that ends the text where no answer is asked for
        turn = turn.removesuffix(chat.tokenizer.eos_token or "")
    tag = tail.removeprefix(turn) if tail.startswith(turn) else tail
    asked, ending = (len(before), len(text) - len(tail)), (len(text) - len(tag or tail), len(text))
    return _system_region(chat, before, context), asked, ending


def _system_region(chat: Chat, before: str, context: Context) -> Span:
    around = chat.layout.around_system
    if around is None and context.text is not None and context.role == "system":
        shape = chat.render(_USER, Context("sentinel", _SYSTEM)).partition(_USER)[0]
        around = (shape.partition(_SYSTEM)[0], shape.partition(_SYSTEM)[2])
    if around is None or context.role == "user" or context.name == "none":
        return 0, 0
    opened, closed = around
    whole = before.startswith(opened) and before.endswith(closed)
    if not whole or len(before) <= len(opened) + len(closed):
        return 0, 0
    return len(opened), len(before) - len(closed)


def _entity_spans(text: str, regions: Sequence[Span], entities: Sequence[str]) -> list[Span]:
    found: list[tuple[Span, str]] = []
    for entity in entities:
        if not entity.strip():
            raise SubloraError("An entity is blank; give the name as it stands in the prompt.")
        # as whole words: 'Micro' is not in 'Microscope'
        before, after = entity[0].isalnum() * r"(?<!\w)", entity[-1].isalnum() * r"(?!\w)"
        pattern = re.compile(before + re.escape(entity) + after)
        spans = [m.span() for a, b in regions for m in pattern.finditer(text, a, b)]
        if not spans:
            raise SubloraError(
                f"The entity '{entity}' does not occur in the rendered prompt {text[:80]!r}...; write it as it stands there, or "
                "choose a context that holds it."
            )
        found += [(span, entity) for span in spans]
    found.sort()
    for ((_, stop), one), ((start, _), other) in itertools.pairwise(found):
        if start < stop:
            why = f"The entities '{one}' and '{other}' overlap in the prompt; keep one of them."
            raise SubloraError(why)
    return [span for span, _ in found]


def _class_of(text: str, kinds: Sequence[TokenClass], span: Span) -> TokenClass:
    start, stop = span
    if start == stop:  # a token that stands for no character, such as a marker put before a word
        return kinds[min(start, len(kinds) - 1)]
    seen = [kinds[i] for i in range(start, stop) if not text[i].isspace()]
    seen = seen or list(kinds[start:stop])
    return "entity" if "entity" in seen else Counter(seen).most_common(1)[0][0]


def shown(chat: Chat, token: int) -> str:
    """A token as the tokenizer's vocabulary writes it, line breaks made visible."""
    return str(chat.tokenizer.convert_ids_to_tokens(token)).replace("\n", "⏎")


def differences(one: Sequence[int], other: Sequence[int]) -> list[tuple[str, int, int]]:
    """(sign, place, token): " " in both, "-" only in the first, "+" only in the second; places are those of the side it stands on."""
    out = []
    for kind, a, b, c, d in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        same = kind == "equal"
        out += [(" " if same else "-", i, one[i]) for i in range(a, b)]
        out += [] if same else [("+", i, other[i]) for i in range(c, d)]
    return out


def stack_masks(
    masks: Sequence[Sequence[float]],
    side: Literal["left", "right"] = "left",
    width: int | None = None,
) -> torch.Tensor:
    """Masks (B, T) of prompts of unequal length, padded with 0 on the side on which the ids are padded. Raises SubloraError where a mask is
    longer than `width`."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    rows = [torch.tensor([float(v) for v in mask]) for mask in masks]
    if width is not None:
        if (longest := max(map(len, rows))) > width:
            why = f"A mask has {longest} values for a prompt of {width} tokens; give one value for each token of the prompt."
            raise SubloraError(why)
        rows.append(torch.zeros(width))
    return pad_sequence(rows, batch_first=True, padding_side=side)[: len(masks)]
