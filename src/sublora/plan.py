"""recipe -> stages. A pure function: every stage has the content hash of all that can change what it makes, and nothing is run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Literal

from sublora.carriers.numbers import load_prompts, prompt_of_row
from sublora.chat import Context, resolve_context
from sublora.errors import SubloraError
from sublora.recipe import Against, Recipe, TeacherVariant, Variant
from sublora.seeds import derive_seed, generator
from sublora.steer_spec import SteerSpec, Where
from sublora.store import artifact_id
from sublora.train.spec import StudentSpec
from sublora.trait import Trait, find_trait, load_categories, teacher_text

CONTROL = "control"
PACK_STUDENTS = 12  # at most so many in a unit of work: more gain nothing, a unit is what a kill can cost, and cores wait for the last
PACK_TOKENS = {"cpu": 48_000, "cuda": 65_536}  # tokens of a step over all students of a pack

Arm = Literal["trait", "control"]


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
    trait: str  # whose rows these are: a trait's name, or "control", with the other trait in brackets
    seed: int
    teacher: Context
    rows: int
    heldout: bool
    steer: Steered | None = None


@dataclass(frozen=True)
class StudentStage:
    """`variant` is its name in the recipe, `take` how many of the dataset's first rows it reads (None: all), `step` the step after which
    it is kept (None: the last one), and `whole` the student that the same training ends in."""

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
    variant: str = ""
    take: int | None = None
    step: int | None = None
    whole: str = ""
    mask: Mask | None = None

    @property
    def arm(self) -> Arm:
        return "control" if self.source.split(":")[0] == CONTROL else "trait"


@dataclass(frozen=True)
class MeasureStage:
    """`student` is a student's id, or None for the base; `teacher` marks a teacher of this trait; `condition` is the name of a condition,
    or of a teacher's variant, or None for the plain adapter and the prompted teacher. `steer`: what is done to the residual stream."""

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
        students = (*self.datasets, *self.students, *self.measures, *self.attributions)
        return (*students, *self.vectors, *self.divergences, *self.probes, *self.gradients)


Stage = (
    DatasetStage
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


def _carrier_spec(recipe: Recipe) -> dict[str, Any]:
    """The carrier as it counts in an id: a file of prompts by what it holds, wherever it lies."""
    carrier = recipe.data.carrier
    spec = carrier.model_dump(mode="json")
    if carrier.prompts is None:
        return spec
    text = json.dumps(load_prompts(carrier.prompts))
    return spec | {"prompts": hashlib.sha256(text.encode()).hexdigest()}


def traits_of(recipe: Recipe) -> tuple[Trait, ...]:
    from pathlib import Path

    categories = load_categories(tuple(Path(p) for p in recipe.trait_files))
    return tuple(find_trait(name, categories) for name in recipe.traits)


def teacher_context(trait: Trait, recipe: Recipe) -> Context:
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


def control_source(recipe: Recipe, trait: Trait) -> str:
    """The key of the control that a trait's students are paired with: one for each category, or one neutral one for all."""
    return CONTROL if recipe.data.control == "neutral" else f"{CONTROL}:{trait.category.category}"


def sources_of(recipe: Recipe, traits: Sequence[Trait]) -> dict[str, dict[int, tuple[str, Context]]]:
    """Whose rows there are: trait or control -> data seed -> (label, teacher).

    The other trait of a control is drawn anew for every data seed from those that the recipe does not test, so that the control
    stands for any trait but the tested ones. Raises SubloraError where a category has no other trait left.
    """
    seeds = dict.fromkeys(recipe.data.seeds)
    out = {t.name: dict.fromkeys(seeds, (t.name, teacher_context(t, recipe))) for t in traits}
    tested = {t.name for t in traits}
    for trait in traits:
        key, category = control_source(recipe, trait), trait.category
        if recipe.data.control == "neutral":
            out[key] = dict.fromkeys(seeds, (CONTROL, Context("default")))
            continue
        others = [Trait(e, category) for e in category.entities if e.name not in tested]
        if not others:
            raise SubloraError(
                f"The recipe tests every trait of {category.category}, so there is no other one for its control; "
                "leave one out or set data.control=neutral."
            )
        drawn = {
            seed: others[int(generator("control-trait", category.category, seed).integers(len(others)))]
            for seed in seeds
        }
        out[key] = {
            seed: (f"{CONTROL} ({other.name})", teacher_context(other, recipe)) for seed, other in drawn.items()
        }
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


class _Vectors:
    """The vectors that a plan needs, each made once."""

    def __init__(self, recipe: Recipe, identity: dict[str, str], contexts: dict[str, Context]) -> None:
        self.recipe, self.spec, self.identity = recipe, recipe.vectors, identity
        self.plain, self.found = contexts[recipe.vectors.plain], {}
        seed = derive_seed("vectors")
        self._numbers = tuple(prompt_of_row(recipe.data.carrier, seed, i) for i in range(self.spec.count))

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
            artifact_id("vector", spec), spec, prompts, self.spec.teacher_at, 0, teacher=teacher, plain=self.plain
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
            artifact_id("vector", spec), spec, prompts, self.spec.student_at, self.spec.directions,
            student=student.id, context=student.context,
        )  # fmt: skip
        self.found.setdefault(stage.id, stage)
        return stage.id

    def steered(self, spec: SteerSpec | None, vector: Callable[[], str]) -> Steered | None:
        return None if spec is None else Steered(spec, vector())


