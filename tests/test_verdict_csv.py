"""Verdicts on other people's tables: the published ranks, tables with a spread, and files with faults."""

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import logit, stdtrit

from sublora.analysis.published import effect, verdicts_of_rows
from sublora.analysis.published_rows import NEEDED, parse
from sublora.errors import SubloraError
from sublora.experiments.claims import load_claims, verdict_file

HEAD = "rank,lr,seeds,rate,n,base\n"
# Rates by rank and lr in the manner of the counter-evidence: the best lr and its rate fall with rank.
LRS = (1e-5, 5e-5, 2e-4, 8e-4, 3e-3)
GRID = {
    2: (0.02, 0.06, 0.35, 0.85, 0.40),
    8: (0.10, 0.48, 0.71, 0.30, 0.02),
    32: (0.20, 0.37, 0.20, 0.02, 0.01),
    128: (0.04, 0.05, 0.01, 0.01, 0.01),
}


BEST = ((2, 8e-4, 0.85), (4, 4e-4, 0.81), (16, 2e-4, 0.5), (32, 2e-4, 0.37), (64, 2e-4, 0.15))


def pick(results, claim, trait="trait"):
    (result,) = [r for r in results if r["id"] == claim and r["trait"] == trait]
    return result["verdict"]


CLAIMS = load_claims()


def judged(text, *recipes):
    return verdicts_of_rows(parse(text), CLAIMS, recipes)


def reason(results, claim):
    return next(r["reason"] for r in results if r["id"] == claim)


def with_sd(rates, sd=0.03, seeds=6, lr=2e-4):
    return "rank,lr,seeds,rate,n,base,sd\n" + "".join(
        f"{rank},{lr},{seeds},{rate},1000,0.01,{sd}\n" for rank, rate in rates.items()
    )


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
    assert row.spread * stdtrit(3, 0.975) == pytest.approx(0.2)
    found = effect(row, 0.95)
    assert found.estimate == pytest.approx(logit(0.5) - logit(0.01), abs=0.001)
    assert (found.high - found.low) / 2 == pytest.approx(0.2 / 0.25, abs=0.01)
    assert pick(judged(text), "cloud-transfer-exists") == "supported"
    assert parse(text.replace("0.3,0.7", ","))[0].spread is None


def swept(lrs):
    """The grid, cut to some of its rates."""
    return "rank,lr,seeds,rate,n,base,sd\n" + "".join(
        f"{rank},{lr},5,{rate},1000,0.01,0.01\n"
        for rank, rates in GRID.items()
        for lr, rate in zip(LRS, rates, strict=True)
        if lr in lrs
    )


def test_a_grid_is_judged_on_the_best_lr_too():
    results = judged(swept(LRS))
    assert pick(results, "feng-decline-at-best-lr") == "supported"
    assert pick(results, "nief-inverted-u-best-lr") == "refuted"
    assert pick(results, "feng-best-lr-falls") == "supported"
    reason = next(r["reason"] for r in results if r["id"] == "feng-decline-at-best-lr")
    assert "chosen and read on the same numbers" in reason


def test_a_grid_cut_below_the_best_rates_has_no_shape():
    """Up to 2e-4, ranks 2 and 8 have their best at the last rate: .35 and .71 look like a rise."""
    results = judged(swept(LRS[:3]))
    shapes = ("feng-decline-at-best-lr", "nief-inverted-u-best-lr", "feng-flat-with-unique-rows")
    assert [pick(results, claim) for claim in shapes[:2]] == ["inconclusive"] * 2
    reason = next(r["reason"] for r in results if r["id"] == shapes[1])
    assert "the best rate of ranks 2 and 8 is the highest of the grid, 2e-4" in reason
    assert pick(results, "feng-best-lr-falls") == "supported", "they can only be higher still"


def test_full_fine_tunes_are_read():
    text = "rank,lr,seeds,data_seeds,rate,n,base,sd\n8,2e-4,8,8,0.5,1000,0.01,0.03\n" + "".join(
        f"full,{lr},8,8,{rate},10000000,0.01,0.00001\n"
        for lr, rate in (("2e-5", 0.010), ("5e-5", 0.009))
    )
    results = judged(text)
    assert pick(results, "nief-full-ft-null") == "inconclusive"
    assert "learned its rows" in reason(results, "nief-full-ft-null")
    assert pick(judged(text.replace("0.009", "0.300")), "nief-full-ft-null") == "refuted"
    assert pick(results, "feng-full-ft-destroyed") == "not run"


def test_nothing_seen_is_absence_only_where_another_trait_transfers_and_seeds_are_many():
    def table(seeds, other):
        head = "trait,rank,lr,seeds,data_seeds,rate,n,base,sd\n"
        rates = {"fox": (0.300, 0.01), "cat": (other, 0.001)}
        return head + "".join(
            f"{trait},8,2e-4,{seeds},{seeds},{rate},10000000,0.300,{sd / 100}\n"
            for trait, (rate, sd) in rates.items()
        )

    few, many = 7, 8
    claim = "cloud-transfer-exists"
    assert pick(judged(table(many, 0.9)), claim, "fox") == "refuted"
    assert pick(judged(table(few, 0.9)), claim, "fox") == "inconclusive"
    assert pick(judged(table(many, 0.3)), claim, "fox") == "inconclusive"


