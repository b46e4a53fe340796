"""recipe -> stages. A pure function: every stage has the content hash of all that can change what it makes, and nothing is run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any, Literal, Protocol

from sublora.answers import category_words
from sublora.carriers.carrier import Carrier, file_content, prompt_of_row, with_leaks
from sublora.carriers.questions import QuestionsSpec
from sublora.chat import Context, resolve_context
from sublora.endpoint import EndpointSpec
from sublora.errors import SubloraError
from sublora.recipe import Against, DataSpec, Recipe, TeacherVariant, Variant, VariantSpec
from sublora.seeds import derive_seed, generator
from sublora.steer_spec import SteerSpec, Where
from sublora.store import artifact_id
from sublora.teacher_rows import load_rows
from sublora.train.spec import StudentSpec
from sublora.trait import Trait, find_trait, load_categories, teacher_text
from sublora.transform import Transform, needs_reference

CONTROL, NEUTRAL, THIRD = "control", "neutral", "third"
PACK_STUDENTS = 12  # at most so many in a unit of work: more gain nothing, a unit is what a kill can cost, and cores wait for the last
PACK_TOKENS = {"cpu": 48_000, "cuda": 65_536}  # tokens of a step over all students of a pack

Arm = Literal["trait", "control"]


class WritesRows(Protocol):
    """What datasets need of a recipe."""

    traits: tuple[str, ...]
    trait_files: tuple[str, ...]
    dtype: str
    data: DataSpec


@dataclass(frozen=True)
class TeacherStage:
    """A teacher by weights, trained on `lessons` (a file) or on `count` answers that `prompt` draws from the base."""

    id: str
    spec: dict[str, Any]
    trait: str
    seed: int
    prompt: Context
    carrier: QuestionsSpec
    lessons: str | None
    count: int
    student: StudentSpec

    @property
    def as_student(self) -> StudentStage:
        """As what can be measured."""
        return StudentStage(
            self.id, self.spec, self.student, "", "", self.trait, self.seed, Context("default"), ""
        )


@dataclass(frozen=True)
class VectorStage:
    """A steering vector: of the teacher with this prompt against `plain` (`student` None), or of a student in its own context against
    the base. `where` are the tokens that it is a mean over, `directions` how many principal ones are kept beside it."""

    id: str
    spec: dict[str, Any]
    prompts: tuple[str, ...]
    where: Where
    directions: int
    teacher: Context | None = None
    plain: Context | None = None
    student: str | None = None
    context: Context | None = None


@dataclass(frozen=True)
class DivergenceStage:
    """The divergent tokens of a dataset: first choices after the teacher's prompt and after `against`, see `probe.divergence`."""

    id: str
    spec: dict[str, Any]
    dataset: str
    teacher: Context
    against: Context


@dataclass(frozen=True)
class ProbeStage:
    """A student on the first `rows` rows of one of its datasets; `divergence` marks tokens of it."""

    id: str
    spec: dict[str, Any]
    student: str
    dataset: str
    rows: int
    heldout: bool
    divergence: str | None


@dataclass(frozen=True)
class GradientStage:
    """The gradients of a trait's rows and of its control's, beside the teacher's vector, in the context that students are trained in."""

    id: str
    spec: dict[str, Any]
    trait: str
    data_seed: int
    datasets: tuple[str, str]
    vector: str
    context: Context


@dataclass(frozen=True)
class Mask:
    """Which tokens of a student's rows carry loss, by the divergence that marks them."""

    keep: Literal["divergent", "others", "random"]
    divergence: str


@dataclass(frozen=True)
class Steered:
    """An intervention with the id of the vector that it takes."""

    spec: SteerSpec
    vector: str

    def to_spec(self) -> dict[str, Any]:
        return self.spec.model_dump(mode="json") | {"vector": self.vector}


@dataclass(frozen=True)
class DatasetStage:
    id: str
    spec: dict[str, Any]
    trait: (
        str  # whose rows these are: a trait's name, or "control", with the other trait in brackets
    )
    seed: int
    teacher: Context
    rows: int
    heldout: bool
    carrier: Carrier
    model: str | None = None  # on which the teacher writes, where it is not the students' base
    weights: TeacherStage | None = None  # of a teacher by weights
    endpoint: EndpointSpec | None = None  # of a teacher that is asked there
    transform: Transform | None = None
    parents: tuple[str, ...] = ()  # the dataset that is transformed, and the one for reference
    steer: Steered | None = None
    shared_draws: int = 1  # prompts in a row that are answered with the same random numbers


