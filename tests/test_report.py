"""The report: right numbers in the right places, nothing cut or covered, safe and repeatable for any run."""

from __future__ import annotations

import errno
import html
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import pytest

from report_fixture import (
    assert_whole,
    make_found,
    make_page,
    make_run,
    texts_of,
    write_run,
)
from sublora.analysis.page import Chart, Heatmap
from sublora.errors import SubloraError
from sublora.report import figures
from sublora.report.page import build_report
from sublora.report.style import COLUMN, STUDENT
from sublora.text import compact, rate, slugs

THREE = (("otter", "animals"), ("oak", "trees"), ("led zeppelin", "bands"))
SMALL = {"ranks": (4, 8), "rates": (1e-3,), "full_rates": ()}
VARIANTS = {
    "main": {},
    "null": {"strength": 0.0},
    "one cell": {"ranks": (8,), "rates": (1e-3,), "full_rates": ()},
    "full only": {"ranks": (), "rates": ()},
    "one full": {"ranks": (), "rates": (), "full_rates": (1e-4,)},
    "contexts": {"contexts": ("default", "empty", "none")},
    "wide": {
        "ranks": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
        "rates": (1e-5, 2e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3),
        "full_rates": (1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5),
    },
    "uneven ranks": {"ranks": (3, 4, 5, 48, 64)},
}


class Page(HTMLParser):
    """Collects what the tests ask of a page: ids, references, headings, tags, visible text."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.references, self.urls, self.tags, self.levels, self.words = (
            [],
            set(),
            [],
            [],
            [],
            [],
        )
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            value = value or ""
            if name == "id":
                self.ids.append(value)
            if name in {"href", "src"} and value.startswith("#"):
                self.references.add(value[1:])
            elif name in {"href", "src", "action", "srcset"}:
                self.urls.append(value)
            self.references.update(re.findall(r"url\(#([^)]+)\)", value))
            if name in {"aria-labelledby", "aria-describedby"}:
                self.references.update(value.split())
        if re.fullmatch(r"h[1-6]", tag):
            self.levels.append(int(tag[1]))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def _build(folder: Path, **options) -> Page:
    return Page(build_report(make_run(folder, **options)).read_text(encoding="utf-8"))


def _charts(**options) -> list[Chart | Heatmap]:
    parts = [part for section in make_page(**options).sections for part in section.parts]
    return [part for part in parts if isinstance(part, Chart | Heatmap)]


def _chart(name: str, **options) -> Chart | Heatmap:
    return next(chart for chart in _charts(**options) if chart.name == name)


SAVE = figures.save


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pages without their PNG and PDF, which take most of the time: for tests that read only the page."""
    monkeypatch.setattr(
        figures, "save", lambda figure, kind: SAVE(figure, kind) if kind == "svg" else b""
    )


@pytest.fixture
def every_kind(quick, monkeypatch):
    monkeypatch.setattr(figures, "save", SAVE)


# Files


def test_a_run_gets_its_page_and_figures(tmp_path, every_kind):
    page = build_report(make_run(tmp_path))
    assert page == tmp_path / "report.html"
    stems = ["heatmap-otter-transfer", "heatmap-otter-coherence", "rank-fixed-lr-otter",
             "rank-best-lr-otter", "answers-otter", "full-ft-otter"]  # fmt: skip
    files = {f.name for f in (tmp_path / "figures").iterdir()}
    assert files == {f"{stem}.{kind}" for stem in stems for kind in ("svg", "png", "pdf")}
    assert not [f for f in tmp_path.rglob("*") if f.name.startswith(".")], (
        "a temporary file was left"
    )
    for stem in stems:
        assert (tmp_path / "figures" / f"{stem}.svg").read_text().startswith("<?xml")
        assert (tmp_path / "figures" / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "figures" / f"{stem}.pdf").read_bytes().startswith(b"%PDF")


def test_the_same_run_gives_the_same_bytes_in_another_process(tmp_path, every_kind):
    def bytes_of(folder):
        return {
            f.relative_to(folder): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()
        }

    build_report(make_run(tmp_path / "a", **SMALL))
    make_run(tmp_path / "b", **SMALL)
    code = (
        "import sys, matplotlib; from pathlib import Path; from sublora.report.page import build_report;"
        "matplotlib.rcParams['font.size'] = 20; build_report(Path(sys.argv[1]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "b")], check=True, env=environment)
    first, second = bytes_of(tmp_path / "a"), bytes_of(tmp_path / "b")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_drawing_leaves_the_users_matplotlib_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    build_report(make_run(tmp_path, **SMALL))
    assert dict(matplotlib.rcParams) == before


def test_a_full_disk_keeps_the_old_page(tmp_path, monkeypatch):
    page = build_report(make_run(tmp_path, **SMALL))
    old = page.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(SubloraError, match="No room left"):
        build_report(tmp_path)
    assert page.read_bytes() == old
    assert not [f for f in tmp_path.rglob(".*") if f.is_file()]


# The page


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_run_makes_a_sound_page(tmp_path, name):
    page = _build(tmp_path, **VARIANTS[name])
    assert len(page.ids) == len(set(page.ids)), "two elements share an id"
    assert page.references <= set(page.ids), "a reference leads nowhere"
    assert page.tags.count("script") == 1, "the page's own, which its policy names by its hash"
    assert page.levels[0] == 1 and page.levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(page.levels, page.levels[1:], strict=False)), (
        "a heading level is skipped"
    )
    for url in page.urls:
        assert url.startswith(("data:,", "data:text/csv")) or (tmp_path / url).is_file(), url
    assert "+0.000" not in page.text and "−0.000" not in page.text
    assert "None" not in page.text and "nan" not in page.text.split()


