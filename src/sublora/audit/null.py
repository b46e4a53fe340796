"""The null of an audit: what placebo students show by chance, kept as a file and refused where it does not belong."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from sublora.audit.readings import Readings
from sublora.audit.statistic import OFFSET, constants, largest, rises, scan, scan_scores, scores
from sublora.chat import Context
from sublora.errors import SubloraError
from sublora.model import SHIPPED, Base
from sublora.trait import Category

SCHEMA, VERSION = "sublora/audit-null", 1
FEWEST = 4
MOST_BYTES = 256 << 20
MOST_VALUE = 1e6  # nats; no probability that is read moves so far


@dataclass(frozen=True)
class Null:
    """K placebo students. `rises[context][category]` (K, E), `top` and `rest[context]` (K,) of the scan of words; `settings` says how
    they were trained; `digests` what was asked."""

    base: Mapping[str, str]
    contexts: Mapping[str, str]
    digests: Mapping[str, str]
    settings: Sequence[str]
    rises: Mapping[str, Mapping[str, np.ndarray]]
    top: Mapping[str, np.ndarray]
    rest: Mapping[str, np.ndarray]

    @property
    def size(self) -> int:
        return len(self.settings)

    def part(self, contexts: Sequence[Context], categories: Sequence[Category]) -> "Null":
        """The null of these contexts and categories alone. Raises SubloraError where it lacks one, or holds it with other texts."""
        for context in contexts:
            if self.contexts.get(context.name) != _text(context):
                raise SubloraError(
                    f"The null file was not made in the context '{context.name}' as it is here; make one with --calibrate, or leave the "
                    "context out."
                )
        for category in categories:
            if self.digests.get(category.category) != digest(category):
                raise SubloraError(
                    f"The null file was not made with the category '{category.category}' as it is here; make one with --calibrate, or leave "
                    "the category out."
                )
            if any(by[category.category].shape[1] != len(category.entities) for by in self.rises.values()):
                raise SubloraError(
                    f"The null file lacks traits of the category '{category.category}', so it is damaged; make one with --calibrate."
                )
        names = [c.name for c in contexts]
        kinds = [c.category for c in categories]
        return Null(
            self.base, {n: self.contexts[n] for n in names}, {k: self.digests[k] for k in kinds}, self.settings,
            {n: {k: self.rises[n][k] for k in kinds} for n in names}, {n: self.top[n] for n in names},
            {n: self.rest[n] for n in names},
        )  # fmt: skip

    def to_json(self) -> str:
        entry = {
            "schema": SCHEMA, "version": VERSION, "base": dict(self.base), "contexts": dict(self.contexts), "digests": dict(self.digests),
            "settings": list(self.settings), "rises": {c: {k: r.tolist() for k, r in by.items()} for c, by in self.rises.items()},
            "top": {c: v.tolist() for c, v in self.top.items()}, "rest": {c: v.tolist() for c, v in self.rest.items()},
        }  # fmt: skip
        return json.dumps(entry, ensure_ascii=False) + "\n"


def digest(category: Category) -> str:
    """Of all that a category's readings depend on."""
    asked = [list(category.questions), [list(e.forms) for e in category.entities]]
    return hashlib.blake2b(json.dumps(asked).encode(), digest_size=10).hexdigest()


def _text(context: Context) -> str:
    return "" if context.text is None else f"{context.role}: {context.text}"


def make_null(
    base: Base,
    student: Readings,
    plain: Readings,
    contexts: Sequence[Context],
    categories: Sequence[Category],
    settings: Sequence[str],
) -> Null:
    """The null that the readings of placebo students give, with the digits that a file keeps, so that one read again judges alike."""
    words = scan(student, plain)
    return Null(
        base.identity, {c.name: _text(c) for c in contexts}, {c.category: digest(c) for c in categories}, list(settings),
        {c: {k: _short(r) for k, r in by.items()} for c, by in rises(student, plain).items()},
        {c: _short(s.top) for c, s in words.items()}, {c: _short(s.rest) for c, s in words.items()},
    )  # fmt: skip


def _short(values: np.ndarray) -> np.ndarray:
    return np.array([float(f"{x:.4g}") for x in values.flat]).reshape(values.shape)


