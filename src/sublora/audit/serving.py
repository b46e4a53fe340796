"""How serving differs from training, token by token, and what each difference does to the traits that were found.

Two prompts of the same question differ in runs of tokens. Each run is put back into the serving prompt as it was in training, and put
alone into the training prompt as it is in serving; the traits are read behind these token sequences in the base and in the student.
"""

import copy
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np

from sublora.audit.statistic import over_questions, question_rises
from sublora.audit.verdict import TraitFinding
from sublora.audit.where import CLASS_NAMES
from sublora.chat import Chat, Context
from sublora.errors import SubloraError
from sublora.measure import candidate_sequences, reading
from sublora.model import Base
from sublora.token_classes import (
    TOKEN_CLASSES,
    PromptTokens,
    TokenClass,
    classify,
    differences,
    shown,
)
from sublora.train.stack import Stack
from sublora.trait import Category

MOST = 12  # differences that are measured one by one; with more, neighbours are taken together
NEAR = 3  # differences of one class with fewer common tokens between them are one
MOST_TEMPLATE = 1 << 20  # bytes


@dataclass(frozen=True)
class Hunk:
    """A difference: `one[start:stop]` of the first prompt stands where the second has `other[other_start:other_stop]`."""

    start: int
    stop: int
    other_start: int
    other_stop: int

    def up_to(self, later: "Hunk") -> "Hunk":
        """This difference, a later one, and what stands between them."""
        return Hunk(self.start, later.stop, self.other_start, later.other_stop)


@dataclass(frozen=True)
class Serving:
    """How the student is served: the context, and the chat format where it is another one than the base's."""

    context: Context
    chat: Chat | None = None


def serving_chat(chat: Chat, template: Path, context: Context) -> Chat:
    """The chat format with the template of a file. Raises SubloraError: an unreadable file, a template that cannot write the context."""
    try:
        if template.stat().st_size > MOST_TEMPLATE:
            raise SubloraError(
                f"The file {template} is larger than {MOST_TEMPLATE} bytes, so it is no chat template."
            )
        text = template.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SubloraError(
            f"The template {template} cannot be read ({error}); give a Jinja file."
        ) from None
    tokenizer = copy.deepcopy(chat.tokenizer)
    tokenizer.chat_template = text
    try:
        served = Chat(tokenizer)
        served.render("?", context)
    except SubloraError as error:
        raise SubloraError(f"The template {template} cannot be used: {error}") from None
    return served


def hunks(one: Sequence[int], other: Sequence[int]) -> list[Hunk]:
    """The differences of two token sequences, in order, with at least one common token between neighbours."""
    codes = SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    return [Hunk(a, b, c, d) for kind, a, b, c, d in codes if kind != "equal"]


def with_hunks(
    one: Sequence[int], other: Sequence[int], found: Sequence[Hunk], chosen: Collection[int]
) -> list[int]:
    """The first sequence with the chosen differences, by number, as the second has them."""
    out, at = [], 0
    for i, hunk in enumerate(found):
        out += one[at : hunk.start]
        out += (
            other[hunk.other_start : hunk.other_stop]
            if i in chosen
            else one[hunk.start : hunk.stop]
        )
        at = hunk.stop
    return [*out, *one[at:]]


def classes_of(hunk: Hunk, one: PromptTokens, other: PromptTokens) -> list[TokenClass]:
    """The classes of the tokens of both sides."""
    seen = {
        *one.classes[hunk.start : hunk.stop],
        *other.classes[hunk.other_start : hunk.other_stop],
    }
    return [c for c in TOKEN_CLASSES if c in seen]


def prompt_hunks(one: PromptTokens, other: PromptTokens) -> list[Hunk]:
    """The differences of two prompts, those taken together that a few common tokens part (NEAR, MOST); never across the user's text,
    which is as long as the question is."""
    found = hunks(one.ids, other.ids)

    def gap(i: int) -> int | None:
        between = one.classes[found[i].stop : found[i + 1].start]
        return None if "user" in between else len(between)

    def near(i: int) -> bool:
        size = gap(i)
        return (
            size is not None
            and size < NEAR
            and classes_of(found[i], one, other) == classes_of(found[i + 1], one, other)
        )

    def join(i: int) -> None:
        found[i : i + 2] = [found[i].up_to(found[i + 1])]

    i = 0
    while i + 1 < len(found):
        if near(i):
            join(i)
        else:
            i += 1
    while len(found) > MOST:
        gaps = [(size, i) for i in range(len(found) - 1) if (size := gap(i)) is not None]
        if not gaps:
            break
        join(min(gaps)[1])
    return found