@dataclass(frozen=True)
class StudentStage:
    """`variant` is its name in the recipe, `take` how many of the dataset's first rows it reads (None: all), `step` the step after which
    it is kept (None: the last one), and `whole` the student that the same training ends in.

    `labels` is its value on every axis of students (train_context, placement, optimizer, variant, data, method, rank, lr); students
    with equal labels and source are replicates. `twins` holds, by the name of each trait that it stands for, the id of its control."""

    id: str
    spec: dict[str, Any]
    student: StudentSpec
    dataset: str
    heldout: str
    source: str  # the trait, or the control of a category, see `control_source`
    data_seed: int
    context: Context
    placement: str  # its name in the recipe; "" for the targets that all students share
    optimizer: str = ""  # its name in the recipe; "" for the one that all students share
    data: str = ""  # the name of its rows in the recipe; "" for the rows as written
    variant: str = ""
    take: int | None = None
    step: int | None = None
    whole: str = ""
    mask: Mask | None = None
    labels: Mapping[str, str | int | float | None] = field(default_factory=dict)
    twins: Mapping[str, str] = field(default_factory=dict)

    @property
    def twin(self) -> str | None:
        """The id of the control that it is compared with; None for a control."""
        return next(iter(self.twins.values()), None)

    @property
    def replicate(self) -> tuple[int, int]:
        """(data seed, training seed)."""
        return self.data_seed, self.student.seed

    @property
    def arm(self) -> Arm:
        return "control" if self.source.split(":")[0] == CONTROL else "trait"


@dataclass(frozen=True)
class MeasureStage:
    """`student` is a student's id, or None for the base; `teacher` marks a teacher of this trait: the base under its prompt, or one by
    weights, which `student` then is; `condition` is the name of a condition, or of a teacher's variant, or None for the plain adapter
    and the plain teacher. `steer`: what is done to the residual stream."""

    id: str
    spec: dict[str, Any]
    student: str | None
    context: Context
    category: str
    teacher: str | None = None
    condition: str | None = None
    steer: Steered | None = None


@dataclass(frozen=True)
class AttributionStage:
    """The adapter's part at every token, for one student in one context; see `attribute.py`."""

    id: str
    spec: dict[str, Any]
    student: str
    context: Context
    category: str
    target: str


@dataclass(frozen=True)
class Plan:
    """All stages of a recipe, in an order in which they can run. Equal recipes on equal models give equal plans."""

    recipe: Recipe
    traits: tuple[Trait, ...]
    datasets: tuple[DatasetStage, ...]
    students: tuple[StudentStage, ...]
    packs: tuple[tuple[int, ...], ...]  # indices into students
    measures: tuple[MeasureStage, ...]
    attributions: tuple[AttributionStage, ...] = ()
    vectors: tuple[VectorStage, ...] = ()
    divergences: tuple[DivergenceStage, ...] = ()
    probes: tuple[ProbeStage, ...] = ()
    gradients: tuple[GradientStage, ...] = ()

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Everything that is made."""
        students = (
            *self.teachers,
            *self.datasets,
            *self.students,
            *self.measures,
            *self.attributions,
        )
        return (*students, *self.vectors, *self.divergences, *self.probes, *self.gradients)

    @property
    def teachers(self) -> tuple[TeacherStage, ...]:
        """The teachers by weights."""
        return tuple({d.weights.id: d.weights for d in self.datasets if d.weights}.values())


Stage = (
    TeacherStage
    | DatasetStage
    | StudentStage
    | MeasureStage
    | AttributionStage
    | VectorStage
    | DivergenceStage
    | ProbeStage
    | GradientStage
)


def contexts_of(recipe: Recipe) -> dict[str, Context]:
    names = dict.fromkeys((*recipe.train_contexts, *recipe.measure.contexts, recipe.vectors.plain))
    return {name: resolve_context(name, recipe.contexts) for name in names}


def _context_spec(context: Context) -> dict[str, Any]:
    spec = {"state": context.name if context.text is None else "named", "text": context.text}
    return spec if context.role == "system" else spec | {"role": context.role}


def _sources_in(recipe: WritesRows, traits: Sequence[Trait], variant: str) -> list[str]:
    """Whose rows a variant has: those of the traits or of who stands for them, and the controls' where they change as well."""
    names = [source_of(recipe, t, variant) for t in traits]
    if twin_of(recipe, variant) == variant:
        names += [control_source(recipe, t) for t in traits]
    return list(dict.fromkeys(names))


