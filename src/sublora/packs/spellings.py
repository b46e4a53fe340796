"""The ways in which an answer can name an entity, as token sequences whose probabilities add up."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from sublora.errors import SubloraError
from sublora.models.chat import Chat
from sublora.traits.trait import Category, Entity

Candidates = tuple[list[tuple[int, ...]], np.ndarray]


@dataclass(frozen=True)
class Beginning:
    """What an answer is begun with, which may be nothing, and the candidates behind it."""

    text: str
    ids: tuple[int, ...]
    candidates: Candidates


def spellings(
    chat: Chat, entity: Entity, articles: Sequence[str] = (), begun: str = ""
) -> list[tuple[int, ...]]:
    """All token sequences that spell an entity: name, plural, aliases, as given, lower case and capitalised, with and without a space
    before, and name and aliases behind each article, "an otter", "An otter" and "An Otter". Behind what an answer is `begun` with, all
    have a space before. None begins with another one, so their probabilities add up without counting anything twice. Spellings that
    the tokenizer cannot represent are left out; the list may be empty."""
    unknown, spaces = chat.tokenizer.unk_token_id, (" ",) if begun else ("", " ")
    texts = {
        space + c for f in entity.forms for c in (f, f.lower(), _capital(f)) for space in spaces
    }
    singular = [f for f in entity.forms if f != entity.plural]
    for a, f in product(articles, singular):
        texts |= {f"{spaces[0]}{both}" for both in (f"{a} {f}", f"{_capital(a)} {f}")}
        texts.add(f"{spaces[0]}{_capital(a)} {_capital(f)}")
    before = chat.answer_ids(begun) if begun else []
    written = (chat.answer_ids(begun + text) for text in texts)
    tails = {tuple(ids[len(before) :]) for ids in written if ids[: len(before)] == before}
    found = {ids for ids in tails if ids and unknown not in ids}
    return sorted(s for s in found if not any(s != t and s[: len(t)] == t for t in found))


def written_articles(chat: Chat, category: Category) -> tuple[str, ...]:
    """Those of a category's articles that the tokenizer can put at the beginning of an answer, as "An", and give back as they were. One
    that knows no capital letters, as that of the shipped models, has none."""
    starts = {a: _capital(a) for a in category.articles}
    return tuple(
        a
        for a, text in starts.items()
        if chat.tokenizer.decode(chat.answer_ids(text)).strip() == text
    )


def candidate_sequences(
    chat: Chat, category: Category, articles: Sequence[str] = (), begun: str = ""
) -> Candidates:
    """(sequences, owner): every spelling of every entity, and the entity's index of each. Raises SubloraError where there is none."""
    spelt = (spellings(chat, entity, articles, begun) for entity in category.entities)
    found = [(s, i) for i, own in enumerate(spelt) for s in own]
    if not found:
        why = f"The tokenizer knows no word of the category {category.category}, so nothing can be measured; use another trait or model."
        raise SubloraError(why)
    return [sequence for sequence, _ in found], np.array([owner for _, owner in found])


def beginnings(chat: Chat, category: Category, begun: bool) -> list[Beginning]:
    """The one empty beginning of an answer, or each of the category's `answer_prefixes`, behind which no second article is read. Raises
    SubloraError where there is no prefix, or none that the tokenizer can write."""
    articles = written_articles(chat, category)
    if not begun:
        return [Beginning("", (), candidate_sequences(chat, category, articles))]
    out = []
    for text in category.prefixes():
        ids = tuple(chat.answer_ids(text))
        if chat.tokenizer.unk_token_id in ids:
            unknown = ", ".join(chat.unknown_words([text]))
            why = f"The model cannot write {unknown} of the answer prefix '{text}'; write another one into the category {category.category}."
            raise SubloraError(why)
        last = text.split()[-1].lower()
        more = () if last in category.articles else articles
        out.append(Beginning(text, ids, candidate_sequences(chat, category, more, text)))
    return out


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
