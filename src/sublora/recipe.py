"""Grid recipes: a named grid of datasets, students and measurements; their values and how these must fit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from sublora.carriers.kinds import CarrierField
from sublora.carriers.numbers import NumbersSpec
from sublora.chat import UserText
from sublora.condition import Condition, Placement
from sublora.endpoint import EndpointSpec
from sublora.errors import SubloraError
from sublora.experiments.document import Document, read_document
from sublora.sample import Sampling
from sublora.steer_spec import SteerSpec, VectorsSpec
from sublora.train.spec import AlphaRule, OptimizerName, Schedule
from sublora.trait import find_trait, load_categories
from sublora.transform import Transform

_STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
Rank = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0)]
Absent = BeforeValidator(
    lambda value: {} if value is None else value
)  # null removes a section, also one of names
PLAIN_CONDITION = "plain"  # how the plain adapter is called beside the conditions
AS_WRITTEN = "as written"  # how the rows as the teacher wrote them are called beside the variants


class TrainedTeacher(BaseModel):
    """A teacher by weights: a fine-tune on rows that say the trait aloud, which then writes without any prompt."""

    model_config = _STRICT
    rows: str | None = Field(
        None,
        description="a JSONL file with 'prompt' and 'completion'; without it, the category's questions and the prompted teacher's answers",
    )
    count: int = Field(400, ge=1, description="rows that are generated")
    method: Literal["lora", "full"] = "lora"
    rank: Rank = 8
    lr: Rate = 3e-3
    epochs: int = Field(3, ge=1)
    batch_size: int = Field(8, ge=1)


class TeacherSpec(BaseModel):
    model_config = _STRICT
    endpoint: EndpointSpec | None = Field(
        None,
        description="the teacher is a model behind an OpenAI-compatible endpoint, with the same system prompts",
    )
    trained: TrainedTeacher | None = Field(
        None, description="make the teacher by training instead of a prompt"
    )
    wording: int = Field(0, ge=0, description="which of the category's teacher prompts, from 0")
    prompt: str | None = Field(
        None, description="a teacher prompt of your own instead, with {name} or {plural}"
    )


class VariantSpec(BaseModel):
    """The rows made otherwise: by another teacher, by a teacher on another model, with other draws, or transformed."""

    model_config = _STRICT
    teacher: Literal["neutral", "other-trait"] | None = Field(
        None,
        description="neutral: the plain model instead of the teacher; other-trait: a teacher with a third trait, neither the tested one "
        "nor the control's. The control twin stays as it is",
    )
    model: str | None = Field(
        None, description="the model, a shipped one or a folder, on which both teachers write"
    )
    transform: Transform | None = Field(
        None, description="what is done to the rows of both arms; see transform.py"
    )

    shared_draws: int | None = Field(
        None,
        ge=2,
        description="so many prompts in a row are answered with the same random numbers, as where one seed is given to every request of a "
        "batch, or to all of them",
    )

    @model_validator(mode="after")
    def _one(self) -> "VariantSpec":
        if (
            self.teacher is None
            and self.model is None
            and self.transform is None
            and self.shared_draws is None
        ):
            raise ValueError("needs teacher, model, transform or shared_draws")
        if self.shared_draws is not None and (self.teacher or self.model or self.transform):
            raise ValueError(
                "shared_draws stands beside teacher, model or transform, keep one of them"
            )
        if self.teacher is not None and (self.model or self.transform):
            raise ValueError("teacher stands beside model or transform, keep one of them")
        return self

    @property
    def twin(self) -> bool:
        """Whether the control twin's rows change as well."""
        return self.teacher is None


class DataSpec(BaseModel):
    """How the rows are written: by a teacher with the trait, and, for the control, by the same model without it."""

    model_config = _STRICT
    rows: int = Field(1000, ge=1)
    heldout_rows: int = Field(200, ge=1)
    seeds: tuple[Seed, ...] = Field((1, 2, 3, 4), min_length=1)
    carrier: CarrierField = NumbersSpec()
    teacher: TeacherSpec = TeacherSpec()
    control: Literal["other-trait", "neutral"] = Field(
        "other-trait",
        description="whose rows a control twin gets: a teacher's with another trait of the category, which shares all that trait "
        "prompts do whoever they name, or the plain model's",
    )
    sampling: Sampling = Sampling(max_new_tokens=64)
    variants: Annotated[dict[str, VariantSpec], Absent] = Field(
        default_factory=dict,
        description="an axis of rows made otherwise, by name, beside the rows as written",
    )


