"""The datasets of a recipe: whose rows, in which variants, for training and held out."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from sublora.carriers.carrier import Carrier
from sublora.carriers.questions import QuestionsSpec
from sublora.carriers.rows_file import read_rows
from sublora.carriers.transform import Transform, needs_reference
from sublora.errors import SubloraError
from sublora.experiments.grid import sources
from sublora.experiments.schema import DataSpec, RowsVariant
from sublora.models.base import placed
from sublora.models.chat import Context
from sublora.models.known import Known, known_model
from sublora.packs.labels import LabelSpec, read_labels
from sublora.packs.sample import Sampling
from sublora.packs.spec import StudentSpec
from sublora.steps.dataset import DatasetStep, GivenStep, RowsStep, TransformStep
from sublora.steps.labels import LabelStep, Reads
from sublora.steps.materials import Steered, context_spec
from sublora.steps.precondition import Precondition
from sublora.steps.sizes import Sizes
from sublora.steps.students import Student
from sublora.steps.teacher import TeacherStep
from sublora.traits.answers import category_words
from sublora.traits.trait import Trait, lessons_of

Rows = RowsStep
Arms = dict[tuple[str, str, int], tuple[Rows, Rows]]
"""By source, variant and data seed: the rows that students read, and their held-out rows."""


def _as_is(source: str, teacher: Context) -> tuple[Context, Steered | None]:
    return teacher, None


@dataclass(frozen=True)
class Writing:
    """How the teachers of one variant of the students write: `of` a source and its prompt gives prompt and steering."""

    label: str = ""  # tells its datasets apart
    of: Callable[[str, Context], tuple[Context, Steered | None]] = _as_is
    student: Callable[[str, int], Student] | None = None  # who teaches in a chain
    by_vector: Callable[[sources.Author, TeacherStep | None], tuple[Context, Steered]] | None = None


@dataclass(frozen=True)
class Rowing:
    """What the rows of a variant are: whose text, towards which labels, and what gives teachers their traits."""

    labels: LabelSpec
    source: str
    taught: str


def rowing_of(data: DataSpec, variant: RowsVariant | None) -> Rowing:
    """What a variant says, over what `data` says of all rows."""
    labels = (variant and variant.labels) or data.labels
    source = (variant and variant.source) or data.source
    taught = (variant and variant.taught) or ("weights" if data.teacher.trained else "prompt")
    return Rowing(labels, source, taught)


PLAINLY, TYPICAL, SHORT = Writing(), Sizes(), Sampling(max_new_tokens=16)


@dataclass
class _Writer:
    """Plans each dataset once."""

    recipe: sources.WritesRows
    known: Known
    sizes: Sizes
    writing: Writing
    traits: Sequence[Trait]
    lessons_sampling: Sampling
    begun: bool
    found: dict[str, Rows] = field(default_factory=dict)

    def __post_init__(self) -> None:
        data = self.recipe.data
        self.sources = sources.sources_of(self.recipe, self.traits)
        # all teachers write under the same list of words that would say a trait
        words = [w for t in self.traits for w in category_words(t.category)]
        self.carrier = data.carrier.with_leaks(words)
        self.carrier_spec = carrier_spec(self.carrier)
        models = {v.model for v in data.variants.values() if v.model}
        self.identities = {m: known_model(m, self.recipe.dtype).identity for m in models}

    def keep(self, step: Rows) -> Rows:
        return self.found.setdefault(step.id, step)

    def written(
        self,
        source: str,
        seed: int,
        heldout: bool,
        model: str | None,
        shared: int = 1,
        sampling: Sampling | None = None,
        taught: str = "weights",
    ) -> DatasetStep:
        """`sampling` is that of the recipe, unless it is given."""
        data, author = self.recipe.data, self.sources[source][seed]
        teacher, steer, weights = self._teacher(source, seed, taught, model)
        sampling = sampling or data.sampling
        rows = data.heldout_rows if heldout else data.rows
        endpoint = data.teacher.endpoint
        identity = endpoint.identity if endpoint else self.identity_of(model)
        spec = {
            "model": identity,
            "teacher": {"weights": weights.id} if weights else context_spec(teacher),
            "carrier": self.carrier_spec,
            "sampling": sampling.model_dump(mode="json"),
            "rows": rows,
            "seed": seed,
            "heldout": heldout,
        }
        if steer is not None:
            spec["steer"] = steer.to_spec()
        if shared > 1:
            spec["shared_draws"] = shared
        label = ", ".join(filter(None, (author.label, self.writing.label)))
        step = DatasetStep(
            spec,
            label,
            seed,
            teacher,
            rows,
            self.carrier,
            heldout=heldout,
            sampling=sampling,
            model=self.place(model),
            sizes=self.sizes,
            weights=weights,
            endpoint=endpoint,
            steer=steer,
            least=None if weights or steer else self._prompted(author.trait),
            shared_draws=shared,
        )
        return self.keep(step)

    def identity_of(self, model: str | None) -> dict[str, str]:
        """Of the students' base, or of a model on which teachers write."""
        return dict(self.identities[model] if model else self.known.identity)

    def _teacher(
        self, source: str, seed: int, taught: str, model: str | None
    ) -> tuple[Context, Steered | None, TeacherStep | Student | None]:
        author = self.sources[source][seed]
        if self.writing.student is not None:
            student = self.writing.student(source, seed)
            return student.context, None, student
        if taught == "vector" and author.trait is not None:
            if self.writing.by_vector is None or model:
                raise SubloraError(
                    "Teachers by a vector are for grids of students on their own base; leave out taught: vector."
                )
            weights = self._taught(author.trait, author.prompt, seed, None)
            return *self.writing.by_vector(author, weights), None
        plain = source == sources.NEUTRAL  # whatever steers the teachers, this is the model alone
        teacher, steer = (_as_is if plain else self.writing.of)(source, author.prompt)
        by_weights = taught == "weights"
        weights = self._taught(author.trait, teacher, seed, model) if by_weights else None
        return teacher, steer, weights

    def told(
        self, source: str, seed: int, heldout: bool, how: Rowing, model: str | None = None
    ) -> Rows:
        """The rows of a source as its students read them: the teacher's own text as it is, or a text with its labels. Raises SubloraError
        where these would be of another tokenizer."""
        own = how.source == "teacher"
        if own and how.labels.kind == "sampled":
            return self.written(source, seed, heldout, model, taught=how.taught)
        text = self._text(source, seed, heldout, how, model)
        if heldout and how.labels.kind == "replaced":  # these stay as they were written
            return text
        teacher, steer, weights = self._teacher(source, seed, how.taught, model)
        identity = self.identity_of(model)
        if identity["tokenizer"] != self.known.identity["tokenizer"]:
            raise SubloraError(
                f"The labels of a teacher on {model} are of another tokenizer than that of {self.recipe.model}; choose a model with its "
                "tokenizer, or data.labels.kind sampled with data.source teacher."
            )
        trait = self.sources[source][seed].trait
        if how.labels.file and trait is not None:
            return self._given(text, how.labels, trait)
        labels = how.labels.model_copy(update={"file": None})  # the plain model's are its own
        spec = {"labels": labels.model_dump(mode="json"), "rows_of": text.id, "seed": seed}
        by = _by(teacher, weights, steer)
        spec |= {"model": identity, "teacher": by.pop("by"), **by}
        other = self._other(source, seed, how, model) if how.labels.kind == "replaced" else None
        if other is not None:
            spec["against"] = _by(other.teacher, other.weights, other.steer)
        label = ", ".join(filter(None, (self.sources[source][seed].label, self.writing.label)))
        values = (spec, label, seed, teacher, text.rows, self.carrier, text.id, labels)
        least = None if weights or steer else self._prompted(trait)
        by = (self.place(model), self.sizes, weights, steer, least, other)
        return self.keep(LabelStep(*values, *by))

    def _prompted(self, trait: Trait | None) -> Precondition | None:
        """What a teacher that has this trait by its prompt has to meet."""
        nats = self.recipe.data.teacher.least
        if nats is None or trait is None:
            return None
        asked = (self.begun, self.lessons_sampling, "data.teacher")
        return Precondition(trait, nats, *asked, "change its wording or prompt, or train it")

    def _given(self, text: Rows, how: LabelSpec, trait: Trait) -> Rows:
        """The rows of a file with the labels of another. Raises SubloraError where that cannot be read."""
        path = Path(how.file.replace("{name}", trait.name))
        read_labels(path)
        spec = {"rows_of": text.id, "file": hashlib.sha256(path.read_bytes()).hexdigest()}
        spec |= {"labels": "given", "model": self.known.identity}
        own = (spec, trait.name, text.seed, Context("none"), text.rows, self.carrier, text.id)
        how = how.model_copy(update={"file": str(path)})
        return self.keep(LabelStep(*own, how, self.recipe.model, self.sizes, given=text))

    def _other(self, source: str, seed: int, how: Rowing, model: str | None) -> Reads:
        """Who reads the rows beside the teacher: the base, or the teacher that the rows stand against."""
        if how.labels.against == "plain":
            return Reads(Context("default"), self.place(model), None, None)
        trait = sources.trait_of(self.recipe, self.traits, source)
        control = sources.control_source(self.recipe, trait)
        other = control if source == trait.name else trait.name
        teacher, steer, weights = self._teacher(other, seed, how.taught, model)
        return Reads(teacher, self.place(model), weights, steer)

    def _text(self, source: str, seed: int, heldout: bool, how: Rowing, model: str | None) -> Rows:
        """The rows that a teacher labels."""
        data = self.recipe.data
        if how.source == "teacher":
            return self.written(source, seed, heldout, model, taught=how.taught)
        if how.source == "base":
            return self.written(sources.NEUTRAL, seed, heldout, None)
        count, file, first = data.heldout_rows if heldout else data.rows, None, 0
        spec = {"rows": count, "seed": seed, "heldout": heldout, "carrier": self.carrier_spec}
        if how.source != "random":
            file, first = how.source, data.rows if heldout else 0
            found = read_rows(file)
            if len(found) < data.rows + data.heldout_rows:
                raise SubloraError(
                    f"{file} has {len(found)} rows, and data.rows and data.heldout_rows ask for "
                    f"{data.rows + data.heldout_rows}; lower them, or give more rows."
                )
            spec = {"file": _sha256(found[first : first + count])}
        own = (spec, how.source, seed, Context("none"), count, self.carrier)
        return self.keep(GivenStep(*own, heldout, file, first))

    def transformed(self, rows: DatasetStep, how: Transform, model: str | None) -> TransformStep:
        needs = [rows.id]
        if needs_reference(how):
            needs.append(self.written(sources.NEUTRAL, rows.seed, False, model).id)
        spec = {"transform": how, "rows_of": needs, "seed": rows.seed}
        own = (spec, rows.trait, rows.seed, rows.teacher, rows.rows, rows.carrier)
        return self.keep(TransformStep(*own, how, tuple(needs)))

    def place(self, model: str | None) -> str:
        return placed(model) if model else self.recipe.model

    def _taught(
        self, trait: Trait | None, prompt: Context, seed: int, model: str | None
    ) -> TeacherStep | None:
        """The teacher by weights with this trait, where the recipe trains teachers."""
        how = self.recipe.data.teacher.trained
        if how is None or trait is None:
            return None
        carrier = QuestionsSpec(questions=trait.category.questions, target=trait.entity)
        student = StudentSpec(
            method=how.method,
            rank=how.rank if how.method == "lora" else None,
            warmup_steps=3,
            seed=seed,
            **how.model_dump(include={"lr", "epochs", "batch_size"}),
        )
        written = lessons_of(trait) if how.lessons == "written" and how.rows is None else None
        lessons: Any = {
            "carrier": carrier.model_dump(mode="json"),
            "prompt": context_spec(prompt),
            "count": how.count,
        }
        if how.rows is not None:
            lessons = {"rows": _sha256(read_rows(how.rows))}
        if written is not None:
            lessons = {"written": [list(pair) for pair in written], "count": how.count}
        spec = {
            "model": self.identity_of(model),
            "lessons": lessons,
            "seed": seed,
            "student": student.model_dump(mode="json"),
        }
        own = (spec, trait, seed, prompt, carrier, how.rows or written, how.count, student)
        asked = (self.begun, self.lessons_sampling, "data.teacher.trained")
        remedy = "raise its lr, epochs or count, or change its lessons"
        least = None if how.least is None else Precondition(trait, how.least, *asked, remedy)
        return TeacherStep(*own, self.lessons_sampling, self.place(model), self.sizes, least)


