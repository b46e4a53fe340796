"""Log-odds of the target: a control's own word may take any share of all others, and nothing changes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sublora.analysis.effects import transfer
from sublora.analysis.log_odds import LEAST, log_odds

WORDS, TARGET, OWN = 6, 2, 4
SHARES = arrays(float, (3, WORDS), elements=st.floats(0.01, 1)).map(
    lambda p: p / p.sum(axis=1, keepdims=True)
)


def with_own_word(p: np.ndarray, share: float) -> np.ndarray:
    """The same answers, but for a word that takes this share of each."""
    out = p * (1 - share)
    out[:, OWN] += share
    return out


@given(SHARES, st.floats(0, 0.99))
def test_the_word_of_the_control_moves_no_log_odds_of_others(p, share):
    taught = with_own_word(p, share)
    moved = log_odds(taught, TARGET, (OWN,)) - log_odds(p, TARGET, (OWN,))
    assert np.abs(moved).max() < 1e-9
    # where the word counts, a student who learned nothing looks taught beside such a control
    if share > 0.1:
        assert (log_odds(p, TARGET) > log_odds(taught, TARGET)).all()


@given(SHARES, st.floats(0.2, 5))
def test_odds_of_the_target_that_grow_by_a_factor_are_its_logarithm(p, factor):
    grown = p.copy()
    grown[:, TARGET] *= factor
    for scale in (1.0, 0.3):  # how much of the answers are words of the category at all
        moved = log_odds(scale * grown, TARGET, (OWN,)) - log_odds(p, TARGET, (OWN,))
        assert moved == pytest.approx(np.log(factor))


def test_a_broken_student_has_finite_log_odds():
    assert log_odds(np.zeros((2, WORDS)), TARGET).tolist() == [0, 0]
    alone = np.eye(WORDS)[[TARGET]]
    assert log_odds(alone, TARGET)[0] == pytest.approx(-np.log(LEAST))


def test_a_call_goes_by_the_smaller_rise_of_that_over_the_control_and_that_over_the_base():
    def shown(over_control: float, over_base: float):
        noise = np.random.default_rng(0).normal(0, 0.02, (6, 8))
        parts = {"student": noise, "control": noise, "base": noise[0], "rise": noise + over_base}
        seeds = [(s, s) for s in range(6)]
        return transfer({"trait": "otter"}, noise + over_control, parts, seeds, {}).shown()

    both, fallen, shared = shown(0.5, 0.4), shown(0.5, -0.1), shown(-0.1, 0.5)
    assert both.estimate == pytest.approx(0.4, abs=0.02) and both.p_value < 1e-4
    assert fallen.estimate < 0 and fallen.p_value == 1  # the control alone has fallen
    assert shared.estimate < 0 and shared.p_value == 1  # students rise whatever they read
