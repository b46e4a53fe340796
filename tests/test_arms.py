"""Claims about arms: the rules find what is planted, and say nothing where the reference does not transfer."""

import numpy as np
import pytest

from sublora.arm_rules import ARM_RULES
from sublora.arms import ARM_COLUMNS, ArmPick, summarise_arms
from sublora.cells import Cell, Table
from sublora.claims import Claim, judge, load_claims
from sublora.errors import SubloraError
from sublora.experiments.document import shipped_recipes
from sublora.experiments.kinds import open_recipe

Q, SEEDS = 24, [(d, t) for d in (1, 2, 3, 4) for t in (1, 2, 3)]
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
    data, trainings = zip(*SEEDS, strict=True)
    return Cell(
        "otter", asked, "lora", rank, 1e-3, control + effect + noise, control, control.mean(0), data, trainings, coherence, 0.0,
        train_context=train, condition=condition, placement=placement,
    )  # fmt: skip


def table(*cells):
    return Table(tuple(cells), None, np.arange(Q) % 2 == 0, context="a")


def verdict(test, cells, arms, **threshold):
    claim = Claim(
        id="x", statement="s", source="p", recipes=("r",), view="arms", test=test, threshold=threshold,
        arms={name: ArmPick(**pick) for name, pick in arms.items()},
    )  # fmt: skip
    (result,) = judge([claim], table(*cells), "r", table(*cells))
    return result


@pytest.mark.parametrize(
    ("test", "effect", "expected"),
    [
        ("arm_at_least", 0.30, "supported"), ("arm_at_least", 0.10, "refuted"), ("arm_at_least", 0.2, "inconclusive"),
        ("arm_at_most", 0.02, "supported"), ("arm_at_most", 0.20, "refuted"), ("arm_at_most", 0.08, "inconclusive"),
        ("arm_greater", 0.60, "supported"), ("arm_greater", 0.20, "refuted"), ("arm_greater", 0.42, "inconclusive"),
        ("arm_transfers", 0.20, "supported"), ("arm_transfers", -0.02, "refuted"), ("arm_transfers", 0.02, "inconclusive"),
    ],
)  # fmt: skip
def test_rules_find_what_is_planted(test, effect, expected):
    # what is on the bar is left open where the seeds scatter
    cells = [
        arm(0.4),
        arm(effect, condition="gated", share=3 if expected == "inconclusive" else None),
    ]
    arms = {"arm": {"condition": "gated"}} | ({} if test == "arm_transfers" else {"reference": {}})
    got = verdict(test, cells, arms)
    assert got.verdict == expected, got.reason
    assert got.n == {"data_seeds": 4, "train_seeds": 3, "questions": Q}


@pytest.mark.parametrize("test", ["arm_at_least", "arm_at_most", "arm_greater"])
def test_a_share_of_nothing_says_nothing(test):
    got = verdict(
        test,
        [arm(0.0), arm(0.0, condition="gated")],
        {"arm": {"condition": "gated"}, "reference": {}},
    )
    assert got.verdict == "inconclusive" and "transfer" in got.reason


def test_an_arm_that_no_longer_answers_with_words_says_nothing():
    cells = [arm(0.4), arm(0.0, condition="gated", coherence=0.2)]
    got = verdict("arm_at_most", cells, {"arm": {"condition": "gated"}, "reference": {}})
    assert got.verdict == "inconclusive" and "no longer answers with words" in got.reason


def test_an_arm_that_was_not_run():
    got = verdict("arm_transfers", [arm(0.4)], {"arm": {"condition": "gated"}})
    assert got.verdict == "not run" and "no arm that could be 'arm'" in got.reason
    assert verdict("arm_at_most", [arm(0.4)], {"arm": {}}).verdict == "not run"
    assert verdict("hard_gate", [arm(0.4)], {"series": {"eval": "a"}}).verdict == "not run"


