"""Steering vectors: of a teacher with its prompt against without, or of a student against the base."""

from dataclasses import dataclass

from sublora.models.chat import Context
from sublora.packs.steer_spec import Where
from sublora.packs.vectors import student_vector, teacher_vector
from sublora.steps.made import Made, PackStep
from sublora.steps.materials import stack_of
from sublora.steps.step import Cost, Workshop, total


@dataclass(frozen=True)
class Vector(Made):
    """The mean difference of the hidden states at the tokens `where` of `prompts`. Of a teacher: under the context `teacher` against under
    `plain`. Of a `student`: in its own `context`, against the base there, with so many principal `directions` besides."""

    prompts: tuple[str, ...]
    where: Where
    directions: int = 0
    teacher: Context | None = None
    plain: Context | None = None
    student: str | None = None
    context: Context | None = None
    noun = "vector"


@dataclass(frozen=True)
class VectorStep(PackStep):
    """The vector of one teacher, or those of the students of a pack in one context."""

    nouns, about = "vectors", "the vectors of "

    @property
    def kind(self) -> str:
        return f"{self.students[0].noun if self.students else 'teacher'} vectors"

    @property
    def label(self) -> str:
        teacher = self.artifacts[0].teacher
        return super().label if self.students else f"the vector of {teacher.name}"

    @property
    def cost(self) -> Cost:
        """Each prompt is read with and without."""
        tokens = (2 * len(v.prompts) * self.sizes.prompt for v in self.artifacts)
        return total(map(self.sizes.forward, tokens))

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        prompts = sum(len(v.prompts) for v in self.artifacts)
        told = workshop.counter(prompts, "prompts", self.cost.tokens)
        base, first = workshop.base_of(self.model), self.artifacts[0]
        if self.students:
            stack = stack_of(workshop, base, self.students)
            asked = (first.prompts, first.context, first.where, (), first.directions)
            both = student_vector(base, stack, *asked, workshop.rows_at_once, told)
            found = [both.of(k) for k in range(stack.size)]
        else:
            asked = (first.prompts, first.teacher, first.plain, first.where)
            found = [teacher_vector(base, *asked, on_tokens=told)]
        for vector, made in zip(self.artifacts, found, strict=True):
            if vector.id in wanted:
                meta = {"norms": [float(n) for n in made.norms]}
                with workshop.store.create(vector.id, vector.spec, meta) as folder:
                    made.save(folder / "vector.safetensors")
                workshop.made(vector.id)
