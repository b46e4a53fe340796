"""The rules call what is planted and nothing where nothing is; the claims file and cells.csv are checked."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from sublora.analysis.claims import Claim, judge
from sublora.analysis.effects import Effect, transfer
from sublora.analysis.evidence import Grid
from sublora.analysis.rules import RULES
from sublora.analysis.shape import best_lr_slope
from sublora.analysis.tables import summarise
from sublora.errors import SubloraError
from sublora.experiments.claims import load_claims
from sublora.experiments.document import shipped_recipes

NATS = 5  # of log-odds for a unit of probability
RANKS, LRS, Q = (1, 2, 4, 8, 16, 32), (5e-5, 1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3), 24
HILL = dict(zip(RANKS, (0.05, 0.25, 0.45, 0.6, 0.3, 0.08), strict=True))
LATE = dict(zip(RANKS, (0.02, 0.05, 0.1, 0.2, 0.6, 0.25), strict=True))
FALL = dict(zip(RANKS, (0.7, 0.6, 0.5, 0.4, 0.2, 0.1), strict=True))
ALL_RECIPES = tuple(shipped_recipes())


def cell(rng, effect, rank=8, lr=2e-4, trait="otter", method="lora", seeds=4, noise=1.0, **other):
    """A cell with the given mean effect; its seed, question and interaction noise does not grow with it."""
    control = 0.03 + 0.01 * rng.random((seeds, Q))
    spread = noise * (
        0.02 * rng.standard_normal((seeds, 1))
        + 0.03 * rng.standard_normal((1, Q))
        + 0.03 * rng.standard_normal((seeds, Q))
    )
    labels = {
        "trait": trait,
        "context": "default",
        "method": method,
        "rank": rank if method == "lora" else None,
        "lr": lr,
    }
    facts = {"coherence": 0.95, "number_takeover": 0.0} | other
    replicates = [(seed, seed) for seed in range(seeds)]
    p = {"student": control + effect + spread, "control": control, "base": control.mean(axis=0)}
    return transfer(labels, NATS * (effect + spread), p, replicates, facts)


def changed(cell, *, p=0.0, rows=slice(None), replicates=None, labels=None, facts=None) -> Effect:
    """A cell with `p` added to its students, some of its rows, other replicates, labels or facts."""
    parts = cell.parts
    shown = {"student": parts["student"][rows] + p, "control": parts["control"][rows]}
    return transfer(
        {**cell.labels, **(labels or {})},
        cell.values[rows] + NATS * p,
        shown | {"base": parts["base"]},
        replicates or cell.replicates[rows],
        {**cell.facts, **(facts or {})},
    )


def grid(rng, best, trait="otter", falls=1.0, **other):
    """rank x lr cells: best[rank] at the rank's own lr, less away from it; the own lr falls with rank and is never at an end."""
    cells = []
    for k, rank in enumerate(RANKS):
        own = 1 + (len(LRS) - 3) * (1 - falls * k / (len(RANKS) - 1))
        cells += [
            cell(rng, best[rank] * math.exp(-0.7 * abs(j - own)), rank, lr, trait, **other)
            for j, lr in enumerate(LRS)
        ]
    return cells


def verdict(test, cells, view="all", fixed_lr=2e-4, **thresholds):
    rule = {"test": test, "view": view, **thresholds}
    claim = Claim(id="x", statement="s", source="p", threshold_from="t", recipes=("r",), rule=rule)
    return [v.to_dict() for v in judge([claim], "r", cells, Grid(cells, fixed_lr))]


def one(test, cells, view="all", **other):
    (result,) = verdict(test, cells, view, **other)
    return result["verdict"]


def flat(rng, curve, **other):
    return [cell(rng, effect, rank, **other) for rank, effect in curve.items()]


@pytest.fixture
def rng():
    return np.random.default_rng(12)


