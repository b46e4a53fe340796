"""Units of the grids as tasks of an experiment, so that both share their artifacts."""

from dataclasses import dataclass

from sublora.cost import Costs
from sublora.experiment import Work
from sublora.stages import Maker, make
from sublora.units import Unit


@dataclass(frozen=True)
class UnitTask:
    """A unit and the model that it is of."""

    unit: Unit
    flops: float
    model: str

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

    def perform(self, work: Work, wanted: set[str]) -> None:
        make(self.unit, Maker(work.base_of(self.model), work.store, made=work.made), wanted)


def unit_task(unit: Unit, costs: Costs, model: str) -> UnitTask:
    return UnitTask(unit, costs.unit(unit)[1].flops, model)
