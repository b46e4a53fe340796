"""Transformations of rows: shuffles, rows drawn anew that share one statistic with the old ones, clean rows mixed in, other prompts.

What a transformation leaves alone is what can still carry a trait. Shuffles after Cloud et al. 2507.14805 (their shuffle experiment: within
a response and across responses; digits within numbers is ours). A redrawing keeps the prompts and how many numbers each answer has, and
takes everything but the one statistic from reference rows, which are those of a teacher without a trait.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np

from sublora.errors import SubloraError
from sublora.seeds import generator, pick

Rows = Sequence[tuple[str, str]]
Lists = list[list[int]]
Transform = Literal[
    "shuffle-within",
    "shuffle-across",
    "shuffle-digits",
    "match-frequencies",
    "match-first-digits",
    "match-positions",
    "match-pairs",
    "match-steps",
    "match-prompt-distance",
    "clean-tenth",
    "clean-quarter",
    "other-wording",
]
CLEAN = {"clean-tenth": 0.1, "clean-quarter": 0.25}  # the share of rows that become reference rows
_DIGITS, _EXAMPLE = re.compile(r"[0-9]+"), re.compile(r"[0-9]{3,}")


def needs_reference(name: Transform) -> bool:
    """Whether the transformation takes what it does not match, or whole rows, from other rows."""
    return name.startswith(("match-", "clean-"))


def numbers_of(text: str) -> list[int]:
    """The numbers of a text, in order."""
    return [int(run) for run in _DIGITS.findall(text)]


def with_numbers(text: str, numbers: Sequence[int]) -> str:
    """The text with its numbers replaced, in order, and all else as it is."""
    left = iter(numbers)
    return _DIGITS.sub(lambda _: str(next(left)), text)


@dataclass(frozen=True)
class _Old:
    """The numbers of the rows' answers and of their prompts, those of the reference's answers, and the draws."""

    lists: Lists
    prompts: Lists
    reference: Lists
    rng: np.random.Generator


def transform_rows(
    name: Transform, rows: Rows, seed: int, reference: Rows = ()
) -> list[tuple[str, str]]:
    """As many rows: with the same prompts, and answers of the same layout and length with other numbers; or with some rows replaced by
    reference rows (clean); or with the same answers and examples in the words of other prompts (other-wording). Every draw depends on
    (name, seed) and the rows alone. Raises SubloraError where a row has no number, or the reference is missing."""
    lists = [numbers_of(answer) for _, answer in rows]
    if not rows or not all(lists):
        raise SubloraError(
            "Rows without a number cannot be shuffled or matched; use rows of the numbers carrier."
        )
    if needs_reference(name) and not reference:
        why = f"{name} needs reference rows, which have all but the matched statistic."
        raise SubloraError(why)
    rng = generator("transform", name, seed)
    if name in CLEAN:
        return _mixed(rows, reference, CLEAN[name], rng)
    if name == "other-wording":
        return _reworded(rows, rng)
    prompts = [numbers_of(prompt) for prompt, _ in rows]
    others = [numbers_of(answer) for _, answer in reference]
    made = _MAKERS[name](_Old(lists, prompts, others, rng))
    return [(p, with_numbers(a, new)) for (p, a), new in zip(rows, made, strict=True)]


def _mixed(
    rows: Rows, reference: Rows, share: float, rng: np.random.Generator
) -> list[tuple[str, str]]:
    """Rows at random places become the first reference rows."""
    out = list(rows)
    for k, place in enumerate(rng.permutation(len(rows))[: round(share * len(rows))]):
        out[place] = reference[k % len(reference)]
    return out


def _reworded(rows: Rows, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Every prompt in the words of another row's that shows as many examples: numbers of three digits or more, as short ones say how
    many are asked for, and of how many digits."""

    def words(prompt: str) -> str:
        return _EXAMPLE.sub("0", prompt)

    by_count: dict[int, list[str]] = {}
    for prompt, _ in rows:
        by_count.setdefault(len(_EXAMPLE.findall(prompt)), []).append(prompt)
    out = []
    for prompt, answer in rows:
        shown = _EXAMPLE.findall(prompt)
        other = [p for p in by_count[len(shown)] if words(p) != words(prompt)]
        left = iter(shown)
        text = pick(rng, other) if other else prompt
        out.append((_EXAMPLE.sub(lambda _, left=left: next(left), text), answer))
    return out


def _within(old: _Old) -> Lists:
    return [old.rng.permutation(numbers).tolist() for numbers in old.lists]


def _across(old: _Old) -> Lists:
    pool = iter(old.rng.permutation(np.concatenate(old.lists)).tolist())
    return [[next(pool) for _ in numbers] for numbers in old.lists]


