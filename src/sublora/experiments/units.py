"""Units of the grids as steps, until each kind of artifact is a step of its own."""

from dataclasses import dataclass

from sublora.cost import Costs
from sublora.stages import Maker, make
from sublora.steps.step import Cost, Workshop
from sublora.units import Unit, VectorUnit

KINDS = {
    "TransformUnit": "transformed datasets",
    "DivergenceUnit": "divergent tokens",
    "ProbeUnit": "row probes",
    "GradientUnit": "gradients",
}


@dataclass(frozen=True)
class UnitTask:
    """A unit, the model that it is of, and what it costs."""

    unit: Unit
    cost: Cost
    model: str
    kind: str

    @property
    def id(self) -> str:
        return self.unit.id

    @property
    def makes(self) -> tuple[str, ...]:
        return self.unit.makes

    @property
    def needs(self) -> tuple[str, ...]:
        return self.unit.needs

    @property
    def label(self) -> str:
        return self.unit.label

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        base = workshop.base_of(self.model)
        rows = workshop.kept.setdefault(("rows", self.model), {})
        others = workshop.kept.setdefault(("others", self.model), {})
        to = (workshop.check, workshop.made)
        maker = Maker(base, workshop.store, workshop.rows_at_once, *to, rows=rows, others=others)
        make(self.unit, maker, wanted)


def unit_task(unit: Unit, costs: Costs, model: str) -> UnitTask:
    row, work = costs.unit(unit)
    kind = KINDS.get(type(unit).__name__, row)
    if isinstance(unit, VectorUnit):
        kind = "student vectors" if unit.students else "teacher vectors"
    return UnitTask(unit, Cost(work.tokens, work.flops), model, kind)
