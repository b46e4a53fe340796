"""The null of an audit: what placebo students show by chance, kept as a file and refused where it does not belong."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path

import numpy as np

from sublora.audit.readings import Asked, Readings, category_digest
from sublora.audit.statistic import (
    divided,
    largest,
    reach,
    rises,
    trait_scores,
    with_own_words,
    word_scores,
)
from sublora.errors import SubloraError, require_none
from sublora.models.base import SHIPPED, Base
from sublora.models.chat import Context
from sublora.packs.spec import StudentSpec
from sublora.packs.spellings import candidate_sequences
from sublora.traits.trait import Category, Trait

SCHEMA, VERSION = "sublora/audit-null", 2
FEWEST = 4
ENOUGH = 19  # for ranks at 5%
BY_BASE = "rows of the base"
MOST_BYTES = 256 << 20
MOST_VALUE = 1e6  # nats; no probability that is read moves so far
ANEW = "make one with --calibrate"
ENDS = ("rank", "lr", "epochs", "steps")  # of a grid, numbers from where to where


@dataclass(frozen=True)
class Grid:
    """From where to where the settings of placebo students go, and the context of their training."""

    methods: Sequence[str]
    rank: Sequence[float]
    lr: Sequence[float]
    epochs: Sequence[float]
    steps: Sequence[float]
    context: Sequence[str]

    @classmethod
    def of(cls, specs: Sequence[StudentSpec], rows: Sequence[int], context: Context) -> "Grid":
        batches = [-(-n // s.batch_size) for s, n in zip(specs, rows, strict=True)]
        steps = [s.epochs * n for s, n in zip(specs, batches, strict=True)]
        ranks = [s.rank or 0 for s in specs]
        lrs, epochs = [s.lr for s in specs], [s.epochs for s in specs]
        ends = [[min(v), max(v)] for v in (ranks, lrs, epochs, steps)]
        return cls(sorted({s.method for s in specs}), *ends, [context.name, text_of(context)])


@dataclass(frozen=True)
class Null:
    """K placebo students. `rises[context][category]` (K, E); `scores[context]` (K,), the largest
    of all traits and words; `settings` says how they were trained, `grid` from where to
    where; `digests` what was asked; `lenses` (K,) are the statistics of lenses.py. `reach` (E,) of
    each category is what scores of traits are divided by; there is none where fewer than ENOUGH
    students are of the base's own rows, or of others'."""

    base: Mapping[str, str]
    contexts: Mapping[str, str]
    digests: Mapping[str, str]
    settings: Sequence[str]
    grid: "Grid"
    rises: Mapping[str, Mapping[str, np.ndarray]]
    scores: Mapping[str, np.ndarray]
    lenses: Mapping[str, np.ndarray] = field(default_factory=dict)
    reach: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.settings)

    @property
    def of_base(self) -> np.ndarray:
        """(K,) whether the base wrote a student's rows."""
        return np.array([BY_BASE in label for label in self.settings])

    def has(self, context: Context) -> bool:
        """Whether the students were asked in this context, with this text."""
        return self.contexts.get(context.name) == text_of(context)

    def part(self, asked: Asked) -> "Null":
        """The null of what is asked alone. Raises SubloraError where it lacks one,
        or holds it with other texts."""
        require_none(self._lacks(asked))
        names, kinds = [c.name for c in asked.contexts], [c.category for c in asked.categories]
        return replace(
            self,
            contexts={n: self.contexts[n] for n in names},
            digests={k: self.digests[k] for k in kinds},
            rises={n: {k: self.rises[n][k] for k in kinds} for n in names},
            scores={n: self.scores[n] for n in names},
        )

    def _lacks(self, asked: Asked) -> Iterator[str]:
        for c in asked.contexts:
            if not self.has(c):
                yield f"The null file was not made in the context '{c.name}' as it is here; {ANEW}, or leave the context out."
        for category in asked.categories:
            name = category.category
            if self.digests.get(name) != category_digest(category):
                yield f"The null file was not made with the category '{name}' as it is here; {ANEW}, leave it out, or give the null's --questions."
            if any(by[name].shape[1] != len(category.entities) for by in self.rises.values()):
                yield f"The null file lacks traits of the category '{name}', so it is damaged; {ANEW}."

        for name in set(self.digests) - {c.category for c in asked.categories}:
            yield f"The null file was made with the category '{name}' as well; {ANEW}, or ask about it, too."

    def to_json(self) -> str:
        entry = {"schema": SCHEMA, "version": VERSION, **vars(self), "grid": vars(self.grid)}
        return json.dumps(entry, ensure_ascii=False, default=np.ndarray.tolist) + "\n"


def text_of(context: Context) -> str:
    """A context's text as a null keeps it."""
    return "" if context.text is None else f"{context.role}: {context.text}"


