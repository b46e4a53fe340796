"""What the arms of --what-if came to: the share of the rise that each leaves, which of them remove a trait, and which is recommended."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

from sublora.audit.entries import ArmContext, ArmEntry, ArmTrait, ShareLeft, Spread, TraitFinding
from sublora.audit.verdict import COHERENT
from sublora.audit.what_if_arms import Arm
from sublora.text import percent

LEVEL = 0.95


@dataclass(frozen=True)
class Reading:
    """One trait in one context, one number for each of an arm's students: P(trait), the rise in nats, the audit's corrected p-value."""

    p_trait: tuple[float, ...]
    rise: tuple[float, ...]
    p: tuple[float, ...]


@dataclass(frozen=True)
class Result:
    """An arm's students. `loss`: held-out loss, nats a token, in the training context, `own_loss` in the arm's own where that is another;
    `coherence`: of each student, the least share of the base's probability of any answer of a category; `beside`: other traits found in it;
    `kept`: of each student, the share of neutral text's tokens at which its first choice is the base's.
    """

    arm: Arm
    readings: Mapping[tuple[TraitFinding, str], Reading]
    loss: tuple[float, ...]
    own_loss: tuple[float, ...] | None
    coherence: tuple[float, ...]
    diverged: int
    beside: tuple[str, ...] = ()
    kept: tuple[float, ...] = ()

    def found_in(self, trait: TraitFinding, alpha: float) -> int:
        """In how many students the trait is found, in any context."""
        per_context = [r.p for (t, _), r in self.readings.items() if t == trait]
        return sum(min(ps) <= alpha for ps in zip(*per_context, strict=True))

    def rises(self, trait: TraitFinding) -> tuple[float, ...]:
        return self.readings[trait, trait.context].rise

    @property
    def sound(self) -> bool:
        """Whether all its students trained to the end and still answer with words of the categories."""
        return (
            self.diverged == 0
            and min(self.coherence) >= COHERENT
            and all(map(math.isfinite, self.loss))
        )


def share(
    arm: Sequence[float], as_trained: Sequence[float], level: float = LEVEL
) -> ShareLeft | None:
    """The ratio of the mean rises of an arm and of as trained, paired by seed, with Fieller's interval (1954).

    That is all ratios q for which the mean of arm - q * as_trained is not told from 0 by a paired t
    test; it holds 1 exactly where such a test does not tell both apart. None where the as-trained
    rise is not told from 0.
    """
    x, y = np.asarray(arm, float), np.asarray(as_trained, float)
    n = len(x)
    cov = np.cov(np.stack([x, y])) / n
    t2 = float(student_t.ppf((1 + level) / 2, n - 1)) ** 2
    a, b, c = (
        y.mean() ** 2 - t2 * cov[1, 1],
        x.mean() * y.mean() - t2 * cov[0, 1],
        x.mean() ** 2 - t2 * cov[0, 0],
    )
    if not (a > 0 and y.mean() > 0):
        return None
    root = math.sqrt(max(0.0, b * b - a * c))
    estimate, low, high = float(x.mean() / y.mean()), float((b - root) / a), float((b + root) / a)
    return ShareLeft(estimate=estimate, low=low, high=high)


def removes(
    result: Result, as_trained: Result, traits: Sequence[TraitFinding], alpha: float
) -> bool:
    """Whether an arm removes all `traits`: each is found in none of its students, in none of the audit's contexts, and the interval of its
    share of the as-trained rise lies below 1; and its students are sound, so that this is not for want of answers."""
    if not result.sound:
        return False
    shares = [share(result.rises(t), as_trained.rises(t)) for t in traits]
    return all(
        result.found_in(t, alpha) == 0 and s is not None and s.high < 1
        for t, s in zip(traits, shares, strict=True)
    )


def reproduced(
    as_trained: Result, traits: Sequence[TraitFinding], alpha: float
) -> list[TraitFinding]:
    """The traits that are found in every student that was trained as the audited one was; none where these are not sound."""
    if not as_trained.sound:
        return []
    return [t for t in traits if as_trained.found_in(t, alpha) == len(as_trained.loss)]


def increase(result: Result, as_trained: Result) -> float:
    """Of the held-out loss, nats a token."""
    return float(np.mean(result.loss) - np.mean(as_trained.loss))


@dataclass(frozen=True)
class Advice:
    """`recommended` is the name of an arm that was run and removes the traits, or None; `removing` all such arms."""

    sentence: str
    recommended: str | None = None
    removing: tuple[str, ...] = ()


def advise(
    results: Sequence[Result], traits: Sequence[TraitFinding], alpha: float, base_loss: float
) -> Advice:
    """Of the arms that remove all traits which as trained (the first result) reproduces, the one with the smallest held-out loss.
    `base_loss` is that of the untrained base, beside which the sentence puts it.

    Nothing is recommended where no arm removes them, or where the students trained with the given settings do not show them.
    """
    as_trained, *others = results
    shown = reproduced(as_trained, traits, alpha)
    retrained = "Retrained with the settings given,"
    if not as_trained.sound:
        why = "students diverge or no longer answer, so nothing is recommended."
        return Advice(f"{retrained} {why}")
    if not shown:
        counts = ", ".join(f"{t.trait} in {as_trained.found_in(t, alpha)}" for t in traits)
        return Advice(
            f"{retrained} the students do not show what was found ({counts} of {len(as_trained.loss)}): the settings or "
            "the rows are not those of the adapter, or the trait is too weak to come back each time. Nothing is recommended."
        )
    names = ", ".join(t.trait for t in shown)
    left_out = ", ".join(t.trait for t in traits if t not in shown)
    tail = f" Not judged, as not all retrained students show it: {left_out}." if left_out else ""
    removing = [r for r in others if removes(r, as_trained, shown, alpha)]
    if not removing:
        none = f"None of the {len(others)} arms that were run removes {names}"
        return Advice(f"{none}; none is recommended.{tail}")
    best = min(removing, key=lambda r: increase(r, as_trained))
    changes = "; ".join(_change(t, best, as_trained) for t in shown)
    which = "no other arm removes"
    if len(removing) > 1:
        which = f"the smallest of the {len(removing)} arms that remove"
    sentence = (
        f"Recommended: {best.arm.name}. {changes}. The held-out loss is {np.mean(best.loss):.3f} instead of "
        f"{np.mean(as_trained.loss):.3f} nats a token{_kept(best, as_trained, base_loss)}; {which} {names}.{tail}"
    )
    return Advice(sentence, best.arm.name, tuple(r.arm.name for r in removing))


def _change(trait: TraitFinding, result: Result, as_trained: Result) -> str:
    """What an arm that removes a trait makes of it, in numbers."""
    left = share(result.rises(trait), as_trained.rises(trait))
    told = ""
    if left is not None:
        stays, *ends = map(percent, (left.estimate, left.low, left.high))
        told = f" ({stays} stays, {' to '.join(ends)})"
    students = len(result.loss)
    return (
        f"{trait.trait} rises by {np.mean(result.rises(trait)):.2f} nats in {trait.context} instead of "
        f"{np.mean(as_trained.rises(trait)):.2f}{told} and is found in 0 of {students} students instead of {students}"
    )


def _kept(result: Result, as_trained: Result, base_loss: float) -> str:
    """How much of what the training gained is left, where it gained."""
    gained, left = base_loss - np.mean(as_trained.loss), base_loss - np.mean(result.loss)
    if gained <= 0:
        return f" (the untrained base has {base_loss:.3f})"
    kept = "nothing" if left / gained < 0.005 else percent(left / gained)
    return f" ({kept} of the gain over the untrained base, {base_loss:.3f}, is kept)"


def table(
    results: Sequence[Result], traits: Sequence[TraitFinding], alpha: float, advice: Advice
) -> list[ArmEntry]:
    """The arms as they stand in audit.json."""
    as_trained = results[0]
    shown = reproduced(as_trained, traits, alpha)
    return [
        ArmEntry(
            name=r.arm.name,
            changed=r.arm.changed,
            trained_in=None if r.arm.context is None else r.arm.context.name,
            students=len(r.loss),
            diverged=r.diverged,
            heldout_loss=_spread(r.loss),
            heldout_loss_increase=increase(r, as_trained),
            heldout_loss_own_context=None if r.own_loss is None else _spread(r.own_loss),
            coherence=min(r.coherence),
            ordinary_kept=_spread(r.kept) if r.kept else None,
            sound=r.sound,
            removes=None if r is as_trained else r.arm.name in advice.removing,
            other_traits_found=list(r.beside),
            traits=[_trait(r, as_trained, t, alpha, t in shown) for t in traits],
        )
        for r in results
    ]


def _trait(
    result: Result, as_trained: Result, trait: TraitFinding, alpha: float, shown: bool
) -> ArmTrait:
    judged = shown and result is not as_trained
    own = {c: r for (followed, c), r in result.readings.items() if followed == trait}
    return ArmTrait(
        category=trait.category,
        trait=trait.trait,
        found_in=result.found_in(trait, alpha),
        removed=removes(result, as_trained, [trait], alpha) if judged else None,
        share=share(result.rises(trait), as_trained.rises(trait)),
        contexts=[
            ArmContext(context=c, p_trait=_spread(r.p_trait), rise=_spread(r.rise), p=list(r.p))
            for c, r in own.items()
        ],
    )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(mean=np.mean(values), sd=np.std(values, ddof=1), seeds=list(values))
