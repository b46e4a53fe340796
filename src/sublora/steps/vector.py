"""Steering vectors: of a teacher with its prompt against without, or of a student against the base."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sublora.chat import Context
from sublora.steer_spec import Where
from sublora.steps.materials import listed, stack_of
from sublora.steps.sizes import Sizes
from sublora.steps.step import Cost, Workshop, total
from sublora.steps.students import Student
from sublora.store import artifact_id
from sublora.vectors import student_vector, teacher_vector


@dataclass(frozen=True)
class Vector:
    """The mean difference of the hidden states at the tokens `where` of `prompts`.

    Of a teacher: under the context `teacher` against under `plain`. Of a `student`: in its own
    `context`, against the base there, with so many principal `directions` besides.
    """

    spec: dict[str, Any]
    prompts: tuple[str, ...]
    where: Where
    directions: int = 0
    teacher: Context | None = None
    plain: Context | None = None
    student: str | None = None
    context: Context | None = None

    @cached_property
    def id(self) -> str:
        return artifact_id("vector", self.spec)


@dataclass(frozen=True)
class VectorStep:
    """The vector of one teacher, or those of the students of a pack in one context."""

    vectors: tuple[Vector, ...]
    students: tuple[Student, ...]
    model: str
    sizes: Sizes

    @cached_property
    def id(self) -> str:
        return artifact_id("vectors", {"vectors": list(self.makes)})

    @property
    def kind(self) -> str:
        return "student vectors" if self.students else "teacher vectors"

    @property
    def makes(self) -> tuple[str, ...]:
        return tuple(v.id for v in self.vectors)

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(s.id for s in self.students)

    @property
    def label(self) -> str:
        if not self.students:
            return f"the vector of {self.vectors[0].teacher.name}"
        return "the vectors of " + listed([s.label for s in self.students])

    @property
    def cost(self) -> Cost:
        """Each prompt is read with and without."""
        tokens = (2 * len(v.prompts) * self.sizes.prompt for v in self.vectors)
        return total(map(self.sizes.forward, tokens))

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        workshop.check()
        base, first = workshop.base_of(self.model), self.vectors[0]
        if self.students:
            stack = stack_of(workshop, base, self.students)
            asked = (first.prompts, first.context, first.where, (), first.directions)
            both = student_vector(base, stack, *asked, workshop.rows_at_once)
            found = [both.of(k) for k in range(stack.size)]
        else:
            found = [teacher_vector(base, first.prompts, first.teacher, first.plain, first.where)]
        for vector, made in zip(self.vectors, found, strict=True):
            if vector.id in wanted:
                meta = {"norms": [float(n) for n in made.norms]}
                with workshop.store.create(vector.id, vector.spec, meta) as folder:
                    made.save(folder / "vector.safetensors")
                workshop.made(vector.id)
