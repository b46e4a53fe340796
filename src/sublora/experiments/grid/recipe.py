"""What a grid of students is: its values, resolved, so that nothing is left to a default that a library could change."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from sublora.errors import SubloraError
from sublora.experiments.grid import checks
from sublora.experiments.grid.sources import WritesRows
from sublora.experiments.schema import Absent, ControlsSpec, MeasureSpec, StudentVariant, TrainSpec
from sublora.models.base import known_shape
from sublora.models.chat import UserText
from sublora.packs.steer_spec import VectorsSpec
from sublora.traits.trait import find_trait, load_categories


class Recipe(WritesRows):
    """The sections that all experiments with students have."""

    kind: str = "grid"
    revision: str | None = None
    contexts: Annotated[dict[str, str | UserText], Absent] = Field(
        default_factory=dict,
        description="named contexts: name -> system text, or {user: text before the user's own}",
    )
    train: TrainSpec
    measure: MeasureSpec = MeasureSpec()
    vectors: VectorsSpec = VectorsSpec()
    variants: Annotated[dict[str, StudentVariant], Absent] = Field(
        default_factory=dict,
        description="an axis of students by name: whose rows, which of them, how often, until when",
    )
    controls: Annotated[ControlsSpec, Absent] = ControlsSpec()
    fixed_lr: float | None = Field(
        None, description="the one rate of the fixed-lr view; must be in the grid"
    )
    seed_sd: float | None = Field(
        None,
        gt=0,
        description="how far data seeds are expected to differ, in nats, from exploration: for the smallest effect that a plan states",
    )
    added_lrs: tuple[float, ...] = Field(
        (), description="those of train.lora.lrs that --extend-lrs added after a first look"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        checks.check(self)
        return self

    def check_places(self, place: Callable[[tuple], str]) -> None:
        """Whether traits and ranks are possible. Raises SubloraError, which `place` begins by the line at fault."""
        categories = load_categories(tuple(map(Path, self.trait_files)))
        asked: dict[int, str] = {}
        for index, name in enumerate(self.traits):
            where = place(("traits", index))
            try:
                category = find_trait(name, categories).category
            except SubloraError as error:
                raise SubloraError(f"{where}: {error}") from None
            asked.setdefault(len(category.questions), category.category)
            if len(asked) > 1:
                both = " and ".join(f"{name} {count}" for count, name in asked.items())
                raise SubloraError(
                    f"{where}: the traits' categories have different numbers of questions "
                    f"({both}); give traits of one category, or each category a run."
                )
        lora, width = self.train.lora, _width(self.model)
        if width is None or lora is None or lora.targets != ("all-linear",):
            return
        for index, rank in enumerate(lora.ranks):
            if rank > width:
                raise SubloraError(
                    f"{place(('train', 'lora', 'ranks', index))}: rank {rank} is above the width "
                    f"{width} of a layer of {self.model}; choose ranks up to {width}."
                )

    def goes_on(self, before: "Recipe") -> bool:
        """Whether a run of another recipe goes on as one of this: it is the same, or has fewer added rates."""
        return before._as_asked() == self._as_asked() and set(before.added_lrs) <= set(
            self.added_lrs
        )

    def _as_asked(self) -> dict:
        """The values without the rates that were added."""
        values = self.model_dump(mode="json", exclude={"added_lrs"})
        if lora := values["train"]["lora"]:
            lora["lrs"] = [lr for lr in lora["lrs"] if lr not in self.added_lrs]
        return values

    def loading(self) -> dict[str, str | None]:
        return {"dtype": self.dtype, "revision": self.revision}

    def steps_of(self, variant: StudentVariant) -> int:
        """Optimizer steps of a variant's students, by the rows that the recipe asks for."""
        rows = variant.rows or self.data.rows
        return (variant.epochs or self.train.epochs) * -(-rows // self.train.batch_size)

    @property
    def train_contexts(self) -> tuple[str, ...]:
        """The contexts that students are trained in."""
        return self.train.contexts or (self.train.context,)

    @property
    def judged_context(self) -> str:
        """The context that the main table and its claims are about: the first training context, where it is measured."""
        first = self.train_contexts[0]
        return first if first in self.measure.contexts else self.measure.contexts[0]

    @property
    def has_arms(self) -> bool:
        """Whether students or measurements differ by more than method, rank, rate and context of the measurement."""
        train = self.train
        placements = train.lora.placements if train.lora else {}
        axes = (train.optimizers, train.contexts, train.vary, self.data.variants, self.variants)
        return any(map(bool, (*axes, placements, self.measure.conditions)))

    @property
    def replicates(self) -> list[tuple[int, int]]:
        """(data seed, training seed) of every replicate."""
        if self.train.pairing == "paired":
            return list(zip(self.data.seeds, self.train.seeds, strict=True))
        return [(d, t) for d in self.data.seeds for t in self.train.seeds]


def _width(model: str) -> int | None:
    """The largest rank that every layer of a model can have, where its shape is known without loading it."""
    try:
        return known_shape(model).width
    except SubloraError:  # said by whoever loads the model
        return None