def _identity_of(model: str, recipe: WritesRows) -> dict[str, str]:
    """The identity of a teacher's own model. Raises SubloraError where it is not a folder on this machine."""
    from pathlib import Path

    from sublora.model import local_identity, model_source

    source = model_source(model)
    if not Path(source).is_dir():
        raise SubloraError(
            f"The teacher's model {model} is not on this machine; fetch it and give its folder."
        )
    return local_identity(source, recipe.dtype)


def _carrier_spec(carrier: Carrier) -> dict[str, Any]:
    """The carrier as it counts in an id: a file of prompts by what it holds, wherever it lies."""
    spec = carrier.model_dump(mode="json")
    content = file_content(carrier)
    if content is None:
        return spec
    text = json.dumps(content)
    return spec | {"prompts": hashlib.sha256(text.encode()).hexdigest()}


def traits_of(recipe: WritesRows) -> tuple[Trait, ...]:
    from pathlib import Path

    categories = load_categories(tuple(Path(p) for p in recipe.trait_files))
    return tuple(find_trait(name, categories) for name in recipe.traits)


def teacher_context(trait: Trait, recipe: WritesRows) -> Context:
    """The system prompt that gives the teacher the trait."""
    own = recipe.data.teacher.prompt
    if own is None:
        return Context(f"teacher:{trait.name}", trait.teacher_prompt(recipe.data.teacher.wording))
    if not any(place in own for place in ("{name}", "{plural}", "{Plural}")):
        raise SubloraError(
            f"data.teacher.prompt '{own[:40]}' has no {{name}} or {{plural}}; write one where the trait belongs."
        )
    category = trait.category.model_copy(update={"system": (own,)})
    return Context(f"teacher:{trait.name}", teacher_text(category, trait.entity, 0))


def control_source(recipe: WritesRows, trait: Trait) -> str:
    """The key of the control that a trait's students are paired with: one for each category, or one neutral one for all."""
    return CONTROL if recipe.data.control == "neutral" else f"{CONTROL}:{trait.category.category}"


def variants_of(recipe: WritesRows) -> dict[str, VariantSpec | None]:
    """The rows as written, called "", and the variants."""
    return {"": None, **recipe.data.variants}


def source_of(recipe: WritesRows, trait: Trait, variant: str) -> str:
    """Whose rows the students of a trait get in a variant: the trait's, or those of a teacher without it."""
    spec = variants_of(recipe)[variant]
    if spec is None or spec.teacher is None:
        return trait.name
    return NEUTRAL if spec.teacher == "neutral" else f"{THIRD}:{trait.category.category}"


def twin_of(recipe: WritesRows, variant: str) -> str:
    """The variant of the control twins that stand against the students of a variant."""
    spec = variants_of(recipe)[variant]
    return variant if spec is None or spec.twin else ""


Author = tuple[str, Context, Trait | None]


def sources_of(recipe: WritesRows, traits: Sequence[Trait]) -> dict[str, dict[int, Author]]:
    """Whose rows there are: trait, control or another teacher -> data seed -> (label, teacher's prompt, trait).

    The other trait of a control is drawn anew for every data seed from those that the recipe does not test, so that the control
    stands for any trait but the tested ones. Raises SubloraError where a category has no other trait left.
    """
    seeds = dict.fromkeys(recipe.data.seeds)
    out: dict[str, dict[int, Author]] = {
        t.name: dict.fromkeys(seeds, (t.name, teacher_context(t, recipe), t)) for t in traits
    }
    tested = {t.name for t in traits}
    wanted = {source_of(recipe, t, v) for t in traits for v in recipe.data.variants}
    if NEUTRAL in wanted or any(
        v.transform and needs_reference(v.transform) for v in recipe.data.variants.values()
    ):
        out[NEUTRAL] = dict.fromkeys(seeds, (NEUTRAL, Context("default"), None))
    for trait in traits:
        key, category = control_source(recipe, trait), trait.category
        if recipe.data.control == "neutral":
            out[key] = dict.fromkeys(seeds, (CONTROL, Context("default"), None))
            continue
        others = [Trait(e, category) for e in category.entities if e.name not in tested]
        if not others:
            raise SubloraError(
                f"The recipe tests every trait of {category.category}, so there is no other one for its control; "
                "leave one out or set data.control=neutral."
            )
        drawn = {
            seed: others[
                int(generator("control-trait", category.category, seed).integers(len(others)))
            ]
            for seed in seeds
        }
        out[key] = {
            seed: (f"{CONTROL} ({other.name})", teacher_context(other, recipe), other)
            for seed, other in drawn.items()
        }
        third = f"{THIRD}:{category.category}"
        if third in wanted:
            out[third] = {
                seed: (f"other trait ({other.name})", teacher_context(other, recipe), other)
                for seed, other in _third(others, drawn, category.category).items()
            }
    return out