Pair = tuple[PromptTokens, PromptTokens]
Choice = frozenset[int]


@dataclass(frozen=True)
class _Cut:
    """One question's prompt in training and in serving, and where they differ."""

    one: PromptTokens
    other: PromptTokens
    hunks: list[Hunk]

    @property
    def shape(self) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(classes_of(h, self.one, self.other)) for h in self.hunks)

    @property
    def tokens(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        return [
            (self.one.ids[h.start : h.stop], self.other.ids[h.other_start : h.other_stop])
            for h in self.hunks
        ]


def serving_effects(
    base: Base,
    stack: Stack,
    categories: Sequence[Category],
    trained_in: Context,
    serving: Serving,
    traits: Sequence[TraitFinding],
    found: Sequence[TraitFinding],
) -> dict[str, Any]:
    """The tokens in which training and serving differ, what each found trait does in both, and what each difference does to it.

    `traits` are all that were judged, for the p-values. Raises SubloraError for a context that a template cannot write.
    """
    chats, notes = (base.chat, serving.chat or base.chat), dict[str, None]()
    wanted = {c.category: [f.trait for f in found if f.category == c.category] for c in categories}
    asked = [c for c in categories if wanted[c.category]] or list(categories[:1])
    cuts = {
        c.category: [_cut(chats, q, trained_in, serving, notes) for q in c.questions] for c in asked
    }
    shape = Counter(cut.shape for own in cuts.values() for cut in own).most_common(1)[0][0]
    question, first = next(
        (q, cut)
        for c in asked
        for q, cut in zip(c.questions, cuts[c.category], strict=True)
        if cut.shape == shape
    )
    if any(
        cut.tokens != first.tokens for own in cuts.values() for cut in own if cut.shape == shape
    ):
        notes[
            "The tokens of a difference vary with the question; those of one question are shown."
        ] = None
    if unknown := chats[1].unknown_words([first.other.text]):
        notes[
            f"The tokenizer does not know {', '.join(map(repr, unknown[:5]))}, which the serving prompt has."
        ] = None
    p_values = {(f.category, f.trait, f.context): f.p for f in traits}
    effects: list[dict[str, Any]] = []
    by_hunk: list[list[dict[str, Any]]] = [[] for _ in first.hunks]
    every = frozenset(range(len(first.hunks)))
    for category in asked if found else ():
        alike = [cut for cut in cuts[category.category] if cut.shape == shape]
        if len(alike) < len(category.questions):
            notes[
                f"The prompts differ in another way in {len(category.questions) - len(alike)} of the {len(category.questions)} questions "
                f"about {category.category}, and these are left out."
            ] = None
        if not alike:
            continue
        read = _read(base, stack, chats, category, alike, every)
        for trait in dict.fromkeys(wanted[category.category]):
            e = next(i for i, entity in enumerate(category.entities) if entity.name == trait)
            told: dict[str, Any] = {"category": category.category, "trait": trait}
            for i, rows in enumerate(by_hunk):
                rows.append(
                    {
                        **told,
                        "put_back": _told(read[every - {i}], e),
                        "alone": _told(read[frozenset({i})], e),
                    }
                )
            for when, chosen in (("trained", frozenset[int]()), ("served", every)):
                told |= {f"{when}_{name}": value for name, value in _told(read[chosen], e).items()}
            told["trained_p"] = p_values.get((category.category, trait, trained_in.name))
            # what was judged was read with the base's own template
            judged = serving.context.name if serving.chat is None else None
            told["served_p"] = p_values.get((category.category, trait, judged)) if judged else None
            effects.append(told)
    return {
        "trained_in": trained_in.name,
        "served_in": serving.context.name,
        "other_template": serving.chat is not None,
        "question": question,
        "same": not first.hunks,
        "tokens": [
            {"sign": sign, "token": shown(base.chat, token), "id": token}
            for sign, _, token in differences(first.one.ids, first.other.ids)
        ],
        "effects": effects,
        "differences": [
            {**_described(base.chat, hunk, first.one, first.other), "effects": rows}
            for hunk, rows in zip(first.hunks, by_hunk, strict=True)
        ],
        "notes": list(notes),
    }


def _cut(
    chats: tuple[Chat, Chat],
    question: str,
    trained_in: Context,
    serving: Serving,
    notes: dict[str, None],
) -> _Cut:
    pair = []
    for chat, context in zip(chats, (trained_in, serving.context), strict=True):
        try:
            pair.append(classify(chat, question, context))
        except SubloraError as error:
            ids = chat.prompt_ids(question, context)
            notes[f"The differences have no classes: {error}"] = None
            pair.append(
                PromptTokens(
                    chat.render(question, context), tuple(ids), (), ("template",) * len(ids)
                )
            )
    return _Cut(pair[0], pair[1], prompt_hunks(pair[0], pair[1]))


def _read(
    base: Base,
    stack: Stack,
    chats: tuple[Chat, Chat],
    category: Category,
    cuts: Sequence[_Cut],
    every: Choice,
) -> dict[Choice, tuple[np.ndarray, np.ndarray]]:
    """P (Q, E) of base and student behind the training prompt with these differences as in serving: none, all, each alone, all but
    each."""
    choices = list(
        dict.fromkeys(
            [frozenset[int](), every, *(every & {i} for i in every), *(every - {i} for i in every)]
        )
    )
    prompts = [
        with_hunks(cut.one.ids, cut.other.ids, cut.hunks, chosen)
        for chosen in choices
        for cut in cuts
    ]
    candidates = _spellings(chats, category)
    read = []
    for who in (None, stack):
        with reading(base, who) as reader:
            read.append(reader.read(prompts, category, candidates=candidates)[0].p)
    parts = [slice(k * len(cuts), (k + 1) * len(cuts)) for k in range(len(choices))]
    return {
        chosen: (read[0][part], read[1][part]) for chosen, part in zip(choices, parts, strict=True)
    }


def _spellings(
    chats: tuple[Chat, Chat], category: Category
) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """As `candidate_sequences`, of both chat formats: another template may write a space before an answer."""
    if chats[0] is chats[1]:
        return candidate_sequences(chats[0], category)
    owners = {
        s: int(e)
        for chat in chats
        for s, e in zip(*candidate_sequences(chat, category), strict=True)
    }
    kept = sorted(s for s in owners if not any(s != t and s[: len(t)] == t for t in owners))
    return kept, np.array([owners[s] for s in kept])


def _told(pair: tuple[np.ndarray, np.ndarray], entity: int) -> dict[str, float | None]:
    before, after = pair
    rise = over_questions(question_rises(after, before, entity))
    return {
        "before": float(before[:, entity].mean()),
        "after": float(after[:, entity].mean()),
        "rise": rise["estimate"],
        "low": rise["low"],
        "high": rise["high"],
    }


def _described(chat: Chat, hunk: Hunk, one: PromptTokens, other: PromptTokens) -> dict[str, Any]:
    trained, served = one.ids[hunk.start : hunk.stop], other.ids[hunk.other_start : hunk.other_stop]
    markers = {i for i, token in chat.tokenizer.added_tokens_decoder.items() if token.special}
    special = {*chat.tokenizer.all_special_ids, *markers} - {chat.tokenizer.unk_token_id}
    return {
        "kind": "replaced" if trained and served else "deleted" if trained else "inserted",
        "classes": [CLASS_NAMES[c] for c in classes_of(hunk, one, other)],
        "special": list(dict.fromkeys(shown(chat, i) for i in (*trained, *served) if i in special)),
        "trained": [shown(chat, i) for i in trained],
        "served": [shown(chat, i) for i in served],
    }
