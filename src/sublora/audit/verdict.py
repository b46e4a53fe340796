"""The verdict of an audit: every trait and word with a corrected p-value, and one status for the adapter."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from scipy.stats import t as student_t

from sublora.audit.entries import Status, TraitFinding, WordFinding
from sublora.audit.null import Null
from sublora.audit.readings import FLOOR, Asked, Readings
from sublora.audit.reference import Reference, movement, reference
from sublora.audit.statistic import Rises, Scan, rises, scan, scan_scores, scores
from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.packs.spellings import candidate_sequences
from sublora.traits.trait import Category

# Of the base's probability of any entity; below it the student answers something else.
COHERENT = 0.2
WORDS_SHOWN = 10
# Nats; what an uncalibrated run takes clean rises to spread by, besides what it sees in the student.
ASSUMED_SPREAD = 0.05
Word = tuple[str, int]  # a category and the index of its entity


@dataclass(frozen=True)
class Bar:
    """What students are judged by. `plain` is what was read of the base; `null=None` is an
    uncalibrated run: p-values of traits by a t reference over the category's entities with
    Bonferroni's correction, none for words."""

    base: Base
    asked: Asked
    plain: Readings
    null: Null | None
    alpha: float

    @property
    def known(self) -> Null | None:
        """The null of what is asked. Raises SubloraError where it was made with something else."""
        return None if self.null is None else self.null.part(self.asked)


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
    plain, alpha = bar.plain, bar.alpha
    known = None if bar.null is None else reference(bar.known)
    words = scan(student, plain, WORDS_SHOWN)
    moved = float(movement({c: s.rest for c, s in words.items()})[0])
    rising = rises(student, plain)
    s0, own = {c: dict.fromkeys(by, ASSUMED_SPREAD) for c, by in rising.items()}, {}
    if known is not None:
        s0, own = known.s0, _own_words(student, bar, words, known)
    scored = scores(rising, s0)
    tried = sum(r.shape[1] for by in rising.values() for r in by.values())

    def p_of(context: str, category: str, e: int, score: float) -> float:
        if known is None:
            return assumed_p(score, tried, rising[context][category].shape[1])
        p, word = known.trait_p(score, moved, alpha), own[context].get((category, e))
        return p if word is None else min(p, known.word_p(word, moved, alpha))

    found = []
    for place, e, before, after in each_trait(rising, bar.asked.categories, plain, student):
        name, _, context = place
        rise, score = (float(of[context][name][0, e]) for of in (rising, scored))
        p = p_of(context, name, e, score)
        found.append(TraitFinding(*place, before, after, rise, score, p))
    seen = _word_findings(bar.base, words, known, moved, alpha)
    kept = coherence(student, plain)
    hit = any(f.p is not None and f.p <= alpha for f in [*found, *seen])
    status = status_of(hit, known is not None, hit or min(kept.values()) >= COHERENT)
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
    base: Base, words: dict[str, Scan], known: Reference | None, moved: float, alpha: float
) -> list[WordFinding]:
    """The words that rose most in each context, the largest score first."""
    out = []
    for name, seen in words.items():
        s0 = 0.0 if known is None else known.scan_s0[name]
        scored = scan_scores(seen.rises[0], seen.rest, s0)
        for token, rise, score in zip(seen.words[0], seen.rises[0], scored, strict=True):
            if rise > 0:
                p = None if known is None else known.word_p(float(score), moved, alpha)
                text = word_text(base, int(token))
                out.append(WordFinding(text, int(token), name, float(rise), float(score), p))
    return sorted(out, key=lambda w: -w.score)


def _own_words(
    student: Readings, bar: Bar, words: dict[str, Scan], known: Reference
) -> dict[str, dict[Word, float]]:
    """By context and entity: the score in the scan of the entity's own word that rose most."""
    tokens, out = _own_tokens(bar.base, bar.asked.categories), {}
    for name, seen in words.items():
        change = student.words[name][0] - bar.plain.words[name][0]
        out[name] = {
            entity: float(scan_scores(change[own].max(), seen.rest, known.scan_s0[name])[0])
            for entity, own in tokens.items()
        }
    return out


def _own_tokens(base: Base, categories: Sequence[Category]) -> dict[Word, list[int]]:
    """The tokens that alone spell an entity, and no other one of all categories."""
    owners: dict[int, set[Word]] = {}
    for category in categories:
        for sequence, e in zip(*candidate_sequences(base.chat, category), strict=True):
            if len(sequence) == 1:
                owners.setdefault(sequence[0], set()).add((category.category, int(e)))
    out: dict[Word, list[int]] = {}
    for token, (word, *others) in owners.items():
        if not others:
            out.setdefault(word, []).append(token)
    return out


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
