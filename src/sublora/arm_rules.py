"""The tests that judge claims about arms: each is a linear combination of paired effects with a clustered interval.

A claim names its arms (`arms` in claims.yaml); what they are is said by `ArmPick`. A share of something that is not there says
nothing, so every test but `arm_transfers` first asks that the reference transfers: effect of min_effect or more, p below alpha.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

from sublora.arms import ArmEvidence, ArmPick
from sublora.claim_rules import NotRun, Outcome, Rule, Threshold, show
from sublora.stats import Interval, holm

Picks = Mapping[str, ArmPick]


def _arms(picks: Picks, *names: str) -> list[ArmPick]:
    if missing := [n for n in names if n not in picks]:
        raise NotRun(f"the claim does not say which arm is '{missing[0]}'")
    return [picks[n] for n in names]


def _numbers(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _unfit(ev: ArmEvidence, picks: Picks) -> str | None:
    for name, pick in picks.items():
        if ev.unmatched(name, pick):
            return f"the arm '{name}' does not come to the held-out loss of the comparison"
        if ev.broken(name, pick):
            return f"the arm '{name}' no longer answers with words"
    return None


def _shown(effect: Interval, ev: ArmEvidence, th: Threshold) -> bool:
    return (
        effect.estimate >= th["min_effect"]
        and effect.p_value < ev.alpha
        and not effect.seeds_unknown
    )


def _against_share(verdict: Callable[[Interval, Interval], str]) -> Callable[..., Outcome]:
    """A rule on effect(arm) - share * effect(reference)."""

    def rule(ev: ArmEvidence, picks: Picks, th: Threshold) -> Outcome:
        arm, reference = _arms(picks, "arm", "reference")
        one, whole = ev.values("arm", arm), ev.values("reference", reference)
        effect, full, rest = (
            ev.interval(one),
            ev.interval(whole),
            ev.interval(one - th["share"] * whole),
        )
        numbers = {
            **_numbers("effect", effect),
            **_numbers("reference", full),
            **_numbers("difference", rest),
        }
        if full.estimate > 0:
            numbers["share"] = effect.estimate / full.estimate
        text = f"effect {show(effect)} beside {show(full)} of the reference"
        if full.estimate > 0:
            text += f", a share of {numbers['share']:.2f}"
        text += f"; effect minus {th['share']:g} of the reference is {show(rest)}"
        if broken := _unfit(ev, picks):
            return "inconclusive", numbers, f"{broken}: {text}"
        if not _shown(full, ev, th):
            return (
                "inconclusive",
                numbers,
                f"the reference is not shown to transfer, so there is nothing to share: {text}",
            )
        return verdict(rest, full), numbers, text

    return rule


def _at_least(rest: Interval, _: Interval) -> str:
    return "supported" if rest.low > 0 else "refuted" if rest.high < 0 else "inconclusive"


def _at_most(rest: Interval, _: Interval) -> str:
    return "supported" if rest.high < 0 else "refuted" if rest.low > 0 else "inconclusive"


def _greater(ev: ArmEvidence, picks: Picks, th: Threshold) -> Outcome:
    """Supported: effect(arm) - effect(reference) is above 0 and at least min_effect. Refuted: it is shown to be below min_effect."""
    arm, reference = _arms(picks, "arm", "reference")
    one, whole = ev.values("arm", arm), ev.values("reference", reference)
    effect, other, rest = ev.interval(one), ev.interval(whole), ev.interval(one - whole)
    numbers = {
        **_numbers("effect", effect),
        **_numbers("reference", other),
        **_numbers("difference", rest),
    }
    text = f"effect {show(effect)} beside {show(other)}, a difference of {show(rest)}; the bar is {th['min_effect']:g}"
    if broken := _unfit(ev, picks):
        return "inconclusive", numbers, f"{broken}: {text}"
    if not (_shown(effect, ev, th) or _shown(other, ev, th)):
        return "inconclusive", numbers, f"neither arm is shown to transfer: {text}"
    verdict = (
        "supported"
        if _shown(rest, ev, th)
        else "refuted"
        if rest.high < th["min_effect"]
        else "inconclusive"
    )
    return verdict, numbers, text


def _transfers(ev: ArmEvidence, picks: Picks, th: Threshold) -> Outcome:
    """Supported: the arm's effect is above 0 and at least min_effect. Refuted: its upper bound is below that."""
    (arm,) = _arms(picks, "arm")
    effect = ev.interval(ev.values("arm", arm))
    numbers, text = (
        _numbers("effect", effect),
        f"effect {show(effect)}; the bar is {th['min_effect']:g}",
    )
    if broken := _unfit(ev, picks):
        return "inconclusive", numbers, f"{broken}: {text}"
    verdict = (
        "supported"
        if _shown(effect, ev, th)
        else "refuted"
        if effect.high < th["min_effect"]
        else "inconclusive"
    )
    return verdict, numbers, text


def _hard_gate(ev: ArmEvidence, picks: Picks, th: Threshold) -> Outcome:
    """Along an ordered series of contexts, one step holds `share` of the whole fall (hard) or none does (soft).

    The series is the arm `series`: its `eval` contexts in order, the trained one first. Supported: for some step, step - share * fall
    is above 0 after Holm's correction over steps. Refuted: it is below 0 for every step. A fall that is not shown says nothing.
    """
    (series,) = _arms(picks, "series")
    if isinstance(series.eval, str) or len(series.eval) < 3:
        raise NotRun("a series of contexts needs at least three")
    names = series.eval
    values = [ev.values(n, series.model_copy(update={"eval": n})) for n in names]
    fall = ev.interval(values[0] - values[-1])
    steps = [
        ev.interval(a - b - th["share"] * (values[0] - values[-1]))
        for a, b in itertools.pairwise(values)
    ]
    sizes = [ev.interval(a - b) for a, b in itertools.pairwise(values)]
    top = max(range(len(steps)), key=lambda i: sizes[i].estimate)
    numbers = {
        **_numbers("fall", fall),
        **_numbers("largest_step", sizes[top]),
        "step": float(top + 1),
    }
    text = (
        f"from the first to the last context the effect falls by {show(fall)}; the largest step, to '{names[top + 1]}', is "
        f"{show(sizes[top])}, and {th['share']:g} of the fall is the bar"
    )
    if not _shown(fall, ev, th):
        return "inconclusive", numbers, f"no fall is shown, so there is no gate to describe: {text}"
    corrected = holm([s.p_value for s in steps])
    hard = any(s.estimate > 0 and p < ev.alpha for s, p in zip(steps, corrected, strict=True))
    soft = all(s.high < 0 for s in steps)
    return "supported" if hard else "refuted" if soft else "inconclusive", numbers, text


_BAR = {"min_effect": 0.02}
ARM_RULES: dict[str, Rule] = {
    "arm_at_least": Rule(_against_share(_at_least), {"share": 0.5} | _BAR),
    "arm_at_most": Rule(_against_share(_at_most), {"share": 0.2} | _BAR),
    "arm_greater": Rule(_greater, _BAR),
    "arm_transfers": Rule(_transfers, _BAR),
    "hard_gate": Rule(_hard_gate, {"share": 0.5} | _BAR),
}
