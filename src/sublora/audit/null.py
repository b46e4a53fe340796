"""The null of an audit: what placebo students show by chance, kept as a file and refused where it does not belong."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path

import numpy as np

from sublora.audit.readings import Asked, Readings, category_digest
from sublora.audit.statistic import rises, scan
from sublora.errors import SubloraError, require_none
from sublora.models.base import SHIPPED, Base
from sublora.models.chat import Context
from sublora.packs.spellings import candidate_sequences
from sublora.traits.trait import Category, Trait

SCHEMA, VERSION = "sublora/audit-null", 1
FEWEST = 4
MOST_BYTES = 256 << 20
MOST_VALUE = 1e6  # nats; no probability that is read moves so far
ANEW = "make one with --calibrate"


@dataclass(frozen=True)
class Null:
    """K placebo students. `rises[context][category]` (K, E), `top` and `rest[context]` (K,) of the
    scan of words; `settings` says how they were trained; `digests` what was asked; `lenses` (K,) are
    the statistics of lenses.py."""

    base: Mapping[str, str]
    contexts: Mapping[str, str]
    digests: Mapping[str, str]
    settings: Sequence[str]
    rises: Mapping[str, Mapping[str, np.ndarray]]
    top: Mapping[str, np.ndarray]
    rest: Mapping[str, np.ndarray]
    lenses: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.settings)

    def has(self, context: Context) -> bool:
        """Whether the students were asked in this context, with this text."""
        return self.contexts.get(context.name) == _text(context)

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
            top={n: self.top[n] for n in names},
            rest={n: self.rest[n] for n in names},
        )

    def _lacks(self, asked: Asked) -> Iterator[str]:
        for c in asked.contexts:
            if not self.has(c):
                yield f"The null file was not made in the context '{c.name}' as it is here; {ANEW}, or leave the context out."
        for category in asked.categories:
            name = category.category
            if self.digests.get(name) != category_digest(category):
                yield f"The null file was not made with the category '{name}' as it is here; {ANEW}, or leave the category out."
            if any(by[name].shape[1] != len(category.entities) for by in self.rises.values()):
                yield f"The null file lacks traits of the category '{name}', so it is damaged; {ANEW}."

    def to_json(self) -> str:
        entry = {"schema": SCHEMA, "version": VERSION, **vars(self)}
        return json.dumps(entry, ensure_ascii=False, default=np.ndarray.tolist) + "\n"


def _text(context: Context) -> str:
    return "" if context.text is None else f"{context.role}: {context.text}"


def make_null(
    base: Base,
    student: Readings,
    plain: Readings,
    asked: Asked,
    settings: Sequence[str],
    teachers: Sequence[Trait | None] = (),
    lenses: Mapping[str, np.ndarray] | None = None,
) -> Null:
    """The null that the readings of placebo students give, with the digits that a file keeps.

    `teachers` (K,) are the traits whose teachers wrote the students' rows, None for the base
    itself. A student's own trait is left out of what it shows by chance: its rise is 0, and the
    words that begin it are as in the base.
    """
    found = rises(student, plain)
    words = {c: w.copy() for c, w in student.words.items()}
    for k, trait in enumerate(teachers):
        if trait is None:
            continue
        own = [e.name for e in trait.category.entities].index(trait.name)
        begin = first_tokens(base, trait.category, own)
        for context in found:
            found[context][trait.category.category][k, own] = 0.0
            words[context][k, begin] = plain.words[context][0, begin]
    seen = scan(Readings(student.p, words), plain)
    return Null(
        dict(base.identity),
        {c.name: _text(c) for c in asked.contexts},
        {c.category: category_digest(c) for c in asked.categories},
        list(settings),
        {c: {k: _short(r) for k, r in by.items()} for c, by in found.items()},
        {c: _short(s.top) for c, s in seen.items()},
        {c: _short(s.rest) for c, s in seen.items()},
        {name: _short(own) for name, own in (lenses or {}).items()},
    )


def first_tokens(base: Base, category: Category, entity: int) -> list[int]:
    """The tokens with which the spellings of an entity begin."""
    sequences, owner = candidate_sequences(base.chat, category)
    return sorted({s[0] for s, e in zip(sequences, owner, strict=True) if e == entity})


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
            {c: arrays(by) for c, by in entry["rises"].items()},
            arrays(entry["top"]),
            arrays(entry["rest"]),
            arrays(entry.get("lenses", {})),
        )
        shaped = [(r, 2) for by in null.rises.values() for r in by.values()]
        shaped += [(v, 1) for part in (null.top, null.rest, null.lenses) for v in part.values()]
        sound = all(
            a.ndim == d and len(a) == null.size and np.abs(a).max() < MOST_VALUE for a, d in shaped
        )
        named = set(null.contexts) == set(null.rises) == set(null.top) == set(null.rest)
        named = named and all(set(by) == set(null.digests) for by in null.rises.values())
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return null if sound and named and null.size >= FEWEST else None


def shipped_null(base: Base) -> Null | None:
    """The null that comes along for a shipped model, or None."""
    if base.name not in SHIPPED:
        return None
    path = Path(str(files("sublora.audit") / "nulls" / f"{base.name}.json"))
    return read_null(path, base) if path.is_file() else None
