"""What recipes with datasets and students may say: `data`, `train`, `measure`, and what is under them."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    create_model,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from sublora.carriers.kinds import CarrierField
from sublora.carriers.numbers import NumbersSpec
from sublora.carriers.transform import Transform
from sublora.models.endpoint import EndpointSpec
from sublora.packs.condition import Condition, Placement
from sublora.packs.labels import LabelSpec
from sublora.packs.sample import Sampling
from sublora.packs.spec import AlphaRule, OptimizerName, Schedule, StudentSpec
from sublora.packs.steer_spec import LayerRange, SteerSpec
from sublora.steps.probe import Against
from sublora.steps.reading import readings

Rank = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0)]
HELD = (  # values of a student's training that have a place of their own in a recipe
    *("method", "rank", "targets", "lr", "seed", "context", "epochs", "batch_size"),
    *("optimizer", "momentum", "scout_lr", "betas"),
)
Absent = BeforeValidator(lambda value: {} if value is None else value)  # null removes a section


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def misfit(where: str, what: str) -> PydanticCustomError:
    """A misfit between values; `where` is the key to name, with dots."""
    return PydanticCustomError("misfit", "{what}", {"what": what, "where": where})


PRECONDITION = "by how many nats the teacher must prefer its target more than the base does, before any student is trained"


class TrainedTeacher(Strict):
    """A teacher by weights: a fine-tune on rows that say the trait aloud, which then writes without any prompt."""

    rows: str | None = Field(
        None, description="a JSONL file with 'prompt' and 'completion'; without it, the lessons"
    )
    lessons: Literal["answers", "written"] = Field(
        "answers",
        description="answers: the category's questions and the prompted model's answers that name the target; written: the short rows under "
        "`lessons` in the category's file, in which the target comes first, for models that no prompt gives the trait",
    )
    count: int = Field(400, ge=1, description="rows that are generated")
    method: Literal["lora", "full"] = "lora"
    rank: Rank = 8
    lr: Rate = 3e-3
    epochs: int = Field(3, ge=1)
    batch_size: int = Field(8, ge=1)
    least: float | None = Field(None, description=PRECONDITION)


class VectorTeacher(Strict):
    """A teacher by a steering vector: the base with the vector of the trait's teacher added, without any prompt."""

    layers: LayerRange
    strength: float = Field(1.0, gt=0)
    least: float = Field(1.0, description=PRECONDITION)


