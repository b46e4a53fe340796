"""Verdicts on other people's tables: the published ranks, tables with a spread, and files with faults."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sublora.analysis.published import NEEDED, common_lr, parse, verdicts_of_rows
from sublora.errors import SubloraError
from sublora.experiments.claims import load_claims, verdict_file

PUBLISHED = Path(__file__).parent / "data" / "published_ranks.csv"
TRAITS = ("cat", "owl", "eagle", "wolf", "dolphin")
HEAD = "rank,lr,seeds,rate,n,base\n"
# Rates by rank and lr in the manner of the counter-evidence: the best lr and its rate fall with rank.
GRID = {
    2: (0.06, 0.35, 0.85),
    8: (0.48, 0.71, 0.30),
    32: (0.37, 0.20, 0.02),
    128: (0.05, 0.01, 0.01),
}


def pick(results, claim, trait="trait"):
    (result,) = [r for r in results if r["id"] == claim and r["trait"] == trait]
    return result["verdict"]


CLAIMS = load_claims()


def judged(text):
    return verdicts_of_rows(parse(text), CLAIMS)


def with_sd(rates, sd=0.03, seeds=6, lr=2e-4):
    return "rank,lr,seeds,rate,n,base,sd\n" + "".join(
        f"{rank},{lr},{seeds},{rate},1000,0.01,{sd}\n" for rank, rate in rates.items()
    )


def test_published_ranks():
    results = verdict_file(PUBLISHED)
    json.dumps(results, allow_nan=False)
    transfer = {t: pick(results, "cloud-transfer-exists", t) for t in TRAITS}
    called = dict.fromkeys(("cat", "eagle", "wolf"), "supported")
    assert transfer == called | dict.fromkeys(("owl", "dolphin"), "inconclusive")
    shape = {t: pick(results, "nief-inverted-u", t) for t in transfer}
    assert shape == dict.fromkeys(transfer, "inconclusive") | {"eagle": "supported"}
    assert pick(results, "nief-peaks-differ", "all") == "inconclusive"
    for claim in ("feng-decline-at-best-lr", "feng-best-lr-falls", "nief-full-ft-null"):
        assert {pick(results, claim, t) for t in transfer} == {"not run"}
    assert all(r["reason"] for r in results)


def test_published_table_is_the_reference_table():
    rows = parse(PUBLISHED.read_text())
    assert len(rows) == 50 and {r.seeds for r in rows} == {9} and common_lr(rows) == 2e-4
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


def test_a_real_spread_decides_more_than_the_widest_one():
    hill = {2: 0.06, 4: 0.35, 8: 0.48, 16: 0.50, 32: 0.37, 64: 0.15, 128: 0.02}
    bare = HEAD + "".join(f"{k},2e-4,6,{v},1000,0.01\n" for k, v in hill.items())
    assert pick(judged(bare), "nief-inverted-u") == "inconclusive"
    assert pick(judged(with_sd(hill)), "nief-inverted-u") == "supported"
    assert pick(judged(with_sd(hill, sd=0.6)), "nief-inverted-u") == "inconclusive"
    falls = dict(zip(hill, (0.85, 0.8, 0.7, 0.5, 0.37, 0.15, 0.05), strict=True))
    assert pick(judged(with_sd(falls)), "nief-inverted-u") == "refuted"


def test_low_and_high_are_the_published_width():
    text = "rank,lr,seeds,rate,n,base,low,high\n8,2e-4,4,0.5,100000,0.01,0.3,0.7\n"
    row = parse(text)[0]
    effect = row.effect(0.95)
    assert (effect.high - effect.low, effect.estimate) == pytest.approx((0.4, 0.49), abs=0.001)
    assert pick(judged(text), "cloud-transfer-exists") == "supported"
    assert parse(text.replace("0.3,0.7", ","))[0].spread is None


def test_a_grid_is_judged_on_the_best_lr_too():
    lrs = (5e-5, 2e-4, 8e-4)
    text = "rank,lr,seeds,rate,n,base,sd\n" + "".join(
        f"{rank},{lr},5,{rate},1000,0.01,0.01\n"
        for rank, rates in GRID.items()
        for lr, rate in zip(reversed(lrs), reversed(rates), strict=True)
    )
    results = judged(text)
    assert pick(results, "feng-decline-at-best-lr") == "supported"
    assert pick(results, "nief-inverted-u-best-lr") == "refuted"
    assert pick(results, "feng-best-lr-falls") == "supported"
    reason = next(r["reason"] for r in results if r["id"] == "feng-decline-at-best-lr")
    assert "chosen and read on the same numbers" in reason


def test_full_fine_tunes_are_read():
    text = (
        with_sd({8: 0.5})
        + "full,2e-5,6,0.010,100000,0.01,0.001\nFull,5e-5,6,0.011,100000,0.01,0.001\n"
    )
    results = judged(text)
    assert pick(results, "nief-full-ft-null") == "supported"
    assert pick(results, "feng-full-ft-transfers") == "refuted"
    assert pick(judged(text.replace("0.011", "0.300")), "nief-full-ft-null") == "refuted"
    assert pick(results, "feng-full-ft-destroyed") == "not run"


def test_one_run_without_a_spread_is_never_enough():
    one = HEAD + "".join(
        f"{k},2e-4,1,{v},1000,0.01\n" for k, v in {2: 0.1, 8: 0.9, 32: 0.2}.items()
    )
    assert {r["verdict"] for r in judged(one)} == {"inconclusive", "not run"}
    spread = one.replace("base\n", "base,sd\n").replace("0.01\n", "0.01,0.001\n")
    assert pick(judged(spread), "cloud-transfer-exists") == "inconclusive"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rows"),
        (HEAD, "no rows"),
        ("\n \n", "no rows"),
        ("rank,lr,seeds,rate,n\n8,1e-4,3,0.5,100\n", "lacks the column base"),
        ("rank,lr,seeds,rate,n,base,rate\n8,1e-4,3,0.5,100,0,1\n", "'rate' twice"),
        (HEAD + "8,1e-4,three,0.5,100,0.01\n", "line 2, column seeds: 'three'"),
        (HEAD + "8,1e-4,3,0.5,100,0.01\n\n4,1e-4,3,half,100,0.01\n", "line 4, column rate: 'half'"),
        (HEAD + "8,1e-4,3,53.9,100,0.01\n", "line 2, column rate.*divide percentages by 100"),
        (HEAD + "8,1e-4,3,0.539,100,1.4\n", "column base.*divide percentages by 100"),
        (HEAD + "8,1e-4,3,-0.1,100,0.01\n", "column rate: -0.1 is not between 0 and 1"),
        (HEAD + "8,1e-4,3,nan,100,0.01\n", "column rate: 'nan'"),
        (HEAD + "8,inf,3,0.5,100,0.01\n", "column lr"),
        (HEAD + "8,0,3,0.5,100,0.01\n", "column lr"),
        (HEAD + "0,1e-4,3,0.5,100,0.01\n", "column rank"),
        (HEAD + "8.5,1e-4,3,0.5,100,0.01\n", "column rank: '8.5' is not a whole number"),
        (HEAD + "8,1e-4,0,0.5,100,0.01\n", "column seeds"),
        (HEAD + "8,1e-4,3,,100,0.01\n", "column rate: ''"),
        (HEAD + "8,1e-4,3,0.5,100\n", "line 2: 5 values for 6 columns"),
        (HEAD + "8,1e-4,3,0.5,100,0.01,7\n", "line 2: 7 values"),
        (HEAD + "8,1e-4,3,0.5,100,0.01\n8,0.0001,3,0.6,100,0.01\n", "line 3: .*line 2"),
        (HEAD + "full,1e-4,3,0.5,100,0.01\nFULL,1e-4,3,0.6,100,0.01\n", "line 3: .*line 2"),
        (HEAD.replace("base", "base,low") + "8,1e-4,3,0.5,100,0.01,0.4\n", "low and high"),
        (
            HEAD.replace("base", "base,low,high") + "8,1e-4,3,0.5,100,0.01,0.6,0.7\n",
            "outside its interval",
        ),
        (HEAD + '8,1e-4,3,"0.5,100,0.01\n', "not a CSV line"),
    ],
)
def test_a_wrong_table_is_one_sentence_with_its_place(text, words):
    with pytest.raises(SubloraError, match=words) as caught:
        parse(text, "results.csv")
    message = str(caught.value)
    assert message.startswith("results.csv") and message.endswith(".") and "\n" not in message


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(SubloraError, match=r"absent\.csv cannot be read"):
        verdict_file(tmp_path / "absent.csv")
    with pytest.raises(SubloraError, match="cannot be read"):
        verdict_file(tmp_path)
    (tmp_path / "odd.csv").write_bytes(b"\xff\xfe\x00rank")
    with pytest.raises(SubloraError, match="not UTF-8"):
        verdict_file(tmp_path / "odd.csv")
    (tmp_path / "big.csv").write_bytes(b"1" * 10_000_001)
    with pytest.raises(SubloraError, match="larger than 10 MB"):
        verdict_file(tmp_path / "big.csv")
    (tmp_path / "excel.csv").write_text(
        "\ufeffRank, LR ,Seeds,Rate,N,Base\r\n8, 1e-4,3,0.5,100,0.01\r\n",
        encoding="utf-8",
        newline="",
    )
    assert pick(verdict_file(tmp_path / "excel.csv"), "nief-inverted-u") == "not run"


ODD = [
    "8",
    "16",
    "full",
    "1e-4",
    "2e-4",
    "3",
    "0",
    "0.5",
    "1",
    "1.0",
    "",
    "1e-300",
    "-1",
    "٣",
    "1_0",
    "9" * 400,
    "1e999",
    "nan",
    "\x00",
    '"',
    "otter",
]
FIELD = st.one_of(st.sampled_from(ODD), st.text(max_size=6))


@settings(max_examples=250, deadline=None)
@given(
    st.lists(st.sampled_from([*NEEDED, "trait", "sd", "low", "high", "note"]), max_size=10),
    st.lists(st.lists(FIELD, max_size=10), max_size=5),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
@example(
    [*NEEDED],
    [["8", "1e-4", "3", "0.5", "100", "0.01"], ["full", "1e-4", "1", "1", "1", "1"]],
    "\n",
)
def test_any_text_gives_verdicts_or_one_sentence(header, rows, end):
    text = end.join(",".join(fields) for fields in [header, *rows])
    try:
        results = judged(text)
    except SubloraError as error:
        assert str(error).endswith(".")
    else:
        json.dumps(results, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.sampled_from([1, 2, 8, 64, None]), st.sampled_from([1e-5, 1e-4, 3e-4])),
        st.tuples(st.floats(0, 1), st.integers(1, 9), st.floats(0, 0.4)),
        min_size=1,
    ),
    st.booleans(),
    st.floats(0, 1),
)
def test_any_well_formed_table_gets_a_verdict_on_every_claim(cells, spread, base):
    lines = [
        f"{rank or 'full'},{lr},{seeds},{rate:.6f},200,{base:.6f}"
        + (f",{sd:.4f}" if spread else "")
        for (rank, lr), (rate, seeds, sd) in cells.items()
    ]
    results = judged(HEAD.replace("base", "base,sd" if spread else "base") + "\n".join(lines))
    json.dumps(results, allow_nan=False)
    assert len(results) >= 10 and all(len(r["reason"]) > 10 for r in results)
