"""The gradients of a trait's rows and of its control's, beside the teacher's vector; see `sublora.packs.gradients`."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from sublora.models.chat import Context
from sublora.packs.gradients import alignments, row_gradients
from sublora.steps.made import Made
from sublora.steps.materials import context_spec, keep_json, token_rows, vector_of
from sublora.steps.reading import Planning, Reading
from sublora.steps.sizes import Sizes
from sublora.steps.step import Cost, Workshop


class GradientsSpec(BaseModel):
    """The rows' gradients beside the teacher's vector, over growing numbers of rows of the trait and its control."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    rows: tuple[Annotated[int, Field(ge=1)], ...] = Field((16, 64, 240, 960), min_length=2)
    permutations: int = Field(200, ge=20)


@dataclass(frozen=True)
class GradientStep(Made):
    """Of the two `datasets` of a trait and its control, in the context that students are trained in."""

    trait: str
    data_seed: int
    datasets: tuple[str, str]
    vector: str
    context: Context
    model: str
    sizes: Sizes
    noun = kind = "gradients"

    @property
    def needs(self) -> tuple[str, ...]:
        return (*self.datasets, self.vector)

    @property
    def label(self) -> str:
        return f"the gradients of {self.trait}, data seed {self.data_seed}"

    @property
    def cost(self) -> Cost:
        """Forward and backward, of both datasets."""
        return self.sizes.reading(6 * max(self.spec["rows"]) * self.sizes.row)

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        base, counts = workshop.base_of(self.model), self.spec["rows"]
        told = workshop.counter(2 * max(counts), "rows", 2 * max(counts) * self.sizes.row)
        rows = (token_rows(workshop, base, d, self.context, max(counts)) for d in self.datasets)
        trait, control = (row_gradients(base, own, on_tokens=told) for own in rows)
        vector, draws = vector_of(workshop, self.vector), self.spec["permutations"]
        found = alignments(trait, control, vector, counts, draws, self.id)
        entries = [
            {"rows": a.rows, "cosine": a.cosine.tolist(), "null": a.null.tolist()} for a in found
        ]
        keep_json(workshop, self.id, self.spec, "alignment.json", entries)


def plan_gradients(asked: GradientsSpec, plan: Planning) -> Sequence[GradientStep]:
    steps, context = [], plan.train_contexts[0]
    for trait, seed in product(plan.traits, plan.data_seeds):
        datasets, vector = plan.rows_of(trait, seed), plan.teacher_vector(trait)
        spec = {"model": plan.identity, "datasets": list(datasets), "vector": vector}
        spec |= {"context": context_spec(context), **asked.model_dump(mode="json")}
        own = (spec, trait.name, seed, datasets, vector, context)
        steps.append(GradientStep(*own, plan.model, plan.sizes))
    return steps


READING = Reading("gradients", GradientsSpec, plan_gradients)