def test_transfer_is_found_absent_or_left_open(rng):
    found = [cell(rng, 0.4), cell(rng, 0.0, rank=16)]
    absent = [cell(rng, 0.0, rank=rank, noise=0.1, seeds=8) for rank in (8, 16)]
    few = [changed(c, rows=slice(7), replicates=c.replicates[:7]) for c in absent]
    noisy = [changed(absent[0], p=np.array([[-0.1], [0.2], [0.15], [-0.05]] * 2))]
    broken = [cell(rng, 0, noise=0.1, coherence=0.1), cell(rng, 0, noise=0.1, number_takeover=0.9)]
    assert [one("any_transfer", c) for c in (found, absent, few, noisy, broken)] == [
        "supported",
        "refuted",
        "inconclusive",
        "inconclusive",
        "inconclusive",
    ]
    assert [one("no_transfer", c) for c in (found, absent, few, noisy, broken)] == [
        "refuted",
        "supported",
        "inconclusive",
        "inconclusive",
        "inconclusive",
    ]
    wide = cell(rng, 0, noise=0.1, seeds=8, coherence=0.1)
    assert one("no_transfer", [*absent, wide]) == "supported"
    untrained = [changed(c, facts={"learned": 0.1}) for c in absent]
    assert one("no_transfer", untrained) == "inconclusive"
    assert one("no_transfer", [absent[0], untrained[1]]) == "supported"


def test_a_called_effect_below_the_bar_is_no_transfer_of_interest(rng):
    small = [cell(rng, 0.008, noise=0.05, seeds=8)]
    assert summarise(small)[0]["called"] == 1
    assert one("any_transfer", small) == "refuted"


def test_the_largest_rise_says_over_which_of_control_and_base_it_is(rng):
    made = cell(rng, 0.4)
    for less, said in ((0.5, "over the base"), (-0.5, "over the control"), (None, "] (rank")):
        rise = {} if less is None else {"rise": made.values - less}
        (found,) = verdict("any_transfer", [replace(made, parts={**made.parts, **rise})])
        assert said in found["reason"]
        nearer = made.interval().estimate - max(0, less or 0)
        assert found["statistic"]["largest_effect"] == pytest.approx(nearer)


def test_one_replicate_settles_nothing(rng):
    single = flat(rng, HILL, seeds=1)
    for test in (
        "any_transfer",
        "no_transfer",
        "inverted_u",
        "monotone_decline",
        "transfer_flat_in_rank",
    ):
        assert one(test, single, "fixed-lr") == "inconclusive", test
    assert not any(row["called"] for row in summarise(single))


def test_an_effect_of_an_incoherent_cell_is_not_transfer(rng):
    cells = [cell(rng, 0.5, coherence=0.2, seeds=8), cell(rng, 0.0, rank=4, noise=0.1, seeds=8)]
    assert one("any_transfer", cells) == "refuted"


def test_few_seeds_are_called_through_the_mean_over_cells(rng):
    cells = grid(rng, dict.fromkeys(RANKS, 0.5), falls=0.0, seeds=2, noise=2.0)
    assert sum(row["called"] for row in summarise(cells)) < len(cells) / 4
    assert one("any_transfer", cells) == "supported"


def test_nothing_is_called_on_null_grids_beyond_the_nominal_rate():
    runs, calls, verdicts = 90, 0, []
    for draw in range(runs):
        rng = np.random.default_rng(1000 + draw)
        cells = grid(rng, dict.fromkeys(RANKS, 0.0), seeds=(2, 3, 4)[draw % 3])
        calls += any(row["called"] for row in summarise(cells))
        verdicts += [one("any_transfer", cells, view) for view in ("all", "best-lr")]
    bar = 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    assert calls / runs <= bar
    assert verdicts.count("supported") / len(verdicts) <= bar


@pytest.mark.parametrize(
    ("curve", "u", "decline", "level"),
    [
        (HILL, "supported", "refuted", "refuted"),
        (FALL, "refuted", "supported", "refuted"),
        (dict.fromkeys(RANKS, 0.4), "refuted", "refuted", "supported"),
        (dict(zip(RANKS, sorted(FALL.values()), strict=True)), "refuted", "refuted", "refuted"),
    ],
    ids=["hill", "fall", "flat", "rise"],
)
def test_shapes(rng, curve, u, decline, level):
    cells = flat(rng, curve, seeds=8, noise=0.03)
    tests = ("inverted_u", "monotone_decline", "transfer_flat_in_rank")
    assert [one(test, cells, "fixed-lr") for test in tests] == [u, decline, level]


def test_no_shape_without_transfer_and_none_with_two_ranks(rng):
    assert (
        one("monotone_decline", flat(rng, dict.fromkeys(RANKS, 0.0)), "fixed-lr") == "inconclusive"
    )
    assert one("inverted_u", flat(rng, {4: 0.5, 8: 0.5}), "fixed-lr") == "not run"


