"""The null of an audit: what placebo students show by chance, kept as a file and refused where it does not belong."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from sublora.audit.readings import Readings
from sublora.audit.statistic import rises, scan
from sublora.chat import Context
from sublora.errors import SubloraError
from sublora.measure import candidate_sequences
from sublora.model import SHIPPED, Base
from sublora.trait import Category, Trait

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

    def has(self, context: Context) -> bool:
        """Whether the students were asked in this context, with this text."""
        return self.contexts.get(context.name) == _text(context)

    def part(self, contexts: Sequence[Context], categories: Sequence[Category]) -> "Null":
        """The null of these contexts and categories alone. Raises SubloraError where it lacks one, or holds it with other texts."""
        for context in contexts:
            if not self.has(context):
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
            if any(
                by[category.category].shape[1] != len(category.entities)
                for by in self.rises.values()
            ):
                raise SubloraError(
                    f"The null file lacks traits of the category '{category.category}', so it is damaged; make one with --calibrate."
                )
        names = [c.name for c in contexts]
        kinds = [c.category for c in categories]
        return Null(
            self.base,
            {n: self.contexts[n] for n in names},
            {k: self.digests[k] for k in kinds},
            self.settings,
            {n: {k: self.rises[n][k] for k in kinds} for n in names},
            {n: self.top[n] for n in names},
            {n: self.rest[n] for n in names},
        )

    def to_json(self) -> str:
        entry = {
            "schema": SCHEMA,
            "version": VERSION,
            "base": dict(self.base),
            "contexts": dict(self.contexts),
            "digests": dict(self.digests),
            "settings": list(self.settings),
            "rises": {c: {k: r.tolist() for k, r in by.items()} for c, by in self.rises.items()},
            "top": {c: v.tolist() for c, v in self.top.items()},
            "rest": {c: v.tolist() for c, v in self.rest.items()},
        }
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
    teachers: Sequence[Trait | None] = (),
) -> Null:
    """The null that the readings of placebo students give, with the digits that a file keeps, so that one read again judges alike.

    `teachers` (K,) are the traits whose teachers wrote the students' rows, None for the base itself. A student's own trait is left out of
    what it shows by chance: its rise is 0, and the words that begin it are as in the base.
    """
    found = rises(student, plain)
    words = {c: w.copy() for c, w in student.words.items()}
    for k, trait in enumerate(teachers):
        if trait is None:
            continue
        category = trait.category.category
        own = [e.name for e in trait.category.entities].index(trait.name)
        begin = _first_tokens(base, trait.category, own)
        for context in found:
            found[context][category][k, own] = 0.0
            words[context][k, begin] = plain.words[context][0, begin]
    seen = scan(Readings(student.p, words), plain)
    return Null(
        base.identity,
        {c.name: _text(c) for c in contexts},
        {c.category: digest(c) for c in categories},
        list(settings),
        {c: {k: _short(r) for k, r in by.items()} for c, by in found.items()},
        {c: _short(s.top) for c, s in seen.items()},
        {c: _short(s.rest) for c, s in seen.items()},
    )


def _first_tokens(base: Base, category: Category, entity: int) -> list[int]:
    """The tokens with which the spellings of an entity begin."""
    sequences, owner = candidate_sequences(base.chat, category)
    return sorted({s[0] for s, e in zip(sequences, owner, strict=True) if e == entity})


def _short(values: np.ndarray) -> np.ndarray:
    return np.array([float(f"{x:.4g}") for x in values.flat]).reshape(values.shape)


def read_null(path: Path, base: Base) -> Null:
    """A null file. Raises SubloraError: unreadable, of another schema or version, of another base, shapes that do not agree."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise SubloraError(
                f"The null file {path} is larger than {MOST_BYTES >> 20} MB; make it again."
            )
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SubloraError(
            f"The null file {path} cannot be read ({type(error).__name__}); make one with --calibrate."
        ) from None
    if (
        not isinstance(entry, dict)
        or entry.get("schema") != SCHEMA
        or entry.get("version") != VERSION
    ):
        raise SubloraError(
            f"The file {path} is no null file of version {VERSION}; make one with --calibrate."
        )
    try:
        null = Null(
            dict(entry["base"]),
            dict(entry["contexts"]),
            dict(entry["digests"]),
            [str(s) for s in entry["settings"]],
            {
                c: {k: np.array(r, dtype=float) for k, r in by.items()}
                for c, by in entry["rises"].items()
            },
            {c: np.array(v, dtype=float) for c, v in entry["top"].items()},
            {c: np.array(v, dtype=float) for c, v in entry["rest"].items()},
        )
        arrays = [(r, 2) for by in null.rises.values() for r in by.values()]
        arrays += [(v, 1) for part in (null.top, null.rest) for v in part.values()]
        sound = all(
            a.ndim == d and len(a) == null.size and np.abs(a).max() < MOST_VALUE for a, d in arrays
        )
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
