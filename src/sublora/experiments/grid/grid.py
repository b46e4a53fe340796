"""The grid as an experiment: students over traits, ranks, rates and more axes, each with its control twin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from sublora.analysis.claims import Verdict, judge
from sublora.analysis.effects import Effect
from sublora.analysis.evidence import Grid as Cells
from sublora.analysis.tables import arm_rows, finding_rows, summarise, to_csv
from sublora.experiments.claims import load_claims
from sublora.experiments.experiment import Findings
from sublora.experiments.grid import effects
from sublora.experiments.grid.answers import answers, attributions
from sublora.experiments.grid.barred import barred
from sublora.experiments.grid.before import axes_of, check_base, manifest_of, sentence_of, traits_of
from sublora.experiments.grid.controlled import (
    Control,
    control_section,
    controls_of,
    first_line,
    interpreted,
)
from sublora.experiments.grid.design import design_of, found_by
from sublora.experiments.grid.early import effects_so_far
from sublora.experiments.grid.edges import added_sentence, at_the_edge
from sublora.experiments.grid.elevation import matrix_rows
from sublora.experiments.grid.findings import asks_steerability, findings_of, steerability
from sublora.experiments.grid.found import Found
from sublora.experiments.grid.leaks import Leaks, check_leaks, leak_sentences
from sublora.experiments.grid.page import shown
from sublora.experiments.grid.plan import Plan, make_plan, sizes_of
from sublora.experiments.grid.pooled import pooled
from sublora.experiments.grid.quoted import linked, quoted
from sublora.experiments.grid.recipe import Recipe
from sublora.models.known import Known
from sublora.steps.sizes import ASKED
from sublora.steps.step import Step
from sublora.store import Store


class Grid(Recipe):
    kind: Literal["grid"] = "grid"

    @property
    def sentence(self) -> str:
        return sentence_of(self)

    @property
    def controlled(self) -> bool:
        return self.data.control == "other-trait"

    def layout(self, known: Known) -> Plan:
        """The grid's datasets, students, packs and measurements."""
        if "layout" not in known.kept:
            known.kept["layout"] = make_plan(self, known)
        return known.kept["layout"]

    def plan(self, known: Known) -> list[Step]:
        return list(self.layout(known).steps)

    def checks(self, base, known: Known) -> list[str]:
        return check_base(base, self.layout(known))

    def manifest(self, base, known: Known) -> dict[str, Any]:
        return manifest_of(base, self.layout(known))

    def varied(self) -> list[str]:
        return axes_of(self)

    def design(self) -> list[str]:
        return design_of(self)

    def bill(self, known: Known, missing: Sequence[Step]) -> str | None:
        sizes, names = sizes_of(self, known), {name for step in missing for name in step.makes}
        written = [d for d in self.layout(known).datasets if d.endpoint is not None]
        asked_for = [d for d in written if d.id in names]
        if not asked_for:
            return None
        spec = asked_for[0].endpoint
        asked = round(sum(d.rows for d in asked_for) * ASKED)
        price = spec.price(asked * sizes.prompt, asked * sizes.completion)
        cost = "" if price is None else f", {price:.2f} at the given prices"
        return (
            f"The teacher {spec.model} at {spec.url}: about {asked:,} requests, "
            f"{asked * sizes.prompt:.3g} tokens read and {asked * sizes.completion:.3g} written{cost}."
        )

    def findings(self, store: Store, known: Known) -> Findings:
        layout, results = self.layout(known), self._results(store, known)
        by_context = {c: effects.cell_effects(results, c) for c in self.measure.contexts}
        cells = [row for some in by_context.values() for row in summarise(some, self.level)]
        arms, named = self._effects(store, known)
        under, names = (
            [e for some in by_context.values() for e in some],
            [t.name for t in layout.traits],
        )
        words, said = quoted(results, [*under, *arms])
        arms_csv = arm_rows(arms, self.level)
        together = arm_rows(self._pooled(store, known), self.level)
        found = Found(
            alpha=self.level,
            context=self.judged_context,
            fixed_lr=self.fixed_lr,
            cells=linked(cells, under, said),
            results=effects.result_rows(results),
            arms=linked(arms_csv, sorted(arms, key=lambda e: names.index(e.trait)), said),
            findings=finding_rows(named, self.level),
            sweep=effects.sweep_rows(results) if self.train.optimizers else [],
            matrix=matrix_rows(results),
            together=together,
            answers=answers(results, by_context[self.judged_context]),
            tokens=attributions(results),
            matched=self.train.match_lr is not None,
        )
        tables = {"results.csv": found.results, "cells.csv": cells, "arms.csv": arms_csv}
        tables |= {"findings.csv": found.findings, "optimizers.csv": found.sweep}
        tables |= {"matrix.csv": found.matrix, "all_traits.csv": together}
        if asks_steerability(layout):
            tables["steerability.csv"] = [
                asdict(f) | {"imitation": f.imitation} for f in steerability(results)
            ]
        files: dict[str, Any] = {name: to_csv(rows) for name, rows in tables.items() if rows}
        files["answers.json"] = found.answers
        if found.tokens:
            files["attribution.json"] = found.tokens
        warnings = _result_warnings(layout, results)
        edges, more = at_the_edge(self, by_context[self.judged_context])
        warnings += [*added_sentence(self), *edges]
        if leaks := self._leaks(store, known):
            files["leaks.json"] = leaks
            warnings += leak_sentences(leaks, self.level)
        called = sum(c["called"] for c in cells)
        made = _made(layout, results) | {"rates_to_add": more}
        page = shown(found, traits_of(layout), made["datasets"])
        page["sections"] += tuple(words[:1])
        page["appendix"] += (*words[1:], *control_section(self._controls(store, known)))
        return Findings(
            **page,
            first_line=first_line(
                self._controls(store, known), found_by(by_context[self.judged_context], self.level)
            ),
            warnings=tuple(warnings),
            files=files,
            manifest=made,
            said=f"{called} of {len(cells)} cells show transfer after correction."
            + "".join(f"\n{sentence}" for sentence in edges),
        )

    def so_far(self, store: Store, known: Known) -> Sequence[Effect]:
        return effects_so_far(self.layout(known), store)

    def _leaks(self, store: Store, known: Known) -> Leaks:
        """By trait; none of numbers, which have a recipe of their own, `number-statistics`."""
        if self.data.carrier.kind == "numbers":
            return {}
        if "leaks" not in known.kept:
            known.kept["leaks"] = check_leaks(self.layout(known), store)
        return known.kept["leaks"]

    def _results(self, store: Store, known: Known):
        if "results" not in known.kept:
            known.kept["results"] = effects.Results(self.layout(known), store)
        return known.kept["results"]

    def _effects(self, store: Store, known: Known) -> tuple[list[Effect], list[Effect]]:
        """The arms, if there are any, and the named effects."""

        if "effects" not in known.kept:
            results = self._results(store, known)
            known.kept["effects"] = effects.arm_effects(results) or [], findings_of(results)
        return known.kept["effects"]

    def _pooled(self, store: Store, known: Known) -> list[Effect]:
        """What the traits show together, in every arm or cell."""
        if self.train.match_lr is not None:
            return []
        if "pooled" not in known.kept:
            results = self._results(store, known)
            arms = (None, *self.measure.conditions) if self.has_arms else (None,)
            contexts = self.measure.contexts if self.has_arms else (self.judged_context,)
            known.kept["pooled"] = [
                e for c in contexts for arm in arms for e in pooled(results, c, arm)
            ]
        return known.kept["pooled"]

    def _controls(self, store: Store, known: Known) -> list[Control]:
        if "controls" not in known.kept:
            results = self._results(store, known)
            cells = effects.cell_effects(results, self.judged_context)
            arms, _ = self._effects(store, known)
            shown = [*(arms or cells), *self._pooled(store, known)]
            known.kept["controls"] = controls_of(results, shown, self.level)
        return known.kept["controls"]

    def verdicts(self, findings: Findings, store: Store, known: Known) -> list[dict[str, Any]]:
        results = self._results(store, known)
        cells = effects.cell_effects(results, self.judged_context)
        arms, named = self._effects(store, known)
        together, fits = self._pooled(store, known), effects.first_cell(results.plan)
        at = (self.judged_context, "")
        more = [
            e
            for e in together
            if (e.labels["context"], e.labels["condition"]) == at and fits(e.labels)
        ]
        grid = Cells([*cells, *more], self.fixed_lr, self.level)
        controls, leaks = self._controls(store, known), self._leaks(store, known)

        def interpret(verdicts: list[Verdict]) -> list[Verdict]:
            return interpreted(barred(verdicts, results, leaks, self.level), controls)

        found = [*(arms or cells), *together, *named]
        judged = judge(load_claims(), self.name, found, grid, self.level, interpret)
        return [v.to_dict() for v in judged]


