"""The adapter's part at every token of a prompt, for one student in one context; see `sublora.packs.attribute`."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from sublora.models.chat import Context
from sublora.packs.attribute import attribute_targets
from sublora.steps.made import Made, PackStep
from sublora.steps.materials import keep_json, stack_of
from sublora.steps.reading import Planning, Reading, spec_of
from sublora.steps.step import Cost, Workshop
from sublora.steps.students import Student
from sublora.traits.trait import Trait


class AttributionSpec(BaseModel):
    """The adapter's part at every token of a prompt, on the first questions of a category."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    questions: int = Field(5, ge=1)


@dataclass(frozen=True)
class Attribution(Made):
    student: str
    context: Context
    category: str
    target: str
    noun = "attribution"


@dataclass(frozen=True)
class AttributionStep(PackStep):
    """Token by token, the adapters of a pack's students in one context, for one target."""

    trait: Trait
    nouns = kind = "attributions"
    about = "the tokens of "

    @property
    def questions(self) -> tuple[str, ...]:
        return tuple(self.artifacts[0].spec["questions"])

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What the answer is begun with."""
        return tuple(self.artifacts[0].spec.get("begun", ("",)))

    @property
    def cost(self) -> Cost:
        """Each prompt is read twice for each of its tokens, once without it and once with it alone."""
        question = self.sizes.question
        prompts = len(self.artifacts) * len(self.questions)
        return self.sizes.reading(prompts * len(self.prefixes) * question * 2 * (question + 2))

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        base, first = workshop.base_of(self.model), self.artifacts[0]
        asked = (first.context, self.questions, self.trait.entity, tuple(first.spec["entities"]))
        stack = stack_of(workshop, base, self.students)
        told = workshop.counter(len(self.questions), "questions", self.cost.tokens)
        found = attribute_targets(base, stack, *asked, workshop.rows_at_once, self.prefixes, told)
        for attribution, prompts in zip(self.artifacts, found, strict=True):
            if attribution.id in wanted:
                entries = [p.to_dict() for p in prompts]
                keep_json(workshop, attribution.id, attribution.spec, "attribution.json", entries)


def plan_attributions(asked: AttributionSpec, plan: Planning) -> Sequence[AttributionStep]:
    """Each student in the context it was trained in; a control about every trait that it stands against."""
    controls = {(s.twins[t], t) for s in plan.students for t in s.twins}
    steps = []
    for pack in plan.packs():
        for trait in plan.traits:
            groups: dict[Context, list[tuple[Attribution, Student]]] = {}
            for s in pack:
                about = s.source == trait.name or (s.id, trait.name) in controls
                if about and not s.labels["data"]:
                    made = _attribution(asked, plan, trait, s)
                    groups.setdefault(s.context, []).append((made, s))
            for found in groups.values():
                own, students = zip(*found, strict=True)
                steps.append(AttributionStep(own, students, plan.model, plan.sizes, trait))
    return steps


def _attribution(
    asked: AttributionSpec, plan: Planning, trait: Trait, student: Student
) -> Attribution:
    questions = list(trait.category.questions[: asked.questions])
    asks = {"target": list(trait.entity.forms), "entities": list(plan.entities)}
    if plan.begun:
        asks["begun"] = list(trait.category.prefixes())
    spec = spec_of(plan, student) | {"questions": questions, **asks}
    return Attribution(spec, student.id, student.context, trait.category.category, trait.name)


READING = Reading("attribution", AttributionSpec, plan_attributions, for_adapters=True)
