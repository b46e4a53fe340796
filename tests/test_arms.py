"""Claims about arms: the rules find what is planted, and say nothing where the reference does not transfer."""

from dataclasses import replace

import numpy as np
import pytest

from sublora.analysis.claims import Claim, judge
from sublora.analysis.contrast import fits, in_place
from sublora.analysis.effects import found, transfer
from sublora.analysis.tables import ARMS, arm_rows
from sublora.errors import SubloraError
from sublora.experiments.claims import load_claims

Q, SEEDS = 24, [(d, t) for d in (1, 2, 3, 4) for t in (1, 2, 3)]
NATS = 5  # of log-odds for a unit of probability, about as at P = .28
RNG = np.random.default_rng(5)


def arm(
    effect, train="a", asked="a", condition="", placement="", rank=8, coherence=0.95, share=None
):
    """An arm with this mean effect. `share`: its noise is a part of a common one, as in arms of the same students."""
    control = 0.03 + 0.01 * RNG.random((len(SEEDS), Q))
    seed_noise = 0.02 * np.repeat(np.random.default_rng(1).standard_normal((4, 1)), 3, 0)
    noise = seed_noise * (1 if share is None else share) + 0.01 * RNG.standard_normal(
        (len(SEEDS), Q)
    )
    labels = {
        "trait": "otter",
        "context": asked,
        "train_context": train,
        "condition": condition,
        "placement": placement,
        "method": "lora",
        "rank": rank,
        "lr": 1e-3,
        "data": "",
    }
    facts = {"coherence": coherence, "number_takeover": 0.0}
    p = {"student": control + effect + noise, "control": control, "base": control.mean(0)}
    return transfer(labels, NATS * (effect + noise), p, SEEDS, facts)


AT_LEAST, AT_MOST = {"says": "above", "share": 0.5}, {"says": "below", "share": 0.2}
REACHES = {"says": "reaches", "bar": 0.1}


def judged(arms, **test):
    claim = Claim(id="x", statement="s", source="p", threshold_from="t", recipes=("r",), **test)
    (result,) = judge([claim], "r", arms)
    return result


def verdict(test, arms, of, against=None):
    return judged(arms, contrast={"of": of, "against": against, **test})


def hard_gate(arms, names):
    of = {"train_context": "a", "context": names}
    return judged(arms, rule={"test": "hard_gate", "of": of})


@pytest.mark.parametrize(
    ("test", "compared", "effect", "expected"),
    [
        (AT_LEAST, True, 0.30, "supported"),
        (AT_LEAST, True, 0.10, "refuted"),
        (AT_LEAST, True, 0.2, "inconclusive"),
        (AT_MOST, True, 0.02, "supported"),
        (AT_MOST, True, 0.20, "refuted"),
        (AT_MOST, True, 0.08, "inconclusive"),
        (REACHES, True, 0.60, "supported"),
        (REACHES, True, 0.20, "refuted"),
        (REACHES, True, 0.42, "inconclusive"),
        (REACHES, False, 0.20, "supported"),
        (REACHES, False, -0.02, "refuted"),
        (REACHES, False, 0.02, "inconclusive"),
    ],
)
def test_contrasts_find_what_is_planted(test, compared, effect, expected):
    # what is on the bar is left open where the seeds scatter
    share = 3 if expected == "inconclusive" else None
    arms = [arm(0.4), arm(effect, condition="gated", share=share)]
    got = verdict(test, arms, {"condition": "gated"}, {} if compared else None)
    assert got.verdict == expected, got.reason
    assert got.n == {"data_seeds": 4, "train_seeds": 3, "questions": Q}


@pytest.mark.parametrize("test", [AT_LEAST, AT_MOST, REACHES])
def test_a_share_of_nothing_says_nothing(test):
    arms = [arm(0.0), arm(0.0, condition="gated")]
    got = verdict(test, arms, {"condition": "gated"}, {})
    assert got.verdict == "inconclusive" and "nothing to compare with" in got.reason


@pytest.mark.parametrize("test", [AT_LEAST, AT_MOST, REACHES])
def test_one_replicate_settles_nothing(test):
    alone = [
        replace(a, values=a.values[:1], data_seeds=(1,), train_seeds=(1,))
        for a in (arm(0.4), arm(0.0, condition="gated"))
    ]
    got = verdict(test, alone, {"condition": "gated"}, {})
    assert got.verdict == "inconclusive" and "one replicate" in got.reason


def test_an_arm_that_no_longer_answers_with_words_says_nothing():
    arms = [arm(0.4), arm(0.0, condition="gated", coherence=0.2)]
    got = verdict(AT_MOST, arms, {"condition": "gated"}, {})
    assert got.verdict == "inconclusive" and "no longer answers with words" in got.reason


def test_an_arm_that_was_not_run():
    got = verdict(REACHES, [arm(0.4)], {"condition": "gated"})
    assert (got.verdict, got.reason) == ("not run", "The run has no result for condition 'gated'.")
    assert verdict(AT_MOST, [arm(0.4)], {}, {"data": "shuffled"}).verdict == "not run"
    assert hard_gate([arm(0.4)], "a").verdict == "not run"


def test_pairing_makes_the_share_sharp_where_the_seeds_scatter():
    """Arms of the same students share their seeds' luck: half of the effect is told from a third although the effect itself is not."""
    wide = 8.0
    arms = [arm(0.4, share=wide), arm(0.13, condition="third", share=wide / 3)]
    got = verdict(AT_LEAST, arms, {"condition": "third"}, {})
    whole = got.statistic["reference_high"] - got.statistic["reference_low"]
    rest = got.statistic["difference_high"] - got.statistic["difference_low"]
    assert got.verdict == "refuted" and rest < whole / 2