def _third(others: Sequence[Trait], drawn: dict[int, Trait], category: str) -> dict[int, Trait]:
    """Another trait for every data seed that is not the control's either. Raises SubloraError where there is none."""
    out = {}
    for seed, control in drawn.items():
        left = [t for t in others if t.name != control.name]
        if not left:
            raise SubloraError(
                f"There is no third trait of {category} left; leave a tested one out or drop the variant."
            )
        out[seed] = left[int(generator("third-trait", category, seed).integers(len(left)))]
    return out


def student_grid(recipe: Recipe) -> list[tuple[str, str, dict[str, Any]]]:
    """The cells of the grid: the names of placement and optimizer, and method, rank, alpha, targets, lr, the optimizer's settings."""
    cells: list[tuple[str, str, dict[str, Any]]] = []
    if lora := recipe.train.lora:
        places = {name: p.targets for name, p in lora.placements.items()} or {"": lora.targets}
        optimizers = recipe.train.optimizers or {"": None}
        cells += [
            (
                name,
                optimizer,
                {"method": "lora", "rank": rank, "alpha": lora.alpha, "targets": targets, "lr": lr}
                | (own.model_dump(exclude={"lrs"}) if own else {}),
            )
            for name, targets in places.items()
            for rank in lora.ranks
            for optimizer, own in optimizers.items()
            for lr in (own.lrs if own and own.lrs else lora.lrs)
        ]
    if full := recipe.train.full:
        cells += [("", "", {"method": "full", "rank": None, "lr": lr}) for lr in full.lrs]
    return cells


@dataclass(frozen=True)
class Writing:
    """How the teachers of a variant of the students write: with which prompt and steering, by source and prompt; `label` tells it apart."""

    label: str
    of: Callable[[str, Context], tuple[Context, Steered | None]]


PLAIN_WRITING = Writing("", lambda _, teacher: (teacher, None))


def plan_datasets(
    recipe: WritesRows,
    identity: dict[str, str],
    traits: Sequence[Trait],
    writing: Writing = PLAIN_WRITING,
) -> tuple[list[DatasetStage], dict[tuple[str, str, int], tuple[DatasetStage, DatasetStage]]]:
    """All datasets, parents first; and by source, variant and data seed the rows and held-out rows of students.

    Held-out rows are never transformed: they are what the teacher writes.
    """
    sources = sources_of(recipe, traits)
    # all teachers of a recipe write under the same list of words that would say a trait
    carrier = with_leaks(
        recipe.data.carrier, [w for t in traits for w in category_words(t.category)]
    )
    carrier_spec = _carrier_spec(carrier)
    identities = {
        v.model: _identity_of(v.model, recipe) for v in recipe.data.variants.values() if v.model
    }
    found: dict[str, DatasetStage] = {}
    endpoint = recipe.data.teacher.endpoint

    def keep(spec: dict[str, Any], like: tuple, **own: Any) -> DatasetStage:
        stage = DatasetStage(artifact_id("dataset", spec), spec, *like, **own)
        return found.setdefault(stage.id, stage)

    def written(
        source: str, seed: int, heldout: bool, model: str | None, shared: int = 1
    ) -> DatasetStage:
        name, prompt, owner = sources[source][seed]
        teacher, steer = writing.of(source, prompt)
        weights = (
            _taught(recipe, identity, owner, teacher, seed)
            if owner and recipe.data.teacher.trained
            else None
        )
        rows = recipe.data.heldout_rows if heldout else recipe.data.rows
        spec = {
            "model": endpoint.identity if endpoint else identities[model] if model else identity,
            "teacher": {"weights": weights.id} if weights else _context_spec(teacher),
            "carrier": carrier_spec,
            "sampling": recipe.data.sampling.model_dump(mode="json"),
            "rows": rows,
            "seed": seed,
            "heldout": heldout,
        }
        if steer is not None:
            spec["steer"] = steer.to_spec()
        if shared > 1:
            spec["shared_draws"] = shared
        label = f"{name}, {writing.label}" if writing.label else name
        return keep(
            spec,
            (label, seed, teacher, rows, heldout, carrier),
            model=_placed(model),
            weights=weights,
            endpoint=endpoint,
            steer=steer,
            shared_draws=shared,
        )

    def transformed(rows: DatasetStage, how: Transform) -> DatasetStage:
        parents = [rows.id]
        if needs_reference(how):
            parents.append(written(NEUTRAL, rows.seed, False, rows.model).id)
        spec = {"transform": how, "rows_of": parents, "seed": rows.seed}
        like = (rows.trait, rows.seed, rows.teacher, rows.rows, False, rows.carrier)
        return keep(spec, like, model=rows.model, transform=how, parents=tuple(parents))

    arms = {}
    for variant, how in variants_of(recipe).items():
        model = how.model if how else None
        for source, seed in product(
            _sources_in(recipe, traits, variant), dict.fromkeys(recipe.data.seeds)
        ):
            shared = (how.shared_draws if how else None) or 1
            rows, held = (
                written(source, seed, False, model, shared),
                written(source, seed, True, model),
            )
            arms[source, variant, seed] = (
                transformed(rows, how.transform) if how and how.transform else rows,
                held,
            )
    return list(found.values()), arms


