"""Divergent tokens of a dataset: where the first choice changes with the system prompt, see `sublora.packs.token_losses`."""

from dataclasses import asdict, dataclass

from sublora.models.chat import Context
from sublora.packs.token_losses import divergence
from sublora.steps.made import Made
from sublora.steps.materials import keep_json, texts
from sublora.steps.sizes import Sizes
from sublora.steps.step import Cost, Workshop


@dataclass(frozen=True)
class DivergenceStep(Made):
    """First choices of the base on a dataset's rows under `teacher`, compared with those under `against`."""

    dataset: str
    teacher: Context
    against: Context
    rows: int
    model: str
    sizes: Sizes
    noun, kind = "divergence", "divergent tokens"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.dataset,)

    @property
    def label(self) -> str:
        return f"the divergent tokens of {self.dataset}"

    @property
    def cost(self) -> Cost:
        return self.sizes.reading(2 * self.rows * self.sizes.row)

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        base, rows = workshop.base_of(self.model), texts(workshop, self.dataset)
        told = workshop.counter(len(rows), "rows", self.cost.tokens)
        found = divergence(base, rows, self.teacher, self.against, on_tokens=told)
        keep_json(workshop, self.id, self.spec, "divergence.json", asdict(found))