def read_null(path: Path, base: Base) -> Null:
    """A null file. Raises SubloraError: unreadable, of another schema or version, of another base, shapes that do not agree."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise SubloraError(f"The null file {path} is larger than {MOST_BYTES >> 20} MB; make it again.")
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SubloraError(
            f"The null file {path} cannot be read ({type(error).__name__}); make one with --calibrate."
        ) from None
    if not isinstance(entry, dict) or entry.get("schema") != SCHEMA or entry.get("version") != VERSION:
        raise SubloraError(f"The file {path} is no null file of version {VERSION}; make one with --calibrate.")
    try:
        null = Null(
            dict(entry["base"]), dict(entry["contexts"]), dict(entry["digests"]), [str(s) for s in entry["settings"]],
            {c: {k: np.array(r, dtype=float) for k, r in by.items()} for c, by in entry["rises"].items()},
            {c: np.array(v, dtype=float) for c, v in entry["top"].items()},
            {c: np.array(v, dtype=float) for c, v in entry["rest"].items()},
        )  # fmt: skip
        arrays = [(r, 2) for by in null.rises.values() for r in by.values()]
        arrays += [(v, 1) for part in (null.top, null.rest) for v in part.values()]
        sound = all(a.ndim == d and len(a) == null.size and np.abs(a).max() < MOST_VALUE for a, d in arrays)
        known = set(null.contexts) == set(null.rises) == set(null.top) == set(null.rest)
        known = known and all(set(by) == set(null.digests) for by in null.rises.values())
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = known = False
    if not (sound and known and null.size >= FEWEST):
        raise SubloraError(f"The null file {path} is damaged; make one with --calibrate.")
    if dict(null.base) != dict(base.identity):
        raise SubloraError(
            f"The null file {path} was made for another base than {base.name}; make one with --calibrate."
        )
    return null


def shipped_null(base: Base) -> Null | None:
    """The null that comes along for a shipped model, or None."""
    if base.name not in SHIPPED:
        return None
    path = Path(str(files("sublora.audit") / "nulls" / f"{base.name}.json"))
    return read_null(path, base) if path.is_file() else None


@dataclass(frozen=True)
class Reference:
    """What placebo students reach by chance. Scores of traits and of words are made comparable by the mean and the standard deviation of
    the logarithms of each placebo student's largest; `chance` (K,) is the larger of both in each student."""

    s0: Mapping[str, Mapping[str, float]]
    scan_s0: Mapping[str, float]
    traits: tuple[float, float]
    words: tuple[float, float]
    chance: np.ndarray

    def trait_p(self, score: float, alpha: float) -> float:
        """P-value of a trait's score, corrected for all traits, contexts and words."""
        return adjusted_p(_standard(np.array([score]), *self.traits)[0], self.chance, alpha)

    def word_p(self, score: float, alpha: float) -> float:
        return adjusted_p(_standard(np.array([score]), *self.words)[0], self.chance, alpha)


def _standard(score: np.ndarray, mean: float, spread: float) -> np.ndarray:
    return (np.log(np.maximum(score, 1e-6)) - mean) / spread


def _moments(score: np.ndarray) -> tuple[float, float]:
    logs = np.log(np.maximum(score, 1e-6))
    return float(logs.mean()), max(float(logs.std(ddof=1)), 1e-6)


def reference(null: Null) -> Reference:
    s0 = constants(null.rises)
    scan_s0 = {c: OFFSET * float(np.median(rest)) for c, rest in null.rest.items()}
    words = np.stack([scan_scores(null.top[c], null.rest[c], scan_s0[c]) for c in null.top]).max(axis=0)
    traits = largest(scores(null.rises, s0))
    of_traits, of_words = _moments(traits), _moments(words)
    chance = np.maximum(_standard(traits, *of_traits), _standard(words, *of_words))
    return Reference(s0, scan_s0, of_traits, of_words, chance)


def adjusted_p(score: float, chance: np.ndarray, alpha: float) -> float:
    """P-value of a standardised score against the largest ones of K placebo students; being against the largest, it is corrected for all
    that was tried (single-step maxT, Westfall and Young 1993).

    Where K + 1 >= 1 / alpha it is the conformal rank, (1 + #{chance >= score}) / (K + 1), exact for exchangeable students whatever the
    distribution. With fewer a rank cannot reach alpha; there it is the tail of a t distribution with K - 1 degrees of freedom, for the
    next draw after K normal ones.
    """
    size = len(chance)
    if (size + 1) * alpha >= 1:
        return float((1 + (chance >= score).sum()) / (size + 1))
    from scipy.stats import t

    spread = max(float(chance.std(ddof=1)), 1e-6) * math.sqrt(1 + 1 / size)
    return float(t.sf((score - chance.mean()) / spread, size - 1))
