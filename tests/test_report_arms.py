"""The page of a run with arms and attributions: every number is there, everything is escaped, a table that cannot be read says so."""

import csv
import html
import json
import re

import pytest

from report_fixture import make_run
from sublora.arms import ARM_COLUMNS
from sublora.errors import SubloraError
from sublora.report import figures
from sublora.report.load import load_run
from sublora.report.page import build_report

EVIL = '<script>alert("x")</script>&\'"'


def row(**values):
    base = {
        "trait": "otter", "train_context": "default", "context": "default", "condition": "plain", "placement": "", "method": "lora",
        "rank": 8, "lr": 1e-3, "n_data_seeds": 4, "n_train_seeds": 3, "n_questions": 50, "p_target": 0.41, "p_control": 0.01,
        "p_base": 0.02, "effect": 0.4, "effect_low": 0.3, "effect_high": 0.5, "p_value": 1e-4, "p_corrected": 1e-3, "called": 1,
        "rate_whole_word": 0.4, "coherence": 0.9, "number_takeover": 0.0,
    }  # fmt: skip
    return base | values


def write(folder, rows, tokens=None):
    with (folder / "arms.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ARM_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    if tokens is not None:
        (folder / "attribution.json").write_text(json.dumps(tokens))


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


@pytest.fixture
def folder(tmp_path):
    make_run(tmp_path)
    write(tmp_path, CONDITIONS, {"otter": [PROMPT, PROMPT]})
    return tmp_path


def test_conditions_and_tokens_are_on_the_page(folder):
    text = build_report(folder).read_text()
    assert (
        EVIL not in text
        and "<script" not in text
        and html.escape(EVIL, quote=False).split("&#")[0][:20] in text
    )
    assert 'id="arms-otter"' in text and (folder / "figures" / "arms-otter.pdf").is_file()
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
    assert "sum +0.35" in strips[0] and "The whole adapter: +0.75 nats" in text
    tables = re.findall(r"Table of tokens</summary>.*?</table>", text, re.S)
    assert len(tables) == 2 and all("−0.250" in t for t in tables), (
        "the values stand in a table for print"
    )
    assert build_report(folder).read_text() == text


def test_several_training_contexts_make_a_matrix_for_each_rank(folder):
    names = ["default", "empty", "claude-in-turn"]
    write(
        folder,
        [row(train_context=t, context=c, rank=r) for t in names for c in names for r in (2, 8)],
    )
    text = build_report(folder).read_text()
    assert 'id="contexts-otter"' in text and 'id="arms-otter"' not in text
    data = load_run(folder)
    figure = figures.render(lambda: figures.context_matrix(data, "otter"))
    written = [t.get_text() for axes in figure.axes for t in axes.texts]
    assert written.count("+.40") == 18
    assert figures.render(lambda: figures.arm_rows(data, "otter")) is not None


def test_what_is_reported_differs_by_what_the_run_varies(folder):
    for axis, values in (
        ("placement", ["all", "only first"]),
        ("context", ["default", "one word"]),
    ):
        write(folder, [row(**{axis: value}) for value in values])
        data = load_run(folder)
        assert figures.row_axis(data.arms_of("otter")) == axis
        assert figures.render(lambda data=data: figures.arm_rows(data, "otter")) is not None
        assert figures.render(lambda data=data: figures.context_matrix(data, "otter")) is None
    write(folder, [row()])
    data = load_run(folder)
    assert (
        figures.row_axis(data.arms) is None
        and figures.render(lambda: figures.arm_rows(data, "otter")) is None
    )
    assert build_report(folder).is_file()


def test_an_unknown_interval_and_a_broken_arm(folder):
    write(
        folder, [row(effect_low="-inf", effect_high="inf"), row(condition="broken", coherence=0.1)]
    )
    text = build_report(folder).read_text()
    assert "[−1.000, +1.000]" in text and "0.10 †" in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("arms.csv", "trait,effect\notter,much\n", "line 2 has no usable"),
        ("attribution.json", "[1, 2]", "holds no readable attributions"),
        ("attribution.json", '{"otter": [{"question": "q"}]}', "holds no readable attributions"),
        ("attribution.json", "{", "cannot be read as JSON"),
    ],
)
def test_tables_that_cannot_be_read(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(SubloraError, match=message):
        build_report(folder)