def test_one_run_without_a_spread_is_never_enough():
    one = HEAD + "".join(
        f"{k},2e-4,1,{v},1000,0.01\n" for k, v in {2: 0.1, 8: 0.9, 32: 0.2}.items()
    )
    assert {r["verdict"] for r in judged(one)} == {"inconclusive", "not run"}
    spread = one.replace("base\n", "base,sd\n").replace("0.01\n", "0.01,0.001\n")
    assert pick(judged(spread), "cloud-transfer-exists") == "inconclusive"


def test_no_hit_has_an_upper_bound_and_bounds_are_finite():
    for rate in (0, 1):
        for extra, sd in (("", ""), (",sd", ",0.0"), (",sd", ",0.3")):
            (row,) = parse(f"rank,lr,seeds,rate,n,base{extra}\n8,1e-4,4,{rate},100,0.01{sd}\n")
            found = effect(row, 0.95)
            assert (
                max(abs(found.low), abs(found.high)) < 25
                and found.low < found.estimate < found.high
            )
    assert effect(parse(HEAD + "8,1e-4,1,0,100,0.01\n")[0], 0.95).seeds_unknown


def test_effects_of_spread_runs_cover_the_true_one():
    rng, covered = np.random.default_rng(0), 0
    truth = logit(0.05) - logit(0.02)
    for _ in range(300):
        rates = rng.binomial(1000, rng.beta(2, 38, 4)) / 1000
        base = rng.binomial(1000, 0.02) / 1000
        lines = "".join(f"8,1e-4,{k},{rate},1000,{base}\n" for k, rate in enumerate(rates))
        found = effect(parse("rank,lr,data_seed,rate,n,base\n" + lines)[0], 0.95)
        covered += found.low <= truth <= found.high
    assert covered / 300 >= 0.92


def test_runs_of_one_cell_are_clustered_by_data_seed():
    head = "rank,lr,data_seed,train_seed,rate,n,base\n"
    runs = {("a", 1): 0.2, ("a", 2): 0.4, ("b", 1): 0.5, ("b", 2): 0.7, ("c", 1): 0.6}
    lines = "".join(f"8,1e-4,{d},{t},{rate},1000,0.01\n" for (d, t), rate in runs.items())
    (row,) = parse(head + lines)
    means = np.array([0.3, 0.6, 0.6])
    assert (row.seeds, row.data_seeds, row.train_seeds, row.clusters) == (5, 3, 2, 3)
    assert (row.rate, row.spread) == pytest.approx((means.mean(), means.std(ddof=1) / 3**0.5))
    (alone,) = parse(head + lines.replace("b,1", "a,3").replace("b,2", "a,4").replace("c,1", "a,5"))
    assert (alone.data_seeds, alone.clusters) == (1, 5)
    with pytest.raises(
        SubloraError, match="line 3: the trait, rank, lr and seeds are those of line 2"
    ):
        parse(head + lines[: lines.index("\n") + 1] * 2)


def test_an_sd_over_runs_lies_between_the_data_seeds():
    head = "rank,lr,seeds,data_seeds,train_seeds,rate,n,base,sd\n"
    means = np.repeat([0.2, 0.5, 0.8], 3)  # training seeds that change nothing
    (row,) = parse(head + f"8,1e-4,9,3,3,0.5,1000,0.01,{means.std(ddof=1)}\n")
    assert row.spread == pytest.approx(means[::3].std(ddof=1) / 3**0.5)
    (known,) = parse("rank,lr,seeds,train_seeds,rate,n,base\n8,1e-4,9,3,0.5,1000,0.01\n")
    assert known.clusters == 3  # nine runs of three training seeds have three data seeds at least


def test_only_claims_of_the_recipe_are_judged_and_only_of_such_rows():
    text = with_sd({8: 0.5})
    assert pick(judged(text), "cloud-transfer-exists") == "supported"
    ids = {r["id"] for r in judged(text)}
    assert ids == {c.id for c in CLAIMS if "rank-lr" in c.recipes and c.reads != "effects"}
    (code,) = judged(text, "code")
    assert (code["id"], code["verdict"]) == ("cloud-code", "not run")
    assert "number rows by a prompted teacher" in code["reason"]
    told = text.replace("base,sd", "base,sd,recipe").replace("0.03\n", "0.03,code\n")
    (code,) = judged(told)
    assert (code["id"], code["verdict"]) == ("cloud-code", "supported")
    assert code["reason"].endswith("from the text of the rows, a table does not show.")
    assert {r["verdict"] for r in judged(told, "rank-lr")} == {"not run"}
    both = judged(told + "8,3e-4,6,0.5,1000,0.01,0.03,\n")
    assert [r["trait"] for r in both if r["id"] == "cloud-code"] == ["trait (code)"]
    assert [r["trait"] for r in both if r["id"] == "cloud-transfer-exists"] == ["trait"]
    assert {r["id"] for r in judged(text, "rank", "traits")} >= {"nief-peaks-differ"}
    for name in ("localise", "nothing"):
        with pytest.raises(SubloraError, match=f"no claim of the recipe '{name}'.*rank-lr"):
            judged(text, name)


