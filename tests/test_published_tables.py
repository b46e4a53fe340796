"""Published tables with their real designs, and the verdicts of a careful reader, written down before the code gave any.

Sources. `published_ranks.csv`: Nief et al., notebook of their later repository, 3 data x 3 training seeds, no spread printed. `feng_*.csv`:
Feng et al., draft, 3 training seeds on one data set of 10k rows (207k in `feng_full_207k.csv`, printed by seed), 50 questions x 20 answers.
"""

import json
from pathlib import Path

import pytest

from sublora.analysis.published import common_lr
from sublora.analysis.published_rows import parse
from sublora.experiments.claims import verdict_file

DATA = Path(__file__).parent / "data"
NO_LR = "one learning rate a rank shows no best one"
NO_FULL = "the table has no full fine-tune"
NO_WORDS = "the table does not say what the full fine-tunes answer"
FEW_ROWS = "the claim speaks of 250k unique rows, and these are fewer"
NOT_RUN = {
    "nief-inverted-u-best-lr": ("not run", NO_LR),
    "feng-decline-at-best-lr": ("not run", NO_LR),
    "feng-best-lr-falls": ("not run", NO_LR),
    "feng-full-ft-destroyed": ("not run", NO_WORDS),
    "feng-full-ft-transfers": ("not run", FEW_ROWS),
    "feng-flat-with-unique-rows": ("not run", FEW_ROWS),
}
TWO_OF_THREE = (
    "a mean of about a half over three data sets may be two that transfer and one that does not"
)
NO_SHAPE = "without a spread over three data sets a curve over rank can be one set's"
THREE_RUNS = "a mean of about a half over three runs may be two that transfer and one that does not"
ONE_JUMPS = "three runs at 19.4, 2.0 and 1.7% are one that jumps and two at the base: neither a mean effect nor none"

NIEF = {
    **{
        (claim, trait): verdict
        for claim, verdict in {**NOT_RUN, "nief-full-ft-null": ("not run", NO_FULL)}.items()
        for trait in ("cat", "owl", "eagle", "wolf", "dolphin")
    },
    **{
        ("nief-inverted-u", trait): ("inconclusive", NO_SHAPE)
        for trait in ("cat", "owl", "eagle", "wolf", "dolphin")
    },
    ("cloud-transfer-exists", "cat"): ("inconclusive", TWO_OF_THREE),
    ("cloud-transfer-exists", "wolf"): ("inconclusive", TWO_OF_THREE),
    ("cloud-transfer-exists", "owl"): (
        "inconclusive",
        "a mean of 21.7% over three data sets may be one alone that transfers",
    ),
    ("cloud-transfer-exists", "eagle"): (
        "supported",
        "a mean of 86.2% leaves each of three data sets at 58.6% or more, beside a base of 1.2%",
    ),
    ("cloud-transfer-exists", "dolphin"): (
        "inconclusive",
        "three data sets at the base leave room for 63% of data sets that jump",
    ),
}
NO_SPREAD = "three runs a rank, and no spread of them is printed"
FENG_SHARED = {
    **NOT_RUN,
    "cloud-transfer-exists": ("inconclusive", THREE_RUNS),
    "nief-inverted-u": ("inconclusive", NO_SPREAD),
    "nief-full-ft-null": (
        "inconclusive",
        "no hit at a rate that may have destroyed the model says nothing",
    ),
}
FENG_BEST = {
    **NOT_RUN,
    "cloud-transfer-exists": (
        "supported",
        "a mean of 84.9% leaves each of three runs at 54.7% or more, beside a base of 1.4%",
    ),
    "nief-inverted-u": ("not run", "each rank has its own rate, and three of eight share one"),
    "nief-inverted-u-best-lr": ("inconclusive", NO_SPREAD),
    "feng-decline-at-best-lr": ("inconclusive", NO_SPREAD),
    "nief-full-ft-null": ("inconclusive", "4.0% beside 1.4% may be one run of three that jumps"),
}
FENG_BOTH = {**FENG_BEST, "nief-inverted-u": ("inconclusive", NO_SPREAD)}
FENG_207K = {
    **NOT_RUN,
    "cloud-transfer-exists": ("inconclusive", ONE_JUMPS),
    "nief-full-ft-null": ("inconclusive", ONE_JUMPS),
    "nief-inverted-u": ("not run", "the table has no LoRA student"),
}
READ = {
    "published_ranks": NIEF,
    "feng_shared_lr": {(claim, "cat"): v for claim, v in FENG_SHARED.items()},
    "feng_best_lr": {(claim, "cat"): v for claim, v in FENG_BEST.items()},
    "feng_ranks": {(claim, "cat"): v for claim, v in FENG_BOTH.items()},
    "feng_full_207k": {(claim, "cat"): v for claim, v in FENG_207K.items()},
}


@pytest.mark.parametrize("table", READ)
def test_a_published_table_gets_the_verdicts_of_a_careful_reader(table):
    results, _ = verdict_file(DATA / f"{table}.csv")
    json.dumps(results, allow_nan=False)
    got = {(r["id"], r["trait"]): r["verdict"] for r in results}
    assert got == {place: verdict for place, (verdict, _) in READ[table].items()}
    assert all(r["reason"].endswith(".") for r in results)


def test_the_peaks_of_means_without_a_spread_are_not_told_apart():
    results, _ = verdict_file(DATA / "published_ranks.csv", ["traits"])
    (peaks,) = [r for r in results if r["id"] == "nief-peaks-differ"]
    assert (peaks["trait"], peaks["verdict"]) == ("all", "inconclusive")


def test_the_table_of_ranks_is_the_reference_table_with_its_design():
    rows = parse((DATA / "published_ranks.csv").read_text())
    assert len(rows) == 50 and common_lr(rows) == 2e-4
    assert {(r.seeds, r.data_seeds, r.train_seeds, r.clusters) for r in rows} == {(9, 3, 3, 3)}
    assert {r.setting for r in rows} == {("", 10000, 3.0)}
    peaks = {}
    for row in rows:
        peaks[row.trait] = max(peaks.get(row.trait, (0, 0)), (row.rate, row.rank))
    assert peaks == {
        "cat": (0.539, 8),
        "owl": (0.217, 64),
        "eagle": (0.862, 64),
        "wolf": (0.534, 64),
        "dolphin": (0.009, 512),
    }
