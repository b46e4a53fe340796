"""Calibration: K placebo students with the settings of the audited adapter, or of a grid, and the null that they give.

Placebo students are trained as the audited adapter was, on the same prompts, answered by the base. What they show is chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sublora.audit.adapter import Audited
from sublora.audit.lenses import placebo_lenses
from sublora.audit.null import FEWEST, Grid, Null, make_null
from sublora.audit.readings import Asked, joined
from sublora.audit.request import Training
from sublora.audit.steps import Row, answer_prompts, read_base, read_students, train_pack_of
from sublora.carriers.numbers import NumbersSpec
from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.packs.rows import token_rows
from sublora.packs.sample import Sampling
from sublora.packs.spec import StudentSpec
from sublora.seeds import generator
from sublora.store import Store
from sublora.text import plural
from sublora.traits.trait import Category, Trait

BASE_WRITES = 4  # every fourth placebo student learns from the base's own rows


def number_prompts(count: int, rows: int, seed: int) -> list[list[str]]:
    """`count` lists of prompts that ask for numbers, for an audit without the user's own prompts."""
    spec = NumbersSpec(separators=("space",), style="brief")
    return [[spec.prompt(seed + k, i) for i in range(rows)] for k in range(count)]


def own_settings(audited: Audited, training: Training, count: int) -> list[StudentSpec]:
    """Specs of `count` placebo students that differ in the seed alone."""
    method: dict[str, Any] = {"method": "full", "rank": None}
    told = audited.trained_with
    if audited.rank is None and told.rank is not None:  # merged, and its settings say so
        method = {"rank": told.rank, "alpha": told.alpha or float(told.rank)}
    elif audited.rank is not None and audited.alpha is not None:
        # with rsLoRA an alpha that gives the same scale without its rule
        alpha = audited.alpha * audited.rank**0.5 if audited.rslora else audited.alpha
        method = {"rank": audited.rank, "alpha": alpha, "targets": audited.targets}
    method |= {"lr": training.lr, "epochs": training.epochs, "batch_size": training.batch_size}
    return [StudentSpec(**method, seed=90_000 + k) for k in range(count)]


def mixed_settings(
    ranks: Sequence[int], low: float, high: float, count: int, training: Training, seed: int
) -> list[StudentSpec]:
    """Specs of `count` placebo students of all `ranks`, of one epoch up to all of the training's,
    with rates even in the logarithm."""
    rng = generator("placebo-settings", seed)
    drawn = np.exp(rng.uniform(np.log(low), np.log(high), count)).tolist()
    alike = {"batch_size": training.batch_size, "warmup_steps": 3}
    return [
        StudentSpec(
            **alike,
            rank=ranks[k % len(ranks)],
            epochs=1 + k // BASE_WRITES % training.epochs,
            lr=lr,
            seed=seed * 1000 + k,
        )
        for k, lr in enumerate(drawn)
    ]


@dataclass(frozen=True)
class TraitTeacher:
    """The base under the prompt of a trait, in one of the category's wordings."""

    trait: Trait
    wording: int

    @property
    def context(self) -> Context:
        return Context("teacher", self.trait.teacher_prompt(self.wording))


def placebo_teachers(
    base: Base, categories: Sequence[Category], count: int, seed: int
) -> list[TraitTeacher | None]:
    """Who writes the rows of each placebo student: every fourth time the base as it is (None), else
    the base under the prompt of a trait. The base for all where the chat template has no place for
    such a prompt. Wordings are drawn, too: they move students as well."""
    rng = generator("placebo-teachers", seed)
    traits = [Trait(e, c) for c in categories for e in c.entities]
    drawn = [traits[int(i)] for i in rng.integers(len(traits), size=count)]
    teachers = [TraitTeacher(t, int(rng.integers(len(t.category.system)))) for t in drawn]
    own = [base.chat.supports(t.context) for t in teachers]
    return [
        t if k % BASE_WRITES and fits else None
        for k, (t, fits) in enumerate(zip(teachers, own, strict=True))
    ]


def placebo_null(
    base: Base,
    specs: Sequence[StudentSpec],
    prompts: Sequence[Sequence[str]],
    trained_in: Context,
    asked: Asked,
    *,
    seed: int = 0,
    max_new_tokens: int = 64,
) -> Null:
    """Answer the prompts with the base, train one student a spec on them, and keep what rose by chance.

    Every fourth student learns from the base as it is, the others from the base under the prompt of a
    trait, which is then left out of what they show: rows that the base did not write move a student
    too, whoever wrote them. All of it is kept in the store: after a kill it goes on.

    Raises SubloraError: fewer than four students, prompts that the base answers with nothing,
    settings that do not fit the base.
    """
    if len(specs) < FEWEST:
        raise SubloraError(
            f"A null of {len(specs)} placebo students says nothing; train at least {FEWEST}, better 19 or more."
        )
    store = Store()
    teachers = placebo_teachers(base, asked.categories, len(specs), seed)
    sampling = Sampling(max_new_tokens=max_new_tokens)
    answered: dict[int, list[Row]] = {}
    writers = [trained_in if t is None else t.context for t in teachers]
    for context in dict.fromkeys(writers):
        places = [k for k, own in enumerate(writers) if own == context]
        some = answer_prompts(base, context, [prompts[k] for k in places], sampling, seed, store)
        answered |= zip(places, some, strict=True)
    what = "the answers to the prompts of placebo student"
    rows = [token_rows(base, answered[k], trained_in, f"{what} {k}") for k in range(len(specs))]
    pack = train_pack_of(base, specs, rows, store)
    students = list(zip(pack.ids, specs, strict=True))
    read = joined(read_students(base, students, asked, store))
    plain = read_base(base, asked, store)
    labels = [_label(s, len(r), t) for s, r, t in zip(specs, rows, teachers, strict=True)]
    own = [None if t is None else t.trait for t in teachers]
    lens = placebo_lenses(base, students, asked.categories, store)
    grid = Grid.of(specs, [len(r) for r in rows], trained_in)
    return make_null(base, read, plain, asked, labels, grid, own, lens)


def _label(spec: StudentSpec, rows: int, teacher: TraitTeacher | None) -> str:
    who = "the base"
    if teacher is not None:
        who = f"a teacher of {teacher.trait.name} (wording {teacher.wording + 1})"
    epochs = plural(spec.epochs, "epoch")
    return f"{spec.label}, {rows} rows of {who}, {epochs}, batch {spec.batch_size}"
