"""What a chat template writes around the texts of a conversation, found out by sentinel texts."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from sublora.errors import SubloraError

_SYSTEM, _USER, _ANSWER, _SECOND = (
    f"{part}SentinelQX" for part in ("System", "User", "Answer", "Second")
)

Message = dict[str, str]
Renderer = Callable[[list[Message], bool], str]
SystemSupport = Literal["block", "user-prefix", "none"]


@dataclass(frozen=True)
class Layout:
    """What a template writes around the texts of a conversation, as plain text.

    `plain_prefix` stands before the user's text when no system message is passed; `none_prefix` and `empty_prefix` replace it in those
    contexts (`empty_prefix` is None where the template has no block that could be empty). `tail` follows the user's text and ends with the
    assistant's tag; `gap` is the white space that the template puts between that tag and an answer; `turn_end` closes an assistant's turn.
    `around_system` is what stands before and after all text of the system prompt, up to the user's text; None where the template takes no
    system message.
    """

    plain_prefix: str
    none_prefix: str
    tail: str
    gap: str
    turn_end: str
    empty_prefix: str | None = None
    system_support: SystemSupport = "none"
    refuses_system: bool = False
    around_system: tuple[str, str] | None = None


def study_template(render: Renderer, bos: str = "", eos: str = "") -> Layout:
    """Find out what a template writes, by sentinels; `render(messages, add_generation_prompt) -> text`.

    A later user turn shows the header of a user turn without anything that belongs to the start of a conversation, so the header tells
    apart a real system block (closed before the header) from a system text that the template merges into the user's turn (after the
    header). Raises SubloraError for a template that changes the user's text, and whatever the template raises on a lone user message.
    """
    plain = render([message("user", _USER)], True)
    if plain.count(_USER) != 1:
        why = "The chat template does not write the user's text once, as it is; give the tokenizer another one."
        raise SubloraError(why)
    plain_prefix, tail = plain.split(_USER)
    turn_end, gap = _answer_turn(render, plain)
    turn_end, header = _user_header(render, turn_end, plain_prefix, bos, eos)
    none_prefix = plain_prefix
    if header and not plain_prefix.endswith(header):
        # The first user turn is not like later ones: keep it, unless it only adds to what they begin with.
        start = header if header.startswith(bos) else bos + header
        none_prefix = start if plain_prefix.startswith(start) else plain_prefix
    plain_layout = Layout(plain_prefix, none_prefix, tail, gap, turn_end)
    try:
        with_system = render([message("system", _SYSTEM), message("user", _USER)], True)
    except Exception:  # templates refuse a role by raising whatever they like
        return replace(plain_layout, system_support="user-prefix", refuses_system=True)
    if with_system.count(_SYSTEM) != 1 or _SYSTEM not in with_system.partition(_USER)[0]:
        return plain_layout
    return _with_system(plain_layout, with_system, header, bos)


def _with_system(plain: Layout, text: str, header: str, bos: str) -> Layout:
    """The layout of a template that writes a system text; `text` is what it writes around the sentinels."""
    opened, _, rest = text.partition(_SYSTEM)
    between = rest.partition(_USER)[0]
    closed = None
    if header and between.endswith(header):
        closed = between.removesuffix(header)
    elif plain.turn_end and between.startswith(plain.turn_end):
        closed, header = plain.turn_end, between.removeprefix(plain.turn_end)
    before_header = plain.plain_prefix.removesuffix(header)
    if closed is None or (
        not closed.strip() and _bare(opened) in (_bare(before_header), _bare(bos))
    ):
        # Merged into the user's turn, or bare text before it: without a mark of its own it cannot be empty.
        marked = _bare(opened + between) != _bare(plain.none_prefix)
        empty, around = opened + between if marked else None, (opened, between)
        values = {"empty_prefix": empty, "around_system": around}
        return replace(plain, system_support="user-prefix", **values)
    preface, opening = _system_opening(opened, header, bos)
    has_default = not plain.plain_prefix.endswith(header) or not opened.startswith(before_header)
    # white space alone, which a template may write around the beginning of a text, is no default
    has_default &= _bare(plain.plain_prefix) not in (_bare(header), _bare(bos + header))
    around = (preface + opening, closed + header)
    none = preface + header if has_default else plain.plain_prefix
    values = {"none_prefix": none, "empty_prefix": "".join(around), "around_system": around}
    return replace(plain, system_support="block", **values)


def _bare(text: str) -> str:
    return "".join(text.split())


def message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _answer_turn(render: Renderer, plain: str) -> tuple[str, str]:
    """(text after an answer, white space between the generation prompt and an answer)."""
    text = render([message("user", _USER), message("assistant", _ANSWER)], False)
    before, found, after = text.rpartition(_ANSWER)
    gap = before.removeprefix(plain) if found and before.startswith(plain) else ""
    return (after if found else ""), (gap if gap.isspace() else "")


def _user_header(
    render: Renderer, turn_end: str, plain_prefix: str, bos: str, eos: str
) -> tuple[str, str]:
    """(end of an assistant's turn within a conversation, header of a user turn or "" if it is unclear)."""
    turns = [message("user", _USER), message("assistant", _ANSWER), message("user", _SECOND)]
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
            fitting = (shape for shape in shapes if shape and plain_prefix.endswith(shape))
            return end, next(fitting, header)
    # A template that ends every text with the next tag: the header is like that of its system block.
    for at in range(len(between)):
        header = between[at:]
        system = tuple(start + own for own in _swapped(header) for start in ("", bos))
        if plain_prefix.endswith(header) and plain_prefix.startswith(system):
            return between[:at], header
    return turn_end, ""


def _swapped(header: str) -> list[str]:
    """The header of a user turn with the system's name in it, which headers of system blocks mostly are."""
    roles = (("user", "system"), ("User", "System"), ("USER", "SYSTEM"))
    return [header.replace(user, system) for user, system in roles if user in header]


def _system_opening(opened: str, header: str, bos: str) -> tuple[str, str]:
    """Split what precedes a system text into (start of the conversation, header of the system block). Text that the template adds inside
    the block, before the given one (dates in Llama 3.1), belongs to neither. The header is recognised as the user's header with the other
    role's name in it."""
    for own in _swapped(header):
        if own in opened:
            return opened[: opened.rindex(own)], own
    preface = bos if opened.startswith(bos) else ""
    return preface, opened.removeprefix(preface)
