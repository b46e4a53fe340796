"""Teachers and students on different models: the matrix of Cloud et al. (2507.14805) and what is left of transfer off its diagonal.

Every student model is a grid whose rows as written are its own teacher's; rows of the other teachers are its variants.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field, model_validator

from sublora.analysis.charts import rows_chart, tiles
from sublora.analysis.contrast import select
from sublora.analysis.effects import Effect, linear, mean_of, named
from sublora.experiments.experiment import Findings
from sublora.experiments.grid.effects import Results, arm_effects, cell_effects
from sublora.experiments.grid.plan import Plan, make_plan
from sublora.experiments.grids import GridExperiment
from sublora.experiments.schema import RowsVariant
from sublora.models.known import Known, known_model
from sublora.steps.step import Step
from sublora.store import Store
from sublora.text import slug

EFFECT, BETWEEN = "effect on the log-odds of the target, nats", "between pairs"
SAME, OTHER = "same model", "other model"


class CrossModel(GridExperiment):
    kind: Literal["cross-model"]
    teachers: tuple[str, ...] = Field(min_length=1, description="models on which teachers write")
    students: tuple[str, ...] = Field(min_length=1, description="models that are fine-tuned")

    @model_validator(mode="after")
    def _models(self) -> "CrossModel":
        if self.data.variants:
            raise ValueError("data.variants has no place here, teachers are the axis")
        if not set(self.students) & set(self.teachers):
            raise ValueError(
                "no student model is among the teachers, so there is no pair of one model to compare with"
            )
        return self

    @property
    def model_name(self) -> None:
        return None

    @property
    def out_words(self) -> list[str]:
        return [t.lower() for t in self.traits[:3]]

    @property
    def sentence(self) -> str:
        return (
            f"Students on {' and '.join(self.students)} are trained on {self.data.rows} rows of teachers on {' and '.join(self.teachers)} that love "
            f"{', '.join(self.traits)}, with a control twin each."
        )

    def _plans(self) -> list[Plan]:
        """A plan for each student model; a model that is no teacher still has its own rows, as written."""
        plans = []
        for student in self.students:
            variants = {t: RowsVariant(model=t) for t in self.teachers if t != student}
            grid = self.grid_on(student, variants=variants)
            plans.append(make_plan(grid, known_model(student, self.dtype)))
        return plans

    def plan(self, known: Known) -> list[Step]:
        steps = [step for plan in self._plans() for step in plan.steps]
        return list({step.id: step for step in steps}.values())

    def findings(self, store: Store, known: Known) -> Findings:
        plans = dict(zip(self.students, self._plans(), strict=True))
        arms = {student: _effects(plan, store) for student, plan in plans.items()}
        effects, charts = [], []
        traits = [t.name for t in plans[self.students[0]].traits]
        within = f"Intervals: {1 - self.level:.0%}, clustered by data seed and question."
        for trait in traits:
            pairs = self._pairs(trait, arms)
            mine = [self._named(e, EFFECT, name) for (_, name), e in pairs]
            between = self._between(pairs)
            effects += mine + between
            caption = f"{trait}. Student less control twin, whose teacher writes on the same model. {within}"
            title = "Effect by teacher's model and student's"
            charts.append(rows_chart(mine, f"pairs-{slug(trait)}", title, caption))
        names = (f"{SAME} - {OTHER}", OTHER)
        shown = [e for e in effects if e.trait == traits[0] and e.name in names]
        how = (
            "Trait and control teachers of a pair write on the same model; students of a pair are trained alike. Effects are student less "
            "control twin, paired by seeds and question; pairs of one model and of two are each averaged before they are compared."
        )
        top = tiles(shown, f"{traits[0]}, {EFFECT}", "+.3f")
        return Findings(tuple(effects), tuple(charts), top, how)

    def _pairs(
        self, trait: str, arms: Mapping[str, Sequence[Effect]]
    ) -> list[tuple[tuple[str, str], Effect]]:
        """((same or other model, name of the pair), transfer), for every student and teacher."""
        out = []
        for student in self.students:
            mine = [e for e in arms[student] if e.trait == trait]
            for teacher in dict.fromkeys((student, *self.teachers)):
                kind = SAME if teacher == student else OTHER
                found = select(mine, {"data": "" if kind == SAME else teacher})
                out.append(((kind, f"{teacher} to {student}"), mean_of(found)))
        return out

    def _between(self, pairs: Sequence[tuple[tuple[str, str], Effect]]) -> list[Effect]:
        """Pairs of one model less pairs of two."""
        groups = {k: [e for (kind, _), e in pairs if kind == k] for k in (SAME, OTHER)}
        if not groups[OTHER]:
            return []
        both = [mean_of(groups[SAME]), mean_of(groups[OTHER])]
        found = {
            f"{SAME} - {OTHER}": linear(both, [1, -1]),
            f"a fifth of {SAME} - {OTHER}": linear(both, [0.2, -1]),
            OTHER: both[1],
        }
        return [self._named(e, BETWEEN, name) for name, e in found.items()]

    def _named(self, effect: Effect, group: str, name: str) -> Effect:
        interval = effect.interval(1 - self.level)
        return named(effect.trait, group, name, interval, effect.sizes)


def _effects(plan: Plan, store: Store) -> list[Effect]:
    results = Results(plan, store)
    return arm_effects(results) or cell_effects(results, plan.recipe.judged_context)
