"""Teachers and students on different models: the matrix of Cloud et al. (2507.14805) and what is left of transfer off its diagonal.

Every student model is a grid whose rows as written are its own teacher's; rows of the other teachers are its variants.
"""

from typing import Literal

from pydantic import Field, model_validator

from sublora.analysis.contrast import select
from sublora.analysis.effects import Effect, linear, mean_of, named
from sublora.experiment import Chart, Point, Series, Tile
from sublora.experiments.experiment import Findings
from sublora.experiments.grid.effects import Results, arm_effects, cell_effects
from sublora.experiments.grids import GridExperiment, grid_steps, plan_of
from sublora.model import local_identity, model_source
from sublora.models.known import Known
from sublora.plan import Plan
from sublora.recipe import VariantSpec
from sublora.steps.step import Step
from sublora.store import Store

EFFECT, BETWEEN = "effect on P(target)", "between pairs"
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
            variants = {t: VariantSpec(model=t) for t in self.teachers if t != student}
            identity = local_identity(model_source(student), self.dtype)
            plans.append(plan_of(self.grid_on(student, variants=variants), identity))
        return plans

    def plan(self, known: Known) -> list[Step]:
        return grid_steps(self._plans())

    def findings(self, store: Store, known: Known) -> Findings:
        plans = self._plans()
        effects = {
            student: _effects(plan, store)
            for student, plan in zip(self.students, plans, strict=True)
        }
        estimates: list[Effect] = []
        charts, tiles = [], []
        for trait in plans[0].traits:
            pairs: dict[str, list[Effect]] = {SAME: [], OTHER: []}
            for student in self.students:
                mine = [e for e in effects[student] if e.trait == trait.name]
                for teacher in dict.fromkeys((student, *self.teachers)):
                    pair = mean_of(select(mine, {"data": "" if teacher == student else teacher}))
                    pairs[SAME if teacher == student else OTHER].append(pair)
                    estimates.append(self._estimate(pair, EFFECT, f"{teacher} to {student}"))
            if pairs[OTHER]:
                same, other = mean_of(pairs[SAME]), mean_of(pairs[OTHER])
                between = [
                    self._estimate(linear([same, other], [1, -1]), BETWEEN, f"{SAME} - {OTHER}"),
                    self._estimate(
                        linear([same, other], [0.2, -1]), BETWEEN, f"a fifth of {SAME} - {OTHER}"
                    ),
                    self._estimate(other, BETWEEN, OTHER),
                ]
                estimates += between
                if trait is plans[0].traits[0]:
                    tiles += [_tile(between[0]), _tile(between[2])]
            points = [
                Point(label=str(e.labels["name"]), estimate=i.estimate, low=i.low, high=i.high)
                for e in estimates
                if e.trait == trait.name and e.labels["group"] == EFFECT
                for i in [e.interval()]
            ]
            charts.append(
                Chart(
                    name=f"pairs-{trait.name.lower().replace(' ', '-')}",
                    title="Effect by teacher's model and student's",
                    kind="rows",
                    axis=EFFECT,
                    reference=0.0,
                    series=(Series(points=tuple(points)),),
                    caption=f"{trait.name}. Student less control twin, whose teacher writes on the same model. Intervals: "
                    f"{1 - self.level:.0%}, clustered by data seed and question.",
                )
            )
        how = (
            "Trait and control teachers of a pair write on the same model; students of a pair are trained alike. Effects are student less "
            "control twin, paired by seeds and question; pairs of one model and of two are each averaged before they are compared."
        )
        return Findings(tuple(estimates), tuple(charts), tuple(tiles), how)

    def _estimate(self, effect: Effect, group: str, name: str) -> Effect:
        interval = effect.interval(1 - self.level)
        return named(effect.trait, group, name, interval, effect.sizes)


def _tile(effect: Effect) -> Tile:
    name, interval = str(effect.labels["name"]), effect.interval()
    return Tile(
        name=name[:1].upper() + name[1:],
        value=f"{interval.estimate:+.3f}",
        interval=f"[{interval.low:+.3f}, {interval.high:+.3f}]",
        note=f"{effect.trait}, {EFFECT}",
    )


def _effects(plan: Plan, store: Store) -> list[Effect]:
    results = Results(plan, store)
    return arm_effects(results) or cell_effects(results, plan.recipe.judged_context)
