"""The measurements of a grid: who is asked, in which contexts and under which gates."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from sublora.experiments.grid.sources import CONTROL, NEUTRAL, teacher_context
from sublora.experiments.schema import AskedTeacher
from sublora.models.chat import Context
from sublora.steps.materials import Steered, context_spec
from sublora.steps.measurement import Measurement, answer_spec
from sublora.steps.students import Student
from sublora.steps.teacher import TeacherStep
from sublora.traits.trait import Trait


class Measuring:
    """Plans them one by one."""

    def __init__(self, planner: Any, taught: Sequence[TeacherStep]) -> None:
        self.planner, self.taught, self.recipe = planner, taught, planner.recipe
        self.out: list[Measurement] = []
        how, traits = self.recipe.measure, planner.traits
        self.categories = {t.category.category: t.category for t in traits}
        # one object for all measurements of a category: a plan may have a hundred thousand
        self.asks = {
            name: {
                "questions": list(c.questions),
                "entities": [list(e.forms) for e in c.entities],
                "others": list(c.others),
                "category": c.category,
            }
            | answer_spec(c, planner.known.chat, planner.begun)
            for name, c in self.categories.items()
        }
        self.shared = {
            "model": self.planner.identity,
            "samples": how.samples,
            "sampling": how.sampling.model_dump(mode="json"),
            "seed": how.seed,
        }
        self.gates = {
            name: gate.model_dump(mode="json", exclude={"steer"})
            | {"entities": list(how.entities) if gate.by_class else []}
            for name, gate in how.conditions.items()
        }

    def all(self) -> list[Measurement]:
        contexts = [self.planner.contexts[name] for name in self.recipe.measure.contexts]
        for context in contexts:
            for category in self.categories:
                self.add(None, context, category)
        for trait in self.planner.traits:
            self._teachers(trait)
        for student in self.planner.students:
            for category in self._categories(student):
                for context in contexts:
                    self._student(student, context, category)
        judged = self.planner.contexts[self.recipe.judged_context]
        known = {s.id for s in self.planner.students}
        for student in (s for s in self.planner.neutral if s.id not in known):
            for category in self.categories:
                self.add(student, judged, category)
        return self.out

    def add(
        self,
        student: Student | TeacherStep | None,
        context: Context,
        category: str,
        teacher: str | None = None,
        condition: str | None = None,
        steer: Steered | None = None,
    ) -> None:
        plain = isinstance(student, Student) and condition is None
        own = plain and context.name == student.context.name
        asked = student.id if student else None
        spec = self.asks[category] | self.shared
        heldout = student.heldout if own else None
        spec |= {"student": asked, "context": context_spec(context), "heldout": heldout}
        if student is not None and condition is not None:
            spec["condition"] = self.gates[condition]
        if steer is not None:
            spec["steer"] = steer.to_spec()
        self.out.append(Measurement(spec, asked, context, category, teacher, condition, steer))

    def _teachers(self, trait: Trait) -> None:
        """The plain one, and those of the variants and of `measure.teachers`."""
        category, prompt = trait.category.category, teacher_context(trait, self.recipe)
        own = next((t for t in self.taught if t.trait == trait.name), None)
        self.add(own, own.context if own else prompt, category, trait.name)
        variants = {n: v.teacher for n, v in self.recipe.variants.items()}
        others = {n: t for n, t in variants.items() if t != AskedTeacher()}
        for name, teacher in {**others, **self.recipe.measure.teachers}.items():
            context, steer = self.planner.asked(teacher, trait.name, prompt)
            self.add(None, context, category, trait.name, name, steer)
        author = self.planner.authors[trait.name][self.recipe.seeds[0]]
        for name, rows in self.recipe.data.variants.items():
            if rows.taught == "vector":
                context, steer = self.planner.by_vector(author, own)
                self.add(None, context, category, trait.name, name, steer)

    def _categories(self, student: Student) -> list[str]:
        """Those in which its trait can show, or the traits that it stands against."""
        if student.source in (CONTROL, NEUTRAL):
            return list(self.categories)
        return [self.planner.trait_of(student.source).category.category]

    def _student(self, student: Student, context: Context, category: str) -> None:
        self.add(student, context, category)
        for name, gate in self.recipe.measure.conditions.items():
            steer = self.planner.steered(gate.steer, partial(self._vector, student, gate))
            self.add(student, context, category, condition=name, steer=steer)

    def _vector(self, student: Student, gate: Any) -> str:
        """A control is steered by the vector of the trait that it stands against, or by its own."""
        trait = self.planner.trait_of(student.source)
        if gate.steer.vector == "student":
            return self.planner.student_vector(student, trait)
        return self.planner.teacher_vector(trait, data_seed=student.data_seed)
