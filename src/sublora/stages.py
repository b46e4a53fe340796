"""The stage functions: unit -> artifacts in a store. Every executor calls these same functions, wherever it runs them.

Each is idempotent: what the store has is left as it is, what is missing is made. While one process works on a unit, another one that
wants the same unit waits for it and then finds it done.
"""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sublora.attribute import attribute_targets
from sublora.chat import Context
from sublora.condition import SvdCut
from sublora.endpoint import Endpoint, Kept
from sublora.errors import SubloraError
from sublora.gradients import alignments, row_gradients
from sublora.measure import Answers, Asking, heldout_losses, measure_answers, measure_gated
from sublora.model import Base
from sublora.packs.check import load_base
from sublora.packs.student import Student, Trained
from sublora.packs.student_files import load_stack, save_student
from sublora.plan import DatasetStage, Mask, MeasureStage, Steered, StudentStage
from sublora.probe import divergence, probe_rows
from sublora.steer import Steering, aimed, steering_of
from sublora.store import Store
from sublora.svd import cut_stack
from sublora.teacher import (
    Assignment,
    Dataset,
    Purpose,
    Teacher,
    ask_dataset,
    read_jsonl,
    rows_jsonl,
    write_dataset,
)
from sublora.teacher_rows import load_rows
from sublora.train.pack import Checkpoint, train_pack
from sublora.train.rows import TokenRows, masked_rows, pack_rows, text_rows, token_rows
from sublora.train.stack import Stack, update_norms
from sublora.trait import Category
from sublora.transform import transform_rows
from sublora.units import (
    AttributionUnit,
    DataUnit,
    DivergenceUnit,
    GradientUnit,
    MeasureUnit,
    ProbeUnit,
    TeachUnit,
    TrainUnit,
    TransformUnit,
    Unit,
    VectorUnit,
)
from sublora.vectors import SteeringVector, load_vector, student_vector, teacher_vector, together

ROWS_AT_ONCE = 2048  # rows of a scoring batch over all students; a matter of speed alone
KEPT_AT_ONCE = 8  # measurements


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Maker:
    """What a stage function works with. `check` is called often and may raise to give up; `made` is told each finished artifact;
    `waiting` is called again and again with a unit that another process is making."""

    base: Base
    store: Store
    rows_at_once: int = ROWS_AT_ONCE
    check: Callable[[], None] = _nothing
    made: Callable[[str], None] = _nothing
    waiting: Callable[[Unit], None] = _nothing
    rows: dict[tuple[str, Context, int | None, Mask | None], TokenRows] = field(
        default_factory=dict, repr=False
    )
    others: dict[str, Base] = field(default_factory=dict, repr=False)

    def base_of(self, model: str | None) -> Base:
        """The students' base, or the model on which a teacher writes, loaded once."""
        if model is None:
            return self.base
        if model not in self.others:
            dtype = str(self.base.model.dtype).removeprefix("torch.")
            self.others[model] = load_base(model, device=str(self.base.device), dtype=dtype)
        return self.others[model]

    def texts(self, dataset: str) -> list[tuple[str, str]]:
        """A dataset's rows (prompt, completion)."""
        return read_jsonl(self.store.read(dataset).file("rows.jsonl").read_text("utf-8"))

    def token_rows(
        self, dataset: str, context: Context, take: int | None = None, mask: Mask | None = None
    ) -> TokenRows:
        """A dataset, or its first so many rows, as token rows in a context, kept for the students that share it."""
        key = (dataset, context, take, mask)
        if key not in self.rows:
            tokens = text_rows(self.base.chat, self.texts(dataset)[:take], context)
            if mask is not None:
                tokens = masked_rows(
                    tokens, self.marks(mask.divergence), mask.keep, mask.divergence
                )
            self.rows[key] = pack_rows(tokens, self.base.window, f"the dataset {dataset}")
        return self.rows[key]

    def marks(self, divergence: str) -> list[list[bool]]:
        return json.loads(self.store.read(divergence).file("divergence.json").read_text("utf-8"))[
            "marks"
        ]

    def vector(self, artifact: str) -> SteeringVector:
        return load_vector(self.store.read(artifact).file("vector.safetensors"))

    def steering(self, steered: Sequence[Steered]) -> Steering:
        """The intervention that all these stages ask for: by the one vector that they share, or each student by its own."""
        spec, ids = steered[0].spec, [s.vector for s in steered]
        found = [aimed(spec, self.vector(i), i) for i in (ids[:1] if len(set(ids)) == 1 else ids)]
        vector = found[0] if len(found) == 1 else together(found)
        return steering_of(spec, vector, len(self.base.model.base_model.layers))


