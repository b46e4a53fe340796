"""The in-context control of Cloud et al. (2507.14805): the rows that students are trained on, as examples in the prompt instead.

The base is asked after some rows as earlier turns, those of the trait's teacher or those of the control's. Nothing is trained but the
students beside which it stands.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from sublora.analysis.charts import rows_chart, tiles
from sublora.analysis.effects import Effect, is_coherent, named
from sublora.analysis.intervals import Array, clustered_interval
from sublora.analysis.log_odds import log_odds
from sublora.carriers.rows_file import from_jsonl
from sublora.experiments.experiment import Findings
from sublora.experiments.grid.effects import Results, cell_effects
from sublora.experiments.grid.plan import Plan, make_plan, sizes_of
from sublora.experiments.grid.sources import control_source
from sublora.experiments.grids import GridExperiment
from sublora.models.known import Known
from sublora.packs.measure import Asking, measure_conversations
from sublora.seeds import generator
from sublora.steps.made import Batch
from sublora.steps.measurement import Measured, answer_spec, keep_answers, read_measurement
from sublora.steps.step import Cost, Step, Workshop
from sublora.store import Store
from sublora.text import slug
from sublora.traits.answers import naming, share
from sublora.traits.trait import Category, Trait

EFFECT, P_TARGET = "effect on the log-odds of the target, nats", "P(target)"
WORDS = "share of answers with a word of the category"
TRAINED, SHOWN = "trained on the rows", "rows in the prompt"
FIFTH = "a fifth of trained - in the prompt"
Shown = Sequence[Sequence[Measured]]  # the base after rows of one teacher, by data seed and draw


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
        plan = make_plan(self, known)
        return [*plan.steps, *self._asked(plan, known).values()]

    def _asked(self, plan: Plan, known: Known) -> dict[tuple[str, str, int], "ShownRows"]:
        """(source, category, data seed) -> its step."""
        sizes, context, how, out = sizes_of(self, known), self.asked_in, self.measure, {}
        begun = how.readout == "begun"
        asking = Asking(context, how.sampling, how.samples, how.seed, begun=begun)
        for trait in plan.traits:
            category = trait.category
            # a row is about as long as a question, and so are its answers
            turns = len(category.questions) * (self.examples + 1) * self.draws
            for source in (trait.name, control_source(self, trait)):
                for seed in self.seeds:
                    spec = {
                        "model": dict(known.identity),
                        "dataset": plan.arms[source, "", seed][0].id,
                        "examples": self.examples,
                        "context": context.name if context.text is None else context.text,
                        "questions": list(category.questions),
                        "entities": [list(e.forms) for e in category.entities],
                        "samples": how.samples,
                        "sampling": how.sampling.model_dump(mode="json"),
                        "seed": how.seed,
                    } | answer_spec(category, known.chat, begun)
                    out[source, category.category, seed] = ShownRows(
                        tuple(spec | {"draw": d} for d in range(self.draws)),
                        self.model,
                        category,
                        asking,
                        sizes.forward(turns * sizes.question),
                        f"{source}, data seed {seed}",
                    )
        return out

    def findings(self, store: Store, known: Known) -> Findings:
        plan = make_plan(self, known)
        asked, effects, warnings = self._asked(plan, known), [], []
        results = Results(plan, store)
        for trained in cell_effects(results, self.judged_context):
            trait = next(t for t in plan.traits if t.name == trained.trait)
            sources = {"trait": trait.name, "control": control_source(self, trait)}
            shown = {
                arm: [
                    [read_measurement(store.read(name), trait.category) for name in step.makes]
                    for step in (asked[source, trait.category.category, s] for s in self.seeds)
                ]
                for arm, source in sources.items()
            }
            unfit = _unfit(self.model, shown)
            taught = [results.control_words(trait, s) for s in self.seeds]
            effects += self._of_trait(trait, trained, shown, taught, unfit)
            warnings += [f"{trait.name}: {unfit}."] if unfit else []
        within = f"Intervals: {1 - self.level:.0%}, clustered by data seed and question."
        charts = tuple(
            rows_chart(
                [e for e in effects if e.trait == t.name and e.group == EFFECT],
                f"effects-{slug(t.name)}",
                "Effect of the same rows, trained and in the prompt",
                f"{t.name}. Trait rows less control rows. {within}",
            )
            for t in plan.traits
        )
        first = [e for e in effects if e.trait == plan.traits[0].name]
        note = f"{plan.traits[0].name}, log-odds in nats, trait rows - control rows"
        top = tiles([e for e in first if e.name in (TRAINED, SHOWN)], note, "+.3f")
        how = (
            f"{self.examples} rows stand before the question as turns of the user and the assistant, in the context "
            f"{self.judged_context}; {self.draws} draws of rows from each dataset, averaged. Students: {self.data.rows} rows of the same "
            f"datasets. Both effects are trait rows less control rows, paired by data seed and question."
        )
        return Findings(tuple(effects), charts, top, how, warnings=tuple(warnings))

    def _of_trait(
        self,
        trait: Trait,
        trained: Effect,
        shown: Mapping[str, Shown],
        taught: Sequence[tuple[int, ...]],
        unfit: str | None,
    ) -> list[Effect]:
        """The students' transfer beside the answers after rows of the trait's teacher and of the control's."""
        seeds, category, effects = self.seeds, trait.category, []
        target = category.entities.index(trait.entity)
        owner = np.array(trained.data_seeds)
        students = np.stack([trained.values[owner == s].mean(axis=0) for s in seeds])
        p = {arm: _mean(found, lambda m: m.p[:, target]) for arm, found in shown.items()}
        words = {arm: _mean(found, lambda m: _words(m, category)) for arm, found in shown.items()}
        odds = {arm: _log_odds(found, target, taught) for arm, found in shown.items()}
        prompted = odds["trait"] - odds["control"]
        n = {"data_seeds": len(seeds), "questions": students.shape[1]}

        def note(group: str, name: str, values: Array, n=n, clip=None, **options: Any) -> None:
            mine, level = seeds[: len(values)], 1 - self.level
            interval = clustered_interval(values, mine, level=level, clip=clip)
            effects.append(named(trait.name, group, name, interval, n, **options))

        note(EFFECT, TRAINED, students)
        note(EFFECT, SHOWN, prompted, unfit=unfit)
        note(EFFECT, FIFTH, 0.2 * students - prompted, unfit=unfit)
        share_of = {"clip": (0.0, 1.0), "tested": False}
        asked = {"questions": n["questions"]}
        note(P_TARGET, "base", trained.parts["base"][None], asked, **share_of)
        for group, by_arm in ((P_TARGET, p), (WORDS, words)):
            for arm, values in by_arm.items():
                note(group, f"after rows of the {arm}", values, **share_of)
        return effects