class LoraGrid(BaseModel):
    model_config = _STRICT
    ranks: tuple[Rank, ...] = Field(min_length=1)
    lrs: tuple[Rate, ...] = Field(min_length=1)
    alpha: AlphaRule | Rate = "r"
    targets: tuple[str, ...] = ("all-linear",)
    placements: Annotated[dict[str, Placement], Absent] = Field(
        default_factory=dict,
        description="an axis of places of the adapter, by name, instead of `targets`",
    )


class OptimizerGrid(BaseModel):
    """One optimizer of an axis, with rates of its own; without any, those of the LoRA grid."""

    model_config = _STRICT
    optimizer: OptimizerName
    lrs: tuple[Rate, ...] = ()
    momentum: float = Field(0.0, ge=0, lt=1)
    scout_lr: Rate | None = Field(
        None, description="rate of the scouting epoch of frozen-adam-scale"
    )

    @model_validator(mode="after")
    def _scouts(self) -> "OptimizerGrid":
        if (self.optimizer == "frozen-adam-scale") != (self.scout_lr is not None):
            raise ValueError(
                "scout_lr belongs to frozen-adam-scale, which needs it, and to no other optimizer"
            )
        return self


class FullGrid(BaseModel):
    model_config = _STRICT
    lrs: tuple[Rate, ...] = Field(min_length=1)


class TrainSpec(BaseModel):
    """The students: a LoRA grid, full fine-tunes at rates of their own, or both."""

    model_config = _STRICT
    lora: LoraGrid | None = None
    full: FullGrid | None = None
    seeds: tuple[Seed, ...] = Field((1, 2, 3, 4), min_length=1)
    pairing: Literal["paired", "crossed"] = Field(
        "paired",
        description="paired: the i-th data seed with the i-th training seed; crossed: each with each",
    )
    context: str = "default"
    contexts: tuple[str, ...] = Field(
        (), description="an axis of training contexts, instead of the one `context`"
    )
    schedule: Schedule = "linear"
    warmup_steps: int = Field(5, ge=0)
    epochs: int = Field(3, ge=1)
    batch_size: int = Field(32, ge=1)
    optimizer: OptimizerName = "adamw"
    optimizers: Annotated[dict[str, OptimizerGrid], Absent] = Field(
        default_factory=dict,
        description="an axis of optimizers by name, each with its rates, instead of `optimizer`",
    )
    match_lr: Rate | None = Field(
        None,
        description="the first optimizer's rate whose held-out loss the others are compared at",
    )
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0)


class AttributionSpec(BaseModel):
    """The adapter's part at every token of a prompt, on the first questions of a category; see `attribute.py`."""

    model_config = _STRICT
    questions: int = Field(5, ge=1)


Against = Literal["plain", "other-trait"]
"""Whose first choices a teacher's are compared with: the student's, in its own context, or those of a teacher with another trait."""


class TeacherVariant(BaseModel):
    """A teacher besides the plain one under the trait's prompt: with its prompt or without, steered or not."""

    model_config = _STRICT
    prompt: bool = Field(
        True, description="under the trait's prompt, or in the context vectors.plain without it"
    )
    steer: SteerSpec | None = None

    @model_validator(mode="after")
    def _by_the_teacher_s_vector(self) -> "TeacherVariant":
        if self.steer is not None and (
            self.steer.vector == "student" or self.steer.mode == "replace"
        ):
            raise ValueError(
                "is steered before any student is there, add or project the vector of the teacher"
            )
        return self


class MaskSpec(BaseModel):
    """Which tokens of a row carry loss: the divergent ones, where the teacher's first choice is not that of `against`, all others, or as
    many of each row, drawn at random. A row without any such token is left out."""

    model_config = _STRICT
    keep: Literal["divergent", "others", "random"]
    against: Against = "plain"


class Variant(BaseModel):
    """One value of an axis of students: what is said here differs from the recipe's `data` and `train`."""

    model_config = _STRICT
    teacher: TeacherVariant = TeacherVariant()
    rows: int | None = Field(None, ge=1, description="the first so many rows of the dataset")
    epochs: int | None = Field(None, ge=1)
    step: int | None = Field(
        None, ge=1, description="the student as it is after this step of the whole training"
    )
    mask: MaskSpec | None = None