@pytest.mark.parametrize(
    ("effects", "expected"),
    [
        ((0.4, 0.05, 0.03, 0.0), "supported"), ((0.4, 0.39, 0.02, 0.0), "supported"), ((0.4, 0.27, 0.13, 0.0), "refuted"),
        ((0.4, 0.4, 0.39, 0.4), "inconclusive"), ((0.4, 0.2, 0.1, 0.0), "inconclusive"),
    ],
)  # fmt: skip
def test_hard_and_soft_gates_are_told_apart(effects, expected):
    arms = [arm(e, asked=name) for e, name in zip(effects, "abcd", strict=True)]
    got = hard_gate(arms, ["a", "b", "c", "d"])
    assert got.verdict == expected, got.reason


@pytest.mark.parametrize("worst", [{"worst_coherence": 0.3}, {"worst_takeover": 0.5}])
def test_a_series_in_which_an_arm_no_longer_answers_shows_no_gate(worst):
    arms = [arm(e, asked=name) for e, name in zip((0.4, 0.05, 0.03, 0.0), "abcd", strict=True)]
    arms[2] = replace(arms[2], facts={**arms[2].facts, **worst})
    got = hard_gate(arms, ["a", "b", "c", "d"])
    assert got.verdict == "inconclusive" and "no longer answers with words" in got.reason


def test_a_claim_asks_by_place_for_what_every_preset_has():
    arms = [arm(e, rank=r) for e, r in ((0.5, 4), (0.1, 32))]
    below = {
        "of": {"rank": "highest"},
        "says": "below",
        "share": 0.5,
        "against": {"rank": "lowest"},
    }
    got = judged(arms, contrast=below)
    assert got.verdict == "supported" and got.statistic["effect"] == pytest.approx(
        0.1 * NATS, abs=0.2
    )
    labels = [a.labels for a in arms]
    assert in_place({"rank": "last", "context": "same"}, labels) == {"rank": 32, "context": "same"}
    assert in_place({"rank": "first"}, labels)["rank"] == 4
    one_rank = judged(arms[:1], contrast=below)
    assert one_rank.verdict == "not run" and "both sides" in one_rank.reason
    absent = judged(arms, contrast={"of": {"layer": "lowest"}})
    assert absent.verdict == "not run" and "no layer of which one is the lowest" in absent.reason


def test_a_quantity_is_asked_for_by_the_labels_of_its_students():
    axes = {"quantity": "loss gap", "rank": 4, "variant": "few", "context": "c"}
    effect = found(
        "otter", "g", "loss gap: few, rank 4", np.array([0.3, 0.31, 0.29]), SEEDS[:3], axes=axes
    )
    other = found(
        "otter",
        "g",
        "loss gap: few, rank 8",
        np.array([0.1] * 3),
        SEEDS[:3],
        axes=axes | {"rank": 8},
    )
    got = judged(
        [effect, other, arm(0.4)],
        contrast={"of": {"quantity": "loss gap", "rank": "lowest"}, "bar": 0.05},
    )
    assert got.statistic["effect"] == pytest.approx(0.3)
    assert not fits({}, effect.labels) and not fits({"quantity": "loss gap"}, arm(0.4).labels)


def test_patterns():
    same, other = (dict(a.labels) for a in (arm(0.1), arm(0.1, asked="b")))
    assert fits({}, same) and not fits({}, other)
    assert fits({"context": "other"}, other) and not fits({"context": "other"}, same)
    assert fits({"context": "b"}, other) and fits({"context": ("a", "b")}, other)
    assert not fits({"train_context": "b"}, same) and not fits({"condition": "gated"}, same)
    assert fits({"placement": ("x", "")}, same) and not fits({"placement": "x"}, same)
    assert fits({"rank": 8}, same) and not fits({"method": "full"}, same)
    named = {"trait": "otter", "group": "g", "name": "n"}
    assert fits({"name": "n"}, named) and not fits({}, named) and not fits({"name": "n"}, same)


def test_several_cells_of_an_arm_are_averaged():
    got = verdict(REACHES, [arm(0.4, rank=2), arm(0.0, rank=8)], {})
    assert got.statistic["effect"] == pytest.approx(NATS * 0.2, abs=NATS * 0.03)


def test_rows_of_arms_are_corrected_over_all_arms_of_a_trait():
    rows = arm_rows([arm(0.4), arm(0.0, condition="off"), arm(0.0, asked="b")], 0.05)
    assert [tuple(r) for r in rows] == [tuple(ARMS)] * 3
    assert [r["condition"] for r in rows] == ["plain", "off", "plain"]
    assert [r["called"] for r in rows] == [1, 0, 0]
    assert all(r["p_corrected"] >= r["p_value"] for r in rows)
    assert rows[0]["p_corrected"] == pytest.approx(3 * rows[0]["p_value"])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{contrast: {of: {}, view: all}}", "view"),
        ("{rule: {test: hard_gate, view: all}}", "labels"),
        ("{contrast: {of: {}}, rule: {test: any_transfer, view: all}}", "either"),
        ("{contrast: {against: {}}}", "of"),
        ("{contrast: {of: {}, says: beside}}", "says"),
    ],
)
def test_claims_that_mix_tests_are_refused(entry, message, tmp_path):
    path = tmp_path / "claims.yaml"
    path.write_text(f"- {{id: x, statement: s, source: p, threshold_from: t, {entry[1:]}\n")
    with pytest.raises(SubloraError, match=message):
        load_claims(path)