def test_one_lr_makes_a_hill_where_the_best_lr_makes_a_fall(rng):
    cells = grid(rng, FALL, seeds=8, noise=0.2)
    assert one("inverted_u", cells, "fixed-lr") == "supported"
    assert one("inverted_u", cells, "best-lr") == "refuted"
    assert one("monotone_decline", cells, "best-lr") == "supported"
    assert one("monotone_decline", flat(rng, FALL), "best-lr") == "not run"


def test_with_two_seeds_the_best_lr_is_read_where_it_is_chosen_and_pays_for_the_choice(rng):
    effects = zip((0.02, 0.05, 0.04, 0.03), LRS, strict=False)
    cells = [cell(rng, effect, 8, lr, seeds=2) for effect, lr in effects]
    (result,) = verdict("any_transfer", cells, "best-lr")
    chosen = max(cells, key=lambda c: c.values.mean())
    p = chosen.interval().p_value
    assert result["statistic"]["largest_effect_p"] == pytest.approx(min(1, len(cells) * p))
    assert result["statistic"]["largest_effect"] == pytest.approx(chosen.values.mean())


def test_best_lr_over_rank(rng):
    assert one("best_lr_falls_with_rank", grid(rng, FALL, noise=0.2)) == "supported"
    wide = grid(rng, dict.fromkeys(RANKS, 0.5), falls=0.0, noise=0.2)
    highest = [c for c in wide if c.lr < 1e-3]  # the own lr of every rank is the last one now
    (edge,) = verdict("best_lr_falls_with_rank", highest)
    assert edge["verdict"] == "inconclusive" and edge["statistic"]["edge_share"] == 1
    inner = [
        cell(rng, 0.5 - 0.15 * abs(j - 1), rank, lr, seeds=6, noise=0.2)
        for rank in RANKS
        for j, lr in enumerate(np.geomspace(1e-4, 2e-4, 4))
    ]
    assert one("best_lr_falls_with_rank", inner) == "refuted"
    assert one("best_lr_falls_with_rank", flat(rng, FALL)) == "not run"


def test_best_lr_slope_counts_the_rounding_of_the_grid():
    ranks, lrs = [2, 2, 4, 4, 8, 8], [1e-4, 2e-4] * 3
    means = np.tile([0, 1, 0, 1, 1, 0], (5, 1)).astype(float)
    slope, edge = best_lr_slope(ranks, lrs, [1e-4, 2e-4], means, "data_seed", 0.95)
    assert slope.estimate == pytest.approx(-0.5) and edge == 1
    assert slope.se == pytest.approx(math.sqrt(1 / 12 / 2))


def test_full_fine_tune_at_loras_lr(rng):
    def full(coherence, takeover, lr=2e-4):
        tuned = cell(rng, 0.0, lr=lr, method="full", coherence=coherence, number_takeover=takeover)
        return [tuned, cell(rng, 0.1)]

    test = "incoherent_at_lora_lr"
    assert one(test, full(0.1, 0.9), "full") == "supported"
    assert one(test, full(0.9, 0.5), "full") == "supported"
    assert one(test, full(0.9, 0.0), "full") == "refuted"
    assert one(test, full(0.52, 0.0), "full") == "inconclusive"
    one_replicate = [changed(c, rows=slice(1)) for c in full(0.1, 0.9)]
    (alone,) = verdict(test, one_replicate, "full")
    assert alone["verdict"] == "inconclusive" and "one replicate" in alone["reason"]
    assert one(test, full(0.1, 0.9, 2e-5), "full") == "not run"
    assert one(test, full(0.1, 0.9), "full", fixed_lr=None) == "not run"
    assert one("no_transfer", [cell(rng, 0.1)], "full") == "not run"


def test_peaks_differ_between_traits(rng):
    early, late, copy = (
        flat(rng, curve, trait=name, seeds=8, noise=0.3)
        for name, curve in (("otter", HILL), ("lynx", LATE), ("heron", HILL))
    )
    (apart,) = verdict("peaks_differ", early + late, "fixed-lr")
    assert (apart["verdict"], apart["trait"]) == ("supported", "all")
    assert (apart["statistic"]["peak otter"], apart["statistic"]["peak lynx"]) == (8, 16)
    assert one("peaks_differ", early + copy, "fixed-lr") == "refuted"
    assert one("peaks_differ", early, "fixed-lr") == "not run"
    silent = flat(rng, dict.fromkeys(RANKS, 0.0), trait="finch")
    assert one("peaks_differ", early + silent, "fixed-lr") == "inconclusive"