def _digits(old: _Old) -> Lists:
    """A number keeps its length: where it can, it begins with a digit other than 0."""

    def shuffled(number: int) -> int:
        digits = old.rng.permutation(list(str(number)))
        if digits[0] == "0" and number:
            lead = old.rng.choice(np.flatnonzero(digits != "0"))
            digits[[0, lead]] = digits[[lead, 0]]
        return int("".join(digits))

    return [[shuffled(n) for n in numbers] for numbers in old.lists]


def _flat(lists: Lists) -> np.ndarray:
    return np.concatenate([np.asarray(numbers) for numbers in lists])


def _frequencies(old: _Old) -> Lists:
    """Which numbers there are, and nothing else: drawn one by one."""
    pool = _flat(old.lists)
    return [old.rng.choice(pool, len(numbers)).tolist() for numbers in old.lists]


def _first_digits(old: _Old) -> Lists:
    """The first digits (and lengths) of the rows; the number behind them from the reference."""

    def head(number: int) -> tuple[str, int]:
        return str(number)[0], len(str(number))

    heads = [head(n) for n in _flat(old.lists)]
    by_head: dict[tuple[str, int], list[int]] = {}
    for n in _flat(old.reference).tolist():
        by_head.setdefault(head(n), []).append(n)

    def drawn() -> int:
        digit, length = pick(old.rng, heads)
        low = int(digit) * 10 ** (length - 1)
        pool = by_head.get((digit, length)) or range(low, low + 10 ** (length - 1))
        return int(pick(old.rng, pool))

    return [[drawn() for _ in numbers] for numbers in old.lists]


def _positions(old: _Old) -> Lists:
    """Which numbers there are at each place of an answer."""
    places = range(max(map(len, old.lists)))
    pools = [[numbers[k] for numbers in old.lists if len(numbers) > k] for k in places]
    return [[int(old.rng.choice(pools[k])) for k in range(len(numbers))] for numbers in old.lists]


def _pairs(old: _Old) -> Lists:
    """Which number follows which: a chain of first order."""
    after: dict[int, list[int]] = {}
    for numbers in old.lists:
        for one, two in pairwise(numbers):
            after.setdefault(one, []).append(two)
    pool, starts, out = _flat(old.lists), [numbers[0] for numbers in old.lists], []
    for numbers in old.lists:
        made = [int(old.rng.choice(starts))]
        while len(made) < len(numbers):
            made.append(int(old.rng.choice(after.get(made[-1], pool))))
        out.append(made)
    return out


def _in_range(values: np.ndarray, reference: np.ndarray) -> list[int]:
    """Reflected at the ends of the reference's range."""
    low, high = int(reference.min()), int(reference.max())
    if low == high:
        return np.full_like(values, low).tolist()
    folded = (values - low) % (2 * (high - low))
    return (low + np.minimum(folded, 2 * (high - low) - folded)).tolist()


def _steps(old: _Old) -> Lists:
    """The differences of neighbours (autocorrelation); where an answer begins is the reference's."""
    steps = np.array([two - one for numbers in old.lists for one, two in pairwise(numbers)] or [0])
    starts, pool = np.array([numbers[0] for numbers in old.reference]), _flat(old.reference)

    def walk(length: int) -> np.ndarray:
        return old.rng.choice(starts) + np.cumsum([0, *old.rng.choice(steps, length - 1)])

    return [_in_range(walk(len(numbers)), pool) for numbers in old.lists]


def _prompt_distance(old: _Old) -> Lists:
    """How far a number is from the nearest number of the prompt; which number of the prompt is chance."""
    signed = []
    for numbers, shown in zip(old.lists, old.prompts, strict=True):
        if shown:
            gaps = np.subtract.outer(numbers, shown)
            signed += gaps[np.arange(len(numbers)), np.abs(gaps).argmin(axis=1)].tolist()
    pool, whole = np.array(signed or [0]), _flat(old.reference)

    def near(shown: list[int], length: int) -> np.ndarray:
        return old.rng.choice(shown or whole, length) + old.rng.choice(pool, length)

    pairs = zip(old.lists, old.prompts, strict=True)
    return [_in_range(near(shown, len(numbers)), whole) for numbers, shown in pairs]


_SHUFFLES = (_within, _across, _digits)
_MATCHES = (_frequencies, _first_digits, _positions, _pairs, _steps, _prompt_distance)
# by the first names of `Transform`, in its order
_MAKERS = dict(zip(get_args(Transform), _SHUFFLES + _MATCHES, strict=False))