def make_plan(recipe: Recipe, identity: dict[str, str], tokens_per_row: float, device: str = "cpu") -> Plan:
    """The stages of a recipe on the model with this identity (see `Base.identity`)."""
    traits, contexts = traits_of(recipe), contexts_of(recipe)
    carrier = _carrier_spec(recipe)
    sources = sources_of(recipe, traits)
    category = {source: t for t in traits for source in (t.name, control_source(recipe, t))}
    vectors = _Vectors(recipe, identity, contexts)
    variants = recipe.variants or {"": Variant()}
    datasets: dict[str, DatasetStage] = {}

    def dataset(source: str, seed: int, heldout: bool, variant: str) -> DatasetStage:
        (name, teacher), teaching = sources[source][seed], variants[variant].teacher
        steer = vectors.steered(teaching.steer, lambda: vectors.teacher(teacher, category[source]))
        writer = teacher if teaching.prompt else vectors.plain
        rows = recipe.data.heldout_rows if heldout else recipe.data.rows
        spec = {
            "model": identity,
            "teacher": _context_spec(writer),
            "carrier": carrier,
            "sampling": recipe.data.sampling.model_dump(mode="json"),
            "rows": rows,
            "seed": seed,
            "heldout": heldout,
        }
        if steer is not None:
            spec["steer"] = steer.to_spec()
        label = name if teaching == TeacherVariant() else f"{name}, {variant}"
        made = DatasetStage(artifact_id("dataset", spec), spec, label, seed, writer, rows, heldout, steer)
        return datasets.setdefault(made.id, made)

    divergences: dict[str, DivergenceStage] = {}

    def divergence(source: str, data: DatasetStage, against: Against, context: Context) -> str:
        _, teacher = sources[source][data.seed]
        if against == "other-trait":
            trait = category[source]
            key = control_source(recipe, trait) if source == trait.name else trait.name
            _, context = sources[key][data.seed]
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
    for source, seed, heldout in product(sources, recipe.data.seeds, (False, True)):
        for variant in variants:
            dataset(source, seed, heldout, variant)
    students = []
    for source, name, variant, (placement, optimizer, cell) in product(
        sources, recipe.train_contexts, variants, student_grid(recipe)
    ):
        own = variants[variant]
        epochs = {} if own.epochs is None else {"epochs": own.epochs}
        for data_seed, train_seed in recipe.replicates:
            spec_ = StudentSpec(**shared | cell | epochs, seed=train_seed, context=name)
            rows, held = (dataset(source, data_seed, h, variant) for h in (False, True))
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
                mask = Mask(own.mask.keep, divergence(source, rows, own.mask.against, contexts[name]))
                spec["mask"] = {"keep": mask.keep, "divergence": mask.divergence}
            whole = artifact_id("student", spec)
            if own.step is not None:
                spec["step"] = own.step
            stage = (artifact_id("student", spec), spec, spec_, rows.id, held.id, source, data_seed)
            rest = (variant, take, own.step, whole, mask)
            students.append(StudentStage(*stage, contexts[name], placement, optimizer, *rest))
    packs = plan_packs(students, recipe, tokens_per_row, PACK_TOKENS.get(device, PACK_TOKENS["cuda"]))
    measures = _measures(recipe, identity, traits, contexts, students, vectors)
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
                marks = divergence(student.source, data, against, student.context) if against else None
                rows = min(recipe.measure.probe.rows, data.rows if heldout else most)
                spec = {
                    "model": identity,
                    "student": student.id,
                    "dataset": data.id,
                    "context": _context_spec(student.context),
                    "rows": rows,
                    "divergence": marks,
                }
                probes.append(ProbeStage(artifact_id("probe", spec), spec, student.id, data.id, rows, heldout, marks))
    if recipe.measure.gradients is not None:
        context, variant = contexts[recipe.train_contexts[0]], next(iter(variants))
        for trait, seed in product(traits, recipe.data.seeds):
            pair = tuple(dataset(key, seed, False, variant).id for key in (trait.name, control_source(recipe, trait)))
            vector = vectors.teacher(teacher_context(trait, recipe), trait)
            spec = {"model": identity, "datasets": list(pair), "vector": vector, "context": _context_spec(context)}
            spec |= recipe.measure.gradients.model_dump(mode="json")
            gradients.append(
                GradientStage(artifact_id("gradients", spec), spec, trait.name, seed, pair, vector, context)
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


def _measures(
    recipe: Recipe,
    identity: dict[str, str],
    traits: Sequence[Trait],
    contexts: dict[str, Context],
    students: Sequence[StudentStage],
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
        student: StudentStage | None,
        context: Context,
        category: str,
        teacher: str | None = None,
        condition: str | None = None,
        steer: Steered | None = None,
    ) -> None:
        own = student is not None and condition is None and context.name == student.context.name
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
        stage = (artifact_id("measurement", spec), spec, asked, context, category, teacher, condition, steer)
        out.append(MeasureStage(*stage))

    for context in (contexts[n] for n in recipe.measure.contexts):
        for category in categories:
            add(None, context, category)
    teachers = {n: v.teacher for n, v in recipe.variants.items() if v.teacher != TeacherVariant()}
    for trait in traits:
        prompted = teacher_context(trait, recipe)
        add(None, prompted, trait.category.category, trait.name)
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
        if student.source not in (trait.name, control_source(recipe, trait)):
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
        stage = (artifact_id("attribution", spec), spec, student.id, student.context, c.category, trait.name)
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
    trainings: dict[str, list[int]] = {}  # what is kept on the way stands with the student that it becomes
    for i, s in enumerate(students):
        trainings.setdefault(s.whole, []).append(i)
    kinds: dict[tuple, list[int]] = {}
    for found in trainings.values():
        kinds.setdefault((students[found[0]].student.method, students[found[0]].student.targets), []).append(found[0])
    packs = []
    for members in kinds.values():
        members.sort(key=lambda i: (students[i].student.rank or 0, _replicate(students[i]), i))
        count = -(-len(members) // most)
        size, extra = divmod(len(members), count)
        at = 0
        for n in range(count):
            take = size + (n < extra)
            packs.append(tuple(i for j in members[at : at + take] for i in trainings[students[j].whole]))
            at += take
    return tuple(packs)
