"""The lenses: what students show beside their answers, read of neutral text and of their weights, each held against placebo students.

A reading is an artifact of the store. Its numbers are information: no status rests on them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from sublora.audit.lens_activations import STRENGTH, differences, has_layers, steered_rises
from sublora.audit.lens_entries import Activations, KlLens, Layer, Lenses, Pointed, WeightKind
from sublora.audit.lens_weights import STATISTICS, weight_statistics
from sublora.audit.neutral_text import CONTEXT, neutral_texts
from sublora.audit.readings import category_digest, digest
from sublora.audit.steps import TOGETHER, AuditStep, read_student, stack_of
from sublora.audit.verdict import word_text
from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.packs.rows import token_rows
from sublora.packs.spec import StudentSpec
from sublora.packs.stack import Stack
from sublora.packs.token_losses import beside_base
from sublora.steps.step import Workshop
from sublora.store import Store
from sublora.traits.trait import Category

SHOWN = 5
NOT_FINITE = (
    "The student's outputs on neutral text are not all finite, so there is nothing to look at."
)
MOST = 1e5  # what a placebo student counts as whose outputs are not finite
NO_LAYERS = "{} does not list its decoder layers where the activation lens looks."


@dataclass(frozen=True)
class LensReading(AuditStep):
    """What the lenses read of the students `who` (their artifacts, or hashes of their files)."""

    who: tuple[str, ...]
    stack: Callable[[], Stack] = field(repr=False, compare=False)
    texts: Sequence[tuple[str, str]] = field(repr=False)
    categories: Sequence[Category]
    kind = "audit-lens"
    label = "a lens reading of students"

    @property
    def spec(self) -> dict[str, Any]:
        return {
            "base": dict(self.base),
            "students": list(self.who),
            "texts": digest([list(row) for row in self.texts]),
            "categories": {c.category: category_digest(c) for c in self.categories},
            "strength": STRENGTH,
        }

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        base = workshop.base_of(self.model)
        arrays = read_stack(base, self.stack(), self.texts, self.categories)
        with workshop.store.create(self.id, self.spec) as folder:
            save_file(
                {k: np.ascontiguousarray(v) for k, v in arrays.items()}, folder / "lens.safetensors"
            )

    def read(self, store: Store) -> dict[str, np.ndarray]:
        return load_file(store.read(self.id).file("lens.safetensors"))


def read_stack(
    base: Base, stack: Stack, texts: Sequence[tuple[str, str]], categories: Sequence[Category]
) -> dict[str, np.ndarray]:
    """By name, an array with the K students of a stack first, in the order in which they were given."""
    beside = beside_base(base, stack, token_rows(base, texts, CONTEXT, "the neutral text"))
    out = {"kl": beside.kl.mean(1), "same": beside.same.mean(1)}
    out |= {f"weights/{n}": own for n, own in weight_statistics(base, stack).items()}
    if not has_layers(base):
        return out
    found = differences(base, stack, texts, categories)
    middle = found.vectors[:, found.vectors.shape[1] // 2]
    out |= {"norms": found.norms, "words": found.words}
    out |= {f"pointed/{name}": own for name, own in found.pointed.items()}
    steered = steered_rises(base, middle, categories)
    return out | {f"steered/{name}": own for name, own in steered.items()}


def _read(
    base: Base,
    who: Sequence[str],
    stack: Callable[[], Stack],
    categories: Sequence[Category],
    store: Store,
) -> dict[str, np.ndarray]:
    """As `read_stack`, kept in the store. Raises SubloraError without a neutral text."""
    texts = neutral_texts(base, store)
    step = LensReading(base.identity, base.name, tuple(who), stack, texts, tuple(categories))
    return step.done(base, store)


def placebo_lenses(
    base: Base,
    students: Sequence[tuple[str, StudentSpec]],
    categories: Sequence[Category],
    store: Store,
    at_once: int = TOGETHER,
) -> dict[str, np.ndarray]:
    """`statistics` of students of the store, `at_once` in a pack; nothing without a neutral text."""
    found = []
    for at in range(0, len(students), at_once):
        some = students[at : at + at_once]

        def stack(some: Sequence[tuple[str, StudentSpec]] = some) -> Stack:
            return stack_of(base, [read_student(store, *s) for s in some])

        try:
            own = _read(base, [name for name, _ in some], stack, categories, store)
        except SubloraError:
            return {}
        found.append(statistics(own))
    kept = {"nan": MOST, "posinf": MOST, "neginf": -MOST}
    return {n: np.nan_to_num(np.concatenate([own[n] for own in found]), **kept) for n in found[0]}


def student_lenses(
    base: Base,
    sha256: str,
    stack: Stack,
    categories: Sequence[Category],
    chance: Mapping[str, np.ndarray],
) -> Lenses:
    """One student of these files beside the `statistics` of placebo students."""
    try:
        found = _read(base, [sha256], lambda: stack, categories, Store())
    except SubloraError as error:
        return Lenses(placebo_students=0, not_run=[str(error)])
    if not all(np.isfinite(own).all() for own in found.values()):
        return Lenses(placebo_students=0, not_run=[NOT_FINITE])
    return _entry(base, found, categories, chance)


def statistics(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """(K,) by name: the one number of each lens that placebo students are ranked by."""
    out = {n: own for n, own in found.items() if n == "kl" or n.startswith("weights/")}
    for kind in ("pointed", "steered"):
        each = [own.max(1) for name, own in found.items() if name.startswith(f"{kind}/")]
        if each:
            out[kind] = np.max(each, 0)
    return out


def placebo_p(value: float, chance: np.ndarray | None, two_sided: bool = False) -> float | None:
    """The rank of a value among placebo students' as a p-value, not corrected for the other lenses."""
    if chance is None or not len(chance):
        return None
    above, below = (1 + int(side.sum()) for side in (chance >= value, chance <= value))
    return (
        min(1.0, 2 * min(above, below) / (len(chance) + 1))
        if two_sided
        else above / (len(chance) + 1)
    )