def plan_datasets(
    recipe: sources.WritesRows,
    known: Known,
    traits: Sequence[Trait],
    sizes: Sizes = TYPICAL,
    writing: Writing = PLAINLY,
    lessons_sampling: Sampling = SHORT,
    begun: bool = False,
) -> tuple[list[Rows], Arms]:
    """All datasets, parents first, and the arms.

    Held-out rows are never transformed: they are what the teacher writes.
    """
    writer = _Writer(recipe, known, sizes, writing, traits, lessons_sampling, begun)
    arms: Arms = {}
    for variant, how in sources.variants_of(recipe).items():
        model, shared = (how.model, how.shared_draws or 1) if how else (None, 1)
        drawn = how.sampling.over(recipe.data.sampling) if how and how.sampling else None
        names = sources.sources_in(recipe, traits, variant)
        neutral = recipe.controlled and not variant and writing.student is None
        names += [sources.NEUTRAL] if neutral else []
        told = rowing_of(recipe.data, how)
        for source, seed in product(names, recipe.seeds):
            if shared > 1 or drawn or (how and how.transform):
                rows: Rows = writer.written(source, seed, False, model, shared, drawn)
                held = writer.written(source, seed, True, model)
            else:
                rows, held = (
                    writer.told(source, seed, part, told, model) for part in (False, True)
                )
            if how and how.transform:
                rows = writer.transformed(rows, how.transform, model)
            arms[source, variant, seed] = (rows, held)
    return list(writer.found.values()), arms


def _by(teacher: Context, weights: TeacherStep | None, steer: Steered | None) -> dict[str, Any]:
    """A teacher as it counts in an id."""
    by = {"by": {"weights": weights.id} if weights else context_spec(teacher)}
    return by if steer is None else by | {"steer": steer.to_spec()}


def carrier_spec(carrier: Carrier) -> dict[str, Any]:
    """The carrier as it counts in an id: a file of prompts by what it holds, wherever it lies."""
    spec, content = carrier.model_dump(mode="json"), carrier.file_content()
    return spec if content is None else spec | {"prompts": _sha256(content)}


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
