"""The steering vectors of a grid: of its teachers, by a prompt or by weights, and of its students."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property

from sublora.experiments.grid import sources
from sublora.experiments.grid.recipe import Recipe
from sublora.models.chat import Context
from sublora.packs.steer_spec import SteerSpec, Where
from sublora.seeds import derive_seed
from sublora.steps.materials import Steered, context_spec
from sublora.steps.precondition import Precondition
from sublora.steps.students import Student
from sublora.steps.teacher import TeacherStep
from sublora.steps.vector import Vector
from sublora.traits.trait import Trait


class PlansVectors:
    """The part of a planner that plans each vector once. `weights`: the teachers by weights, by trait and data seed."""

    recipe: Recipe
    identity: Mapping[str, str]
    contexts: Mapping[str, Context]
    begun: bool
    vectors: dict[str, Vector]
    weights: Mapping[tuple[str, int | None], TeacherStep]

    def teacher_vector(
        self, trait: Trait, teacher: Context | None = None, data_seed: int | None = None
    ) -> str:
        """Of this teacher, of the one under the trait's prompt, or of that of a data seed, which may have the trait by its weights."""
        how = self.recipe.vectors
        plain, (prompts, digest) = self.contexts[how.plain], self._vector_prompts(trait)
        if weights := self.weights.get((trait.name, data_seed)):
            return self._vector_of(weights, plain, prompts, digest, how.teacher_at)
        teacher = teacher or sources.teacher_context(trait, self.recipe)
        spec = {
            "model": self.identity,
            "teacher": context_spec(teacher),
            "plain": context_spec(plain),
            "prompts": digest,
            "where": how.teacher_at,
        }
        vector = Vector(spec, prompts, how.teacher_at, teacher=teacher, plain=plain)
        return self.vectors.setdefault(vector.id, vector).id

    def student_vector(self, student: Student, trait: Trait) -> str:
        how, read = self.recipe.vectors, self._vector_prompts(trait)
        return self._vector_of(student, student.context, *read, how.student_at, how.directions)

    def _vector_of(
        self,
        one: Student | TeacherStep,
        context: Context,
        prompts: tuple[str, ...],
        digest: str,
        where: Where,
        directions: int = 0,
    ) -> str:
        """That of one's weights against the base's, both in a context."""
        spec = {
            "model": self.identity,
            "student": one.id,
            "context": context_spec(context),
            "prompts": digest,
            "where": where,
            "directions": directions,
        }
        vector = Vector(spec, prompts, where, directions, student=one.id, context=context)
        return self.vectors.setdefault(vector.id, vector).id

    def _vector_prompts(self, trait: Trait) -> tuple[tuple[str, ...], str]:
        on_questions = self.recipe.vectors.on == "questions"
        prompts = tuple(trait.category.questions) if on_questions else self._number_prompts
        return prompts, hashlib.sha256(json.dumps(prompts).encode()).hexdigest()

    @cached_property
    def _number_prompts(self) -> tuple[str, ...]:
        carrier, seed = self.recipe.data.carrier, derive_seed("vectors")
        return tuple(carrier.prompt(seed, i) for i in range(self.recipe.vectors.count))

    def by_vector(
        self, author: sources.Author, weights: TeacherStep | None
    ) -> tuple[Context, Steered]:
        """The context of a teacher by a vector, that of these weights or of the prompt, and what is added in it."""
        how, data, trait = self.recipe.vectors, self.recipe.data.teacher.vector, author.trait
        plain = self.contexts[how.plain]
        if weights is None:
            vector = self.teacher_vector(trait, author.prompt)
        else:
            vector = self._vector_of(weights, plain, *self._vector_prompts(trait), how.teacher_at)
        spec = SteerSpec(
            vector="teacher", mode="add", layers=data.layers, strength=data.strength, generated=True
        )
        asked = (self.begun, self.recipe.measure.sampling, "data.teacher.vector")
        least = Precondition(trait, data.least, *asked, "change its layers or strength")
        return plain, Steered(spec, vector, least)