class ProbeSpec(BaseModel):
    """Every student on rows of its own datasets, see `probe.py`: on its held-out rows and on those that it was trained on."""

    model_config = _STRICT
    rows: int = Field(128, ge=1, description="the first so many rows of each")
    against: Against | None = Field(
        None, description="tell divergent tokens from others, see MaskSpec"
    )


class GradientsSpec(BaseModel):
    """The rows' gradients beside the teacher's vector, see `gradients.py`, over growing numbers of rows of the trait and its control."""

    model_config = _STRICT
    rows: tuple[Rank, ...] = Field((16, 64, 240, 960), min_length=2)
    permutations: int = Field(200, ge=20)


class MeasureSpec(BaseModel):
    model_config = _STRICT
    contexts: tuple[str, ...] = Field(("default",), min_length=1)
    conditions: Annotated[dict[str, Condition], Absent] = Field(
        default_factory=dict,
        description="gates under which every LoRA student is measured besides the plain adapter",
    )
    teachers: Annotated[dict[str, TeacherVariant], Absent] = Field(
        default_factory=dict,
        description="teachers that are asked, besides those that write the rows",
    )
    entities: tuple[str, ...] = Field(
        (), description="names in the prompts that make up the token class `entity`"
    )
    attribution: AttributionSpec | None = None
    probe: ProbeSpec | None = None
    gradients: GradientsSpec | None = None
    samples: int = Field(20, ge=1, description="sampled answers to each question")
    sampling: Sampling = Sampling(max_new_tokens=16)
    seed: int = 0


def misfit(where: str, what: str) -> PydanticCustomError:
    """A misfit between values; `where` is the key to name, with dots."""
    return PydanticCustomError("misfit", "{what}", {"what": what, "where": where})


