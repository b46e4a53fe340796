"""What the arms of --what-if will take, said before they start, and which of them a budget leaves."""

from collections.abc import Callable, Sequence

import torch

from sublora.audit.entries import NotRun
from sublora.audit.what_if_arms import AS_TRAINED, SEEDS, Arm
from sublora.packs.rows import TokenRows
from sublora.runner.pace import GPU_TFLOPS
from sublora.runner.probe import product_rate
from sublora.text import duration, plural


def floating_point_rate(device: str) -> float:
    """FLOP/s of a training: of this CPU as its products are, less what stands between them, of a GPU by assumption."""
    return GPU_TFLOPS * 1e12 if device == "cuda" else 0.7 * product_rate(torch.get_num_threads())


def within(
    arms: Sequence[Arm],
    rows: dict[str, list[TokenRows]],
    asked: int,
    parameters: int,
    rate: float,
    minutes: float | None,
    say: Callable[[str], None],
) -> tuple[list[Arm], list[NotRun]]:
    """The arms that fit into so many minutes, in their order, and the others; `asked` are the tokens
    that each student is read with. As trained is always run: all others are compared with it."""

    def seconds(arm: Arm) -> float:
        trained = arm.spec.passes * sum(int(r.lengths.sum()) for r in rows[arm.name])
        train = trained * (6 if arm.spec.method == "full" else 4)
        return parameters * (train + 2 * asked * len(SEEDS)) / rate

    kept: list[Arm] = []
    spent = 0.0
    for arm in arms:
        own = seconds(arm)
        if minutes is None or arm.name == AS_TRAINED or spent + own <= 60 * minutes:
            kept.append(arm)
            spent += own
    told = f"What if: {plural(len(kept), 'arm')} of {len(SEEDS)} students, about {duration(spent)}"
    left = [arm.name for arm in arms if arm not in kept]
    say(f"{told}; left out: {', '.join(left)}." if left else f"{told}.")
    why = f"The budget of {minutes:g} minutes has no room for it." if minutes else ""
    return kept, [NotRun(name, why) for name in left]