def test_peaks_of_equal_truth_are_seldom_called_different():
    found = 0
    for draw in range(60):
        rng = np.random.default_rng(draw)
        cells = [
            c
            for name in ("otter", "lynx", "heron")
            for c in flat(rng, dict.fromkeys(RANKS, 0.4), trait=name, seeds=8)
        ]
        found += one("peaks_differ", cells, "fixed-lr") == "supported"
    assert found <= 4


def test_peaks_pay_for_every_rank_and_trait(rng):
    shift = np.array([[0.1], [0.2], [0.3], [0.1]])  # t = 3.7 with 3 df, two-sided p = 0.035
    cells = []
    for trait, peak in (("otter", 4), ("lynx", 8)):
        for rank in (4, 8, 16):
            plain = cell(rng, 0.4 if rank < 16 else 0.1, rank, trait=trait, noise=0.01)
            cells.append(changed(plain, p=shift) if rank == peak else plain)
    two = [c for c in cells if c.rank != 16]
    assert [one("peaks_differ", c, "fixed-lr") for c in (two, cells)] == [
        "supported",
        "inconclusive",
    ]


def test_tables_hold_every_context_and_only_shared_replicates_count(rng):
    other = changed(cell(rng, 0.6), labels={"context": "none"})
    quiet = [cell(rng, 0.0, noise=0.1)]
    assert {row["context"] for row in summarise([*quiet, other])} == {"default", "none"}
    cells = flat(rng, HILL, seeds=5)
    cut = changed(cells[0], rows=slice(1, None))
    assert one("inverted_u", [cut, *cells[1:]], "fixed-lr") == "supported"
    apart = changed(cells[0], replicates=[(11 + k, k) for k in range(5)])
    assert one("inverted_u", [apart, *cells[1:]], "fixed-lr") == "not run"


def test_verdicts_are_json_with_the_keys_of_the_format(rng):
    claims, cells = load_claims(), grid(rng, FALL)
    results = [v.to_dict() for v in judge(claims, "rank-lr", cells, Grid(cells, 2e-4))]
    json.dumps(results, allow_nan=False)
    keys = "id,n,q,reason,source,stability,statement,statistic,test,threshold,threshold_from,trait,verdict,view"
    assert {",".join(sorted(r)) for r in results} == {keys}
    assert {r["id"] for r in results} == {c.id for c in load_claims() if "rank-lr" in c.recipes}
    assert all(
        r["reason"].endswith(".") and r["reason"][0] == r["reason"][0].upper() for r in results
    )
    assert results[0]["n"] == {"data_seeds": 4, "train_seeds": 4, "questions": Q}
    alone = flat(rng, HILL, seeds=1)
    verdicts = judge(claims, "rank-lr", alone, Grid(alone, 2e-4))
    json.dumps([v.to_dict() for v in verdicts], allow_nan=False)


def test_shipped_claims_are_hypotheses_of_both_sides():
    claims = load_claims()
    assert {c.test for c in claims} == {"contrast", *RULES}
    nief, others = (
        [c for c in claims if c.id.startswith("nief-") == side] for side in (True, False)
    )
    assert all(c.author_notice for c in nief) and not any(c.author_notice for c in others)
    assert len(nief) >= 3 and sum("counter-evidence" in c.source for c in others) >= 4
    assert {r for c in claims for r in c.recipes} == set(ALL_RECIPES)


def test_thresholds_of_a_claim_change_its_verdict(rng):
    cells = [cell(rng, 0.2, seeds=8)]
    (plain,) = verdict("any_transfer", cells)
    (high,) = verdict("any_transfer", cells, min_effect=2.5)
    assert (plain["verdict"], high["verdict"]) == ("supported", "refuted")
    assert (plain["threshold"], high["threshold"]) == ({"min_effect": 0.1}, {"min_effect": 2.5})


def test_every_verdict_says_what_it_would_be_at_half_and_twice_its_bar(rng):
    cells = [cell(rng, 0.2, noise=0.3, seeds=8)]

    def stability(bar):
        (found,) = verdict("any_transfer", cells, min_effect=bar)
        return found["verdict"], found["stability"]

    assert stability(0.1) == ("supported", {"half": "supported", "twice": "supported"})
    assert stability(0.8) == ("supported", {"half": "supported", "twice": "refuted"})
    assert stability(1.6) == ("refuted", {"half": "supported", "twice": "refuted"})
    (not_run,) = verdict("any_transfer", cells, "best-lr")
    assert (not_run["verdict"], not_run["stability"], not_run["q"]) == ("not run", {}, None)


