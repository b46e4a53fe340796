"""recipe -> steps. A pure function: every artifact has the hash of all that can change it, and nothing is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, product
from typing import Any

from sublora.analysis.effects import Label
from sublora.experiments.grid import controls, sources
from sublora.experiments.grid.axes import cells_of, student_spec, student_variants
from sublora.experiments.grid.datasets import Arms, Rows, Writing, plan_datasets
from sublora.experiments.grid.measures import Measuring
from sublora.experiments.grid.packs import PACK_STUDENTS, most_students, plan_packs
from sublora.experiments.grid.recipe import Recipe
from sublora.experiments.grid.vectors import PlansVectors
from sublora.experiments.schema import AskedTeacher
from sublora.models.chat import Context
from sublora.models.known import Known
from sublora.packs.spec import StudentSpec
from sublora.packs.steer_spec import SteerSpec
from sublora.steps.attribution import Attribution
from sublora.steps.dataset import TransformStep
from sublora.steps.divergence import DivergenceStep
from sublora.steps.gradient import GradientStep
from sublora.steps.heldout import HeldoutLoss, heldout_steps
from sublora.steps.labels import LabelStep
from sublora.steps.materials import Mask, Steered, context_spec
from sublora.steps.measurement import Measurement, MeasurementStep, Questioning
from sublora.steps.probe import Probe
from sublora.steps.reading import readings
from sublora.steps.sizes import Sizes, measured_sizes
from sublora.steps.step import Step
from sublora.steps.students import Student, StudentsStep
from sublora.steps.teacher import TeacherStep
from sublora.steps.vector import Vector, VectorStep
from sublora.traits.trait import Trait


@dataclass(frozen=True)
class Plan:
    """All that a grid makes. Equal recipes on equal models give equal plans.

    `neutral`: the students of the plain model's rows, see `controls`; `losses`: how well others know held-out rows.
    `arms`: the datasets by source, variant of the rows and data seed, as the teachers of the first
    variant of the students write them. `readings`: the steps of what `measure` asks for besides questions, by its key.
    """

    recipe: Recipe
    traits: tuple[Trait, ...]
    datasets: tuple[Rows, ...]
    students: tuple[Student, ...]
    packs: tuple[tuple[int, ...], ...]  # indices into students
    neutral: tuple[Student, ...]
    losses: tuple[HeldoutLoss, ...]
    measures: tuple[Measurement, ...]
    vectors: tuple[Vector, ...]
    divergences: tuple[DivergenceStep, ...]
    arms: Arms
    readings: Mapping[str, tuple[Any, ...]]
    steps: tuple[Step, ...]

    @property
    def teachers(self) -> tuple[TeacherStep, ...]:
        """The teachers by weights."""
        return taught_in(self.datasets)

    @property
    def probes(self) -> tuple[Probe, ...]:
        return tuple(p for step in self.readings["probe"] for p in step.artifacts)

    @property
    def gradients(self) -> tuple[GradientStep, ...]:
        return self.readings["gradients"]

    @property
    def attributions(self) -> tuple[Attribution, ...]:
        return tuple(a for step in self.readings["attribution"] for a in step.artifacts)


def taught_in(datasets: Sequence[Rows]) -> tuple[TeacherStep, ...]:
    found = [d.weights for d in datasets if isinstance(d.weights, TeacherStep)]
    return tuple({t.id: t for t in found}.values())


def hop_of(rows: Rows) -> int:
    """How many students of a chain come before these rows."""
    return rows.weights.hop + 1 if isinstance(rows.weights, Student) else 0


def sizes_of(recipe: Recipe, known: Known) -> Sizes:
    """Tokens of its texts: measured where the model's tokenizer is known, typical ones elsewhere."""
    if known.chat is None:
        return Sizes(known.shape)
    context = sources.contexts_of(recipe)[recipe.train_contexts[0]]
    questions = [q for t in sources.traits_of(recipe) for q in t.category.questions]
    return measured_sizes(known.shape, known.chat, recipe.data.carrier, context, questions)


