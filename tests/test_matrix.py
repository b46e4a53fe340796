"""The matrix of students by readouts: shared drift counts nothing, a planted diagonal is found, and the page shows the numbers of the CSV."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from planned import make_plan
from report_fixture import make_found
from sublora.analysis.claims import judge
from sublora.analysis.intervals import clustered_interval
from sublora.analysis.matrix import Matrix, elevation_of, over_traits, permutation_p
from sublora.analysis.tables import arm_rows, finding_rows, to_csv
from sublora.errors import SubloraError
from sublora.experiments.claims import load_claims
from sublora.experiments.grid import elevation, matrix_charts
from sublora.experiments.grid.effects import Results, target, transfers
from sublora.experiments.grid.pooled import pooled
from sublora.experiments.grid.sources import sources_of
from sublora.experiments.kinds import open_recipe
from sublora.report import figures
from sublora.report.verdicts import takeaway
from sublora.text import compact

IDENTITY = {"weights": "w", "template": "t", "tokenizer": "k", "dtype": "float32"}
SEEDS, Q = (1, 2, 3, 4), 6


def matrix(values, seeds=SEEDS) -> Matrix:
    names = tuple(f"t{i}" for i in range(values.shape[1]))
    return Matrix("animals", names, values, seeds, tuple(seeds))


def noise(seed, n=3, sd=1.0):
    return sd * np.random.default_rng(seed).standard_normal((len(SEEDS), n, n, Q))


@given(st.integers(2, 6), st.floats(0, 1e3), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_rows_and_columns_of_any_size_leave_nothing_and_the_planted_diagonal_comes_back(
    n, size, seed
):
    draw = np.random.default_rng(seed)
    rows = size * draw.standard_normal((len(SEEDS), n, 1, Q))
    columns = size * draw.standard_normal((len(SEEDS), 1, n, Q))
    close = {"rtol": 0, "atol": 1e-11 * (1 + size)}
    np.testing.assert_allclose(matrix(rows + columns).elevation, 0, **close)
    planted = draw.standard_normal((len(SEEDS), n, Q))
    found = matrix(rows + columns + planted[:, :, None] * np.eye(n)[..., None]).elevation
    shared = planted.mean(axis=1, keepdims=True)  # two traits have one contrast between them
    np.testing.assert_allclose(found, planted if n > 2 else shared + 0 * planted, **close)


def test_the_mean_elevation_is_the_diagonal_less_all_else_and_effects_leave_the_diagonal_out():
    values = noise(0, n=4)
    found, own = matrix(values), np.eye(4, dtype=bool)
    means = values.mean(axis=(0, 3))
    assert found.elevation.mean() == pytest.approx(means[own].mean() - means[~own].mean())
    assert found.row_effects[0, 1, 0] == pytest.approx(values[0, 1, [0, 2, 3], 0].mean())
    assert found.column_effects[0, 1, 0] == pytest.approx(values[0, [0, 2, 3], 1, 0].mean())


def test_the_interval_over_traits_is_as_wide_as_they_differ():
    apart = np.array([0.0, 0.5, 1.0])[None, :, None] + 0.01 * noise(1)[:, 0]
    wide = over_traits(apart, SEEDS, SEEDS)
    assert wide.clusters == ("data_seed", "trait", "question") and wide.low < 0 < wide.estimate
    alike = over_traits(0.5 + 0.01 * noise(1)[:, 0], SEEDS, SEEDS)
    assert 0.4 < alike.low < alike.estimate < alike.high < 0.6
    assert over_traits(apart[:1], (1,), (1,)).seeds_unknown
    only = np.array([0.2, 0.9, 0.4, 0.7])
    found, t = over_traits(only[None, :, None], (1,), (1,)), ttest_1samp(only, 0)
    assert (found.low, found.high) == pytest.approx(tuple(t.confidence_interval(0.95)))


def test_words_that_draw_students_by_chance_are_called_no_elevation_where_seeds_alone_would_call_them():
    draw, called, by_seeds = np.random.default_rng(5), 0, 0
    for _ in range(100):
        drift = draw.normal(size=(5, 1)) + draw.normal(size=(1, 5)) + 0.3 * draw.normal(size=(5, 5))
        found = matrix(3 * drift[None, ..., None] + 0.05 * draw.normal(size=(4, 5, 5, Q))).elevation
        called += over_traits(found, SEEDS, SEEDS).p_value < 0.05
        by_seeds += clustered_interval(found.mean(axis=1), SEEDS).p_value < 0.05
    assert called <= 9 and by_seeds > 50, (called, by_seeds)


def test_a_permutation_test_is_exact_and_its_p_values_are_uniform_where_nothing_is_planted():
    p = np.array(
        [permutation_p([np.random.default_rng(s).normal(size=(4, 4))])[0] for s in range(400)]
    )
    assert permutation_p([np.eye(4)]) == (1 / 24, 24)
    assert np.allclose(p * 24, np.round(p * 24)), "shares of all 24 arrangements"
    for share in (1 / 24, 0.25, 0.5, 0.75):
        se = (share * (1 - share) / len(p)) ** 0.5
        assert abs(np.mean(p <= share + 1e-9) - share) < 3.5 * se


def test_matrices_are_permuted_together_and_many_arrangements_are_drawn():
    assert permutation_p([np.eye(3)] * 3) == (1 / 216, 216)
    mixed = [np.eye(3), np.zeros((3, 3))]
    assert permutation_p(mixed) == (6 / 36, 36), "the second one cannot tell"
    # traits count alike in matrices of two sizes: an elevation is a trace times n / (n - 1), here of 2 and 3 traits
    one, two = np.array([[0.0, 1.0], [0.0, 0.0]]), np.diag([1.2, 0.0, 0.0])
    assert permutation_p([one, two]) == (8 / 12, 12)
    p, tried = permutation_p([np.eye(8)])
    assert tried == 2001 and p == 1 / 2001 and permutation_p([np.eye(8)]) == (p, tried)
    assert permutation_p([np.ones((8, 8)) - np.eye(8)])[0] > 0.6
    # drift that all share is in every arrangement: the test does not see it
    drift = np.array([[5.0], [0], [-9], [2]]) + np.array([[70.0, 3, -8, 0]])
    base = np.random.default_rng(3).normal(size=(4, 4))
    assert permutation_p([base + drift]) == permutation_p([base])


def test_one_trait_or_seed_that_carries_all_is_seen_when_it_is_left_out():
    alike = elevation_of([matrix(np.eye(4)[None, ..., None] + noise(2, 4, 0.05))])
    assert len(alike.left_out) == 4 + 4 and alike.least.low > 0
    lone_seed = elevation_of([matrix(np.eye(3)[None, ..., None] + noise(2)[:1], (1,))])
    assert lone_seed.without_seed == {} and len(lone_seed.without_trait) == 3
    one = np.zeros((4, 4))
    one[0, 0], one[1:, 1:] = 4.0, -0.3 * np.eye(3)
    lone = elevation_of([matrix(one[None, ..., None] + noise(2, 4, 0.05))])
    assert lone.interval.estimate > 0.5
    assert lone.least.estimate == lone.without_trait["t0"].estimate and lone.least.high < 0
    seeds = np.array([9.0, -1, -1, -1])[:, None, None, None] * np.eye(4)[None, ..., None]
    lone = elevation_of([matrix(seeds + noise(2, 4, 0.01))])
    assert lone.interval.estimate > 0.5 and lone.least.low < 0
    assert lone.least.estimate == lone.without_seed[1].estimate
    assert lone.least.estimate == pytest.approx(-1, abs=0.05)


def test_two_traits_that_are_left_say_nothing_of_how_traits_differ():
    three = elevation_of([matrix(np.eye(3)[None, ..., None] + noise(2, sd=0.05))])
    assert three.interval.low > 0 and all(i.low > 0 for i in three.without_seed.values())
    for left in three.without_trait.values():
        assert left.estimate == pytest.approx(1, abs=0.1) and np.isinf([left.low, left.high]).all()


def test_a_matrix_of_one_trait_or_of_other_shapes_is_refused():
    for values in (np.zeros((4, 1, 1, Q)), np.zeros((4, 3, 2, Q)), np.zeros((3, 3, 3, Q))):
        with pytest.raises(SubloraError, match="two traits or more"):
            matrix(values)


class Made(Results):
    """Measurements of the recipe `traits` as they would be: all students drift alike, and each raises its own word by `gain`."""

    def __init__(self, gain, drift=1.0, own_rows=0.0, broken=None, **more):
        recipe = open_recipe("traits", **more)
        self.plan = make_plan(recipe, IDENTITY)
        self.authors = sources_of(recipe, self.plan.traits)
        self.students = {s.id: s for s in (*self.plan.neutral, *self.plan.students)}
        self.gain, self.drift, self.own_rows, self.broken = gain, drift, own_rows, broken
        self.kept, self.losses = {}, {}
        self.meta = {name: {"train_loss": 0.0} for name in self.students}

    def of(self, student, context, category, condition=None):
        trait = next(t for t in self.plan.traits if t.category.category == category)
        draw = np.random.default_rng(len(category))
        words, questions = len(trait.category.entities), len(trait.category.questions)
        log_p = draw.standard_normal((questions, words)) - 4
        drift = self.drift * draw.standard_normal((questions, words))
        if student is not None:
            s = self.students[student]
            log_p = log_p + drift + self.own_rows * (s.data_seed + len(s.source))
            own = next((t for t in self.plan.traits if t.name == s.source), None)
            if own is not None:
                log_p[:, target(own)] += self.gain + 0.02 * s.data_seed
        p = np.exp(log_p) / np.exp(log_p).sum(1, keepdims=True)
        fine = student is None or self.students[student].source != self.broken
        answers = {"samples": [["an answer"]], "heldout_loss": None}
        return SimpleNamespace(p=p, coherence=0.9 if fine else 0.2, number_takeover=0.0, **answers)


def verdicts(results):
    found = judge(load_claims(), "traits", elevation.elevation_effects(results))
    return {v.claim.id: v for v in found if v.claim.id.startswith("traits-")}


@pytest.fixture(scope="module")
def made():
    return Made(gain=1.0)


def test_drift_that_all_students_share_is_no_elevation_and_the_own_words_mass_does_not_count(made):
    nothing = Made(gain=-0.05, drift=4.0, own_rows=0.3)  # the seeds' mean gain is +.05
    for effect in elevation.elevation_effects(nothing):
        assert effect.interval().estimate == pytest.approx(0, abs=0.01), effect.name
    large = [m.values for m in elevation.matrices_of(Made(gain=5.0, drift=0.0))]
    off = ~np.eye(3, dtype=bool)
    assert len(large) == 3 and all(np.allclose(v[:, off], 0) for v in large)


def test_every_trait_and_all_of_them_are_named_findings_that_claims_are_judged_on(made):
    effects = elevation.elevation_effects(made)
    names = [*(t.name for t in made.plan.traits), "all", elevation.LEAST]
    assert [e.name for e in effects] == names and {e.group for e in effects} == {elevation.GROUP}
    rows = finding_rows(effects, 0.05)
    assert all(r["estimate"] == pytest.approx(1.05) for r in rows[:-1])
    assert rows[-1]["estimate"] == pytest.approx(1.04), "without the data seed of the largest gain"
    assert all((r["n_data_seeds"], r["trait"]) == (4, "all") for r in rows)
    assert effects[-2].interval().clusters == ("data_seed", "trait", "question")
    of = verdicts(made)
    assert {v.trait for v in of.values()} == {"all"}
    assert of["traits-diagonal-elevated"].verdict == "supported"
    assert of["traits-one-carries-the-diagonal"].verdict == "refuted"
    of = verdicts(Made(gain=-1.0))
    assert of["traits-diagonal-elevated"].verdict == "refuted"
    assert of["traits-one-carries-the-diagonal"].verdict == "supported"
    broken = verdicts(Made(gain=1.0, broken="owl"))
    assert {v.verdict for v in broken.values()} == {"inconclusive"}


def test_one_effect_over_all_traits_has_the_students_of_the_other_traits_for_its_control():
    of = Made(gain=0.5, drift=3.0, own_rows=0.3, broken="owl")
    effects = pooled(of, "default")
    first = effects[0]
    assert [e.labels for e in effects] == [
        {**e.labels, "trait": "all traits"}
        for e in transfers(of, "default")
        if e.trait == of.plan.traits[0].name
    ]
    assert first.interval().estimate == pytest.approx(0.55, abs=0.01) and first.interval().low > 0.5
    assert first.sizes == {"data_seeds": 4, "train_seeds": 4, "questions": 50}
    assert not first.coherent, "owl's students are broken"
    one = next(e for e in transfers(of, "default") if e.labels["rank"] == first.rank)
    assert one.coherent and abs(first.parts["rise"].mean() - first.values.mean()) > 1
    assert (first.parts["student"] > first.parts["control"]).all()
    assert pooled(Made(gain=1.0, traits=["owl", "wolf"]), "default") == []


def test_drift_is_what_students_of_the_other_traits_do_to_a_word():
    def judged(effects):
        said = judge(load_claims(), "traits", effects)
        return {v.verdict for v in said if v.claim.id == "rain-1-generic-drift"}

    drifting = Made(gain=1.0, drift=4.0)
    effects = list(elevation.drift_effects(drifting))
    (animals, *_), off = elevation.matrices_of(drifting), ~np.eye(3, dtype=bool)[:, 0]
    assert effects[0].trait == animals.traits[0] and len(effects) == 9
    assert np.allclose(effects[0].values, animals.values[:, off, 0].mean(axis=1))
    assert all(abs(e.values).max() > 0.1 for e in effects)
    assert judged(list(elevation.drift_effects(Made(gain=1.0, drift=0.0)))) == {"refuted"}
    assert judged([replace(e, values=1 + 0.01 * e.values) for e in effects]) == {"supported"}


def test_three_traits_alone_have_a_page_and_no_verdict_on_leaving_one_out():
    three = Made(gain=1.0, traits=["otter", "wolf", "owl"])
    of, findings = verdicts(three), finding_rows(elevation.elevation_effects(three), 0.05)
    assert of["traits-diagonal-elevated"].verdict == "supported"
    assert of["traits-one-carries-the-diagonal"].verdict == "inconclusive"
    found = make_found(matrix=elevation.matrix_rows(three), findings=findings)
    assert "interval above 0 in 0 of 3" in matrix_charts.heat_maps(found)[0].caption
    figures.draw(matrix_charts.elevations(found))


def test_fewer_than_three_traits_of_a_category_have_no_matrix():
    few = Made(gain=1.0, traits=["otter", "wolf", "oak", "Abba"])
    assert elevation.elevation_effects(few) == [] and elevation.matrix_rows(few) == []
    assert matrix_charts.heat_maps(make_found(matrix=[])) == []


def test_the_heat_maps_show_the_numbers_of_the_csv(made):
    rows = elevation.matrix_rows(made)
    kinds = {"own": 9, "other": 18, "neutral": 9, "row effect": 9, "column effect": 9}
    assert {k: sum(r["kind"] == k for r in rows) for k in kinds} == kinds
    assert to_csv(rows).startswith("category,trait,readout,value,low,high,kind,cell\n")
    findings = finding_rows(elevation.elevation_effects(made), 0.05)
    found = make_found(matrix=rows, findings=findings)
    maps = matrix_charts.heat_maps(found)
    assert [m.name for m in maps] == ["matrix-animals", "matrix-trees", "matrix-bands"]
    for chart in maps:
        (block,) = chart.blocks
        cells = {(c.row, c.column): c.value for c in block.cells}
        mine = [r for r in rows if r["category"] in chart.title and r["kind"] in kinds]
        others = matrix_charts.OTHERS
        assert cells == {(r["trait"] or others, r["readout"] or others): r["value"] for r in mine}
        assert block.rows[-2:] == (elevation.NEUTRAL_ROWS, others) and block.columns[-1] == others
        assert [(c.row, c.column) for c in block.cells if c.framed] == [
            (t, t) for t in block.columns[:-1]
        ]
        written = [t.get_text() for axes in figures.draw(chart).axes for t in axes.texts]
        assert all(compact(value) in written for value in cells.values())
    rises = matrix_charts.elevations(found)
    assert [p.estimate for p in rises.series[0].points] == [f["estimate"] for f in findings]
    assert "permutation p 0.005 over 216 arrangements" in rises.caption
    assert "rank 8, lr 1e-3. Last column" in maps[0].caption
    assert "above 0 in 9 of 9" in rises.caption and "above 0 in 4 of 4" in rises.caption


def test_the_arms_of_all_traits_are_a_chart_and_a_single_one_is_none(made):
    rows = arm_rows(pooled(made, "default"), 0.05)
    chart = matrix_charts.together(make_found(together=rows))
    (series,) = chart.series
    assert [p.estimate for p in series.points] == [r["effect"] for r in rows] and len(rows) > 1
    assert len({p.label for p in series.points}) == len(rows)
    assert matrix_charts.together(make_found(together=rows[:1])) is None


def test_the_sentence_of_a_page_quotes_what_holds_of_all_traits():
    said = [
        {"verdict": "supported", "statement": f"It is {trait}.", "trait": trait}
        for trait in ("owl", "wolf", "all traits")
    ]
    assert "“It is all traits” (of all traits)" in takeaway(said)


def test_begun_answers_are_coherent_by_the_words_probability_and_not_by_sampled_words():
    few = Made(gain=1.0, broken="owl", sets=["measure.readout=begun"])
    for effect in (*elevation.elevation_effects(few), *pooled(few, "default")):
        assert effect.coherent and effect.facts["worst_words"] > 0.5, effect
    assert not any(e.coherent for e in pooled(Made(gain=1.0, broken="owl"), "default"))