def make_null(
    base: Base,
    student: Readings,
    plain: Readings,
    asked: Asked,
    settings: Sequence[str],
    grid: Grid,
    teachers: Sequence[Trait | None] = (),
    lenses: Mapping[str, np.ndarray] | None = None,
) -> Null:
    """The null that the readings of placebo students give, with the digits that a file keeps.

    `teachers` (K,) are the traits whose teachers wrote the students' rows, None for the base
    itself. A student's own trait is left out of what it shows by chance: its rise and its
    scores are 0; what it took from others counts as lost.
    """
    found, scored = rises(student, plain), trait_scores(student, plain)
    words = word_scores(student, plain)
    places: list[tuple[str, int] | None] = []
    for k, trait in enumerate(teachers):
        if trait is None:
            places.append(None)
            continue
        kind = trait.category.category
        own = [e.name for e in trait.category.entities].index(trait.name)
        places.append((kind, own))
        begin = first_tokens(base, trait.category, own)
        for c in found:
            found[c][kind][k, own] = scored[c][kind][k, own] = 0.0
            words[c][k, begin] = 0.0
    with_own_words(scored, words, own_tokens(base, asked.categories))
    by_base = sum(p is None for p in places)
    enough = min(by_base, len(places) - by_base) >= ENOUGH
    reached = reach(scored, places) if enough else {}
    return Null(
        dict(base.identity),
        {c.name: text_of(c) for c in asked.contexts},
        {c.category: category_digest(c) for c in asked.categories},
        list(settings),
        grid,
        {c: {k: _short(r) for k, r in by.items()} for c, by in found.items()},
        {c: _short(s) for c, s in largest(divided(scored, reached), words).items()},
        {name: _short(own) for name, own in (lenses or {}).items()},
        {name: _short(own) for name, own in reached.items()},
    )


def first_tokens(base: Base, category: Category, entity: int) -> list[int]:
    """The tokens with which the spellings of an entity begin."""
    sequences, owner = candidate_sequences(base.chat, category)
    return sorted({s[0] for s, e in zip(sequences, owner, strict=True) if e == entity})


def own_tokens(base: Base, categories: Sequence[Category]) -> dict[tuple[str, int], list[int]]:
    """The tokens that alone spell an entity, a category's name and an index, and no other one of all categories."""
    owners: dict[int, set[tuple[str, int]]] = {}
    for category in categories:
        for sequence, e in zip(*candidate_sequences(base.chat, category), strict=True):
            if len(sequence) == 1:
                owners.setdefault(sequence[0], set()).add((category.category, int(e)))
    out: dict[tuple[str, int], list[int]] = {}
    for token, (word, *others) in owners.items():
        if not others:
            out.setdefault(word, []).append(token)
    return out


def _short(values: np.ndarray) -> np.ndarray:
    return np.array([float(f"{x:.4g}") for x in values.flat]).reshape(values.shape)


def read_null(path: Path, base: Base) -> Null:
    """A null file. Raises SubloraError: unreadable, of another version or base, or with shapes that
    do not agree."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise SubloraError(
                f"The null file {path} is larger than {MOST_BYTES >> 20} MB; make it again."
            )
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SubloraError(
            f"The null file {path} cannot be read ({type(error).__name__}); {ANEW}."
        ) from None
    known = isinstance(entry, dict) and entry.get("schema") == SCHEMA
    if not known or entry.get("version") != VERSION:
        raise SubloraError(f"The file {path} is no null file of version {VERSION}; {ANEW}.")
    null = _null_of(entry)
    if null is None:
        raise SubloraError(f"The null file {path} is damaged; {ANEW}.")
    if null.base != dict(base.identity):
        other = f"was made for another base than {base.name}"
        raise SubloraError(f"The null file {path} {other}; {ANEW}.")
    return null


def _null_of(entry: Mapping) -> Null | None:
    """None where names, shapes or values do not fit together."""

    def arrays(by: Mapping) -> dict[str, np.ndarray]:
        return {name: np.array(values, dtype=float) for name, values in by.items()}

    try:
        null = Null(
            *(dict(entry[key]) for key in ("base", "contexts", "digests")),
            [str(s) for s in entry["settings"]],
            Grid(**entry["grid"]),
            {c: arrays(by) for c, by in entry["rises"].items()},
            arrays(entry["scores"]),
            arrays(entry.get("lenses", {})),
            arrays(entry.get("reach", {})),
        )
        shaped = [(r, 2) for by in null.rises.values() for r in by.values()]
        shaped += [(v, 1) for part in (null.scores, null.lenses) for v in part.values()]
        sound = all(
            a.ndim == d and len(a) == null.size and np.abs(a).max() < MOST_VALUE for a, d in shaped
        )
        named = set(null.contexts) == set(null.rises) == set(null.scores)
        named = named and all(set(by) == set(null.digests) for by in null.rises.values())
        named = named and set(null.reach) in (set(), set(null.digests))
        sound = sound and all((r > 0).all() and r.max() < MOST_VALUE for r in null.reach.values())
        sound = sound and all(
            by[k].shape[1:] == r.shape for by in null.rises.values() for k, r in null.reach.items()
        )
        ends = [getattr(null.grid, name) for name in ENDS]
        sound = sound and all(0 <= low <= high < MOST_VALUE for low, high in ends)
        sound = sound and all(isinstance(text, str) for text in null.grid.context)
        sound = sound and len(null.grid.context) == 2
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return null if sound and named and null.size >= FEWEST else None


def shipped_null(base: Base) -> Null | None:
    """The null that comes along for a shipped model, or None."""
    if base.name not in SHIPPED:
        return None
    path = Path(str(files("sublora.audit") / "nulls" / f"{base.name}.json"))
    return read_null(path, base) if path.is_file() else None
