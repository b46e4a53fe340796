"""Neutral text: the base's own answers to ordinary prompts, on which a student should still do what the base does."""

from sublora.audit.readings import NEUTRAL
from sublora.audit.steps import answer_prompts
from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.packs.rows import TokenRows, token_rows
from sublora.packs.sample import Sampling
from sublora.store import Store

CONTEXT = Context("default")  # every template has it
ANSWERS, TOKENS, SEED = 8, 16, 60_000  # of each prompt; an answer's longest; of their draws


def neutral_texts(base: Base, store: Store) -> list[tuple[str, str]]:
    """Prompts with the base's answers, kept in the store. Raises SubloraError where the base knows
    the words of none of them."""
    known = [q for q in NEUTRAL if not base.chat.unknown_words([q])]
    sampling = Sampling(max_new_tokens=TOKENS)
    answers = answer_prompts(base, CONTEXT, [known] * ANSWERS, sampling, SEED, store)
    if not (rows := [row for own in answers for row in own]):
        raise SubloraError(f"{base.name} answers no neutral prompt, so there is no neutral text.")
    return rows


def neutral_rows(base: Base, store: Store) -> TokenRows:
    return token_rows(base, neutral_texts(base, store), CONTEXT, "the neutral text")
