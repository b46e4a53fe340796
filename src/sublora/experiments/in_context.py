"""The in-context control of Cloud et al. (2507.14805): the rows that students are trained on, as examples in the prompt instead.

The base is asked after some rows as earlier turns, those of the trait's teacher or those of the control's. Nothing is trained but the
students beside which it stands.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from pydantic import Field

from sublora.analysis.effects import is_coherent
from sublora.answers import names_category, share
from sublora.carriers.rows_file import from_jsonl
from sublora.chat import Context
from sublora.experiment import Chart, Estimate, Point, Series, Tile
from sublora.experiments.experiment import Findings
from sublora.experiments.grid.effects import Results, cell_effects
from sublora.experiments.grids import GridExperiment, grid_sizes, grid_steps, plan_of
from sublora.measure import Asking, measure_conversations
from sublora.models.known import Known
from sublora.plan import Plan, contexts_of, control_source
from sublora.sample import Sampling
from sublora.seeds import generator
from sublora.stats import Array, Interval, clustered_interval
from sublora.steps.measurement import Measured, keep_answers, read_measurement
from sublora.steps.step import Cost, Step, Workshop
from sublora.store import Store, artifact_id
from sublora.trait import Category

EFFECT, WORDS = "effect on P(target)", "share of answers with a word of the category"
TRAINED, SHOWN, FIFTH = (
    "trained on the rows",
    "rows in the prompt",
    "a fifth of trained - in the prompt",
)


class InContext(GridExperiment):
    kind: Literal["in-context"]
    examples: int = Field(3, ge=1, description="rows in a prompt")
    draws: int = Field(10, ge=1, description="prompts of other rows for each dataset")

    @property
    def sentence(self) -> str:
        return (
            f"{self.model}: {self.examples} rows as earlier turns of a conversation, {self.draws} times for each dataset of teachers that love "
            f"{', '.join(self.traits)} and of their controls, beside students trained on {self.data.rows} of these rows."
        )

    def plan(self, known: Known) -> list[Step]:
        plan = plan_of(self.grid, known.identity)
        asked = self._asked(plan, known.identity)
        return [*grid_steps([plan]), *asked.values()]

    def _asked(
        self, plan: Plan, identity: Mapping[str, str]
    ) -> dict[tuple[str, str, int], "ShownTask"]:
        """(source, category, data seed) -> its task."""
        rows = plan.arms
        context = contexts_of(self.grid)[self.grid.judged_context]
        sizes = grid_sizes(self.grid, identity)
        out = {}
        for trait in plan.traits:
            for source in (trait.name, control_source(self.grid, trait)):
                for seed in dict.fromkeys(self.data.seeds):
                    spec = {
                        "model": dict(identity),
                        "dataset": rows[source, "", seed][0].id,
                        "examples": self.examples,
                        "context": context.name if context.text is None else context.text,
                        "questions": list(trait.category.questions),
                        "entities": [list(e.forms) for e in trait.category.entities],
                        "samples": self.measure.samples,
                        "sampling": self.measure.sampling.model_dump(mode="json"),
                        "seed": self.measure.seed,
                    }
                    specs = tuple(spec | {"draw": d} for d in range(self.draws))
                    # a row is about as long as a question, and so are its answers
                    tokens = (
                        len(trait.category.questions)
                        * (self.examples + 1)
                        * sizes.question
                        * self.draws
                    )
                    work = sizes.forward(tokens).flops
                    out[source, trait.category.category, seed] = ShownTask(
                        specs,
                        self.model,
                        context,
                        trait.category,
                        self.measure.sampling,
                        work,
                        f"{source}, data seed {seed}",
                    )
        return out

    def findings(self, store: Store, known: Known) -> Findings:
        plan = plan_of(self.grid, known.identity)
        asked = self._asked(plan, known.identity)
        trained = cell_effects(Results(plan, store), self.grid.judged_context)
        estimates: list[Estimate] = []
        warnings: list[str] = []
        for cell in trained:
            trait = next(t for t in plan.traits if t.name == cell.trait)
            target, category = trait.category.entities.index(trait.entity), trait.category
            seeds = list(dict.fromkeys(self.data.seeds))

            def after(
                source: str, category: Category = category, seeds: list[int] = seeds
            ) -> list[list[Measured]]:
                """[data seed][draw]"""
                tasks = [asked[source, category.category, s] for s in seeds]
                return [
                    [read_measurement(store.read(name), category) for name in task.makes]
                    for task in tasks
                ]

            by_seed = np.stack(
                [cell.values[np.array(cell.data_seeds) == s].mean(axis=0) for s in seeds]
            )
            rows = {"trait": after(trait.name), "control": after(control_source(self.grid, trait))}
            shown = {
                arm: _mean(found, lambda m, target=target: m.p[:, target])
                for arm, found in rows.items()
            }
            prompted = shown["trait"] - shown["control"]
            unfit = _unfit(self.model, rows)
            if unfit:
                warnings.append(f"{trait.name}: {unfit}.")
            n = {"data_seeds": len(seeds), "questions": by_seed.shape[1]}

            def interval(values: Array, seeds: list[int] = seeds) -> Interval:
                return clustered_interval(values, seeds, level=1 - self.level)

            for name, values in (
                (TRAINED, by_seed),
                (SHOWN, prompted),
                (FIFTH, 0.2 * by_seed - prompted),
            ):
                estimates.append(
                    Estimate(
                        trait.name,
                        EFFECT,
                        name,
                        interval(values),
                        n,
                        unfit=None if name == TRAINED else unfit,
                    )
                )
            base = clustered_interval(
                cell.parts["base"][None], [0], level=1 - self.level, clip=(0.0, 1.0)
            )
            estimates.append(
                Estimate(
                    trait.name,
                    "P(target)",
                    "base",
                    base,
                    {"questions": n["questions"]},
                    tested=False,
                )
            )
            words = {
                arm: _mean(
                    found,
                    lambda m, category=category: [
                        share([a], lambda x: names_category(x, category)) for a in m.samples
                    ],
                )
                for arm, found in rows.items()
            }
            for group, by_arm in (("P(target)", shown), (WORDS, words)):
                for arm, values in by_arm.items():
                    found = clustered_interval(values, seeds, level=1 - self.level, clip=(0.0, 1.0))
                    estimates.append(
                        Estimate(
                            trait.name, group, f"after rows of the {arm}", found, n, tested=False
                        )
                    )
        charts = tuple(
            Chart(
                name=f"effects-{t.name.lower().replace(' ', '-')}",
                title="Effect of the same rows, trained and in the prompt",
                kind="rows",
                axis=EFFECT,
                reference=0.0,
                caption=f"{t.name}. Trait rows less control rows. Intervals: {1 - self.level:.0%}, clustered by data seed and question.",
                series=(
                    Series(
                        points=tuple(
                            _point(e)
                            for e in estimates
                            if e.subject == t.name and e.group == EFFECT
                        )
                    ),
                ),
            )
            for t in plan.traits
        )
        tiles = tuple(
            Tile(
                name=e.name[:1].upper() + e.name[1:],
                value=f"{e.interval.estimate:+.3f}",
                interval=f"[{e.interval.low:+.3f}, {e.interval.high:+.3f}]",
                note=f"{e.subject}, {EFFECT}, trait rows - control rows",
            )
            for e in estimates
            if e.subject == plan.traits[0].name and e.name in (TRAINED, SHOWN)
        )
        how = (
            f"{self.examples} rows stand before the question as turns of the user and the assistant, in the context "
            f"{self.grid.judged_context}; {self.draws} draws of rows from each dataset, averaged. Students: {self.data.rows} rows of the same "
            f"datasets. Both effects are trait rows less control rows, paired by data seed and question."
        )
        return Findings(tuple(estimates), charts, tiles, how, tuple(warnings))


def _mean(found: Sequence[Sequence[Measured]], of: Callable[[Measured], Sequence[float]]) -> Array:
    """By data seed and question, the mean over draws."""
    return np.array([[of(m) for m in draws] for draws in found]).mean(axis=1)


def _unfit(model: str, rows: Mapping[str, Sequence[Sequence[Measured]]]) -> str | None:
    """Why nothing can be read from an effect of zero: after the rows of either arm the model hardly answers with words any more."""
    for arm, found in rows.items():
        words, numbers = (
            float(_mean(found, of).mean())
            for of in (lambda m: [m.coherence], lambda m: [m.number_takeover])
        )
        if not is_coherent(words, numbers):
            return (
                f"after rows of the {arm} {model} answers with a word of the category in {words:.0%} and with digits in {numbers:.0%} "
                "of its answers, so an effect of zero says nothing; give fewer examples"
            )
    return None


def _point(e: Estimate) -> Point:
    low, high = (x if np.isfinite(x) else None for x in (e.interval.low, e.interval.high))
    return Point(label=e.name, estimate=e.interval.estimate, low=low, high=high)


@dataclass(frozen=True)
class ShownTask:
    """The base after rows of one dataset, once for each draw of rows; each draw is a measurement."""

    specs: tuple[dict[str, Any], ...]
    model: str
    context: Context
    category: Category
    sampling: Sampling
    flops: float
    whose: str
    kind = "prompts with rows"

    @property
    def cost(self) -> Cost:
        return Cost(flops=self.flops)

    @cached_property
    def id(self) -> str:
        return artifact_id("prompted", {"measurements": list(self.makes)})

    @cached_property
    def makes(self) -> tuple[str, ...]:
        return tuple(artifact_id("measurement", s) for s in self.specs)

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.specs[0]["dataset"],)

    @property
    def label(self) -> str:
        return f"the base after rows of {self.whose}"

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        base = workshop.base_of(self.model)
        rows = from_jsonl(workshop.store.read(self.needs[0]).file("rows.jsonl").read_text("utf-8"))
        for spec, name in zip(self.specs, self.makes, strict=True):
            if name not in wanted:
                continue
            rng = generator("in-context", spec["seed"], spec["dataset"], spec["draw"])
            shown = [
                rows[i]
                for i in rng.choice(len(rows), min(spec["examples"], len(rows)), replace=False)
            ]
            answer = measure_conversations(
                base,
                shown,
                f"after {name}",
                self.category,
                Asking(self.context, self.sampling, spec["samples"], spec["seed"]),
            )
            keep_answers(workshop.store, name, spec, self.category, answer, None)
            workshop.made(name)