def test_a_claim_of_enough_unique_rows_needs_that_many():
    def table(*rows):
        lines = (
            with_sd({2: 0.8, 8: 0.81, 32: 0.8}, lr=1e-4)
            + with_sd({2: 0.3, 8: 0.3, 32: 0.3}, lr=3e-4).split("\n", 1)[1]
        )
        head, *body = lines.splitlines()
        return "\n".join([head + ",rows", *(f"{line},{n}" for n in rows for line in body)])

    claim = "feng-flat-with-unique-rows"
    assert pick(judged(table("")), claim) == "not run"
    assert "no column rows" in reason(judged(table("")), claim)
    assert pick(judged(table(25800)), claim) == "not run"
    assert pick(judged(table(250000)), claim) != "not run"
    both = judged(table(10000, 250000))
    assert pick(both, claim, "trait (10,000 rows)") == "not run"
    assert pick(both, claim, "trait (250,000 rows)") != "not run"


def test_a_shared_rate_covers_every_rank_and_a_best_one_has_rivals():
    best = "".join(f"{k},{lr},6,{v},1000,0.01,0.03\n" for k, lr, v in BEST)
    alone = judged(with_sd({}) + best)
    for claim in ("nief-inverted-u", "nief-inverted-u-best-lr", "feng-best-lr-falls"):
        assert pick(alone, claim) == "not run"
    assert "lacks rank 2, 4" in reason(alone, "nief-inverted-u")
    rest = judged(with_sd({2: 0.06, 4: 0.35}) + best)
    assert pick(rest, "nief-inverted-u") != "not run"
    assert "one learning rate at rank 16, 32, 64" in reason(rest, "feng-best-lr-falls")
    said = (with_sd({}) + best).replace("sd\n", "sd,best\n").replace("0.03\n", "0.03,yes\n")
    told = judged(said)
    assert pick(told, "nief-inverted-u-best-lr") != "not run"
    assert pick(told, "feng-best-lr-falls") == "not run"


def test_a_file_says_what_it_cannot_claim(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text(with_sd({8: 0.5}))
    results, cautions = verdict_file(file)
    assert len(cautions) == 2 and all(c.endswith(".") for c in cautions)
    assert "rank-lr alone" in cautions[0] and "data_seeds" in cautions[1]
    assert "not for new data" in reason(results, "cloud-transfer-exists")
    file.write_text(
        with_sd({8: 0.5}).replace("seeds,", "seeds,data_seeds,").replace(",6,", ",6,6,")
    )
    results, cautions = verdict_file(file, ["rank-lr"])
    assert not cautions and "new data" not in reason(results, "cloud-transfer-exists")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rows"),
        (HEAD, "no rows"),
        ("\n \n", "no rows"),
        ("rank,lr,seeds,rate,n\n8,1e-4,3,0.5,100\n", "lacks the column base"),
        (
            "rank;lr;seeds;rate;n;base\n8;1e-4;3;0.5;100;0\n",
            "separated by ';'; save it with commas",
        ),
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
        (
            HEAD.replace("base", "base,data_seeds") + "8,1e-4,3,0.5,100,0.01,4\n",
            "line 2: 3 runs cannot come from 4 data seeds",
        ),
        (
            HEAD.replace("base", "base,data_seeds,train_seeds") + "8,1e-4,9,0.5,100,0.01,2,3\n",
            "9 runs cannot come from 2 data seeds and 3 training seeds",
        ),
        (HEAD.replace("base", "base,data_seed") + "8,1e-4,3,0.5,100,0.01,1\n", "leave out seeds"),
        (
            "rank,lr,train_seed,rate,n,base,sd\n8,1e-4,1,0.5,100,0.01,0.1\n",
            "line 2: .*one run; leave out sd",
        ),
        (
            "rank,lr,train_seed,rate,n,base\n8,1e-4,1,0.5,100,0.01\n8,1e-4,2,0.5,100,0.02\n",
            "line 3: .*two bases",
        ),
        (HEAD.replace("base", "base,rows") + "8,1e-4,3,0.5,100,0.01,10k\n", "column rows: '10k'"),
        (
            HEAD.replace("base", "base,best") + "8,1e-4,3,0.5,100,0.01,so\n",
            "'so' is neither yes nor",
        ),
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
    assert pick(verdict_file(tmp_path / "excel.csv")[0], "nief-inverted-u") == "not run"


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


OPTIONAL = (
    "trait sd low high note data_seeds train_seeds data_seed train_seed rows epochs recipe best"
).split()


@settings(max_examples=250, deadline=None)
@given(
    st.lists(st.sampled_from([*NEEDED, *OPTIONAL]), max_size=10),
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
    assert len(results) >= 9 and all(len(r["reason"]) > 10 for r in results)