def perform(unit: Unit, maker: Maker, *, wait: bool = True) -> float | None:
    """Make what is missing of a unit. Raises what the work raises; finished artifacts are kept.

    Returns the seconds that it took to make the whole unit, or None where some of it was there, be it as a checkpoint.
    Raises store.Busy where another process makes the same unit and `wait` is false.
    """

    def waiting() -> None:
        maker.check()
        maker.waiting(unit)

    with maker.store.lock(unit.id, waiting, wait=wait):
        wanted = {name for name in unit.makes if not maker.store.has(name)}
        if not wanted:
            return None
        whole = len(wanted) == len(unit.makes) and not _checkpoint(unit, maker).exists()
        started = time.monotonic()
        make(unit, maker, wanted)
        return time.monotonic() - started if whole else None


def make(unit: Unit, maker: Maker, wanted: set[str]) -> None:
    """Make the artifacts `wanted` of a unit that nobody else works on."""
    if isinstance(unit, TeachUnit):
        _teach(unit, maker)
    elif isinstance(unit, DataUnit):
        _write(unit, maker)
    elif isinstance(unit, TransformUnit):
        _transform(unit, maker)
    elif isinstance(unit, TrainUnit):
        _train(unit, maker, wanted)
    elif isinstance(unit, MeasureUnit):
        _measure(unit, maker, wanted)
    elif isinstance(unit, VectorUnit):
        _extract(unit, maker, wanted)
    elif isinstance(unit, DivergenceUnit):
        _diverge(unit, maker)
    elif isinstance(unit, ProbeUnit):
        _probe(unit, maker, wanted)
    elif isinstance(unit, GradientUnit):
        _align(unit, maker)
    else:
        _attribute(unit, maker, wanted)


def _checkpoint(unit: Unit, maker: Maker) -> Path:
    return maker.store.root / "checkpoints" / f"{unit.id}.safetensors"


def _teach(unit: TeachUnit, maker: Maker) -> None:
    stage = unit.stage
    if stage.lessons is not None:
        rows = list(load_rows(stage.lessons))
        asked = len(rows)
    else:
        written = write_dataset(
            Teacher(maker.base, stage.prompt),
            Assignment(stage.carrier, unit.sampling, stage.count, stage.seed, Purpose.LESSONS),
            maker.rows_at_once,
            lambda _: maker.check(),
        )
        rows, asked = written.rows, written.asked
    student = stage.as_student
    lessons = token_rows(maker.base, rows, student.context, f"the lessons of {stage.trait}")

    def keep(trained: Trained) -> None:
        if trained.diverged_at is not None:
            raise SubloraError(
                f"The teacher of {stage.trait} diverged at step {trained.diverged_at}; lower data.teacher.trained.lr."
            )
        meta = {
            "trait": stage.trait,
            "rows": len(rows),
            "asked": asked,
            "label": stage.student.label,
            "train_loss": trained.losses[-1],
        }
        with maker.store.create(stage.id, stage.spec, meta) as folder:
            save_student(
                trained.group, trained.row, stage.student, folder, maker.base.model, maker.base.name
            )
            (folder / "lessons.jsonl").write_text(rows_jsonl(rows), encoding="utf-8")

    train_pack(
        maker.base.model,
        [Student(stage.id, stage.student, lessons)],
        keep,
        on_step=lambda *_: maker.check(),
        memory=_free_memory(maker.base),
    )
    maker.made(stage.id)


def _voice(stage: DatasetStage) -> str | None:
    """What seeds the draws of a teacher that its prompt alone does not name."""
    if stage.weights is not None:
        return stage.weights.id
    if stage.steer is not None:
        return f"{stage.teacher.text or stage.teacher.name} {json.dumps(stage.steer.to_spec())}"
    return None


def _write(unit: DataUnit, maker: Maker) -> None:
    stage = unit.stage
    taught = stage.weights.as_student if stage.weights else None
    purpose = Purpose.HELDOUT if stage.heldout else Purpose.TRAINING
    what = Assignment(
        stage.carrier, unit.sampling, stage.rows, stage.seed, purpose, stage.shared_draws
    )
    if stage.endpoint is not None:
        kept = Kept(maker.store.root / "checkpoints" / f"{stage.id}.jsonl")
        dataset = ask_dataset(Endpoint(stage.endpoint), kept, stage.teacher, what, maker.check)
        _keep_dataset(stage, dataset, maker)
        kept.path.unlink()
        return
    teacher = Teacher(
        maker.base_of(stage.model),
        taught.context if taught else stage.teacher,
        _stack(maker, [taught]) if taught else None,
        None if stage.steer is None else maker.steering([stage.steer]),
        _voice(stage),
    )
    dataset = write_dataset(teacher, what, maker.rows_at_once, lambda _: maker.check())
    _keep_dataset(stage, dataset, maker)


