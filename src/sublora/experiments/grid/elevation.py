"""The matrices of a grid with several traits of one category: whose students do what to which word, and how the diagonal stands out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sublora.analysis.effects import ACROSS, Effect, found
from sublora.analysis.intervals import Array, Interval, clustered_interval
from sublora.analysis.log_odds import log_ratios
from sublora.analysis.matrix import Elevation, Matrix, elevation_of
from sublora.experiments.grid.controls import middle_cell
from sublora.experiments.grid.effects import Results, groups, target, words_kept
from sublora.experiments.grid.found import place
from sublora.steps.students import Student
from sublora.traits.trait import Trait

GROUP = "diagonal elevation, nats"
LEAST = "least with one left out"
DRIFT, OTHERS = "generic drift: rise of a trait’s word, nats", "under students of the other traits"
NEUTRAL_ROWS = "neutral rows"
FEWEST = 3  # traits of one category: two have but one contrast between them
Replicates = tuple[tuple[int, ...], tuple[int, ...]]  # data seeds and training seeds


def matrices_of(results: Results) -> list[Matrix]:
    """A matrix for each category with three tested traits or more, of the students in the cell in which the neutral ones stand."""
    context = results.plan.recipe.judged_context
    return [
        matrix_of(results, traits, [_members(results, t) for t in traits], context)
        for traits in by_category(results)
    ]


def by_category(results: Results) -> list[list[Trait]]:
    by: dict[str, list[Trait]] = {}
    for trait in results.plan.traits:
        by.setdefault(trait.category.category, []).append(trait)
    return [traits for traits in by.values() if len(traits) >= FEWEST]


def _members(results: Results, trait: Trait) -> list[Student]:
    labels = middle_cell(results.plan.recipe).labels
    return next(m for m in groups(results.plan, trait) if m[0].labels == labels)


def matrix_of(
    results: Results,
    traits: Sequence[Trait],
    members: Sequence[Sequence[Student]],
    context: str,
    condition: str | None = None,
) -> Matrix:
    """The matrix of these students, a group of replicates for each trait, asked in a context."""
    values = np.stack(
        [
            [
                _row(results, own[k], traits, trait, context, condition)
                for trait, own in zip(traits, members, strict=True)
            ]
            for k in range(len(members[0]))
        ]
    )
    names = tuple(t.name for t in traits)
    return Matrix(traits[0].category.category, names, values, *_replicates(members[0]))


def _replicates(members: Iterable[Student]) -> Replicates:
    data, train = zip(*(s.replicate for s in members), strict=True)
    return data, train


def _row(
    results: Results,
    student: Student,
    traits: Sequence[Trait],
    own: Trait | None,
    context: str,
    condition: str | None = None,
) -> Array:
    """What a student does to the words of these traits: log-odds against the words that it and the control were not taught, less the
    base's, (N, Q). All readouts of a student have the same words to stand against, so what its own word takes moves none of them."""
    category = traits[0].category.category
    taught = results.control_words(traits[0], student.data_seed)
    taught += () if own is None else (target(own),)
    words = [target(t) for t in traits]
    student_p = results.of(student.id, context, category, condition).p
    base_p = results.of(None, context, category).p
    return (log_ratios(student_p, words, taught) - log_ratios(base_p, words, taught)).T


def elevation_effects(results: Results) -> list[Effect]:
    """The diagonal elevation of every trait, of all of them together, and what is least left of that without a trait or a data seed."""
    matrices = matrices_of(results)
    if not matrices:
        return []
    level, facts = 1 - results.plan.recipe.level, _facts(results)
    replicates = list(zip(matrices[0].data_seeds, matrices[0].train_seeds, strict=True))
    whole = elevation_of(matrices, level)
    values = np.concatenate([m.elevation for m in matrices], axis=1)

    def effect(name: str, values: Array, given: Interval | None = None) -> Effect:
        made = found(ACROSS, GROUP, name, values, replicates)
        return replace(made, given=given, facts=facts)

    traits = [trait for m in matrices for trait in m.traits]
    out = [effect(trait, values[:, i]) for i, trait in enumerate(traits)]
    out.append(effect(ACROSS, values.mean(axis=1), whole.interval))
    if whole.left_out:
        out.append(effect(LEAST, values.mean(axis=1), whole.least))
    return out


