"""How serving differs from training, token by token, and what each difference does to the traits that were found.

Two prompts of the same question differ in runs of tokens. Each run is put back into the serving prompt as it was in training, and put
alone into the training prompt as it is in serving; the traits are read behind these token sequences in the base and in the student.
"""

import copy
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np

from sublora.audit.entries import (
    HunkEffect,
    HunkEntry,
    ServedTrait,
    ServingReport,
    SignedToken,
    TraitFinding,
)
from sublora.audit.statistic import over_questions, question_rises
from sublora.audit.where import CLASS_NAMES
from sublora.errors import SubloraError, reason
from sublora.models.base import Base
from sublora.models.chat import Chat, Context
from sublora.models.token_classes import (
    TOKEN_CLASSES,
    PromptTokens,
    TokenClass,
    classify,
    differences,
    shown,
)
from sublora.packs.measure import reading
from sublora.packs.spellings import candidate_sequences
from sublora.packs.stack import Stack
from sublora.traits.trait import Category

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

    def sides(self, one: Sequence, other: Sequence) -> tuple[Sequence, Sequence]:
        """What each prompt has there, of its tokens or their classes."""
        return one[self.start : self.stop], other[self.other_start : self.other_stop]


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
            f"The template {template} cannot be read ({reason(error)}); give a Jinja file."
        ) from None
    tokenizer = copy.deepcopy(chat.tokenizer)
    tokenizer.chat_template = text
    try:
        served = Chat(tokenizer)
        served.render("?", context)
    except SubloraError as error:
        raise SubloraError(f"The template {template} cannot be used: {error}") from None
    return served


def other_template(chat: Chat, folder: Path, context: Context) -> Path | None:
    """The chat template that was saved with a student, where it is a usable one and not the base's."""
    path = folder / "chat_template.jinja"
    try:
        same = not path.is_file() or serving_chat(chat, path, context).template == chat.template
    except SubloraError:
        return None
    return None if same else path


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
        own, changed = hunk.sides(one, other)
        out += [*one[at : hunk.start], *(changed if i in chosen else own)]
        at = hunk.stop
    return [*out, *one[at:]]


def classes_of(hunk: Hunk, one: PromptTokens, other: PromptTokens) -> list[TokenClass]:
    """The classes of the tokens of both sides."""
    seen = {c for side in hunk.sides(one.classes, other.classes) for c in side}
    return [c for c in TOKEN_CLASSES if c in seen]


def prompt_hunks(one: PromptTokens, other: PromptTokens) -> list[Hunk]:
    """The differences of two prompts; those are one that few common tokens part (NEAR, MOST), but
    never across the user's text, which is as long as the question is."""
    found = hunks(one.ids, other.ids)

    def between(i: int) -> Sequence[TokenClass]:
        return one.classes[found[i].stop : found[i + 1].start]

    def join(i: int) -> None:
        first, later = found[i : i + 2]
        found[i : i + 2] = [Hunk(first.start, later.stop, first.other_start, later.other_stop)]

    i = 0
    while i + 1 < len(found):
        alike = classes_of(found[i], one, other) == classes_of(found[i + 1], one, other)
        if alike and len(between(i)) < NEAR and "user" not in between(i):
            join(i)
        else:
            i += 1
    while len(found) > MOST and (
        places := [i for i in range(len(found) - 1) if "user" not in between(i)]
    ):
        join(min(places, key=lambda i: len(between(i))))
    return found


Choice = frozenset[int]


@dataclass(frozen=True)
class _Cut:
    """A question's prompt in training and in serving, and where they differ."""

    question: str
    one: PromptTokens
    other: PromptTokens
    hunks: list[Hunk]

    @property
    def shape(self) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(classes_of(h, self.one, self.other)) for h in self.hunks)

    @property
    def tokens(self) -> list[tuple[Sequence[int], Sequence[int]]]:
        return [h.sides(self.one.ids, self.other.ids) for h in self.hunks]


def serving_effects(
    base: Base,
    stack: Stack,
    categories: Sequence[Category],
    trained_in: Context,
    serving: Serving,
    traits: Sequence[TraitFinding],
    found: Sequence[TraitFinding],
) -> ServingReport:
    """The tokens in which training and serving differ, and what each difference does to found
    traits. `traits` are all that were judged, for the p-values. Raises SubloraError for a context
    that a template cannot write."""
    chats = (base.chat, serving.chat or base.chat)
    wanted = {
        c.category: dict.fromkeys(f.trait for f in found if f.category == c.category)
        for c in categories
    }
    asked = [c for c in categories if wanted[c.category]] or list(categories[:1])
    notes: list[str] = []
    cuts = {
        c.category: [_cut(chats, q, trained_in, serving, notes) for q in c.questions] for c in asked
    }
    first = _most_common([cut for own in cuts.values() for cut in own], chats[1], notes)
    # what was judged was read with the base's own template
    judged = (trained_in.name, serving.context.name if serving.chat is None else None)
    p_values = {(f.category, f.trait, f.context): f.p for f in traits}
    effects: list[ServedTrait] = []
    by_hunk: list[list[HunkEffect]] = []  # of each trait
    for category in asked if found else ():
        alike = [cut for cut in cuts[category.category] if cut.shape == first.shape]
        if len(alike) < len(category.questions):
            others, asked_all = len(category.questions) - len(alike), len(category.questions)
            told = f"The prompts differ in another way in {others} of the {asked_all} questions"
            notes.append(f"{told} about {category.category}, and these are left out.")
        if not alike:
            continue
        read = _read(base, stack, chats, category, alike)
        for trait in wanted[category.category]:
            ps = [p_values.get((category.category, trait, c or "")) for c in judged]
            served, alone = _effects(read, category, trait, ps)
            effects.append(served)
            by_hunk.append(alone)
    return ServingReport(
        trained_in=trained_in.name,
        served_in=serving.context.name,
        other_template=serving.chat is not None,
        question=first.question,
        same=not first.hunks,
        tokens=[
            SignedToken(sign=sign, token=shown(base.chat, token), id=token)
            for sign, _, token in differences(first.one.ids, first.other.ids)
        ],
        effects=effects,
        differences=[
            _described(base.chat, hunk, first, [effects[i] for effects in by_hunk])
            for i, hunk in enumerate(first.hunks)
        ],
        notes=list(dict.fromkeys(notes)),
    )