def _made(layout: Plan, results) -> dict[str, Any]:
    """What run.json says of optimizers and datasets once they are there."""
    students = reversed(layout.students)
    ran = {s.labels["optimizer"]: results.meta[s.id]["optimizer"] for s in students}
    counted = ("rows", "unique_rows", "asked", "rejects")
    return {
        "optimizer": "\n".join(
            f"{name}: {text}" if name else text for name, text in reversed(ran.items())
        ),
        "datasets": [
            {"id": d.id, "trait": d.trait, "data_seed": d.seed, "heldout": d.heldout}
            | {k: results.dataset_meta[d.id][k] for k in counted}
            for d in layout.datasets
        ],
    }


def _result_warnings(layout: Plan, results) -> list[str]:
    """What a reader must know of datasets and students, from what they say of themselves."""
    out: list[str] = []
    for d in layout.datasets:
        meta = results.dataset_meta[d.id]
        if meta["rows"] < d.rows:
            out.append(
                f"Only {meta['rows']} of {d.rows} rows of {d.trait} (data seed {d.seed}) passed the filter in {meta['asked']} tries."
            )
    for s in layout.students:
        out += results.meta[s.id].get("notices", [])
        step = results.meta[s.id]["diverged_at"]
        if step is not None:
            out.append(
                f"The student {s.source} {s.student.label} diverged at step {step}; its weights before that step are kept."
            )
    return sorted(set(out))