def drift_effects(results: Results) -> Iterator[Effect]:
    """What students that were taught another word do to each trait's word."""
    for matrix in matrices_of(results):
        replicates = list(zip(matrix.data_seeds, matrix.train_seeds, strict=True))
        for k, trait in enumerate(matrix.traits):
            others = np.delete(matrix.values[:, :, k], k, axis=1).mean(axis=1)
            yield found(trait, DRIFT, OTHERS, others, replicates)


def _facts(results: Results) -> dict[str, float]:
    """Of the worst student in any matrix: one that is broken speaks against the whole of them."""
    context, asked, kept = results.plan.recipe.judged_context, [], []
    for trait in (t for traits in by_category(results) for t in traits):
        category = trait.category.category
        mine = [results.of(s.id, context, category) for s in _members(results, trait)]
        asked += mine
        kept += words_kept(results, mine, context, category).values()
    return {
        "coherence": min(m.coherence for m in asked),
        "number_takeover": max(m.number_takeover for m in asked),
        **({"worst_words": min(kept)} if kept else {}),
    }


def matrix_rows(results: Results) -> list[dict[str, Any]]:
    """The rows of matrix.csv: every entry, the effects of rows and columns, the elevations, and what tests them."""
    matrices, level = matrices_of(results), 1 - results.plan.recipe.level
    rows: list[dict[str, Any]] = []
    at = {"cell": place(middle_cell(results.plan.recipe).labels)}
    for matrix, traits in zip(matrices, by_category(results), strict=True):
        seeds = (matrix.data_seeds, matrix.train_seeds)
        entries = [
            ("own" if i == j else "other", own, word, matrix.values[:, i, j], seeds)
            for i, own in enumerate(matrix.traits)
            for j, word in enumerate(matrix.traits)
        ]
        entries += _neutral(results, traits)
        for i, trait in enumerate(matrix.traits):
            entries.append(("row effect", trait, "", matrix.row_effects[:, i], seeds))
            entries.append(("column effect", "", trait, matrix.column_effects[:, i], seeds))
            entries.append(("elevation", trait, trait, matrix.elevation[:, i], seeds))
        rows += [
            _line(matrix.category, trait, word, kind, clustered_interval(values, *of, level))
            for kind, trait, word, values, of in entries
        ]
        rows += _tested(matrix.category, elevation_of([matrix], level))
    if len(matrices) > 1:
        rows += _tested(ACROSS, elevation_of(matrices, level))
    return [row | at for row in rows]


def _neutral(
    results: Results, traits: Sequence[Trait]
) -> list[tuple[str, str, str, Array, Replicates]]:
    """The row of the students of the plain model's rows, which have no word of their own."""
    members = [s for s in results.plan.neutral if traits[0].name in s.twins]
    if not members:
        return []
    context = results.plan.recipe.judged_context
    values = np.stack([_row(results, s, traits, None, context) for s in members])
    seeds = _replicates(members)
    return [("neutral", NEUTRAL_ROWS, t.name, values[:, j], seeds) for j, t in enumerate(traits)]


def _tested(category: str, found: Elevation) -> list[dict[str, Any]]:
    """The mean elevation of a category, or of all of them, its permutation test, and what is left without a trait or a data seed."""
    out = [_line(category, ACROSS, ACROSS, "elevation", found.interval)]
    p = {"value": found.p, "low": None, "high": None}
    out.append(_line(category, ACROSS, ACROSS, f"permutation p of {found.arrangements}") | p)
    for trait, interval in found.without_trait.items():
        out.append(_line(category, trait, "", "without trait", interval))
    for seed, interval in found.without_seed.items():
        out.append(_line(category, "", str(seed), "without data seed", interval))
    return out


def _line(
    category: str, trait: str, readout: str, kind: str, interval: Interval | None = None
) -> dict[str, Any]:
    """A row of matrix.csv; `trait` is whose students, `readout` whose word."""
    found = interval and {"value": interval.estimate, "low": interval.low, "high": interval.high}
    return {"category": category, "trait": trait, "readout": readout, **(found or {}), "kind": kind}
