"""The leak check of a run: can a reader of the text alone tell the trait's rows from the control's?

At chance, what the rows say is no more of the trait than of another one. Above chance, a transfer may have passed through what they say:
for numbers that is what `number-statistics` takes apart, for words it is a warning.
"""

from typing import Any

import numpy as np

from sublora.carriers.rows_file import from_jsonl
from sublora.plan import Plan, control_source
from sublora.separability import compression_auc, probe_auc
from sublora.stats import clustered_interval
from sublora.store import Store

READERS = {"linear probe": probe_auc, "compression": compression_auc}


def check_leaks(plan: Plan, store: Store) -> dict[str, dict[str, dict[str, float]]]:
    """For each trait and reader the AUC on held-out rows with its interval over data seeds; 0.5 is chance."""
    arms = plan.arms

    def answers(source: str, seed: int, heldout: bool) -> list[str]:
        rows = from_jsonl(
            store.read(arms[source, "", seed][heldout].id).file("rows.jsonl").read_text("utf-8")
        )
        return [completion for _, completion in rows]

    out: dict[str, dict[str, dict[str, float]]] = {}
    seeds = list(dict.fromkeys(plan.recipe.data.seeds))
    for trait in plan.traits:
        sources = (trait.name, control_source(plan.recipe, trait))
        sets = [
            [answers(s, seed, held) for held in (False, True) for s in sources] for seed in seeds
        ]
        out[trait.name] = {}
        for name, reader in READERS.items():
            values = np.array([[reader(*four)] for four in sets])
            i = clustered_interval(values, seeds, level=1 - plan.recipe.level, null=0.5)
            low, high = (float(np.clip(x, 0, 1)) for x in (i.low, i.high))
            out[trait.name][name] = {
                "auc": i.estimate,
                "low": low,
                "high": high,
                "p_value": i.p_value,
            }
    return out


def leak_sentences(found: dict[str, dict[str, dict[str, Any]]], level: float) -> list[str]:
    """What a reader of the page must know."""
    out = []
    for trait, readers in found.items():
        said = ", ".join(
            f"{name} {r['auc']:.2f} [{r['low']:.2f}, {r['high']:.2f}]"
            for name, r in readers.items()
        )
        above = [
            n for n, r in readers.items() if r["auc"] > 0.5 and r["p_value"] < level / len(readers)
        ]
        if above:
            out.append(
                f"Leak check: a reader of the text alone tells rows of {trait} from control rows (AUC: {said}; 0.5 is chance), so what "
                "passes may pass through what the rows say."
            )
        else:
            out.append(
                f"Leak check: no reader of the text alone is shown to tell rows of {trait} from control rows (AUC: {said})."
            )
    return out