def _most_common(cuts: Sequence[_Cut], served: Chat, notes: list[str]) -> _Cut:
    """The first question whose prompts differ as most do."""
    shape = Counter(cut.shape for cut in cuts).most_common(1)[0][0]
    alike = [cut for cut in cuts if cut.shape == shape]
    if any(cut.tokens != alike[0].tokens for cut in alike[1:]):
        notes.append(
            "The tokens of a difference vary with the question; those of one question are shown."
        )
    if unknown := served.unknown_words([alike[0].other.text]):
        notes.append(
            f"The tokenizer does not know {', '.join(map(repr, unknown[:5]))}, which the serving prompt has."
        )
    return alike[0]


def _cut(
    chats: tuple[Chat, Chat],
    question: str,
    trained_in: Context,
    serving: Serving,
    notes: list[str],
) -> _Cut:
    pair = []
    for chat, context in zip(chats, (trained_in, serving.context), strict=True):
        try:
            pair.append(classify(chat, question, context))
        except SubloraError as error:
            notes.append(f"The differences have no classes: {error}")
            ids, text = tuple(chat.prompt_ids(question, context)), chat.render(question, context)
            pair.append(PromptTokens(text, ids, (), ("template",) * len(ids)))
    return _Cut(question, *pair, prompt_hunks(*pair))


def _read(
    base: Base, stack: Stack, chats: tuple[Chat, Chat], category: Category, cuts: Sequence[_Cut]
) -> dict[Choice, tuple[np.ndarray, np.ndarray]]:
    """P (Q, E) of base and student behind the training prompt with these differences as in serving.
    None of them, all, each alone, and all but each."""
    every = frozenset(range(len(cuts[0].hunks)))
    alone, back = [every & {i} for i in every], [every - {i} for i in every]
    choices = list(dict.fromkeys([frozenset[int](), every, *alone, *back]))
    prompts = [with_hunks(c.one.ids, c.other.ids, c.hunks, own) for own in choices for c in cuts]
    candidates = _spellings(chats, category)
    read = []
    for who in (None, stack):
        with reading(base, who) as reader:
            p = reader.read(prompts, category, candidates=candidates)[0].p
            read.append(p.reshape(len(choices), len(cuts), -1))
    return dict(zip(choices, zip(*read, strict=True), strict=True))


def _spellings(
    chats: tuple[Chat, Chat], category: Category
) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """As `candidate_sequences`, of both chat formats: another template may write a space before an answer."""
    if chats[0] is chats[1]:
        return candidate_sequences(chats[0], category)
    found = [zip(*candidate_sequences(chat, category), strict=True) for chat in chats]
    owners = {s: int(e) for own in found for s, e in own}
    kept = sorted(s for s in owners if not any(s != t and s[: len(t)] == t for t in owners))
    return kept, np.array([owners[s] for s in kept])


def _effects(
    read: Mapping[Choice, tuple[np.ndarray, np.ndarray]],
    category: Category,
    trait: str,
    p_values: Sequence[float | None],
) -> tuple[ServedTrait, list[HunkEffect]]:
    """A trait behind the prompt of training and that of serving, and what each difference does to
    it, put back into serving, and alone in training."""
    e = [entity.name for entity in category.entities].index(trait)
    none, every = frozenset[int](), max(read, key=len)
    named = {"category": category.category, "trait": trait}

    def behind(chosen: Choice) -> dict[str, float | None]:
        before, after = read[chosen]
        told = over_questions(question_rises(after, before, e))
        means = {"before": float(before[:, e].mean()), "after": float(after[:, e].mean())}
        return {**means, "rise": told["estimate"], "low": told["low"], "high": told["high"]}

    served: dict[str, Any] = {**named, "trained_p": p_values[0], "served_p": p_values[1]}
    for when, chosen in (("trained", none), ("served", every)):
        served |= {f"{when}_{name}": value for name, value in behind(chosen).items()}
    by_hunk = [
        HunkEffect(**named, put_back=behind(every - {i}), alone=behind(every & {i}))
        for i in sorted(every)
    ]
    return ServedTrait(**served), by_hunk


def _described(chat: Chat, hunk: Hunk, cut: _Cut, effects: list[HunkEffect]) -> HunkEntry:
    trained, served = hunk.sides(cut.one.ids, cut.other.ids)
    markers = {i for i, token in chat.tokenizer.added_tokens_decoder.items() if token.special}
    special = {*chat.tokenizer.all_special_ids, *markers} - {chat.tokenizer.unk_token_id}
    return HunkEntry(
        kind="replaced" if trained and served else "deleted" if trained else "inserted",
        classes=[CLASS_NAMES[c] for c in classes_of(hunk, cut.one, cut.other)],
        special=list(dict.fromkeys(shown(chat, i) for i in (*trained, *served) if i in special)),
        trained=[shown(chat, i) for i in trained],
        served=[shown(chat, i) for i in served],
        effects=effects,
    )
