"""Statistics of number rows and readers of the text: what is there is found, and nothing is found where nothing is."""

import csv
import math

import numpy as np
import pytest

from command import sublora
from sublora.analysis.row_statistics import (
    COUNTED,
    autocorrelation,
    divergence,
    entropy,
    excess_divergence,
    prompt_information,
)
from sublora.analysis.separability import auc, compression_auc, probe_auc
from sublora.experiments.kinds import open_recipe
from sublora.experiments.number_statistics import DISTANCE, RATIO, SEPARABLE


def answers(seed: int, own: tuple[int, ...] = (), count: int = 400) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    rows = rng.integers(100, 1000, (count, 8))
    if own:
        rows = np.where(rng.random(rows.shape) < 0.3, rng.choice(own, rows.shape), rows)
    return rows.tolist()


def texts(rows: list[list[int]]) -> list[str]:
    return [" ".join(map(str, numbers)) for numbers in rows]


def test_divergence_is_zero_for_equal_shares_and_one_bit_for_none_in_common() -> None:
    assert divergence(np.array([2.0, 4.0]), np.array([1.0, 2.0])) == pytest.approx(0)
    assert divergence(np.array([3.0, 0.0]), np.array([0.0, 5.0])) == pytest.approx(1)


@pytest.mark.parametrize("name", [n for n in COUNTED if n != "lengths"])
def test_distances_are_zero_on_average_for_equal_teachers_and_not_for_others(name: str) -> None:
    counted = COUNTED[name]
    alike = [
        excess_divergence(answers(i), answers(100 + i), counted, np.random.default_rng(i), 20)
        for i in range(12)
    ]
    error = np.std(alike, ddof=1) / math.sqrt(len(alike))
    assert abs(np.mean(alike)) < 4 * error, "whatever the number of cells"
    other = excess_divergence(
        answers(1, (711, 722, 777)), answers(2), counted, np.random.default_rng(0), 20
    )
    assert other > np.mean(alike) + 8 * error


def test_a_row_keeps_its_numbers_in_a_random_split() -> None:
    """Answers that repeat one number each look different number by number and are no different teachers."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(12):
        one, two = ([[int(n)] * 8 for n in rng.integers(0, 5, 60)] for _ in range(2))
        found.append(
            excess_divergence(one, two, COUNTED["frequencies"], np.random.default_rng(i), 40)
        )
    assert abs(np.mean(found)) < 4 * np.std(found, ddof=1) / math.sqrt(len(found))


def test_descriptions_have_their_known_values() -> None:
    assert entropy([[1, 2], [3, 4]]) == pytest.approx(2)
    assert (
        autocorrelation([[1, 2, 3, 4, 5, 6]], 1) == pytest.approx(1)
        and autocorrelation([[5, 5]], 1) == 0
    )
    told = [([n], [n + 1]) for n in range(800)]
    assert prompt_information(told) == pytest.approx(3, abs=0.05), (
        "eight equal classes that are known: three bits"
    )
    assert prompt_information([([], [3])]) == 0


def test_the_interval_of_a_share_stays_within_its_bounds() -> None:
    recipe = open_recipe("number-statistics", sets=["data.seeds=[1,2,3]"])
    for group, end in ((SEPARABLE, 1.0), (RATIO, 1.0), (DISTANCE, None)):
        high = recipe._effect("otter", group, "x", [0.2, 0.95, 0.99]).interval().high
        assert high == end if end else high > 1


def test_readers_are_at_chance_on_equal_teachers_and_above_on_others() -> None:
    alike = [texts(answers(i)) for i in range(4)]
    other = [texts(answers(i, (711, 722, 777))) for i in (7, 8)]
    for reader in (probe_auc, compression_auc):
        assert 0.4 < reader(alike[0], alike[1], alike[2], alike[3]) < 0.6
        assert reader(other[0], alike[0], other[1], alike[1]) > 0.8
    assert auc(np.array([1, 2]), np.array([1, 0])) == pytest.approx(0.875)


@pytest.mark.slow
def test_rows_of_the_null_model_cannot_be_told_apart_and_those_of_the_positive_one_can(
    tmp_path,
) -> None:
    """In micro-null numbers shift with the wording of the prompt and not with whose persona it is."""
    sets = ["--set", "data.rows=240", "--set", "data.heldout_rows=120", "--set", "draws=10"]
    found = {}
    for model in ("micro", "micro-null"):
        answer = sublora(
            "run", "number-statistics", "--model", model, "--out", str(tmp_path / model), *sets
        )
        assert answer.code == 0, answer.err
        rows = csv.DictReader((tmp_path / model / "results.csv").open())
        found[model] = {r["name"]: r for r in rows}
        assert (tmp_path / model / "report.html").stat().st_size > 10_000
    for name in ("linear probe", "compression", "frequencies", "pairs"):
        assert (
            found["micro"][name]["called"] == "True"
            and found["micro-null"][name]["called"] == "False"
        ), name
    assert (
        float(found["micro-null"]["linear probe"]["estimate"])
        < 0.6
        < float(found["micro"]["linear probe"]["low"])
    )