def test_what_moves_of_a_claim_is_its_bar():
    rule = {"test": "incoherent_at_lora_lr", "view": "full", "min_coherence": 0.6}
    claim = Claim(id="x", statement="s", source="p", threshold_from="t", recipes=("r",), rule=rule)
    twice = {"min_coherence": 1.0, "max_takeover": 0.5, "margin": 0.05, "lr_factor": 1.5}
    assert claim.at(2).thresholds == twice and claim.at(1).thresholds == claim.thresholds
    contrast = {"of": {}, "against": {"rank": 8}, "says": "above", "share": 0.2}
    claim = Claim(
        id="x", statement="s", source="p", threshold_from="t", recipes=("r",), contrast=contrast
    )
    assert claim.at(0.5).thresholds["share"] == 0.1
    plain = Claim(
        id="x",
        statement="s",
        source="p",
        threshold_from="t",
        recipes=("r",),
        contrast=contrast | {"share": 1},
    )
    assert plain.at(2) == plain  # a difference that is above 0 has no bar to move


def test_q_values_count_all_claims_of_a_run(rng):
    claims, cells = load_claims(), grid(rng, HILL)
    judged = judge(claims, "rank-lr", cells, Grid(cells, 2e-4))
    known = [v for v in judged if v.q is not None]
    assert len(known) >= 4 and all(v.q >= v.p for v in known)
    assert max(v.q for v in known) == pytest.approx(max(v.p for v in known))
    alone = judge([known[0].claim], "rank-lr", cells, Grid(cells, 2e-4))
    assert alone[0].q == alone[0].p == known[0].p
    assert all(v.p < 0.05 for v in known if v.verdict in ("supported", "refuted"))


def test_what_a_file_says_once_holds_for_all_of_its_claims(tmp_path):
    path = tmp_path / "rank.yaml"
    entry = "- {id: a, statement: s, source: p, rule: {test: any_transfer, view: all}%s}\n"
    more = ", threshold_from: theirs, recipes: [traits]"
    text = entry % "" + entry.replace("id: a", "id: b") % more
    path.write_text(f"threshold_from: ours\nclaims:\n{text}")
    a, b = load_claims(path)
    assert (a.threshold_from, a.recipes) == ("ours", ("rank",))
    assert (b.threshold_from, b.recipes) == ("theirs", ("traits",))


def test_a_cell_is_coherent_only_where_every_replicate_and_its_control_is(rng):
    fine = cell(rng, 0.5, seeds=8)
    assert fine.coherent
    for worst in ({"worst_coherence": 0.4}, {"worst_takeover": 0.3}):
        broken = changed(fine, facts=worst)
        assert not broken.coherent and broken.facts["coherence"] == 0.95
        assert one("any_transfer", [broken]) == "inconclusive"
    assert changed(fine, facts={"worst_coherence": 0.5, "worst_takeover": 0.25}).coherent
    # of begun answers, few are a word of the category even of the base
    begun = {"worst_coherence": 0.2, "worst_takeover": 0.0}
    assert changed(fine, facts={**begun, "worst_words": 0.5}).coherent
    assert not changed(fine, facts={**begun, "worst_words": 0.49}).coherent


def test_a_run_that_cannot_speak_to_a_claim_does_not_run_it(rng):
    cells = [cell(rng, 0.4), cell(rng, 0.4, trait="wolf")]
    claims = [
        c for c in load_claims() if c.id in ("cloud-transfer-exists", "feng-flat-with-unique-rows")
    ]

    def interpret(verdicts):
        return [
            replace(v, verdict="not run", reason="The rows are scarce.")
            if v.claim.unique_rows and v.trait == "otter"
            else v
            for v in verdicts
        ]

    judged = judge(claims, "rank-lr", cells, Grid(cells, 2e-4), interpret=interpret)
    of = {(v.claim.id, v.trait): v for v in judged}
    assert of["cloud-transfer-exists", "otter"].verdict == "supported"
    flat = of["feng-flat-with-unique-rows", "otter"]
    assert (flat.verdict, flat.reason, flat.q, flat.stability) == (
        "not run",
        "The rows are scarce.",
        None,
        {},
    )
    assert "scarce" not in of["feng-flat-with-unique-rows", "wolf"].reason