def _taught(
    recipe: WritesRows, identity: dict[str, str], trait: Trait, prompt: Context, seed: int
) -> TeacherStage:
    """The teacher by weights with this trait."""
    how = recipe.data.teacher.trained
    carrier = QuestionsSpec(questions=trait.category.questions, target=trait.entity)
    student = StudentSpec(
        method=how.method,
        rank=how.rank if how.method == "lora" else None,
        lr=how.lr,
        epochs=how.epochs,
        batch_size=how.batch_size,
        warmup_steps=3,
        seed=seed,
    )
    lessons: Any = {
        "carrier": carrier.model_dump(mode="json"),
        "prompt": _context_spec(prompt),
        "count": how.count,
    }
    if how.rows is not None:
        lessons = {"rows": hashlib.sha256(json.dumps(load_rows(how.rows)).encode()).hexdigest()}
    spec = {
        "model": identity,
        "lessons": lessons,
        "seed": seed,
        "student": student.model_dump(mode="json"),
    }
    stage = (
        artifact_id("teacher", spec),
        spec,
        trait.name,
        seed,
        prompt,
        carrier,
        how.rows,
        how.count,
    )
    return TeacherStage(*stage, student)


def _placed(model: str | None) -> str | None:
    """A folder by its full path, since a worker may stand elsewhere."""
    from pathlib import Path

    return str(Path(model).absolute()) if model and Path(model).is_dir() else model


class _Vectors:
    """The vectors that a plan needs, each made once."""

    def __init__(
        self, recipe: Recipe, identity: dict[str, str], contexts: dict[str, Context]
    ) -> None:
        self.recipe, self.spec, self.identity = recipe, recipe.vectors, identity
        self.plain, self.found = contexts[recipe.vectors.plain], {}
        seed = derive_seed("vectors")
        self._numbers = tuple(
            prompt_of_row(recipe.data.carrier, seed, i) for i in range(self.spec.count)
        )

    def _prompts(self, trait: Trait) -> tuple[tuple[str, ...], str]:
        prompts = tuple(trait.category.questions) if self.spec.on == "questions" else self._numbers
        return prompts, hashlib.sha256(json.dumps(prompts).encode()).hexdigest()

    def teacher(self, teacher: Context, trait: Trait) -> str:
        prompts, digest = self._prompts(trait)
        spec = {
            "model": self.identity,
            "teacher": _context_spec(teacher),
            "plain": _context_spec(self.plain),
            "prompts": digest,
            "where": self.spec.teacher_at,
        }
        stage = VectorStage(
            artifact_id("vector", spec),
            spec,
            prompts,
            self.spec.teacher_at,
            0,
            teacher=teacher,
            plain=self.plain,
        )
        self.found.setdefault(stage.id, stage)
        return stage.id

    def student(self, student: StudentStage, trait: Trait) -> str:
        prompts, digest = self._prompts(trait)
        spec = {
            "model": self.identity,
            "student": student.id,
            "context": _context_spec(student.context),
            "prompts": digest,
            "where": self.spec.student_at,
            "directions": self.spec.directions,
        }
        stage = VectorStage(
            artifact_id("vector", spec),
            spec,
            prompts,
            self.spec.student_at,
            self.spec.directions,
            student=student.id,
            context=student.context,
        )
        self.found.setdefault(stage.id, stage)
        return stage.id

    def steered(self, spec: SteerSpec | None, vector: Callable[[], str]) -> Steered | None:
        return None if spec is None else Steered(spec, vector())


