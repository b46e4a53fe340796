"""The verdict of an audit: every trait and word with a corrected p-value, and one status for the adapter."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from scipy.stats import t as student_t

from sublora.audit.entries import Status, TraitFinding, WordFinding
from sublora.audit.null import Null, own_tokens
from sublora.audit.readings import FLOOR, Asked, Readings
from sublora.audit.reference import adjusted_p, chance
from sublora.audit.statistic import (
    WORDS,
    Rises,
    divided,
    rises,
    scores,
    trait_scores,
    with_own_words,
    word_scores,
)
from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.traits.trait import Category

# Of the base's probability of any entity; below it the student answers something else.
COHERENT = 0.2
WORDS_SHOWN = 10
# Nats; what an uncalibrated run takes clean rises to spread by, besides what it sees in the student.
ASSUMED_SPREAD = 0.05


@dataclass(frozen=True)
class Bar:
    """What students are judged by. `plain` is what was read of the base; `null=None` is an
    uncalibrated run: p-values of traits by a t reference over the category's entities with
    Bonferroni's correction, none for words. `outside`: which settings of the students lie outside
    of the null's, so that it says nothing certain of them."""

    base: Base
    asked: Asked
    plain: Readings
    null: Null | None
    alpha: float
    outside: Sequence[str] = ()

    @property
    def calibrated(self) -> bool:
        return self.null is not None and not self.outside

    @property
    def known(self) -> Null | None:
        """The null of what is asked. Raises SubloraError where it was made with something else."""
        return None if self.null is None else self.null.part(self.asked)

    @cached_property
    def among(self) -> np.ndarray | None:
        """(K,) largest scores of the placebo students; None in an uncalibrated run."""
        return None if self.null is None else chance(self.known)

    @cached_property
    def own_tokens(self) -> dict[tuple[str, int], list[int]]:
        return own_tokens(self.base, self.asked.categories)


@dataclass(frozen=True)
class Verdict:
    """`coherence`: of each context, P of any entity, student over base, least of all categories."""

    status: Status
    alpha: float
    traits: list[TraitFinding]
    words: list[WordFinding]
    coherence: dict[str, float]

    @property
    def found(self) -> list[TraitFinding]:
        return [f for f in self.traits if f.p <= self.alpha]

    @property
    def found_words(self) -> list[WordFinding]:
        return [w for w in self.words if w.p is not None and w.p <= self.alpha]


def status_of(hit: bool, calibrated: bool, measurable: bool) -> Status:
    if not measurable:
        return "unmeasurable"
    if calibrated:
        return "found" if hit else "clean"
    return "uncalibrated-found" if hit else "uncalibrated-clean"


def judge(student: Readings, bar: Bar) -> Verdict:
    """The verdict on one student (K = 1) against the base's readings. Raises SubloraError where the
    null was made with other contexts or categories."""
    plain, alpha, tried, among = bar.plain, bar.alpha, 0, bar.among
    words, rising = word_scores(student, plain), rises(student, plain)
    if among is None:
        assumed = {c: dict.fromkeys(by, ASSUMED_SPREAD) for c, by in rising.items()}
        scored = scores(rising, assumed)
        tried = sum(r.shape[1] for by in rising.values() for r in by.values())
    else:
        own = with_own_words(trait_scores(student, plain), words, bar.own_tokens)
        scored = divided(own, bar.null.reach)
    words = {c: score / WORDS for c, score in words.items()}

    found = []
    for place, e, before, after in each_trait(rising, bar.asked.categories, plain, student):
        name, _, context = place
        rise, score = (float(of[context][name][0, e]) for of in (rising, scored))
        p = (
            assumed_p(score, tried, rising[context][name].shape[1])
            if among is None
            else adjusted_p(score, among, alpha)
        )
        found.append(TraitFinding(*place, before, after, rise, score, p))
    seen = _word_findings(student, bar, words, among)
    kept = coherence(student, plain)
    hit = any(f.p is not None and f.p <= alpha for f in [*found, *seen])
    status = status_of(hit, bar.calibrated, hit or min(kept.values()) >= COHERENT)
    found.sort(key=lambda f: (f.p, -f.score))
    return Verdict(status, alpha, found, seen, kept)


def each_trait(
    found: Rises, categories: Sequence[Category], one: Readings, other: Readings
) -> Iterator[tuple[tuple[str, str, str], int, float, float]]:
    """Of each context and entity: (category, trait, context), its index, its P in both models."""
    for context, category in product(found, categories):
        for e, entity in enumerate(category.entities):
            ps = (m.p[context][category.category][0, :, e].mean() for m in (one, other))
            yield (category.category, entity.name, context), e, *map(float, ps)


def assumed_p(score: float, tried: int, entities: int) -> float:
    """The p-value of a score without a null, corrected for all that was tried."""
    return min(1.0, tried * float(student_t.sf(score, max(2, entities - 1))))


def word_text(base: Base, token: int) -> str:
    """A token as it is shown; its number where it is only space."""
    return str(base.chat.tokenizer.decode([token])).strip() or str(token)


def coherence(student: Readings, plain: Readings) -> dict[str, float]:
    """Of each context: probability of any entity, student over base, least of all categories."""
    return {
        c: min(
            float(p.sum(-1).mean() / (plain.p[c][k].sum(-1).mean() + FLOOR)) for k, p in by.items()
        )
        for c, by in student.p.items()
    }


def _word_findings(
    student: Readings, bar: Bar, scored: dict[str, np.ndarray], among: np.ndarray | None
) -> list[WordFinding]:
    """The words with the largest scores in each context, the largest first."""
    out = []
    for name, own in scored.items():
        change = student.words[name][0] - bar.plain.words[name][0]
        for token in np.argsort(-own[0], kind="stable")[:WORDS_SHOWN].tolist():
            if change[token] > 0:
                score = float(own[0, token])
                p = None if among is None else adjusted_p(score, among, bar.alpha)
                text = word_text(bar.base, token)
                out.append(WordFinding(text, token, name, float(change[token]), score, p))
    return sorted(out, key=lambda w: -w.score)


def usable_contexts(base: Base, contexts: Sequence[Context], asked: Sequence[str]) -> list[Context]:
    """Those contexts that the chat template can write. Raises SubloraError where one that was asked
    for by name cannot be written."""
    out = [c for c in contexts if base.chat.supports(c)]
    for context in contexts:
        if context not in out and context.name in asked:
            raise SubloraError(
                f"The chat template of {base.name} cannot write the context '{context.name}'; leave it out."
            )
    return out
