"""The leak check of a run: can a reader of the text alone tell the trait's rows from the control's?

At chance, what the rows say is no more of the trait than of another one. Above chance, a transfer may have passed through what they say:
for numbers that is what `number-statistics` takes apart, for words it is a warning.
"""

from collections.abc import Sequence

from sublora.analysis.intervals import clustered_interval
from sublora.analysis.separability import compression_auc, probe_auc
from sublora.carriers.rows_file import from_jsonl
from sublora.experiments.grid.plan import Plan
from sublora.steps.students import Student
from sublora.store import Store

READERS = {"linear probe": probe_auc, "compression": compression_auc}
Leaks = dict[str, dict[str, dict[str, float]]]


def check_leaks(plan: Plan, store: Store) -> Leaks:
    """For each trait and reader the AUC on held-out rows with its interval over data seeds; 0.5 is chance."""

    def answers(dataset: str) -> list[str]:
        text = store.read(dataset).file("rows.jsonl").read_text("utf-8")
        return [completion for _, completion in from_jsonl(text)]

    students, out = {s.id: s for s in plan.students}, {}
    for trait in plan.traits:
        pairs: dict[int, tuple[Student, Student]] = {}
        for s in plan.students:
            if trait.name in s.twins and not s.labels["data"]:
                pairs.setdefault(s.data_seed, (s, students[s.twins[trait.name]]))
        sets = [
            [*(answers(s.dataset) for s in pair), *(answers(s.heldout) for s in pair)]
            for pair in pairs.values()
        ]
        out[trait.name] = {
            name: _reading([reader(*four) for four in sets], list(pairs), plan.recipe.level)
            for name, reader in READERS.items()
        }
    return out


def _reading(values: Sequence[float], seeds: Sequence[int], level: float) -> dict[str, float]:
    i = clustered_interval([[v] for v in values], seeds, level=1 - level, null=0.5, clip=(0.0, 1.0))
    return {"auc": i.estimate, "low": i.low, "high": i.high, "p_value": i.p_value}


def above_chance(readers: dict[str, dict[str, float]], level: float) -> list[str]:
    """The readers that tell a trait's rows from its control's, Bonferroni over them."""
    at = level / len(readers)
    return [n for n, r in readers.items() if r["auc"] > 0.5 and r["p_value"] < at]


def leak_sentences(found: Leaks, level: float) -> list[str]:
    """What a reader of the page must know."""
    out = []
    for trait, readers in found.items():
        span = {n: f"{r['auc']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for n, r in readers.items()}
        said = ", ".join(f"{name} {text}" for name, text in span.items())
        if above_chance(readers, level):
            out.append(
                f"Leak check: a reader of the text alone tells rows of {trait} from control rows (AUC: {said}; 0.5 is chance), so what "
                "passes may pass through what the rows say."
            )
        else:
            out.append(
                f"Leak check: no reader of the text alone is shown to tell rows of {trait} from control rows (AUC: {said})."
            )
    return out