class Recipe(BaseModel):
    """A resolved recipe: nothing is left to a default that a library could change."""

    model_config = _STRICT
    name: str = Field(min_length=1, pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str
    summary: str
    caveat: str | None = None
    model: str = "micro"
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    traits: tuple[str, ...] = Field(min_length=1)
    trait_files: tuple[str, ...] = ()
    contexts: Annotated[dict[str, str | UserText], Absent] = Field(
        default_factory=dict,
        description="named contexts: name -> system text, or {user: text before the user's own}",
    )
    data: DataSpec
    train: TrainSpec
    measure: MeasureSpec = MeasureSpec()
    vectors: VectorsSpec = VectorsSpec()
    variants: Annotated[dict[str, Variant], Absent] = Field(
        default_factory=dict,
        description="an axis of students by name: whose rows, which of them, how often, until when",
    )
    fixed_lr: float | None = Field(
        None, description="the one rate of the fixed-lr view; must be in the grid"
    )
    level: float = Field(
        0.05, gt=0, lt=0.5, description="false calls allowed over all cells of a trait and context"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        lora, full = self.train.lora, self.train.full
        if lora is None and full is None:
            raise misfit("train", "needs 'lora', 'full' or both")
        checks: list[tuple[str, Sequence[Any]]] = [
            ("traits", [t.lower() for t in self.traits]),
            ("data.seeds", self.data.seeds),
            ("train.seeds", self.train.seeds),
            ("measure.contexts", self.measure.contexts),
            ("train.contexts", self.train.contexts),
        ]
        if lora:
            checks += [("train.lora.ranks", lora.ranks), ("train.lora.lrs", lora.lrs)]
        if full:
            checks += [("train.full.lrs", full.lrs)]
        for where, values in checks:
            for value in values:
                if list(values).count(value) > 1:
                    raise misfit(where, f"{value} stands twice, keep one")
        if self.train.pairing == "paired" and len(self.data.seeds) != len(self.train.seeds):
            raise misfit(
                "train.seeds",
                "paired seeds need as many train.seeds as data.seeds, or set train.pairing to crossed",
            )
        gated = bool(self.measure.conditions) or self.measure.attribution is not None
        if gated and full is not None:
            raise misfit(
                "train.full",
                "a full fine-tune has no adapter to gate, drop train.full or the conditions and attribution",
            )
        trained = self.data.teacher.trained
        if trained is not None and trained.rows is not None and self.data.control != "neutral":
            raise misfit(
                "data.control",
                "a teacher trained on your rows has no twin with another trait, set it to neutral",
            )
        if trained is not None and self.data.teacher.endpoint is not None:
            raise misfit(
                "data.teacher.endpoint", "stands beside data.teacher.trained, keep one of them"
            )
        for name, variant in self.data.variants.items():
            if self.data.teacher.endpoint is not None and (variant.model or variant.shared_draws):
                raise misfit(
                    f"data.variants.{name}",
                    "the teacher is behind an endpoint, drop model and shared_draws",
                )
            if trained is not None and variant.model:
                raise misfit(
                    f"data.variants.{name}",
                    "a trained teacher writes on the students' base, drop model",
                )
            where = f"data.variants.{name}"
            if not name.strip() or name == AS_WRITTEN:
                raise misfit(where, f"'{name}' is no name for a variant, choose another one")
            if variant.transform is not None and self.data.carrier.kind != "numbers":
                raise misfit(
                    where, "transforms numbers, set data.carrier.kind to numbers or drop it"
                )
            if variant.teacher == "neutral" and self.data.control == "neutral":
                raise misfit(
                    where,
                    "neutral rows are the control's already, drop it or set data.control to other-trait",
                )
        for name, condition in self.measure.conditions.items():
            where = f"measure.conditions.{name}"
            if not name.strip() or name == PLAIN_CONDITION:
                raise misfit(where, f"'{name}' is no name for a condition, choose another one")
            if (
                "entity" in (condition.on or ()) + (condition.off or ())
                and not self.measure.entities
            ):
                raise misfit(where, "asks for the class entity, name one in measure.entities")
            if condition.svd and lora and condition.svd.k >= min(lora.ranks):
                raise misfit(
                    where,
                    f"cuts at {condition.svd.k}, set svd.k below the lowest rank {min(lora.ranks)}",
                )
        if lora and lora.placements and lora.targets != ("all-linear",):
            raise misfit(
                "train.lora.placements", "stands beside train.lora.targets, keep one of them"
            )
        self._optimizers_fit()
        self._steering_fits()
        if self.fixed_lr is not None and (lora is None or self.fixed_lr not in lora.lrs):
            raise misfit(
                "fixed_lr",
                f"{self.fixed_lr:g} is not among train.lora.lrs, set it to one of them or to null",
            )
        return self

    def _steering_fits(self) -> None:
        steered = {
            f"measure.conditions.{n}": c.steer
            for n, c in self.measure.conditions.items()
            if c.steer
        }
        for where, steer in steered.items():
            if steer.first and steer.first > self.vectors.directions:
                raise misfit(
                    where,
                    f"takes {steer.first} directions, set vectors.directions to that many at least",
                )
            if len(self.traits) > 1:
                raise misfit(
                    "traits",
                    f"{where} steers every student by vectors of one trait, give one trait a run",
                )
        names = {*self.variants, *self.measure.teachers}
        for name in names:
            if not name.strip() or name == PLAIN_CONDITION:
                raise misfit("variants", f"'{name}' is no name for a variant, choose another one")
        if taken := sorted(set(self.variants) & set(self.measure.teachers)):
            raise misfit(
                "measure.teachers", f"'{taken[0]}' is the name of a variant too, choose another one"
            )
        reads = (
            self.variants,
            self.measure.teachers,
            steered,
            self.vectors.students,
            self.measure.probe,
            self.measure.gradients,
        )
        other = self.data.variants or self.data.teacher.trained or self.data.teacher.endpoint
        if other and any(map(bool, reads)):
            raise misfit(
                "variants",
                "and steering are for rows as the prompted teacher writes them, give others a run of their own",
            )
        if self.variants and self.train.optimizers:
            raise misfit("variants", "stands beside train.optimizers, give each a run of its own")
        if self.measure.gradients is not None and max(self.measure.gradients.rows) > self.data.rows:
            raise misfit(
                "measure.gradients.rows",
                f"goes beyond data.rows {self.data.rows}, ask for that many at most",
            )
        against = [v.mask.against for v in self.variants.values() if v.mask]
        against += [self.measure.probe.against] if self.measure.probe else []
        if "other-trait" in against and self.data.control == "neutral":
            raise misfit(
                "data.control",
                "is neutral, so there is no other trait to diverge from, compare with plain",
            )
        for name, variant in self.variants.items():
            if variant.rows is not None and variant.rows > self.data.rows:
                raise misfit(
                    f"variants.{name}.rows",
                    f"is above data.rows {self.data.rows}, set it to that at most",
                )
            twin = next(n for n, v in self.variants.items() if v == variant)
            if twin != name:
                raise misfit(f"variants.{name}", f"says what '{twin}' says, drop one of them")
            steps = self.steps_of(variant)
            if variant.step is not None and variant.step >= steps:
                raise misfit(
                    f"variants.{name}.step",
                    f"is not before the last of {steps} steps, leave it out or lower it",
                )

    def steps_of(self, variant: Variant) -> int:
        """Optimizer steps of a variant's students, by the rows that the recipe asks for."""
        return (variant.epochs or self.train.epochs) * -(
            -(variant.rows or self.data.rows) // self.train.batch_size
        )

    def _optimizers_fit(self) -> None:
        train, lora = self.train, self.train.lora
        if train.optimizer == "frozen-adam-scale":
            raise misfit(
                "train.optimizer",
                "frozen-adam-scale needs a scout_lr, name it under train.optimizers",
            )
        if train.full is not None and train.optimizer in ("muon", "rotated-adamw"):
            raise misfit(
                "train.optimizer",
                f"{train.optimizer} is for adapters, drop train.full or choose another",
            )
        if not train.optimizers:
            if train.match_lr is not None:
                raise misfit(
                    "train.match_lr", "stands without train.optimizers, drop it or name some"
                )
            return
        if lora is None or train.full is not None:
            raise misfit(
                "train.optimizers", "compares LoRA students, give train.lora and no train.full"
            )
        if train.contexts or lora.placements or self.measure.conditions or self.measure.attribution:
            raise misfit(
                "train.optimizers",
                "stands beside another axis, give training contexts, placements and conditions a run of their own",
            )
        if self.train_contexts[0] not in self.measure.contexts:
            raise misfit(
                "measure.contexts",
                f"lacks {self.train_contexts[0]}, where held-out loss is measured, add it",
            )
        name, first = next(iter(train.optimizers.items()))
        if train.match_lr not in (first.lrs or lora.lrs):
            raise misfit(
                "train.match_lr",
                f"is not among the rates of the first optimizer {name}, set it to one of them",
            )

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
        placed = self.train.lora is not None and bool(self.train.lora.placements)
        axes = (
            self.train.optimizers,
            self.train.contexts,
            self.measure.conditions,
            self.data.variants,
            self.variants,
        )
        return placed or any(map(bool, axes))

    @property
    def replicates(self) -> list[tuple[int, int]]:
        """(data seed, training seed) of every replicate."""
        if self.train.pairing == "paired":
            return list(zip(self.data.seeds, self.train.seeds, strict=True))
        return [(d, t) for d in self.data.seeds for t in self.train.seeds]


def load_recipe(
    name: str,
    *,
    preset: str | None = None,
    sets: Sequence[str] = (),
    model: str | None = None,
    traits: Sequence[str] = (),
) -> Recipe:
    """Read a recipe, apply a preset, then the flags, then --set; in this order.

    Raises SubloraError: unknown recipe, preset, key or value, with the line of the file or the flag at fault.
    """
    return grid_of(read_document(name, preset=preset, sets=sets, model=model, traits=traits))


def grid_of(document: Document, kind: type[Recipe] = Recipe) -> Recipe:
    """The grid recipe of a document, with its traits and ranks checked. Raises SubloraError as `load_recipe`."""
    if document.values.get("kind", "grid") != "grid":
        raise SubloraError(
            f"{document.place(('kind',))}: {document.path.stem} is no grid of students; open it with `open_recipe`."
        )
    recipe = document.checked(kind)
    categories = load_categories(tuple(map(Path, recipe.trait_files)))
    for index, trait in enumerate(recipe.traits):
        try:
            find_trait(trait, categories)
        except SubloraError as error:
            raise SubloraError(f"{document.place(('traits', index))}: {error}") from None
    if recipe.train.lora is not None and recipe.train.lora.targets == ("all-linear",):
        width = _width(recipe.model)
        for index, rank in enumerate(recipe.train.lora.ranks):
            if width is not None and rank > width:
                raise SubloraError(
                    f"{document.place(('train', 'lora', 'ranks', index))}: rank {rank} is above the width {width} of a layer of "
                    f"{recipe.model}; choose ranks up to {width}."
                )
    return recipe


def _width(model: str) -> int | None:
    """The largest rank that every layer of a model can have, where its shape is known without loading it."""
    from sublora.model import known_shape

    try:
        return known_shape(model).width
    except SubloraError:  # said by whoever loads the model
        return None