def test_pairing_makes_the_share_sharp_where_the_seeds_scatter():
    """Arms of the same students share their seeds' luck: half of the effect is told from a third although the effect itself is not."""
    wide = 8.0
    cells = [arm(0.4, share=wide), arm(0.13, condition="third", share=wide / 3)]
    got = verdict("arm_at_least", cells, {"arm": {"condition": "third"}, "reference": {}})
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
    cells = [arm(e, asked=name) for e, name in zip(effects, "abcd", strict=True)]
    got = verdict("hard_gate", cells, {"series": {"train": "a", "eval": ["a", "b", "c", "d"]}})
    assert got.verdict == expected, got.reason


def test_picks():
    same, other = arm(0.1), arm(0.1, asked="b")
    assert ArmPick().takes(same) and not ArmPick().takes(other)
    assert ArmPick(eval="other").takes(other) and not ArmPick(eval="other").takes(same)
    assert ArmPick(eval="b").takes(other) and ArmPick(eval=("a", "b")).takes(other)
    assert not ArmPick(train="b").takes(same) and not ArmPick(condition="gated").takes(same)
    assert ArmPick(placement=("x", "")).takes(same) and not ArmPick(placement="x").takes(same)


def test_several_cells_of_an_arm_are_averaged():
    cells = [arm(0.4, rank=2), arm(0.0, rank=8)]
    got = verdict("arm_transfers", cells, {"arm": {}})
    assert got.statistic["effect"] == pytest.approx(0.2, abs=0.03)


def test_rows_of_arms_are_corrected_over_all_arms_of_a_trait():
    rows = summarise_arms(
        table(arm(0.4), arm(0.0, condition="off"), arm(0.0, asked="b")), "plain", "as written"
    )
    assert [tuple(r) for r in rows] == [ARM_COLUMNS] * 3
    assert [r["condition"] for r in rows] == ["plain", "off", "plain"] and [
        r["called"] for r in rows
    ] == [1, 0, 0]
    assert all(r["p_corrected"] >= r["p_value"] for r in rows) and rows[0][
        "p_corrected"
    ] == pytest.approx(3 * rows[0]["p_value"])


def test_the_shipped_claims_on_arms_name_arms_that_their_recipes_have():
    recipes = {name: open_recipe(name) for name in shipped_recipes()}
    mine = [c for c in load_claims() if c.view == "arms"]
    assert {c.test for c in mine} == set(ARM_RULES)
    assert {r for c in mine for r in c.recipes} == {
        "context-matrix", "identity", "template-only", "localise", "edit-distance", "svd", "layers", "optimizers",
        "shuffle", "resample", "teachers", "draws", "steering-teacher", "steering-student", "projection-rank", "random-vectors", "loss-mask",
        "unique-vs-repeated",
    }  # fmt: skip
    for claim in mine:
        named = [recipes[name] for name in claim.recipes]
        assert all(recipe.has_arms for recipe in named)
        axes = [
            {
                "train": set(recipe.train_contexts),
                "eval": {*recipe.measure.contexts, "same", "other"},
                "condition": {"", *recipe.measure.conditions},
                "placement": set(recipe.train.lora.placements),
                "optimizer": set(recipe.train.optimizers),
                "data": {"", *recipe.data.variants},
                "variant": set(recipe.variants),
            }
            for recipe in named
        ]
        known = {what: set.union(*(a[what] for a in axes)) for what in axes[0]}
        for pick in claim.arms.values():
            for what, names in known.items():
                value = getattr(pick, what)
                wanted = [] if value is None else [value] if isinstance(value, str) else list(value)
                assert set(wanted) <= names, (claim.id, what, wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("view: all", "belong together"),
        ("test: any_transfer", "belong together"),
        ("arms: {arm: {evil: a}}", "evil"),
    ],
)
def test_claims_that_mix_views_are_refused(change, message, tmp_path):
    entry = {"view": "arms", "test": "arm_transfers", "arms": "{arm: {}}"} | dict(
        [change.split(": ", 1)]
    )
    lines = "".join(f"  {k}: {v}\n" for k, v in entry.items())
    path = tmp_path / "claims.yaml"
    path.write_text(f"- id: x\n  statement: s\n  source: p\n  recipes: [r]\n{lines}")
    with pytest.raises(SubloraError, match=message):
        load_claims(path)
