"""The precondition of a teacher: that it has its trait and still answers with words, seen before a student is trained."""

from dataclasses import dataclass, replace

from sublora.analysis.log_odds import log_odds
from sublora.errors import SubloraError
from sublora.models.chat import Context
from sublora.packs.measure import Asking, measure_answers
from sublora.packs.sample import Sampling
from sublora.packs.stack import Stack
from sublora.packs.steer import Steering
from sublora.steps.step import Workshop
from sublora.traits.trait import Trait

WORDS = (
    0.5  # of what the base gives to the category's words, what a teacher must give them at least
)


@dataclass(frozen=True)
class Precondition:
    """By how many `nats` a teacher of a trait must prefer its target more than the base does, asked with answers `begun` or not. `setting`
    is the place of the recipe that says so, `remedy` what to change there."""

    of: Trait
    nats: float
    begun: bool
    sampling: Sampling
    setting: str
    remedy: str

    def check(
        self,
        workshop: Workshop,
        model: str,
        name: str,
        context: Context,
        weights: Stack | None = None,
        steering: Steering | None = None,
        plain: Context | None = None,
    ) -> None:
        """Asks the teacher called `name`, once in a workshop for a model and a trait, and the base in the `plain` context, or in the
        teacher's. Raises SubloraError where it does not meet the precondition."""
        asked_of = ("precondition", model, self.of.name, name)
        if asked_of in workshop.kept:
            return
        base, category = workshop.base_of(model), self.of.category
        place = category.entities.index(self.of.entity)
        asking = Asking(context, self.sampling, 1, 0, workshop.rows_at_once, self.begun)
        beside = replace(asking, context=plain or context)
        own, other = (
            measure_answers(base, stack, [name], category, how, act)[0].p
            for how, stack, act in ((asking, weights, steering), (beside, None, None))
        )
        found = float((log_odds(own, place) - log_odds(other, place)).mean())
        words, before = (float(p.sum(1).mean()) for p in (own, other))
        why = None
        if not found >= self.nats:
            why = f"prefers it by {found:+.2f} nats more than the base does, and {self.setting}.least asks for {self.nats:g}"
        elif not words >= WORDS * before:
            why = f"gives the {category.category} that it is asked for {words:.2g} of the probability, and the base {before:.2g}"
        if why:
            raise SubloraError(
                f"Uninterpretable: the teacher of {self.of.name} {why}; {self.remedy}."
            )
        workshop.kept[asked_of] = found