def _keep_dataset(stage: DatasetStage, dataset: Dataset, maker: Maker) -> None:
    meta = {
        "trait": stage.trait,
        "data_seed": stage.seed,
        "rows": len(dataset.rows),
        "unique_rows": dataset.unique,
        "asked": dataset.asked,
        "rejects": dataset.rejects,
        "teacher": stage.teacher.text,
    }
    with maker.store.create(stage.id, stage.spec, meta) as folder:
        (folder / "rows.jsonl").write_text(dataset.jsonl(), encoding="utf-8")
        rejected = [{"reason": r, "prompt": p, "completion": c} for r, p, c in dataset.rejected]
        (folder / "rejected.jsonl").write_text(
            "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rejected), encoding="utf-8"
        )
    maker.made(stage.id)


def _transform(unit: TransformUnit, maker: Maker) -> None:
    stage = unit.stage
    parents = [maker.store.read(name) for name in stage.parents]
    rows, *reference = [read_jsonl(p.file("rows.jsonl").read_text("utf-8")) for p in parents]
    made = transform_rows(stage.transform, rows, stage.seed, *reference)
    same = sum(a == b for a, b in zip(rows, made, strict=True))
    meta = {
        **{k: parents[0].meta[k] for k in ("trait", "data_seed", "asked", "teacher")},
        "rows": len(made),
        "unique_rows": len(set(made)),
        "rejects": {},
        "transform": stage.transform,
        "unchanged_rows": same,
    }
    with maker.store.create(stage.id, stage.spec, meta) as folder:
        (folder / "rows.jsonl").write_text(rows_jsonl(made), encoding="utf-8")
    maker.made(stage.id)


def _train(unit: TrainUnit, maker: Maker, wanted: set[str]) -> None:
    # the whole pack is repeated even if some of it is done, so that every student sees the same products as before
    kept: dict[str, list[StudentStage]] = {}
    for s in unit.students:
        kept.setdefault(s.whole, []).append(s)
    students = [
        Student(
            whole,
            alike[0].student,
            maker.token_rows(alike[0].dataset, alike[0].context, alike[0].take, alike[0].mask),
            tuple(s.step for s in alike if s.step is not None),
        )
        for whole, alike in kept.items()
    ]
    wholes = list(kept)
    path = _checkpoint(unit, maker)
    path.parent.mkdir(exist_ok=True)
    notices: list[str] = []

    def keep(trained: Trained) -> None:
        steps = len(trained.losses)
        for stage in kept[wholes[trained.index]]:
            if stage.id in wanted and steps == (stage.step or students[trained.index].steps):
                _keep_student(stage, trained, len(students[trained.index].rows), notices, maker)
                wanted.discard(stage.id)
                maker.made(stage.id)

    while wanted:
        # once, and again where a checkpoint is past a student that was lost since: without the checkpoint all are trained
        train_pack(
            maker.base.model,
            students,
            keep,
            checkpoint=Checkpoint(path),
            on_step=lambda *_: maker.check(),
            on_notice=notices.append,
            memory=_free_memory(maker.base),
        )


def _free_memory(base: Base) -> int | None:
    """Bytes that are free on the base's GPU."""
    if base.device.type != "cuda":
        return None
    import torch

    return torch.cuda.mem_get_info(base.device)[0]


