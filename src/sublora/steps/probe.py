"""Students on rows of their own datasets: loss, verbatim reproduction, gradients at divergent tokens; see `sublora.packs.token_losses`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from sublora.packs.token_losses import probe_rows
from sublora.steps.made import Made, PackStep
from sublora.steps.materials import keep_json, marks, stack_of, token_rows
from sublora.steps.reading import Planning, Reading, spec_of
from sublora.steps.step import Cost, Workshop, total
from sublora.steps.students import Student

Against = Literal["plain", "other-trait"]
"""Whose first choices a teacher's are compared with: the student's, in its own context, or those of a teacher with another trait."""


class ProbeSpec(BaseModel):
    """Every student on rows of its own datasets: on its held-out rows and on those that it was trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    rows: int = Field(128, ge=1, description="the first so many rows of each")
    against: Against | None = Field(
        None, description="tell divergent tokens from others, see MaskSpec"
    )


@dataclass(frozen=True)
class Probe(Made):
    """A student on the first `rows` rows of one of its datasets; `divergence` marks tokens of it."""

    student: str
    dataset: str
    rows: int
    heldout: bool
    divergence: str | None
    noun = "probe"


@dataclass(frozen=True)
class ProbeStep(PackStep):
    """The students of a pack that read the same rows in the same context."""

    nouns, kind, about = "probes", "row probes", "the rows of "

    @property
    def needs(self) -> tuple[str, ...]:
        first = self.artifacts[0]
        marks = () if first.divergence is None else (first.divergence,)
        return (first.dataset, *marks, *super().needs)

    @property
    def cost(self) -> Cost:
        return total(self.sizes.reading(p.rows * self.sizes.row) for p in self.artifacts)

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        base, first = workshop.base_of(self.model), self.artifacts[0]
        rows = token_rows(workshop, base, first.dataset, self.students[0].context, first.rows)
        marked = None
        if first.divergence is not None:
            marked = np.zeros_like(rows.loss)
            for i, found in enumerate(marks(workshop, first.divergence)[: first.rows]):
                marked[i, rows.prompts[i] : rows.lengths[i]] = found
        told = workshop.counter(len(rows), "rows", self.cost.tokens)
        probed = probe_rows(
            base, stack_of(workshop, base, self.students), rows, marked, on_tokens=told
        )
        for probe, found in zip(self.artifacts, probed, strict=True):
            if probe.id in wanted:
                keep_json(workshop, probe.id, probe.spec, "probe.json", asdict(found))


def plan_probes(asked: ProbeSpec, plan: Planning) -> Sequence[ProbeStep]:
    """Of every student on both of its datasets; those of a pack together that read the same rows."""
    probes: dict[str, list[Probe]] = {}
    for student in plan.students:
        for heldout in (False, True):
            data = plan.datasets[student.heldout if heldout else student.dataset]
            divergence = None
            if asked.against:
                divergence = plan.divergence(student.source, data, asked.against, student.context)
            rows = min(asked.rows, data.rows if heldout else student.take or data.rows)
            asks = {"dataset": data.id, "rows": rows, "divergence": divergence}
            spec = spec_of(plan, student) | asks
            probe = Probe(spec, student.id, data.id, rows, heldout, divergence)
            probes.setdefault(student.id, []).append(probe)
    steps = []
    for pack in plan.packs():
        groups: dict[tuple, list[tuple[Probe, Student]]] = {}
        for s in pack:
            for p in probes[s.id]:
                key = (p.dataset, p.rows, p.divergence, s.context)
                groups.setdefault(key, []).append((p, s))
        for found in groups.values():
            own, students = zip(*found, strict=True)
            steps.append(ProbeStep(own, students, plan.model, plan.sizes))
    return steps


READING = Reading("probe", ProbeSpec, plan_probes)
