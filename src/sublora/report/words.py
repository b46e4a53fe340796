"""How numbers and names are written in the figures."""

from __future__ import annotations

from collections.abc import Sequence

from sublora.report.load import RunData


def rate(value: float) -> str:
    """A learning rate as it is written in recipes: 1e-3, 2.5e-4."""
    mantissa, exponent = f"{value:.2e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}"


def signed(value: float, digits: int = 2) -> str:
    """+.42, −.03, .00: no sign on what rounds to nothing, no leading zero."""
    text = f"{abs(value):.{digits}f}"
    text = text[1:] if text.startswith("0.") else text
    if float(text) == 0:
        return text
    return ("+" if value > 0 else "−") + text


def share(value: float) -> str:
    """A share of 1 in two places: .42, 1.0."""
    return "1.0" if value >= 0.995 else f"{value:.2f}"[1:]


def plain(value: float, digits: int) -> str:
    """A number with a true minus."""
    return f"{value:.{digits}f}".replace("-", "−")


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Ticks with as many digits as the longest of them needs."""
    digits = next((d for d in range(5) if all(abs(t - round(t, d)) < 1e-9 for t in ticks)), 5)
    return [plain(t, digits) for t in ticks]


def rank_name(rank: int | None) -> str:
    """A student's rank, or that it is a full fine-tune."""
    return "full fine-tune" if rank is None else f"rank {rank}"


def short(text: str, longest: int = 16) -> str:
    """A name cut to what a figure has room for."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def trait_target(data: RunData, trait: str) -> str:
    """The word whose probability the trait's figures show."""
    return next((t.target for t in data.traits if t.name == trait), trait)


def p_of_target(data: RunData, trait: str) -> str:
    """P(“otter”)"""
    return f"P(“{short(trait_target(data, trait))}”)"
