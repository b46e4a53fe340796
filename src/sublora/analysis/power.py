"""What a design can find: the smallest effect that it detects with a given power, and the share of seeds that it can miss."""

import math

from scipy.optimize import brentq
from scipy.stats import nct, t

from sublora.errors import SubloraError


def smallest_effect(
    standard_error: float, df: float, level: float = 0.05, power: float = 0.8
) -> float:
    """The true effect that a two-sided t test at `level` calls above 0 with this power, in units of `standard_error`'s unit.

    Raises SubloraError without a degree of freedom, with which nothing is ever called.
    """
    if df < 1:
        raise SubloraError("one replicate detects nothing; give two data seeds or more.")
    if not math.isfinite(df):
        df = 1e6
    bar = t.ppf(1 - level / 2, df)

    def lacking(effect: float) -> float:
        return float(nct.sf(bar, df, effect)) - power

    return standard_error * float(brentq(lacking, 0.0, 10 * bar + 10))


def jumps_missed(seeds: int, chance: float = 0.05) -> float:
    """The largest share of seeds that show a trait that none of `seeds` shows with this chance."""
    return 1 - chance ** (1 / seeds)
