"""What a page adds to its numbers: the take-away, words explained, marks that say their value, data to save, answers behind a number."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from dataclasses import replace

import numpy as np
import pytest

from report_fixture import assert_whole, make_page, write_run
from sublora.analysis.charts import as_curve, titled_over
from sublora.analysis.effects import found, linear
from sublora.analysis.page import Chart, Heatmap, Point, Quote, Quotes, Section, Series
from sublora.experiments.grid.answers import largest
from sublora.experiments.grid.quoted import _title
from sublora.report import figures
from sublora.report.glossary import WORDS, Glossary
from sublora.report.hover import csv_of, layer, links_of
from sublora.report.page import render
from sublora.report.verdicts import counts, takeaway, verdict_row

SMALL = {"ranks": (4, 8), "rates": (1e-3,), "full_rates": ()}


def _verdicts(*names: str) -> list[dict]:
    return [
        {"verdict": n, "statement": f"Claim {k}.", "trait": "otter"} for k, n in enumerate(names)
    ]


def _rows(*labels: str, kind: str = "rows") -> Chart:
    points = tuple(
        Point(label=name, estimate=k, low=k - 1, high=k + 1) for k, name in enumerate(labels)
    )
    return Chart(
        kind=kind, name="a", title="A", caption="", axis="nats", series=(Series(points=points),)
    )


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), ""),
        (("not run",), "None of 1 claim could be judged by this run."),
        (("supported",), "Of 1 claim judged here, 1 is supported: “Claim 0”."),
        (
            ("refuted", "supported", "supported", "inconclusive", "not run"),
            "Of 4 claims judged here, 2 are supported, among them “Claim 1”, 1 is refuted: “Claim 0” and 1 is left open.",
        ),
        (
            ("uninterpretable", "uninterpretable"),
            "Of 2 claims judged here, 2 are not to be interpreted, because a control failed.",
        ),
    ],
)
def test_the_take_away_is_made_of_the_verdicts(names, said):
    assert takeaway(_verdicts(*names)) == said
    assert sum(c["count"] for c in counts(_verdicts(*names))) == len(names)


def test_a_verdict_says_in_words_what_it_was_judged_on():
    row = verdict_row(
        {"verdict": "refuted", "view": "best-lr", "reason": "Slope -0.5 [-1e-3, 2e-4]; a-1."}
    )
    assert row["view"] == "each rank at its best rate"
    assert row["reason"] == "Slope −0.5 [−1e-3, 2e-4]; a-1."


def test_answers_are_titled_by_what_varies_and_those_of_a_broken_student_come_last():
    labels = {"trait": "otter", "rank": 8, "lr": 3e-3, "train_context": "default", "context": "none"}  # fmt: skip
    assert _title(labels, set()) == "otter, rank 8, lr 0.003"
    assert _title(labels, {"context", "lr"}) == "otter, rank 8, lr 0.003, asked in none"
    sound, broken = (
        replace(found("otter", "g", "n", np.full((2, 2), v), [(1, 1), (2, 2)]), facts=facts)
        for v, facts in ((0.3, {"coherence": 0.9}), (4.0, {"coherence": 0.1}))
    )
    assert max([broken, sound], key=largest) is sound


def test_each_known_word_is_explained_once_in_a_text_and_listed():
    glossary = Glossary()
    made = str(
        glossary.explain("A cell of cells; <code>cell</code>, mis-called, P(target) &lt;b&gt;")
    )
    assert made.count('class="term"') == 2 and "<code>cell</code>" in made and "mis-called" in made
    assert [word for _, word, _ in glossary.listed()] == ["P(target)", "cell"]
    assert html.escape(WORDS["cell"]) in made
    assert glossary.head("<b>") == "&lt;b&gt;"


def test_rows_over_steps_are_a_curve_and_others_stay_rows():
    curve = as_curve(_rows("all steps", "step 40", "step 5", "step 10"))
    assert (curve.kind, curve.x_axis, curve.log_x) == ("lines", "step (log scale)", True)
    assert [p.x for p in curve.series[0].points] == [5, 10, 40, None]
    assert [p.estimate for p in curve.series[0].points] == [2, 3, 1, 0]
    assert titled_over(curve, "Effect").title == "Effect over steps"
    layers = as_curve(_rows("students, layer 0", "students, layer 1", "students, layer 2"))
    assert (layers.log_x, layers.series[0].name) == (False, "students")
    dose = as_curve(_rows("1024 rows, 1 epoch", "step 4", "step 8", "step 32"))
    assert (
        dose.x_axis.startswith("step") and dose.series[0].points[-1].label == "1024 rows, 1 epoch"
    )
    many = as_curve(_rows("2,500 rows, 20 epochs", "10,000 rows, 5 epochs", "50,000 rows, 1 epoch"))
    assert [(p.x, p.note) for p in many.series[0].points][1] == (10_000, "5 epochs")
    both = as_curve(
        _rows(*(f"{n} rows, {e}, {r}" for n, e in ((9, "1 epoch"), (3, "3 epochs"), (1, "9 epochs")) for r in ("rank 4", "full")), "as it is")
    )  # fmt: skip
    assert [s.name for s in both.series] == ["rank 4", "full", ""]
    assert [(p.x, p.note) for p in both.series[1].points][::2] == [(1, "9 epochs"), (9, "1 epoch")]
    assert both.series[2].points[0].label == "as it is"
    for labels in (
        ("step 5", "step 10"),
        ("a", "b", "c"),
        ("step 1", "layer 2", "60 rows", "step 4"),
    ):
        assert as_curve(_rows(*labels)).kind == "rows"


def test_the_interval_of_a_cosine_stays_within_its_bounds():
    values, seeds = np.array([0.1, 0.95, 0.9]), [(1, 1), (2, 2), (3, 3)]
    free, held = (found("otter", "g", "n", values, seeds, bounds=b) for b in (None, (-1, 1)))
    assert free.interval().high > 1 == held.interval().high
    assert held.interval().estimate == free.interval().estimate
    assert linear([held, held], [1, 1]).interval().high > 1, (
        "a sum may leave the bounds of its parts"
    )


@pytest.mark.parametrize("kind", ["rows", "lines", "bars"])
def test_every_mark_says_its_value(kind):
    chart = as_curve(_rows("step 1", "step 2", "step 3")) if kind == "lines" else _rows("a", "b")
    chart = chart.model_copy(update={"kind": kind, "beside": kind == "bars"})
    over = layer(figures.draw(chart), {})
    points = chart.series[0].points
    assert over.count("<title>") == len(points)
    for place in re.findall(r'[xy]="([^"]+)"', over):
        assert float(place) >= -1


def test_marks_lead_to_the_answers_and_the_data_is_that_of_the_figure():
    page = make_page(**SMALL)
    chart = next(p for s in page.sections for p in s.parts if isinstance(p, Heatmap))
    block = chart.blocks[0]
    cells = tuple(c.model_copy(update={"link": f"said-{k}"}) for k, c in enumerate(block.cells))
    chart = chart.model_copy(update={"blocks": (block.model_copy(update={"cells": cells}),)})
    over = layer(figures.draw(chart), links_of(chart))
    assert [f'href="#said-{k}"' in over for k in range(len(cells))] == [True] * len(cells)
    lines = csv_of(chart).splitlines()
    assert lines[0].startswith("block,row,column,value") and len(lines) == 1 + len(cells)


def test_a_long_title_is_whole():
    long = "Cosine with the vector of the teacher that is so long that it needs more than one line"
    figure = figures.draw(_rows("a", "b").model_copy(update={"title": long}))
    bold = [t.get_text() for t in figure.texts if t.get_fontweight() == "bold"]
    assert " ".join(bold) == long and len(bold) > 1


def test_long_names_beyond_the_last_step_are_whole():
    chart = as_curve(
        _rows("1024 rows, 1 epoch", "step 4", "step 8", "step 32", "256 rows, 4 epochs")
    )
    figure = figures.draw(chart)
    assert_whole("dose", figure)
    shown = [t.get_text().replace("\n", " ") for t in figure.axes[0].get_xticklabels()]
    assert {"4", "32", "1024 rows, 1 epoch", "256 rows, 4 epochs"} <= set(shown)


def test_answers_are_text_in_the_page_and_only_its_own_script_may_run(tmp_path):
    evil = "<img src=x onerror=alert(1)> otter"
    quotes = Quotes(
        name="said-1", title=evil, columns=("question", evil), rows=(Quote(prompt=evil, texts=((evil,),)),),
        marked="otter", folded=True,
    )  # fmt: skip
    page = make_page(**SMALL)
    more = Section(name="answers", title="Answers", parts=(quotes,))
    write_run(tmp_path, page.model_copy(update={"appendix": (*page.appendix, more)}))
    text = render(page.model_copy(update={"appendix": (*page.appendix, more)}))
    assert "<img" not in text and text.count("<q class=hit>&lt;img") == 1 and 'id="said-1"' in text
    script = re.search(r"<script>(.*?)</script>", text, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text and len(text.encode()) < 2_000_000
