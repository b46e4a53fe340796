"""The page of a run with arms and attributions: every number is there, and everything is escaped."""

import html
import math
import re

import pytest
from pydantic import ValidationError

from report_fixture import assert_whole, make_page, write_run
from sublora.analysis.page import Chart, Heatmap, Point, Series
from sublora.report import figures
from sublora.report.page import build_report

EVIL = '<script>alert("x")</script>&\'"'


def row(**values):
    base = {
        "trait": "otter", "data": "as written", "train_context": "default", "context": "default", "condition": "plain",
        "placement": "", "method": "lora", "rank": 8, "lr": 1e-3, "n_data_seeds": 4, "n_train_seeds": 3, "n_questions": 50,
        "p_target": 0.41, "p_control": 0.01, "p_base": 0.02, "effect": 0.4, "effect_low": 0.3, "effect_high": 0.5,
        "p_value": 1e-4, "p_corrected": 1e-3, "called": 1, "rate_whole_word": 0.4, "coherence": 0.9, "number_takeover": 0.0,
        "optimizer": "", "variant": "", "heldout_loss": math.nan, "matched": 1,
    }  # fmt: skip
    return base | values


CONDITIONS = [
    row(),
    row(condition="only names", effect=0.017, effect_low=-0.01, effect_high=0.044, called=0),
    row(condition=EVIL),
]
PROMPT = {
    "question": EVIL, "pieces": ["<|im_start|>", "user\n", EVIL, " b", "(answer)"], "tokens": ["a"] * 5,
    "classes": ["template", "template", "user", "user", "generated"], "left_out": [0.5, -0.25, 0.1, 0.0, 0.0],
    "alone": [0.25, 0.0, 0.1, 0.0, 0.0], "effect": 0.75, "replicates": 12,
}  # fmt: skip


def page_with(folder, arms, **more):
    return build_report(write_run(folder, make_page(arms=arms, **more))).read_text()


def charts_with(arms):
    (section,) = make_page(arms=arms).sections
    return {p.name: p for p in section.parts if isinstance(p, Chart | Heatmap)}


def test_conditions_and_tokens_are_on_the_page(tmp_path):
    text = page_with(tmp_path, CONDITIONS, tokens={"otter": [PROMPT, PROMPT]})
    assert (
        EVIL not in text
        and text.count("<script") == 1
        and html.escape(EVIL, quote=False).split("&#")[0][:20] in text
    )
    assert 'id="arms-otter"' in text and (tmp_path / "figures" / "arms-otter.pdf").is_file()
    assert (
        "only names" in text
        and "+0.017" in text
        and "[−0.010, +0.044]" in text
        and ">0.04<" in text
    ), "effect, interval and share"
    strips = re.findall(r'<p class="map">(.*?)</p>', text, re.S)
    assert len(strips) == 6, "left out, alone and interaction of two prompts"
    assert re.findall(r'title="([^"]*)"', strips[0])[:2] == [
        "&lt;|im_start|&gt; (template): +0.500 nats",
        "user⏎ (template): −0.250 nats",
    ]
    assert (
        'class="t up" style="--w:0.500"' in strips[0]
        and 'class="t down" style="--w:0.250"' in strips[0]
    )
    assert 'style="--w:0.250" title="&lt;|im_start|&gt; (template): +0.250 nats"' in strips[2], (
        "interaction = left out - alone"
    )
    assert "sum +0.35" in strips[0] and "+0.75 nats" in text
    tables = re.findall(r"Table of tokens</summary>.*?</table>", text, re.S)
    assert len(tables) == 2 and all("−0.250" in t for t in tables), (
        "the values stand in a table for print"
    )
    assert build_report(tmp_path).read_text() == text


