"""What keeps a grid from speaking to a claim, whatever its students show: too few unique rows, or rows that a reader can tell."""

from collections.abc import Sequence
from dataclasses import replace

from sublora.analysis.claims import Claim, Verdict
from sublora.analysis.effects import ACROSS, ALL_TRAITS
from sublora.experiments.grid.effects import Results
from sublora.experiments.grid.leaks import Leaks, above_chance


def barred(
    verdicts: Sequence[Verdict], results: Results, leaks: Leaks, level: float
) -> list[Verdict]:
    """The verdicts; not run where the run cannot speak to the claim. `leaks`: the leak check by trait, none where there was no check."""
    out = []
    for v in verdicts:
        if why := _why(results, leaks, level, v.claim, v.trait):
            reason = f"{why[:1].upper()}{why[1:]}."
            v = replace(v, verdict="not run", statistic={}, reason=reason)
        out.append(v)
    return out


def _why(results: Results, leaks: Leaks, level: float, claim: Claim, trait: str) -> str | None:
    """Why a claim is not judged for a trait, or across traits."""
    traits = [t.name for t in results.plan.traits if trait in (t.name, ACROSS, ALL_TRAITS)]
    if claim.unique_rows:
        read = {s.dataset for s in results.plan.students if s.source in traits}
        fewest = min(results.dataset_meta[d]["unique_rows"] for d in read)
        if fewest < claim.unique_rows:
            return f"the claim speaks of {claim.unique_rows:,} unique rows or more, and there are {fewest:,}"
    if claim.no_leak:
        told = [(t, r) for t in traits if t in leaks for r in above_chance(leaks[t], level)]
        if told:
            name, reader = told[0]
            auc = leaks[name][reader]["auc"]
            return (
                f"the claim speaks of rows that never mention the trait, and a reader of the text alone ({reader}) tells rows of "
                f"{name} from control rows (AUC {auc:.2f})"
            )
    return None