def _words(measured: Measured, category: Category) -> list[float]:
    """By question, the share of answers with a word of the category."""
    named = naming(category)
    return [share([a], named) for a in measured.samples]


def _log_odds(found: Shown, target: int, taught: Sequence[tuple[int, ...]]) -> Array:
    """By data seed and question, over draws; `taught`: the word of each data seed's control, which does not count."""
    pairs = zip(found, taught, strict=True)
    return np.stack(
        [np.mean([log_odds(m.p, target, words) for m in draws], 0) for draws, words in pairs]
    )


def _mean(found: Shown, of: Callable[[Measured], Sequence[float]]) -> Array:
    """By data seed and question, the mean over draws."""
    return np.array([[of(m) for m in draws] for draws in found]).mean(axis=1)


def _unfit(model: str, rows: Mapping[str, Shown]) -> str | None:
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


@dataclass(frozen=True)
class ShownRows(Batch):
    """The base after rows of one dataset, once for each draw of rows; each draw is a measurement."""

    model: str
    category: Category
    asking: Asking
    cost: Cost
    whose: str
    kind, noun, nouns = "prompts with rows", "measurement", ("prompted", "measurements")

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
            chosen = rng.choice(len(rows), min(spec["examples"], len(rows)), replace=False)
            shown, purpose = [rows[i] for i in chosen], f"after {name}"
            answer = measure_conversations(base, shown, purpose, self.category, self.asking)
            keep_answers(workshop.store, name, spec, self.category, answer, None)
            workshop.made(name)