def test_several_training_contexts_make_a_matrix_for_each_rank():
    names = ["default", "empty", "claude-in-turn"]
    arms = [row(train_context=t, context=c, rank=r) for t in names for c in names for r in (2, 8)]
    charts = charts_with(arms)
    assert "contexts-otter" in charts and "arms-otter" not in charts
    figure = figures.draw(charts["contexts-otter"])
    written = [t.get_text() for axes in figure.axes for t in axes.texts]
    assert written.count("+.40") == 18
    assert "default 0.020, empty 0.020 and claude-in-turn 0.020" in charts["contexts-otter"].caption


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("placement", ["all", "only first"]),
        ("context", ["default", "one word"]),
        ("an_axis_of_tomorrow", ["yes", "no"]),
        ("alpha", [8, 16.0]),
    ],
)
def test_what_is_reported_differs_by_what_the_run_varies(axis, values):
    charts = charts_with([row(**{axis: value}) for value in values])
    assert "contexts-otter" not in charts
    assert [p.label for p in charts["arms-otter"].series[0].points] == list(map(str, values))
    figures.draw(charts["arms-otter"])


def finding(name, estimate, group="cosine with the teacher’s vector"):
    ends = {"low": estimate - 0.2, "high": estimate + 0.1}
    counts = {"n_data_seeds": 2, "n_train_seeds": 2, "n_questions": 50}
    labels = {"trait": "otter", "group": group, "finding": name}
    return labels | {"estimate": estimate} | ends | counts


NAMES = ["default", "empty", "claude-in-turn", "a context with a long name", "none", "one more"]
MANY = [row(train_context=t, context=c, effect=0.1 * i) for i, t in enumerate(NAMES) for c in NAMES]
FINDINGS = [finding(f"layer {i}: {w}", 0.1 * i) for i in range(3) for w in ("prompted", "random")]
FINDINGS += [
    finding("early", 1.5, "loss gap, a group with a name that is far longer than a column")
]
PANELS = [row(condition=c, rank=r) for c in ("plain", "a" * 60) for r in (2, "")]


@pytest.mark.parametrize(
    "found",
    [{"arms": MANY}, {"arms": PANELS, "findings": FINDINGS}, {"arms": CONDITIONS, "matched": True}],
)
def test_nothing_is_cut_or_covered(found):
    (section,) = make_page(**found).sections
    for chart in section.parts:
        if isinstance(chart, Chart | Heatmap):
            assert_whole(chart.name, figures.draw(chart))


def test_a_grid_leads_with_its_heat_maps_and_a_run_of_arms_with_what_it_found():
    steps = [finding(f"step {k}", 0.1 * k, "over time") for k in (1, 2, 4)]

    def order(**found):
        (section,) = make_page(findings=FINDINGS + steps, **found).sections
        found_in = [p.name for p in section.parts if isinstance(p, Chart | Heatmap)]
        return [re.sub(r"over-\d+", "over", name) for name in found_in]

    grid = order()
    assert grid[0] == "heatmap-otter-transfer" and grid[-2:] == ["over-otter", "findings-otter"]
    one = {"ranks": (8,), "rates": (1e-3,), "full_rates": (), "arms": CONDITIONS}
    assert order(**one) == ["arms-otter", "over-otter", "findings-otter", "answers-otter"]


BESIDE = [("as trained", 1.0, 5.2), ("less", 0.8, 5.3), ("none at all of it is left", 0.0, 5.9)]


def test_panels_beside_one_another_share_their_rows():
    panels = ("rise that stays, default", "held-out loss, nats a token")
    series = tuple(
        Series(name=name, panel=panel, points=(Point(label=name, estimate=values[k]),))
        for k, panel in enumerate(panels)
        for name, *values in BESIDE
    )
    chart = Chart(
        kind="rows", beside=True, name="both", title="Both", axis="", caption="", series=series
    )
    figure = figures.draw(chart)
    assert_whole("both", figure)
    shares, losses = figure.axes
    assert losses.get_xlim()[0] > 5, "each has a scale of its own"
    assert shares.get_ylim() == losses.get_ylim() == (3, 0)


def test_a_run_with_one_arm_needs_no_figure_of_arms(tmp_path):
    assert "arms-otter" not in charts_with([row()])


def test_an_unknown_interval_and_a_broken_arm(tmp_path):
    arms = [
        row(effect_low=-math.inf, effect_high=math.inf),
        row(condition="broken", coherence=0.1),
    ]
    text = page_with(tmp_path, arms)
    assert "unknown" in text and "0.10 †" in text
    assert charts_with(arms)["arms-otter"].series[0].points[0].low is None


def test_a_page_holds_no_number_that_cannot_be_drawn():
    with pytest.raises(ValidationError):
        Point(estimate=math.nan)