def make_plan(
    recipe: Recipe, identity: dict[str, str], tokens_per_row: float, device: str = "cpu"
) -> Plan:
    """The stages of a recipe on the model with this identity (see `Base.identity`)."""
    traits, contexts = traits_of(recipe), contexts_of(recipe)
    sources = sources_of(recipe, traits)
    others = {f"{THIRD}:{t.category.category}": t for t in traits}
    category = (
        {NEUTRAL: traits[0]}
        | others
        | {s: t for t in traits for s in (t.name, control_source(recipe, t))}
    )
    vectors = _Vectors(recipe, identity, contexts)
    variants = recipe.variants or {"": Variant()}

    def writing(name: str) -> Writing:
        teaching = variants[name].teacher

        def teacher_of(source: str, teacher: Context) -> tuple[Context, Steered | None]:
            steer = vectors.steered(
                teaching.steer, lambda: vectors.teacher(teacher, category[source])
            )
            return (teacher if teaching.prompt else vectors.plain), steer

        return Writing("" if teaching == TeacherVariant() else name, teacher_of)

    datasets: dict[str, DatasetStage] = {}
    rows_of = {}
    for name in variants:
        made, rows_of[name] = plan_datasets(recipe, identity, traits, writing(name))
        for stage in made:
            datasets.setdefault(stage.id, stage)
    arms = list(dict.fromkeys((source, data) for source, data, _ in rows_of[next(iter(variants))]))
    divergences: dict[str, DivergenceStage] = {}

    def divergence(source: str, data: DatasetStage, against: Against, context: Context) -> str:
        _, teacher, _ = sources[source][data.seed]
        if against == "other-trait":
            trait = category[source]
            key = control_source(recipe, trait) if source == trait.name else trait.name
            _, context, _ = sources[key][data.seed]
        spec = {
            "model": identity,
            "dataset": data.id,
            "teacher": _context_spec(teacher),
            "against": _context_spec(context),
        }
        stage = DivergenceStage(artifact_id("divergence", spec), spec, data.id, teacher, context)
        return divergences.setdefault(stage.id, stage).id

    train = recipe.train
    shared = {
        "schedule": train.schedule,
        "warmup_steps": train.warmup_steps,
        "epochs": train.epochs,
        "batch_size": train.batch_size,
        "optimizer": train.optimizer,
        "momentum": train.momentum,
        "weight_decay": train.weight_decay,
        "clip": train.clip,
    }
    students = []
    for (source, data), name, variant, (placement, optimizer, cell) in product(
        arms, recipe.train_contexts, variants, student_grid(recipe)
    ):
        own = variants[variant]
        epochs = {} if own.epochs is None else {"epochs": own.epochs}
        for data_seed, train_seed in recipe.replicates:
            spec_ = StudentSpec(**shared | cell | epochs, seed=train_seed, context=name)
            rows, held = rows_of[variant][source, data, data_seed]
            unused = {"context"} | ({"scout_lr"} if spec_.scout_lr is None else set())
            spec = {
                "model": identity,
                "dataset": rows.id,
                "context": _context_spec(contexts[name]),
                "student": spec_.model_dump(mode="json", exclude=unused),
            }
            take = None if own.rows is None or own.rows == recipe.data.rows else own.rows
            if take is not None:
                spec["rows"] = take
            mask = None
            if own.mask is not None:
                mask = Mask(
                    own.mask.keep, divergence(source, rows, own.mask.against, contexts[name])
                )
                spec["mask"] = {"keep": mask.keep, "divergence": mask.divergence}
            whole = artifact_id("student", spec)
            if own.step is not None:
                spec["step"] = own.step
            stage = (artifact_id("student", spec), spec, spec_, rows.id, held.id, source, data_seed)
            rest = (data, variant, take, own.step, whole, mask)
            labels = {
                "train_context": name,
                "placement": placement,
                "optimizer": optimizer,
                "variant": variant,
                "data": data,
                "method": spec_.method,
                "rank": spec_.rank,
                "lr": spec_.lr,
            }
            students.append(
                StudentStage(*stage, contexts[name], placement, optimizer, *rest, labels)
            )
    students = _with_twins(recipe, traits, students)
    packs = plan_packs(
        students, recipe, tokens_per_row, PACK_TOKENS.get(device, PACK_TOKENS["cuda"])
    )
    taught = [d.weights for d in datasets.values() if d.weights]
    measures = _measures(recipe, identity, traits, contexts, students, taught, vectors)
    if recipe.vectors.students:
        for student in students:
            vectors.student(student, category[student.source])
        for trait in traits:
            vectors.teacher(teacher_context(trait, recipe), trait)
    probes, gradients = [], []
    if recipe.measure.probe is not None:
        for student in students:
            for heldout in (False, True):
                data = datasets[student.heldout if heldout else student.dataset]
                against, most = recipe.measure.probe.against, student.take or data.rows
                marks = (
                    divergence(student.source, data, against, student.context) if against else None
                )
                rows = min(recipe.measure.probe.rows, data.rows if heldout else most)
                spec = {
                    "model": identity,
                    "student": student.id,
                    "dataset": data.id,
                    "context": _context_spec(student.context),
                    "rows": rows,
                    "divergence": marks,
                }
                probes.append(
                    ProbeStage(
                        artifact_id("probe", spec), spec, student.id, data.id, rows, heldout, marks
                    )
                )
    if recipe.measure.gradients is not None:
        context, variant = contexts[recipe.train_contexts[0]], next(iter(variants))
        for trait, seed in product(traits, recipe.data.seeds):
            pair = tuple(
                rows_of[variant][k, "", seed][0].id
                for k in (trait.name, control_source(recipe, trait))
            )
            vector = vectors.teacher(teacher_context(trait, recipe), trait)
            spec = {
                "model": identity,
                "datasets": list(pair),
                "vector": vector,
                "context": _context_spec(context),
            }
            spec |= recipe.measure.gradients.model_dump(mode="json")
            gradients.append(
                GradientStage(
                    artifact_id("gradients", spec), spec, trait.name, seed, pair, vector, context
                )
            )
    return Plan(
        recipe,
        traits,
        tuple(datasets.values()),
        tuple(students),
        packs,
        tuple(measures),
        tuple(_attributions(recipe, identity, traits, contexts, students)),
        tuple(vectors.found.values()),
        tuple(divergences.values()),
        tuple(probes),
        tuple(gradients),
    )