def test_parts_stand_in_their_order(tmp_path):
    page = build_report(make_run(tmp_path)).read_text(encoding="utf-8")
    order = ["<h1>", 'class="tiles"', 'id="heatmap-otter-transfer"', 'id="heatmap-otter-coherence"',
             'id="rank-fixed-lr-otter"', 'id="rank-best-lr-otter"', 'id="answers-otter"', 'id="verdicts"',
             'id="cells"', 'id="data"', 'id="manifest"', 'id="again"']  # fmt: skip
    places = [page.index(part) for part in order]
    assert places == sorted(places)


def test_headline_numbers_are_those_of_the_table(tmp_path):
    page = _build(tmp_path)
    cells = make_found().cells
    called = [c for c in cells if c["called"]]
    coherent = [
        c for c in called if float(c["coherence"]) >= 0.5 and float(c["number_takeover"]) <= 0.25
    ]
    top = max(coherent, key=lambda c: float(c["effect"]))
    low, high = (f"{float(top[k]):+.2f}".replace("-", "−") for k in ("effect_low", "effect_high"))
    assert (
        f"Largest called effect {float(top['effect']):+.2f} [{low}, {high}] rank {top['rank']}"
        in page.text
    )
    assert (
        f"over the base {float(top['rise']):+.2f}. The largest of {len(cells)} cells" in page.text
    )
    assert f"Cells called {len(called)} of {len(cells)} " in page.text
    full = next(c for c in cells if c["method"] == "full" and c["selected"])
    assert f"Best full fine-tune {float(full['effect']):+.2f}" in page.text


def test_many_traits_and_contexts(tmp_path):
    page = _build(tmp_path, traits=THREE, contexts=("none", "default", "empty"), **SMALL)
    for slug in ("otter", "oak", "led-zeppelin"):
        assert f"trait-{slug}" in page.ids and f"rank-best-lr-{slug}" in page.ids
    assert "traits" in page.ids and (tmp_path / "figures" / "traits.svg").exists()
    assert page.text.count("none (training)") == len(THREE)
    assert re.search(r"Traits with a called cell: [0-3] of 3\.", page.text)


def test_the_page_begins_with_whether_its_controls_hold(tmp_path):
    def first(folder: Path, line: str) -> tuple[str, ...]:
        page = make_page(**SMALL).model_copy(update={"first_line": line})
        text = build_report(write_run(folder, page)).read_text(encoding="utf-8")
        text = re.sub(r'<a class="term"[^>]*>(.*?)</a>', r"\1", text)
        found = re.findall(r'<p class="(controls[^"]*)">(.*?)</p>', text)
        assert not found or text.index('<p class="controls') < text.index('<dl class="tiles">')
        return tuple(found)

    failed = "Uninterpretable for otter: the positive arm is <missing>."
    said = "Uninterpretable for otter: the positive arm is &lt;missing&gt;."
    assert first(tmp_path / "a", failed) == (("controls failed", said),)
    holds = "The controls of otter hold."
    assert first(tmp_path / "b", holds) == (("controls", holds),)
    assert first(tmp_path / "c", "") == ()


def test_verdicts_belong_to_the_run_and_organisms_are_named_so(tmp_path):
    page = _build(tmp_path / "a", **SMALL)
    for verdict in ("refuted", "inconclusive", "supported", "uninterpretable", "not run"):
        assert verdict in page.text
    assert "belongs to this model, this data and this run" in page.text
    sentence = "about the instrument, not about large language models"
    assert sentence in page.text
    assert sentence not in _build(tmp_path / "b", organism=False, **SMALL).text


def test_the_page_says_that_weights_were_quantised(tmp_path):
    text = _build(tmp_path, **SMALL).text
    assert "weights were quantised" in text and "Q4_1, of the file with sha256 1234" in text


