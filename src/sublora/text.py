"""How numbers, names and lists are written, on the page, in figures and in messages. Minus signs are true ones."""

import re
from collections.abc import Iterable, Sequence
from itertools import chain, count

NOTHING = "–"  # where there is no value


def number(value: float | None, digits: int = 3) -> str:
    """0.123, −0.123, and never −0.000."""
    if value is None:
        return NOTHING
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """+0.123, −0.123, 0.000."""
    sign = "+" if value is not None and round(value, digits) > 0 else ""
    return sign + number(value, digits)


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """[−0.012, +0.123], or nothing where an end is not known."""
    if low is None or high is None:
        return ""
    return f"[{signed(low, digits)}, {signed(high, digits)}]"


def p_value(p: float | None) -> str:
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def percent(share: float) -> str:
    """A share in whole percent, without a minus before 0."""
    return f"{round(100 * float(share))}%".replace("-", "−")


def compact(value: float, digits: int = 2) -> str:
    """For figures: +.42, −.03, and .00 without a sign."""
    text = f"{abs(value):.{digits}f}".removeprefix("0")
    if float(text) == 0:
        return text
    return ("+" if value > 0 else "−") + text


def share(value: float) -> str:
    """For figures, a share of 1 in two digits: .42, 1.0."""
    return "1.0" if value >= 0.995 else f"{value:.2f}"[1:]


def rate(value: float) -> str:
    """A learning rate as it is written in recipes: 1e-3, 2.5e-4."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def plural(count: int, noun: str) -> str:
    """1 cell, 2 cells."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def listed(values: Iterable[object], word: str = "and") -> str:
    """a, b and c; floats as they are written in recipes."""
    texts = [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
    return f" {word} ".join(filter(None, (", ".join(texts[:-1]), *texts[-1:])))


def short(text: str, longest: int = 16) -> str:
    """A name cut to what a figure has room for."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def visible(text: str) -> str:
    """A token with its spaces, tabs and line breaks to be seen."""
    return text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")


def slug(name: str, otherwise: str = "unnamed") -> str:
    """A name of a file: small letters a to z, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or otherwise


def slugs(names: Sequence[str], otherwise: str = "unnamed") -> dict[str, str]:
    """A slug for each name, no two alike."""
    found: dict[str, str] = {}
    for name in names:
        plain, taken = slug(name, otherwise), set(found.values())
        tried = chain([plain], (f"{plain}-{k}" for k in count(2)))
        found[name] = next(text for text in tried if text not in taken)
    return found