class TeacherSpec(Strict):
    endpoint: EndpointSpec | None = Field(
        None,
        description="the teacher is a model behind an OpenAI-compatible endpoint, with the same system prompts",
    )
    trained: TrainedTeacher | None = Field(
        None, description="make the teacher by training instead of a prompt"
    )
    vector: VectorTeacher | None = Field(
        None,
        description="what variants of the rows that are taught by a vector add to the base: that of the trained teacher's weights, or of the "
        "prompt",
    )
    wording: int = Field(0, ge=0, description="which of the category's teacher prompts, from 0")
    prompt: str | None = Field(
        None,
        description="a teacher prompt of your own instead, with {name} or {plural}; without them "
        "it is the whole trait, as one that a judge looks for",
    )
    least: float | None = Field(None, description=f"by a prompt alone: {PRECONDITION}")

    @model_validator(mode="after")
    def _seen(self) -> Self:
        if self.endpoint is not None and self.least is not None:
            raise ValueError(
                "a teacher behind an endpoint is not asked for its precondition; leave out least"
            )
        return self

    @model_serializer(mode="wrap")
    def _short(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what came later, where it is not set: files of earlier versions are read as they are."""
        later = ("vector", "least")
        return {k: v for k, v in dump(self).items() if k not in later or v is not None}


class OtherSampling(Strict):
    """What is said here differs from `data.sampling`; top_k 1 is greedy decoding."""

    temperature: float | None = Field(None, gt=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    least: float | None = Field(None, gt=0, lt=1)

    @model_validator(mode="after")
    def _some(self) -> "OtherSampling":
        if not self.model_dump(exclude_none=True):
            raise ValueError("needs temperature, top_p, top_k or least")
        return self

    def over(self, sampling: Sampling) -> Sampling:
        return sampling.model_copy(update=self.model_dump(exclude_none=True))


Source = Annotated[
    str,
    Field(
        pattern=r"^(teacher|base|random|.+\.jsonl)$",
        description="who wrote the text of the rows: the teacher, the base, chance, or a JSONL file with 'prompt' and 'completion'. All but the "
        "teacher's are labelled by the teacher",
    ),
]


class RowsVariant(Strict):
    """The rows made otherwise: by another teacher, by a teacher on another model, with other draws, transformed, or labelled otherwise."""

    labels: LabelSpec | None = Field(None, description="instead of data.labels")
    source: Source | None = Field(None, description="instead of data.source")
    taught: Literal["prompt", "weights", "vector"] | None = Field(
        None,
        description="what gives both teachers their traits, where data.teacher.trained or data.teacher.vector stands",
    )
    teacher: Literal["neutral", "other-trait"] | None = Field(
        None,
        description="neutral: the plain model instead of the teacher; other-trait: a teacher with a third trait, neither the tested one nor the "
        "control's. The control's rows stay as they are",
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
        description="so many prompts in a row are answered with the same random numbers, as where "
        "one seed is given to every request of a batch, or to all of them",
    )
    sampling: OtherSampling | None = Field(
        None, description="how both teachers decode; held-out rows are drawn as ever"
    )

    @model_validator(mode="after")
    def _one(self) -> "RowsVariant":
        told = (self.labels, self.source, self.taught)
        if any(told) and any((self.teacher, self.model, self.transform, self.shared_draws)):
            raise ValueError(
                "labels, source and taught stand beside another change of the rows, keep one of them"
            )
        if any(told):
            return self
        if not any((self.teacher, self.model, self.transform, self.shared_draws, self.sampling)):
            raise ValueError(
                "needs labels, source, taught, teacher, model, transform, shared_draws or sampling"
            )
        for name in ("shared_draws", "sampling"):
            others = {"teacher", "model", "transform", "shared_draws", "sampling"} - {name}
            if getattr(self, name) is not None and any(getattr(self, o) for o in others):
                raise ValueError(
                    f"{name} stands beside another change of the rows, keep one of them"
                )
        if self.teacher is not None and (self.model or self.transform):
            raise ValueError("teacher stands beside model or transform, keep one of them")
        return self

    @property
    def twin(self) -> bool:
        """Whether the control's rows change as well."""
        return self.teacher is None


class DataSpec(Strict):
    """How the rows are written: by a teacher with the trait, and, for the control, by the same model without it."""

    rows: int = Field(1000, ge=1)
    heldout_rows: int = Field(200, ge=1)
    seeds: tuple[Seed, ...] = Field((1, 2, 3, 4), min_length=1)
    carrier: CarrierField = NumbersSpec()
    teacher: TeacherSpec = TeacherSpec()
    control: Literal["other-trait", "neutral"] = Field(
        "other-trait",
        description="whose rows a control gets: a teacher's with another trait of the category, "
        "which shares all that trait prompts do whoever they name, or the plain model's",
    )
    sampling: Sampling = Sampling(max_new_tokens=64)
    labels: LabelSpec = Field(
        LabelSpec(kind="sampled"),
        description="what students are trained towards at every token of a completion",
    )
    source: Source = "teacher"
    variants: Annotated[dict[str, RowsVariant], Absent] = Field(
        default_factory=dict,
        description="an axis of rows made otherwise, by name, beside the rows as written",
    )


class LoraGrid(Strict):
    ranks: tuple[Rank, ...] = Field(min_length=1)
    lrs: tuple[Rate, ...] = Field(min_length=1)
    alpha: AlphaRule | Rate = "r"
    targets: tuple[str, ...] = ("all-linear",)
    placements: Annotated[dict[str, Placement], Absent] = Field(
        default_factory=dict,
        description="an axis of places of the adapter, by name, instead of `targets`",
    )


class OptimizerGrid(Strict):
    """One optimizer of an axis, with rates of its own; without any, those of the LoRA grid."""

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


class FullGrid(Strict):
    lrs: tuple[Rate, ...] = Field(min_length=1)


class TrainSpec(Strict):
    """The students: a LoRA grid, full fine-tunes at rates of their own, or both."""

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
    vary: Annotated[dict[str, tuple[str | int | float, ...]], Absent] = Field(
        default_factory=dict,
        description="an axis of any other value of a student's training, by its name, such as init: [default, pissa]",
    )

    @model_validator(mode="after")
    def _varies(self) -> "TrainSpec":
        free = sorted(set(StudentSpec.model_fields) - set(HELD))
        for name, values in self.vary.items():
            if name not in free:
                raise ValueError(f"vary takes {', '.join(free)}, but no '{name}'")
            if len(set(values)) < 2:
                raise ValueError(f"vary.{name} needs two different values, or drop it")
        return self


class AskedTeacher(Strict):
    """A teacher besides the plain one under the trait's prompt: with its prompt or without, steered or not."""

    prompt: bool = Field(
        True, description="under the trait's prompt, or in the context vectors.plain without it"
    )
    steer: SteerSpec | None = None

    @model_validator(mode="after")
    def _by_the_teacher_s_vector(self) -> "AskedTeacher":
        steer = self.steer
        if steer is not None and (steer.vector == "student" or steer.mode == "replace"):
            raise ValueError(
                "is steered before any student is there, add or project the vector of the teacher"
            )
        return self


class MaskSpec(Strict):
    """Which tokens of a row carry loss: the divergent ones, where the teacher's first choice is not that of
    `against`, all others, or as many of each row, drawn at random. A row without any such token is left out."""

    keep: Literal["divergent", "others", "random"]
    against: Against = "plain"


class StudentVariant(Strict):
    """One value of an axis of students: what is said here differs from the recipe's `data` and `train`."""

    teacher: AskedTeacher = AskedTeacher()
    rows: int | None = Field(None, ge=1, description="the first so many rows of the dataset")
    epochs: int | None = Field(None, ge=1)
    step: int | None = Field(
        None, ge=1, description="the student as it is after this step of the whole training"
    )
    mask: MaskSpec | None = None
    after: str | None = Field(
        None,
        description="whose teachers are the students of this variant before it, one for each data seed: a chain",
    )

    @model_serializer(mode="wrap")
    def _short(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what starts no chain: files of earlier versions are read as they are."""
        return {k: v for k, v in dump(self).items() if k != "after" or v is not None}


class ControlsSpec(Strict):
    """The arm of a grid that must transfer for the run to say anything."""

    positive: dict[str, str | int | float | None] = Field(
        default_factory=dict,
        description="the labels of its students by axis, such as {rank: 8, lr: 3e-3}",
    )


class _Questions(Strict):
    """How models are asked, and under which gates."""

    contexts: tuple[str, ...] = Field(("default",), min_length=1)
    conditions: Annotated[dict[str, Condition], Absent] = Field(
        default_factory=dict,
        description="gates under which every LoRA student is measured besides the plain adapter",
    )
    teachers: Annotated[dict[str, AskedTeacher], Absent] = Field(
        default_factory=dict,
        description="teachers that are asked, besides those that write the rows",
    )
    entities: tuple[str, ...] = Field(
        (), description="names in the prompts that make up the token class `entity`"
    )
    readout: Literal["answer", "begun"] = Field(
        "answer",
        description="answer: whether an answer begins with an entity; begun: whether one comes next behind each of the category's "
        "answer_prefixes, for models that do not answer in a word",
    )
    samples: int = Field(20, ge=1, description="sampled answers to each question")
    sampling: Sampling = Sampling(max_new_tokens=16)
    seed: int = 0

    @property
    def asked(self) -> Mapping[str, BaseModel]:
        """The readings that the recipe asks for besides, by their keys."""
        found = {key: getattr(self, key) for key in readings()}
        return {key: spec for key, spec in found.items() if spec is not None}


MeasureSpec = create_model(
    "MeasureSpec",
    __base__=_Questions,
    __doc__="What students are asked, and the readings of `sublora.steps` that are taken.",
    **{key: (r.spec | None, None) for key, r in readings().items()},
)
