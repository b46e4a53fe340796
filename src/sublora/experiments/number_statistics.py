"""What in number rows tells a trait's teacher from another: statistics against control, and how separable the two sets are.

It trains nothing. `resample` then asks which of these statistics carries the trait.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from typing import Literal

from pydantic import Field, model_validator

from sublora.analysis.charts import rows_chart, tiles
from sublora.analysis.effects import Effect, named
from sublora.analysis.intervals import clustered_interval
from sublora.analysis.page import Chart
from sublora.analysis.row_statistics import COUNTED, described, excess_divergence
from sublora.analysis.separability import compression_auc, probe_auc
from sublora.carriers.rows_file import from_jsonl
from sublora.carriers.transform import Rows, numbers_of
from sublora.experiments.experiment import Findings
from sublora.experiments.grid.datasets import plan_datasets
from sublora.experiments.grid.sources import WritesRows, control_source, traits_of
from sublora.models.known import Known
from sublora.seeds import generator
from sublora.steps.sizes import Sizes
from sublora.steps.step import Step
from sublora.store import Store
from sublora.text import slug
from sublora.traits.trait import Trait

DISTANCE, DIFFERENCE, SEPARABLE, RATIO = (
    "distance from control, bits",
    "difference from control",
    "separability, AUC",
    "share of the answers, trait - control",
)
TOP = 10  # numbers that are shown


class NumberStatistics(WritesRows):
    kind: Literal["number-statistics"]
    draws: int = Field(50, ge=1, description="random splits that say what no difference looks like")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _plain(self) -> "NumberStatistics":
        if self.data.variants or self.data.teacher.trained:
            raise ValueError(
                "data.variants and data.teacher.trained have no place here, they are for grids of students"
            )
        if self.data.carrier.kind != "numbers":
            raise ValueError("data.carrier has to be numbers, of which these are the statistics")
        return self

    @property
    def sentence(self) -> str:
        return (
            f"{self.model}: {self.data.rows} rows of teachers that love {', '.join(self.traits)} beside as many of control teachers, "
            f"for {len(self.data.seeds)} data seeds; {self.data.heldout_rows} more of each to test who can tell them apart."
        )

    @cached_property
    def found_traits(self) -> tuple[Trait, ...]:
        return traits_of(self)

    def plan(self, known: Known) -> list[Step]:
        return plan_datasets(self, known, self.found_traits, Sizes(known.shape))[0]

    def findings(self, store: Store, known: Known) -> Findings:
        _, arms = plan_datasets(self, known, self.found_traits)
        rows = {
            name: from_jsonl(store.read(name).file("rows.jsonl").read_text("utf-8"))
            for step in self.plan(known)
            for name in step.makes
        }
        effects: list[Effect] = []
        charts: list[Chart] = []
        for trait in self.found_traits:
            sources = (trait.name, control_source(self, trait))
            sets = [
                [rows[arms[who, "", seed][held].id] for held in (0, 1) for who in sources]
                for seed in self.seeds
            ]
            mine = self._of_trait(trait.name, sets)
            effects += mine
            charts += self._charts(trait.name, mine)
        first = [e for e in effects if e.trait == self.found_traits[0].name]
        top = [
            tile
            for group, note in ((DISTANCE, "0 is no difference"), (SEPARABLE, "0.5 is chance"))
            for tile in tiles(
                [e for e in first if e.group == group and e.name in _TILES], f"{{group}}; {note}"
            )
        ]
        how = (
            f"Distances: Jensen-Shannon divergence of counts between the rows of the trait's teacher and the control's, less its mean over "
            f"{self.draws} random splits of both, row by row; 0 is no difference. Separability: trained on {self.data.rows} rows of each, "
            f"tested on {self.data.heldout_rows} others; 0.5 is chance. The linear probe reads which numbers an answer has, the compressor "
            f"(zlib) its text. The control is another trait's teacher unless the recipe says otherwise, so what all trait prompts share is "
            f"no difference. Intervals: {1 - self.level:.0%} over data seeds, corrected by group."
        )
        return Findings(tuple(effects), tuple(charts), tuple(top), how)

    def _of_trait(self, trait: str, sets: Sequence[Sequence[Rows]]) -> list[Effect]:
        """`sets`: for each data seed the trait's rows, the control's, and new ones of both."""
        values: dict[tuple[str, str], list[float]] = {}

        def note(group: str, name: str, value: float) -> None:
            values.setdefault((group, name), []).append(value)

        pairs = []
        for seed, four in zip(self.seeds, sets, strict=True):
            parsed = [[(numbers_of(p), numbers_of(a)) for p, a in part] for part in four[:2]]
            answers = [[numbers for _, numbers in part] for part in parsed]
            pairs.append(answers)
            for name, counted in COUNTED.items():
                rng = generator("number-statistics", self.seed, trait, seed, name)
                note(DISTANCE, name, excess_divergence(*answers, counted, rng, self.draws))
            like = [described(part) for part in parsed]
            for name in like[0]:
                note(DIFFERENCE, name, like[0][name] - like[1][name])
            texts = [[a for _, a in part] for part in four]
            note(SEPARABLE, "linear probe", probe_auc(*texts))
            note(SEPARABLE, "compression", compression_auc(*texts))
        effects = [self._effect(trait, *place, found) for place, found in values.items()]
        return effects + self._top_numbers(trait, pairs)

    def _effect(self, trait: str, group: str, name: str, values: Sequence[float]) -> Effect:
        """Values of the last of the data seeds, as many as there are."""
        null = 0.5 if group == SEPARABLE else 0.0
        clip = {SEPARABLE: (0.0, 1.0), RATIO: (-1.0, 1.0)}.get(group)
        table, seeds = [[v] for v in values], self.seeds[-len(values) :]
        interval = clustered_interval(table, seeds, None, 1 - self.level, null, clip)
        n = {"data_seeds": len(values), "rows": self.data.rows}
        return named(trait, group, name, interval, n, null=null)

    def _top_numbers(
        self, trait: str, pairs: Sequence[Sequence[Sequence[Sequence[int]]]]
    ) -> list[Effect]:
        """The numbers that the trait's rows have most beyond control: chosen on the first half of the seeds, shown on the rest."""
        half = len(pairs) // 2
        shares = [
            {k: one.get(k, 0) - two.get(k, 0) for k in one | two}
            for one, two in (map(_shares, p) for p in pairs)
        ]
        chosen = {k: sum(s.get(k, 0.0) for s in shares[:half]) for s in shares[:half] for k in s}
        top = sorted(chosen, key=lambda k: (-chosen[k], k))[:TOP]
        late = shares[half:]
        return [self._effect(trait, RATIO, str(k), [s.get(k, 0.0) for s in late]) for k in top]

    def _charts(self, trait: str, effects: Sequence[Effect]) -> list[Chart]:
        out = []
        for group, (name, title, reference) in _CHARTS.items():
            if not (mine := [e for e in effects if e.group == group]):
                continue
            seeds = mine[0].n["data_seeds"]
            caption = f"{trait}. Intervals: {1 - self.level:.0%} over {seeds} data seeds."
            if group == RATIO:
                caption += " The numbers were chosen on the other data seeds."
            out.append(rows_chart(mine, f"{name}-{slug(trait)}", title, caption, reference))
        return out


_TILES = {"frequencies", "first digits", "linear probe", "compression"}
_CHARTS = {
    DISTANCE: ("distance", "How far the trait's rows are from control", 0.0),
    DIFFERENCE: ("difference", "What the trait's rows are like beside control", 0.0),
    SEPARABLE: ("separability", "How well readers of the text tell the rows apart", 0.5),
    RATIO: ("numbers", "Numbers that the trait's rows have most beyond control", 0.0),
}


def _shares(answers: Sequence[Sequence[int]]) -> dict[int, float]:
    counts = Counter(chain.from_iterable(answers))
    total = counts.total()
    return {number: count / total for number, count in counts.items()}