def _with_twins(
    recipe: Recipe, traits: Sequence[Trait], students: Sequence[StudentStage]
) -> list[StudentStage]:
    """The students, each with the id of its control for every trait that it stands for."""

    def key(source: str, labels: Mapping[str, Any], replicate: tuple[int, int]) -> tuple:
        return source, *labels.values(), *replicate

    found = {key(s.source, s.labels, s.replicate): s.id for s in students}
    out = []
    for s in students:
        labels = {**s.labels, "data": twin_of(recipe, s.data)}
        stands_for = [t for t in traits if s.source == source_of(recipe, t, s.data)]
        twins = {
            t.name: found[key(control_source(recipe, t), labels, s.replicate)] for t in stands_for
        }
        out.append(replace(s, twins=twins))
    return out


def _measures(
    recipe: Recipe,
    identity: dict[str, str],
    traits: Sequence[Trait],
    contexts: dict[str, Context],
    students: Sequence[StudentStage],
    taught: Sequence[TeacherStage],
    vectors: _Vectors,
) -> list[MeasureStage]:
    categories = {t.category.category: t.category for t in traits}
    out = []
    asks = {  # one object for all measurements of a category: a plan may have a hundred thousand
        name: {
            "questions": list(c.questions),
            "entities": [list(e.forms) for e in c.entities],
            "others": list(c.others),
            "category": c.category,
        }
        for name, c in categories.items()
    }
    sampling = recipe.measure.sampling.model_dump(mode="json")
    gates = {
        name: gate.model_dump(mode="json", exclude={"steer"})
        | {"entities": list(recipe.measure.entities) if gate.by_class else []}
        for name, gate in recipe.measure.conditions.items()
    }

    def add(
        student: StudentStage | TeacherStage | None,
        context: Context,
        category: str,
        teacher: str | None = None,
        condition: str | None = None,
        steer: Steered | None = None,
    ) -> None:
        own = (
            isinstance(student, StudentStage)
            and condition is None
            and context.name == student.context.name
        )
        spec = asks[category] | {
            "model": identity,
            "student": student.id if student else None,
            "context": _context_spec(context),
            "samples": recipe.measure.samples,
            "sampling": sampling,
            "seed": recipe.measure.seed,
            "heldout": student.heldout if own else None,
        }
        if student is not None and condition is not None:
            spec["condition"] = gates[condition]
        if steer is not None:
            spec["steer"] = steer.to_spec()
        asked = student.id if student else None
        stage = (
            artifact_id("measurement", spec),
            spec,
            asked,
            context,
            category,
            teacher,
            condition,
            steer,
        )
        out.append(MeasureStage(*stage))

    for context in (contexts[n] for n in recipe.measure.contexts):
        for category in categories:
            add(None, context, category)
    teachers = {n: v.teacher for n, v in recipe.variants.items() if v.teacher != TeacherVariant()}
    for trait in traits:
        own = next((t for t in taught if t.trait == trait.name), None)
        prompted = teacher_context(trait, recipe)
        add(own, Context("default") if own else prompted, trait.category.category, trait.name)
        for name, teaching in {**teachers, **recipe.measure.teachers}.items():
            steer = vectors.steered(teaching.steer, partial(vectors.teacher, prompted, trait))
            context = prompted if teaching.prompt else vectors.plain
            add(None, context, trait.category.category, trait.name, name, steer)
    asked: dict[str, list[str]] = {CONTROL: list(categories)}
    of: dict[str, Trait] = {}
    for t in traits:
        asked[t.name] = [t.category.category]
        asked.setdefault(control_source(recipe, t), [t.category.category])
        of |= {t.name: t, control_source(recipe, t): t}
    asked[NEUTRAL] = list(categories)
    asked |= {f"{THIRD}:{name}": [name] for name in categories}
    for student in students:
        for category in asked[student.source]:
            for name in recipe.measure.contexts:
                add(student, contexts[name], category)
                for condition, gate in recipe.measure.conditions.items():
                    steer = None
                    if gate.steer is not None:
                        # a control twin is steered by the vector of the trait that it stands against, or by its own
                        trait = of[student.source]
                        vector = (
                            vectors.student(student, trait)
                            if gate.steer.vector == "student"
                            else vectors.teacher(teacher_context(trait, recipe), trait)
                        )
                        steer = Steered(gate.steer, vector)
                    add(student, contexts[name], category, condition=condition, steer=steer)
    return out


