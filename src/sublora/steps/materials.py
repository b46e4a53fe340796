"""What steps take from the store, read once for all steps of a worker that take it again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch

from sublora.carriers.rows_file import from_jsonl
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.packs.labels import read_labels
from sublora.packs.rows import Keep, TokenRows, labelled, masked_rows, pack_rows, text_rows
from sublora.packs.spec import StudentSpec
from sublora.packs.stack import Stack
from sublora.packs.steer import Steering, aimed, steering_of
from sublora.packs.steer_spec import SteerSpec
from sublora.packs.student_files import load_stack
from sublora.packs.vectors import SteeringVector, load_vector, together
from sublora.steps.precondition import Precondition
from sublora.steps.step import Workshop


class Trained(Protocol):
    """A student, or a teacher by weights: an artifact with weights of this spec."""

    @property
    def id(self) -> str: ...
    @property
    def student(self) -> StudentSpec: ...


@dataclass(frozen=True)
class Mask:
    """Which tokens of a student's rows carry loss, by the divergence that marks them."""

    keep: Keep
    divergence: str


@dataclass(frozen=True)
class Steered:
    """An intervention with the id of the vector that it takes; `least` is what a teacher by it has to meet."""

    spec: SteerSpec
    vector: str
    least: Precondition | None = None

    def to_spec(self) -> dict[str, Any]:
        return self.spec.model_dump(mode="json") | {"vector": self.vector}


@cache
def context_spec(context: Context) -> dict[str, Any]:
    """A context as it counts in an id: a named one by its text. One object for all that have it."""
    spec = {"state": context.name if context.text is None else "named", "text": context.text}
    return spec if context.role == "system" else spec | {"role": context.role}


def listed(labels: Sequence[str]) -> str:
    """The first label, and how many more there are in its pack."""
    return labels[0] + (f" and {len(labels) - 1} more of its pack" if len(labels) > 1 else "")


def texts(workshop: Workshop, dataset: str) -> list[tuple[str, str]]:
    """A dataset's rows (prompt, completion)."""
    return from_jsonl(workshop.store.read(dataset).file("rows.jsonl").read_text("utf-8"))


LABELS = "labels.safetensors"


def keep_json(
    workshop: Workshop, artifact: str, spec: Mapping[str, Any], file: str, body: Any
) -> None:
    """Finish an artifact of one JSON file."""
    with workshop.store.create(artifact, spec) as folder:
        text = json.dumps(body, ensure_ascii=False) + "\n"
        (folder / file).write_text(text, encoding="utf-8")
    workshop.made(artifact)


def marks(workshop: Workshop, divergence: str) -> list[list[bool]]:
    """[row][token of the completion]: which tokens of a dataset are divergent."""
    file = workshop.store.read(divergence).file("divergence.json")
    return json.loads(file.read_text("utf-8"))["marks"]


def token_rows(
    workshop: Workshop,
    base: Base,
    dataset: str,
    context: Context,
    take: int | None = None,
    mask: Mask | None = None,
    reverse: bool = False,
) -> TokenRows:
    """A dataset, or its first `take` rows, in a context, with its labels if it has any; kept for all that read the same rows."""
    key = ("token rows", base.name, dataset, context, take, mask, reverse)
    if key not in workshop.kept:
        written = texts(workshop, dataset)
        rows = text_rows(base.chat, written[:take], context)
        if mask is not None:
            found = marks(workshop, mask.divergence)
            rows = masked_rows(rows, found, mask.keep, mask.divergence)
        packed = pack_rows(rows, base.window, f"the dataset {dataset}")
        if LABELS in workshop.store.read(dataset).files:
            labels = read_labels(workshop.store.read(dataset).file(LABELS), base, written)
            packed = labelled(packed, labels.first(len(rows)), reverse)
        workshop.kept[key] = packed
    return workshop.kept[key]


def stack_of(workshop: Workshop, base: Base, students: Sequence[Trained]) -> Stack:
    folders = [workshop.store.read(s.id).path for s in students]
    return load_stack(base.model, folders, [s.student for s in students])


def vector_of(workshop: Workshop, artifact: str) -> SteeringVector:
    return load_vector(workshop.store.read(artifact).file("vector.safetensors"))


def steering_by(workshop: Workshop, base: Base, steered: Sequence[Steered]) -> Steering:
    """What all these ask for: by the one vector that they share, or each student by its own."""
    spec, ids = steered[0].spec, [s.vector for s in steered]
    ids = ids[:1] if len(set(ids)) == 1 else ids
    found = [aimed(spec, vector_of(workshop, i), i) for i in ids]
    vector = found[0] if len(found) == 1 else together(found)
    return steering_of(spec, vector, len(base.model.base_model.layers))


def free_memory(base: Base) -> int | None:
    """Bytes that are free on the base's GPU; None on a CPU."""
    return torch.cuda.mem_get_info(base.device)[0] if base.device.type == "cuda" else None