def _keep_student(
    stage: StudentStage, trained: Trained, rows: int, notices: Sequence[str], maker: Maker
) -> None:
    steps = len(trained.losses)
    tail = [x for x in trained.losses[-max(1, steps // 10) :] if np.isfinite(x)]
    meta = {
        "steps": steps,
        "train_loss": float(np.mean(tail)) if tail else None,
        "diverged_at": trained.diverged_at,
        "optimizer": trained.optimizer,
        "trainable_parameters": trained.parameters,
        "rows": rows,
        "label": stage.student.label,
        "notices": list(notices),
    }
    with maker.store.create(stage.id, stage.spec, meta) as folder:
        save_student(
            trained.group, trained.row, stage.student, folder, maker.base.model, maker.base.name
        )
        finite = [x if np.isfinite(x) else None for x in trained.losses]
        norms = [x if np.isfinite(x) else None for x in trained.norms]
        moved = update_norms(trained.group, trained.row, stage.student, maker.base.model)
        (folder / "training.json").write_text(
            json.dumps({"loss": finite, "gradient_norm": norms, "update_norm": moved}) + "\n",
            encoding="utf-8",
        )


def _measure(unit: MeasureUnit, maker: Maker, wanted: set[str]) -> None:
    """Students that are asked the same are asked together, and so are the conditions that share a stack: all but those that keep a
    part of the update."""
    students = {s.id: s for s in unit.students}
    groups: dict[tuple[Context, str, bool, SvdCut | None], list[MeasureStage]] = {}
    for m in unit.measures:
        gated = m.student is not None and m.condition is not None
        cut = unit.conditions[m.condition].svd if gated else None
        groups.setdefault((m.context, m.category, gated, cut), []).append(m)
    stacks: dict[tuple[str, ...], Stack] = {}
    for (_, _, gated, cut), group in groups.items():
        if not any(m.id in wanted for m in group):
            continue
        maker.check()
        asked = [
            students[i] for i in dict.fromkeys(m.student for m in group if m.student is not None)
        ]
        key = tuple(s.id for s in asked)
        if asked and key not in stacks:
            stacks[key] = _stack(maker, asked)
        if gated:
            stack = cut_stack(stacks[key], cut) if cut else stacks[key]
            _ask_gated(unit, maker, group, asked, stack, wanted)
        else:
            _ask(unit, maker, group, asked, stacks.get(key), wanted)


def _stack(maker: Maker, students: Sequence[StudentStage]) -> Stack:
    folders = [maker.store.read(s.id).path for s in students]
    return load_stack(maker.base.model, folders, [s.student for s in students])


def _ask(
    unit: MeasureUnit,
    maker: Maker,
    group: Sequence[MeasureStage],
    asked: Sequence[StudentStage],
    stack: Stack | None,
    wanted: set[str],
) -> None:
    context = group[0].context
    category = next(c for c in unit.categories if c.category == group[0].category)
    answers = measure_answers(
        maker.base,
        stack,
        [s.id for s in asked] or ["base"],
        category,
        Asking(context, unit.sampling, unit.samples, unit.seed, maker.rows_at_once),
        None if group[0].steer is None else maker.steering([group[0].steer]),
    )
    losses: list[float | None] = [None] * len(group)
    if stack is not None and any(m.spec["heldout"] for m in group):
        rows = [maker.token_rows(s.heldout, s.context) for s in asked]
        found = heldout_losses(maker.base, stack, rows)
        losses = [loss if m.spec["heldout"] else None for m, loss in zip(group, found, strict=True)]
    measured = zip(group, answers, losses, strict=True)
    _keep_all([one for one in measured if one[0].id in wanted], category, maker)


def _ask_gated(
    unit: MeasureUnit,
    maker: Maker,
    group: Sequence[MeasureStage],
    asked: Sequence[StudentStage],
    stack: Stack,
    wanted: set[str],
) -> None:
    category = next(c for c in unit.categories if c.category == group[0].category)
    names = list(dict.fromkeys(m.condition for m in group))
    place = {s.id: k for k, s in enumerate(asked)}
    steered: dict[str, list[Steered]] = {}
    for m in sorted((m for m in group if m.steer), key=lambda m: place[m.student]):
        steered.setdefault(m.condition, []).append(m.steer)
    answers = measure_gated(
        maker.base,
        stack,
        [s.id for s in asked],
        category,
        Asking(group[0].context, unit.sampling, unit.samples, unit.seed, maker.rows_at_once),
        {n: unit.conditions[n] for n in names},
        unit.entities,
        {name: maker.steering(of) for name, of in steered.items()},
    )
    measured = [
        (m, answers[place[m.student]][names.index(m.condition)], None)
        for m in group
        if m.id in wanted
    ]
    _keep_all(measured, category, maker)


def _keep_all(
    measured: Sequence[tuple[MeasureStage, Answers, float | None]], category: Category, maker: Maker
) -> None:
    """Side by side, because artifacts that wait together for the disk wait once."""

    def keep(one: tuple[MeasureStage, Answers, float | None]) -> str:
        stage, answer, loss = one
        keep_answers(maker.store, stage.id, stage.spec, category, answer, loss)
        return stage.id

    with ThreadPoolExecutor(KEPT_AT_ONCE) as pool:
        for name in pool.map(keep, measured):
            maker.made(name)


def keep_answers(
    store: Store,
    name: str,
    spec: dict[str, Any],
    category: Category,
    answer: Answers,
    loss: float | None,
) -> None:
    """Write a measurement, as `results.read_measurement` reads it."""
    scores = {
        "entities": [e.name for e in category.entities],
        "p": [[float(f"{x:.9g}") for x in row] for row in answer.p],
        "heldout_loss": loss,
    }
    lines = [
        json.dumps({"question": q, "answers": a}, ensure_ascii=False)
        for q, a in zip(category.questions, answer.samples, strict=True)
    ]
    with store.create(name, spec) as folder:
        (folder / "scores.json").write_text(json.dumps(scores) + "\n", encoding="utf-8")
        (folder / "samples.jsonl").write_text(
            "".join(line + "\n" for line in lines), encoding="utf-8"
        )


def _attribute(unit: AttributionUnit, maker: Maker, wanted: set[str]) -> None:
    maker.check()
    found = attribute_targets(
        maker.base,
        _stack(maker, unit.students),
        unit.context,
        unit.questions,
        unit.target,
        unit.entities,
        maker.rows_at_once,
    )
    for stage, prompts in zip(unit.attributions, found, strict=True):
        if stage.id not in wanted:
            continue
        with maker.store.create(stage.id, stage.spec) as folder:
            entries = [p.to_dict() for p in prompts]
            (folder / "attribution.json").write_text(
                json.dumps(entries, ensure_ascii=False) + "\n", encoding="utf-8"
            )
        maker.made(stage.id)


def _extract(unit: VectorUnit, maker: Maker, wanted: set[str]) -> None:
    maker.check()
    first = unit.vectors[0]
    if not unit.students:
        vectors = [
            teacher_vector(maker.base, first.prompts, first.teacher, first.plain, first.where)
        ]
    else:
        stack = _stack(maker, unit.students)
        found = student_vector(
            maker.base,
            stack,
            first.prompts,
            first.context,
            first.where,
            (),
            first.directions,
            maker.rows_at_once,
        )
        vectors = [found.of(k) for k in range(stack.size)]
    for stage, vector in zip(unit.vectors, vectors, strict=True):
        if stage.id not in wanted:
            continue
        with maker.store.create(
            stage.id, stage.spec, {"norms": [float(n) for n in vector.norms]}
        ) as folder:
            vector.save(folder / "vector.safetensors")
        maker.made(stage.id)


def _diverge(unit: DivergenceUnit, maker: Maker) -> None:
    maker.check()
    stage = unit.stage
    found = divergence(maker.base, maker.texts(stage.dataset), stage.teacher, stage.against)
    with maker.store.create(stage.id, stage.spec) as folder:
        (folder / "divergence.json").write_text(json.dumps(asdict(found)) + "\n", encoding="utf-8")
    maker.made(stage.id)


def _probe(unit: ProbeUnit, maker: Maker, wanted: set[str]) -> None:
    maker.check()
    first = unit.probes[0]
    rows = maker.token_rows(first.dataset, unit.students[0].context, first.rows)
    marked = None
    if first.divergence is not None:
        marked = np.zeros_like(rows.loss)
        for i, marks in enumerate(maker.marks(first.divergence)[: first.rows]):
            marked[i, rows.prompts[i] : rows.lengths[i]] = marks
    found = probe_rows(maker.base, _stack(maker, unit.students), rows, marked)
    for stage, probe in zip(unit.probes, found, strict=True):
        if stage.id in wanted:
            with maker.store.create(stage.id, stage.spec) as folder:
                (folder / "probe.json").write_text(
                    json.dumps(probe.to_dict()) + "\n", encoding="utf-8"
                )
            maker.made(stage.id)


def _align(unit: GradientUnit, maker: Maker) -> None:
    maker.check()
    stage = unit.stage
    counts = stage.spec["rows"]
    trait, clean = (
        row_gradients(maker.base, maker.token_rows(d, stage.context, max(counts)))
        for d in stage.datasets
    )
    found = alignments(
        trait, clean, maker.vector(stage.vector), counts, stage.spec["permutations"], stage.id
    )
    entries = [
        {"rows": a.rows, "cosine": a.cosine.tolist(), "null": a.null.tolist()} for a in found
    ]
    with maker.store.create(stage.id, stage.spec) as folder:
        (folder / "alignment.json").write_text(json.dumps(entries) + "\n", encoding="utf-8")
    maker.made(stage.id)