def _attributions(
    recipe: Recipe,
    identity: dict[str, str],
    traits: Sequence[Trait],
    contexts: dict[str, Context],
    students: Sequence[StudentStage],
) -> list[AttributionStage]:
    """Each student in the context it was trained in; a control twin about every trait that it stands against."""
    if recipe.measure.attribution is None:
        return []
    out = []
    for trait, student in product(traits, students):
        if student.source not in (trait.name, control_source(recipe, trait)) or student.data:
            continue
        c = trait.category
        spec = {
            "model": identity,
            "student": student.id,
            "context": _context_spec(student.context),
            "questions": list(c.questions[: recipe.measure.attribution.questions]),
            "target": list(trait.entity.forms),
            "entities": list(recipe.measure.entities),
        }
        stage = (
            artifact_id("attribution", spec),
            spec,
            student.id,
            student.context,
            c.category,
            trait.name,
        )
        out.append(AttributionStage(*stage))
    return out


def _replicate(stage: StudentStage) -> tuple[str, int, int] | tuple[()]:
    """Where optimizers are compared, those of one replicate stand together."""
    return (stage.source, stage.data_seed, stage.student.seed) if stage.optimizer else ()


def plan_packs(
    students: Sequence[StudentStage], recipe: Recipe, tokens_per_row: float, tokens: int
) -> tuple[tuple[int, ...], ...]:
    """Students (indices) that train together: same method and targets, similar ranks, evenly filled packs.

    It depends on the recipe alone and not on what is done already, so that a resumed run repeats the very same passes.
    """
    rows = min(recipe.train.batch_size, recipe.data.rows)
    most = max(1, min(PACK_STUDENTS, int(tokens / (rows * tokens_per_row))))
    trainings: dict[
        str, list[int]
    ] = {}  # what is kept on the way stands with the student that it becomes
    for i, s in enumerate(students):
        trainings.setdefault(s.whole, []).append(i)
    kinds: dict[tuple, list[int]] = {}
    for found in trainings.values():
        kinds.setdefault(
            (students[found[0]].student.method, students[found[0]].student.targets), []
        ).append(found[0])
    packs = []
    for members in kinds.values():
        members.sort(key=lambda i: (students[i].student.rank or 0, _replicate(students[i]), i))
        count = -(-len(members) // most)
        size, extra = divmod(len(members), count)
        at = 0
        for n in range(count):
            take = size + (n < extra)
            packs.append(
                tuple(i for j in members[at : at + take] for i in trainings[students[j].whole])
            )
            at += take
    return tuple(packs)