def make_plan(recipe: Recipe, known: Known, sizes: Sizes | None = None) -> Plan:
    """The plan of a recipe on this model; `sizes` decide how packs are filled, and costs."""
    return _Planner(recipe, known, sizes or sizes_of(recipe, known)).plan()


class _Planner(PlansVectors):
    """Plans each artifact once; also what the readings of `sublora.steps` know of the plan."""

    def __init__(self, recipe: Recipe, known: Known, sizes: Sizes) -> None:
        self.recipe, self.known, self.sizes = recipe, known, sizes
        self.model, self.identity = recipe.model, known.identity
        self.traits, self.contexts = sources.traits_of(recipe), sources.contexts_of(recipe)
        self.authors: dict[str, dict[int, sources.Author]] = sources.sources_of(recipe, self.traits)
        self.variants = student_variants(recipe)
        self.entities, self.data_seeds = recipe.measure.entities, recipe.data.seeds
        self.begun = recipe.measure.readout == "begun"
        self.weights: dict[tuple[str, int | None], TeacherStep] = {}  # by trait and data seed
        self.train_contexts = [self.contexts[name] for name in recipe.train_contexts]
        self.datasets: dict[str, Rows] = {}
        self.vectors: dict[str, Vector] = {}
        self.divergences: dict[str, DivergenceStep] = {}
        self.arms: dict[str, Arms] = {}
        self.students: list[Student] = []
        self.trainings: dict[StudentSpec, dict[str, Any]] = {}  # as they count in an id
        self.pack_indices: tuple[tuple[int, ...], ...] = ()

    def plan(self) -> Plan:
        recipe = self.recipe
        for name in self.variants:
            made, self.arms[name] = self._rows(name)
            self.datasets = self.datasets | {d.id: d for d in made if d.id not in self.datasets}
        self.students = self._with_controls(list(self._students()))
        self.neutral = controls.neutral_students(self)
        losses = list(controls.heldout_losses(self, self.neutral))
        rows = min(recipe.train.batch_size, recipe.data.rows)
        self.most = most_students(rows * self.sizes.row, self.known.device)
        self.pack_indices = plan_packs(self.students, self.most)
        taught = taught_in(tuple(self.datasets.values()))
        self.weights = {(t.trait, t.seed): t for t in taught if t.model == self.model}
        measures = Measuring(self, taught).all()
        if recipe.vectors.students:
            for student in self.students:
                self.student_vector(student, self.trait_of(student.source))
            for trait, seed in product(self.traits, recipe.seeds):
                self.teacher_vector(trait, data_seed=seed)
        asked = recipe.measure.asked.items()
        found = {key: tuple(readings()[key].plan(spec, self)) for key, spec in asked}
        found = dict.fromkeys(readings(), ()) | found
        return Plan(
            recipe,
            self.traits,
            tuple(self.datasets.values()),
            tuple(self.students),
            self.pack_indices,
            tuple(self.neutral),
            tuple(losses),
            tuple(measures),
            tuple(self.vectors.values()),
            tuple(self.divergences.values()),
            self.arms[next(iter(self.variants))],
            found,
            tuple(self._steps(taught, measures, losses, found)),
        )

    # what readings ask of a plan, see `steps.reading.Planning`

    def packs(self) -> list[list[Student]]:
        return [[self.students[i] for i in sorted(pack)] for pack in self.pack_indices]

    def rows_of(self, trait: Trait, data_seed: int) -> tuple[str, str]:
        arms = self.arms[next(iter(self.variants))]
        both = (trait.name, sources.control_source(self.recipe, trait))
        return tuple(arms[source, "", data_seed][0].id for source in both)

    def trait_of(self, source: str) -> Trait:
        return sources.trait_of(self.recipe, self.traits, source)

    def divergence(self, source: str, data: Rows, against: str, context: Context) -> str:
        teacher, trait = self.authors[source][data.seed].prompt, self.trait_of(source)
        if against == "other-trait":
            control = sources.control_source(self.recipe, trait)
            other = control if source == trait.name else trait.name
            context = self.authors[other][data.seed].prompt
        spec = {
            "model": self.identity,
            "dataset": data.id,
            "teacher": context_spec(teacher),
            "against": context_spec(context),
        }
        own = (spec, data.id, teacher, context, data.rows)
        step = DivergenceStep(*own, self.model, self.sizes)
        return self.divergences.setdefault(step.id, step).id

    def asked(
        self, teacher: AskedTeacher, source: str, prompt: Context
    ) -> tuple[Context, Steered | None]:
        """The context of a teacher that may be steered, and how."""
        context = prompt if teacher.prompt else self.contexts[self.recipe.vectors.plain]
        vector = partial(self.teacher_vector, self.trait_of(source), prompt)
        return context, self.steered(teacher.steer, vector)

    def steered(self, spec: SteerSpec | None, vector: Callable[[], str]) -> Steered | None:
        return None if spec is None else Steered(spec, vector())

    # datasets and students

    def _rows(self, name: str) -> tuple[list[Rows], Arms]:
        teacher, after = self.variants[name].teacher, self.variants[name].after
        label = "" if teacher == AskedTeacher() and not after else name
        student = partial(self._teaching, after) if after else None
        writing = Writing(label, partial(self.asked, teacher), student, self.by_vector)
        asked = self.recipe.measure  # its sampling is that of the answers that lessons are made of
        own = (self.recipe, self.known, self.traits)
        begun = asked.readout == "begun"
        return plan_datasets(*own, self.sizes, writing, asked.sampling, begun)

    def _teaching(self, variant: str, source: str, data_seed: int) -> Student:
        """The student of a variant that teaches the next: the first one of the data seed."""
        cell = next(c for c in cells_of(self.recipe) if c.labels["variant"] == variant)
        seed = next(t for d, t in self.recipe.replicates if d == data_seed)
        spec = student_spec(self.recipe, cell, seed)
        return self.student_of(source, data_seed, spec, cell.labels)

    def _students(self) -> Iterator[Student]:
        recipe = self.recipe
        for data, cells in groupby(cells_of(recipe), lambda cell: cell.labels["data"]):
            # those of all sources are trained alike: one object for each training, of which there may be many
            alike = [
                (data_seed, student_spec(recipe, cell, train_seed), cell.labels)
                for cell in cells
                for data_seed, train_seed in recipe.replicates
            ]
            for source in sources.sources_in(recipe, self.traits, data):
                for data_seed, student, labels in alike:
                    yield self.student_of(source, data_seed, student, labels)

    def student_of(
        self, source: str, data_seed: int, student: StudentSpec, labels: Mapping[str, Label]
    ) -> Student:
        variant, context = self.variants[labels["variant"]], self.contexts[student.context]
        rows, held = self.arms[labels["variant"]][source, labels["data"], data_seed]
        if student not in self.trainings:
            self.trainings[student] = student.to_spec()
        spec = {
            "model": self.identity,
            "dataset": rows.id,
            "context": context_spec(context),
            "student": self.trainings[student],
        }
        take = None if variant.rows in (None, self.recipe.data.rows) else variant.rows
        if take is not None:
            spec["rows"] = take
        mask = None
        if variant.mask is not None:
            against = self.divergence(source, rows, variant.mask.against, context)
            mask = Mask(variant.mask.keep, against)
            spec["mask"] = {"keep": mask.keep, "divergence": mask.divergence}
        made = Student(
            spec, student, rows.id, held.id, source, data_seed, context, labels, rows.rows, take
        )
        made = made.but(whole=made.id, mask=mask, hop=hop_of(rows))
        if variant.step is None:
            return made
        return replace(made, spec=spec | {"step": variant.step}, step=variant.step)

    def _with_controls(self, students: Sequence[Student]) -> list[Student]:
        """The students, each with the id of its control for every trait that it stands for."""

        def key(source: str, labels: Mapping[str, Any], replicate: tuple[int, int]) -> tuple:
            return source, *labels.values(), *replicate

        found = {key(s.source, s.labels, s.replicate): s.id for s in students}
        out = []
        for s in students:
            labels = {**s.labels, "data": sources.twin_of(self.recipe, s.labels["data"])}
            name = s.labels["data"]
            traits = [t for t in self.traits if s.source == sources.source_of(self.recipe, t, name)]
            twins = {
                t.name: found[key(sources.control_source(self.recipe, t), labels, s.replicate)]
                for t in traits
            }
            out.append(s.but(twins=twins))
        return out

    # steps

    def _steps(
        self,
        taught: Sequence[TeacherStep],
        measures: Sequence[Measurement],
        losses: Sequence[HeldoutLoss],
        found: Mapping[str, Sequence[Step]],
    ) -> Iterator[Step]:
        """In an order in which they can be made one by one."""
        own, rows = (self.model, self.sizes), self.datasets.values()
        yield from taught
        yield from (VectorStep((v,), (), *own) for v in self.vectors.values() if v.teacher)
        yield from self._vector_steps([[t] for t in taught])
        packs = [tuple(self.students[i] for i in pack) for pack in self.pack_indices]
        packs += self._neutral_packs()
        soft = {d.id for d in rows if isinstance(d, LabelStep) and d.how.kind == "soft"}
        for hop in range(1 + max(map(hop_of, rows))):
            mine = [d for d in rows if hop_of(d) == hop]
            # those that are made of others come after these
            yield from (d for d in mine if not isinstance(d, (TransformStep, LabelStep)))
            yield from (d for d in mine if isinstance(d, (TransformStep, LabelStep)))
            yield from () if hop else self.divergences.values()
            for pack in (p for p in packs if p[0].hop == hop):
                yield StudentsStep(pack, *own, frozenset(soft & {s.dataset for s in pack}))
        yield from self._vector_steps(packs)
        yield from self._measurement_steps(taught, packs, measures)
        yield from heldout_steps(losses, packs, *own)
        yield from (step for steps in found.values() for step in steps)

    def _neutral_packs(self) -> list[tuple[Student, ...]]:
        """In packs of their own, so that they change nothing of the others; without those that are an arm of the recipe already."""
        known = {s.id for s in self.students}
        new = [s for s in self.neutral if s.id not in known]
        return [tuple(new[i] for i in pack) for pack in plan_packs(new, self.most)] if new else []

    def _vector_steps(
        self, packs: Sequence[Sequence[Student | TeacherStep]]
    ) -> Iterator[VectorStep]:
        """Those of each pack's weights, by training context."""
        of = {v.student: v for v in self.vectors.values() if v.student}
        for pack in packs:
            mine = [s for s in pack if s.id in of]
            for context in dict.fromkeys(s.context for s in mine):
                alike = tuple(s for s in mine if s.context == context)
                yield VectorStep(tuple(of[s.id] for s in alike), alike, self.model, self.sizes)

    def _measurement_steps(
        self,
        taught: Sequence[TeacherStep],
        packs: Sequence[Sequence[Student]],
        measures: Sequence[Measurement],
    ) -> Iterator[MeasurementStep]:
        """The base's one by one, then those of each pack, of so many students at a time as may train together."""
        by_student: dict[str | None, list[Measurement]] = {}
        for m in measures:
            by_student.setdefault(m.student, []).append(m)
        groups: list[tuple[Any, list[Measurement]]] = [((), [m]) for m in by_student.get(None, [])]
        groups += [((t,), by_student.get(t.id, [])) for t in taught]
        parts = [
            p[at : at + PACK_STUDENTS] for p in packs for at in range(0, len(p), PACK_STUDENTS)
        ]
        groups += [(part, [m for s in part for m in by_student.get(s.id, [])]) for part in parts]
        how = self.recipe.measure
        categories = {t.category.category: t.category for t in self.traits}
        asked = Questioning(
            categories,
            how.sampling,
            how.samples,
            how.seed,
            how.conditions,
            how.entities,
            self.begun,
            self.recipe.data.heldout_rows,
        )
        for students, own in groups:
            if own:
                step = (tuple(own), tuple(students), self.model, self.sizes)
                yield MeasurementStep(*step, asked)