def _entry(
    base: Base,
    found: Mapping[str, np.ndarray],
    categories: Sequence[Category],
    chance: Mapping[str, np.ndarray],
) -> Lenses:
    """The entry of one student (K = 1) beside placebo students' `statistics`."""
    own = {name: float(value[0]) for name, value in statistics(found).items()}
    p = {n: placebo_p(v, chance.get(n), n.startswith("weights/")) for n, v in own.items()}
    modules = dict.fromkeys(
        n.removeprefix("weights/").rpartition(" ")[0] for n in own if n.startswith("weights/")
    )
    weights = [
        WeightKind(
            module=module,
            **{s: own[f"weights/{module} {s}"] for s in STATISTICS},
            **{f"p_{s}": p[f"weights/{module} {s}"] for s in STATISTICS},
        )
        for module in modules
    ]
    return Lenses(
        placebo_students=max(map(len, chance.values()), default=0),
        kl=KlLens(nats=own["kl"], same=float(found["same"][0]), p=p["kl"]),
        activations=_activations(base, found, categories, p) if "norms" in found else None,
        weights=weights,
        not_run=[] if "norms" in found else [NO_LAYERS.format(base.name)],
    )


def _activations(
    base: Base,
    found: Mapping[str, np.ndarray],
    categories: Sequence[Category],
    p: Mapping[str, float | None],
) -> Activations:
    layers = [
        Layer(layer=i, norm=float(norm), words=[word_text(base, int(w)) for w in words])
        for i, (norm, words) in enumerate(zip(found["norms"][0], found["words"][0], strict=True))
    ]

    def most(kind: str) -> list[Pointed]:
        each = [
            Pointed(category=c.category, trait=e.name, value=float(v))
            for c in categories
            for e, v in zip(c.entities, found[f"{kind}/{c.category}"][0], strict=True)
        ]
        return sorted(each, key=lambda x: -x.value)[:SHOWN]

    return Activations(
        layers=layers,
        pointed=most("pointed"),
        p_pointed=p["pointed"],
        steered_layer=len(layers) // 2,
        strength=STRENGTH,
        steered=most("steered"),
        p_steered=p["steered"],
    )