ENTRY = "- {{id: {id}, statement: s, source: p, threshold_from: t, rule: {{test: {test}, view: all{more}}}}}\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ENTRY.format(id="a", test="any_transfer", more="") * 2, "'a'.*twice"),
        (ENTRY.format(id="b", test="wishful", more=""), "'b'.*unknown test 'wishful'"),
        (ENTRY.format(id="c", test="any_transfer", more=", extra: 1"), "'c'.*extra"),
        (ENTRY.format(id="d", test="any_transfer", more=", min_slope: 1"), "'d'.*min_slope"),
        (ENTRY.format(id="e", test="any_transfer", more=", min_effect: .nan"), "'e'.*finite"),
        (
            ENTRY.format(id="f", test="any_transfer", more="").replace(": all", ": some"),
            "'f'.*view",
        ),
        (ENTRY.format(id="g", test="hard_gate", more=""), "'g'.*no view"),
        (
            ENTRY.format(id="h", test="any_transfer", more=", of: {rank: 4}"),
            "'h'.*a view of the grid",
        ),
        (
            "- {id: i, statement: s, source: p, threshold_from: t}\n",
            "'i'.*either a contrast or a rule",
        ),
        (
            "- {id: j, statement: s, source: p, threshold_from: t, contrast: {of: {}, share: .nan}}\n",
            "'j'.*finite",
        ),
        (
            ENTRY.format(id="k", test="any_transfer", more="").replace("threshold_from: t, ", ""),
            "'k'.*threshold_from",
        ),
        ("threshold: 1\nclaims: [{id: l}]\n", "'l' in"),
        ("claims: 1\n", "list"),
        ("- {statement: s}\n", "number 1.*id"),
        ("a: 1\n", "list"),
        ("", "list"),
        ("- [\n", "cannot be read"),
    ],
)
def test_a_wrong_claims_file_names_the_claim(tmp_path, text, words):
    path = tmp_path / "claims.yaml"
    path.write_text(text)
    with pytest.raises(SubloraError, match=words):
        load_claims(path)
    with pytest.raises(SubloraError, match="cannot be read"):
        load_claims(tmp_path / "absent.yaml")


def test_cells_rows(rng):
    cells = [*grid(rng, FALL), cell(rng, 0.0, method="full", lr=1e-5)]
    cells[5] = changed(cells[5], p=0.9, facts={"coherence": 0.1})
    rows = summarise(cells)
    assert ",".join(rows[0]) == (
        "trait,context,method,rank,lr,n_data_seeds,n_train_seeds,n_questions,p_target,p_control,p_base,effect,"
        "effect_low,effect_high,df,rise,rise_low,rise_high,p_value,p_corrected,called,p_target_report,effect_report,"
        "effect_report_low,effect_report_high,rate_whole_word,coherence,number_takeover,worst_coherence,worst_takeover,"
        "worst_words,heldout_loss,train_loss,"
        "p_given_category,icc_data,icc_train,icc_seeds,icc_question,selected"
    )
    assert rows[-1]["rank"] == "" and rows[-1]["selected"] == 1
    chosen = [row for row in rows[:-1] if row["selected"]]
    assert [row["rank"] for row in chosen] == list(RANKS) and rows[5]["selected"] == 0
    for row in chosen:
        rivals = [r for k, r in enumerate(rows) if r["rank"] == row["rank"] and k != 5]
        assert row["effect"] == max(r["effect"] for r in rivals)
        assert row["effect_report_low"] < row["effect_report"] < row["effect_report_high"]
    assert {r["effect_report"] for r in rows if not r["selected"]} == {None}
    assert all(row["p_corrected"] >= row["p_value"] for row in rows)
    assert rows[0]["effect"] == pytest.approx(NATS * (rows[0]["p_target"] - rows[0]["p_control"]))
    turned = [changed(c, rows=slice(None, None, -1)) for c in cells]
    expected = pytest.approx([row["p_corrected"] for row in rows])
    assert [row["p_corrected"] for row in summarise(turned)] == expected


def test_tables_that_cannot_be_read_are_refused(rng):
    good = cell(rng, 0.1)
    with pytest.raises(SubloraError, match="same questions"):
        parts = {**good.parts, "control": good.values[:, 1:]}
        transfer(good.labels, good.values, parts, good.replicates, {})
    with pytest.raises(SubloraError, match="not finite"):
        summarise([changed(good, p=np.nan)])