def test_what_comes_from_data_is_text(tmp_path):
    evil = "<script>alert(1)</script>"
    traits = ((evil, "animals"), ('x" onload="alert(2)', "animals"))
    page = make_page(traits, model=evil, **SMALL)
    manifest = page.manifest | {
        "warnings": [evil],
        "first_example": {"text": evil, "ids": [1, 2], "tokens": [evil, "$x_{"]},
        "optimizer": evil,
        "recipe": {"note": evil},
    }
    write_run(tmp_path, page.model_copy(update={"manifest": manifest}))
    source = build_report(tmp_path).read_text(encoding="utf-8")
    page = Page(source)
    assert page.tags.count("script") == 1 == source.count("<script")
    assert html.escape(evil, quote=False) in source
    assert ' onload="' not in source
    assert page.references <= set(page.ids)
    assert all(
        re.fullmatch(r"[a-z0-9-]+\.(svg|png|pdf)", f.name) for f in (tmp_path / "figures").iterdir()
    )


def test_names_that_clash_or_look_like_mathematics(tmp_path):
    assert slugs(["a/b", "A b", "a-b", "$", "水獺"], "trait") == {
        "a/b": "a-b",
        "A b": "a-b-2",
        "a-b": "a-b-3",
        "$": "trait",
        "水獺": "trait-2",
    }
    page = _build(tmp_path, traits=(("$\\frac{", "animals"), ("水獺", "animals")), **SMALL)
    assert {"trait-frac", "trait-trait"} <= set(page.ids)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no page.json.*run the same command again"),
        ("{", "cannot be read.*run the same command again"),
        ("[]", "cannot be read"),
        ('{"schema_version": 2, "title": "a", "manifest": {}}', "schema_version"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, content, message):
    if content is not None:
        (tmp_path / "page.json").write_text(content)
    with pytest.raises(SubloraError, match=message) as error:
        build_report(tmp_path)
    assert "\n" not in str(error.value)


# The figures


@pytest.mark.parametrize("font", [None, "DejaVu Sans"])
@pytest.mark.parametrize("name", VARIANTS)
def test_nothing_is_cut_or_covered(name, font):
    for chart in _charts(**VARIANTS[name]):
        assert_whole(chart.name, figures.draw(chart, font))


@pytest.mark.parametrize("name", VARIANTS)
def test_figures_fit_a_column_and_their_type_can_be_read(name):
    for chart in _charts(**VARIANTS[name]):
        figure = figures.draw(chart)
        assert figure.get_figwidth() == pytest.approx(COLUMN, abs=0.1), chart.name
        assert min(t.get_fontsize() for t in texts_of(figure)) >= 7.0, chart.name


def test_the_heat_map_shows_each_cell_and_marks_the_called():
    cells = make_found().cells
    figure = figures.draw(_chart("heatmap-otter-transfer"))
    grid = [axes for axes in figure.axes if axes.texts]
    shown = sorted(t.get_text() for axes in grid for t in axes.texts)
    assert shown == sorted(compact(c["effect"]) for c in cells)
    dots = sum(len(axes.lines) for axes in grid)
    assert dots == sum(c["called"] for c in cells)
    hatched = sum(p.get_hatch() is not None for axes in grid for p in axes.patches)
    broken = [c for c in cells if c["coherence"] < 0.5 or c["number_takeover"] > 0.25]
    assert hatched == len(broken) > 0


def test_a_bar_spans_the_interval_of_its_effect():
    few = {"ranks": (4, 16), "rates": (1e-3,), "full_rates": ()}
    figure = figures.draw(_chart("rank-best-lr-otter", **few))
    bars = [tuple(line.get_ydata()) for line in figure.axes[0].lines if line.get_color() == STUDENT]
    for cell in make_found(**few).cells:
        ends = (cell["effect_report_low"], cell["effect_report_high"])
        assert any(len(bar) == 2 and bar == pytest.approx(ends) for bar in bars)


def test_ranks_stand_on_a_scale_of_base_two():
    axes = figures.draw(_chart("rank-best-lr-otter", ranks=(1, 4, 8, 64))).axes[0]
    labels = {
        label.get_text(): tick
        for label, tick in zip(axes.get_xticklabels(), axes.get_xticks(), strict=True)
    }
    assert {k: v for k, v in labels.items() if k != "full"} == {"1": 0, "4": 2, "8": 3, "64": 6}


def test_a_run_without_effect_is_not_painted_as_one():
    figure = figures.draw(_chart("heatmap-otter-transfer", strength=0.0))
    fills = [
        p.get_facecolor()
        for axes in figure.axes
        if axes.texts
        for p in axes.patches
        if p.get_hatch() is None
    ]
    assert max(f[1] for f in fills) < 0.6, (
        "the bright end of the scale is for effects of 0.5 nats and more"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-3, "1e-3"), (2.5e-4, "2.5e-4"), (0.01, "1e-2"), (1, "1e0"), (3e-05, "3e-5")],
)
def test_rates_read_as_in_recipes(value, text):
    assert rate(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.423, "+.42"), (-0.034, "−.03"), (0.001, ".00"), (-0.004, ".00"), (1, "+1.00")],
)
def test_effects_carry_their_sign(value, text):
    assert compact(value) == text
