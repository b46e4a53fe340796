"""The report: right numbers in the right places, nothing cut or covered, safe and repeatable for any run."""

from __future__ import annotations

import csv
import errno
import html
import io
import json
import os
import re
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import matplotlib
import pytest
from matplotlib.text import Text

from report_fixture import make_run
from sublora.errors import SubloraError
from sublora.report import figures
from sublora.report.load import load_run
from sublora.report.page import _slugs, build_report
from sublora.report.style import report_style

THREE = (("otter", "animals"), ("oak", "trees"), ("led zeppelin", "bands"))
SMALL = {"ranks": (4, 8), "rates": (1e-3,), "full_rates": ()}
VARIANTS = {
    "main": {},
    "null": {"strength": 0.0},
    "one cell": {"ranks": (8,), "rates": (1e-3,), "full_rates": ()},
    "no control": {"control": False, "full_rates": ()},
    "full only": {"ranks": (), "rates": (), "recipe": "full-ft"},
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


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "cells.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def _drawings(data):
    for trait in data.traits:
        for part in ("both", "transfer", "coherence"):
            yield f"heatmap {part}", partial(figures.heatmap, data, trait.name, part)
        for draw in (
            figures.rank_fixed_lr,
            figures.rank_best_lr,
            figures.answer_bars,
            figures.full_ft,
        ):
            yield draw.__name__, partial(draw, data, trait.name)
        yield "rank_fixed_lr wide", partial(figures.rank_fixed_lr, data, trait.name, figures.PAGE)
    yield "traits", partial(figures.traits_overview, data)


def _texts(figure) -> list[Text]:
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]


SAVE = figures.save


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pages without their PNG and PDF, which take most of the time: for tests that read only the page."""

    def only_svg(figure):
        with report_style():
            buffer = io.BytesIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        return {"svg": buffer.getvalue(), "png": b"", "pdf": b""}

    monkeypatch.setattr(figures, "save", only_svg)


@pytest.fixture
def every_kind(quick, monkeypatch):
    monkeypatch.setattr(figures, "save", SAVE)


# Files


def test_a_run_gets_its_page_and_figures(tmp_path, every_kind):
    page = build_report(make_run(tmp_path))
    assert page == tmp_path / "report.html"
    stems = ["heatmap-otter", "heatmap-otter-transfer", "heatmap-otter-coherence", "rank-fixed-lr-otter",
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

    monkeypatch.setattr("sublora.report.page.os.replace", full)
    with pytest.raises(SubloraError, match="No space left"):
        build_report(tmp_path)
    assert page.read_bytes() == old
    assert not [f for f in tmp_path.rglob(".*") if f.is_file()]


# The page


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_run_makes_a_sound_page(tmp_path, name):
    page = _build(tmp_path, **VARIANTS[name])
    assert len(page.ids) == len(set(page.ids)), "two elements share an id"
    assert page.references <= set(page.ids), "a reference leads nowhere"
    assert "script" not in page.tags
    assert page.levels[0] == 1 and page.levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(page.levels, page.levels[1:], strict=False)), (
        "a heading level is skipped"
    )
    for url in page.urls:
        assert url == "data:," or (tmp_path / url).is_file(), url
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
    cells = _rows(tmp_path)
    called = [c for c in cells if c["called"] == "1"]
    coherent = [
        c for c in called if float(c["coherence"]) >= 0.5 and float(c["number_takeover"]) <= 0.25
    ]
    top = max(coherent, key=lambda c: float(c["effect"]))
    low, high = (f"{float(top[k]):+.2f}".replace("-", "−") for k in ("effect_low", "effect_high"))
    assert (
        f"Largest called effect {float(top['effect']):+.2f} [{low}, {high}] rank {top['rank']}"
        in page.text
    )
    assert f"The largest of {len(cells)} cells" in page.text
    assert f"Cells called {len(called)} of {len(cells)} " in page.text
    full = next(c for c in cells if c["method"] == "full" and c["selected"] == "1")
    assert f"Best full fine-tune {float(full['effect']):+.2f}" in page.text


def test_a_run_without_control_says_that_nothing_is_tested(tmp_path):
    page = _build(tmp_path, **VARIANTS["no control"])
    assert "not tested" in page.text and "No control was trained" in page.text
    assert "student − base" in page.text
    assert "clear of its control" not in page.text


def test_an_unfinished_run_says_so_and_may_lack_tables(tmp_path):
    make_run(tmp_path, status="running", verdicts=False)
    for name in ("results.csv", "cells.csv", "answers.json"):
        (tmp_path / name).unlink()
    page = Page(build_report(tmp_path).read_text(encoding="utf-8"))
    assert "This run is running." in page.text
    assert "No verdict has been reached" in page.text and "Nothing has been measured" in page.text


def test_a_bare_manifest_is_enough(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    assert Page(build_report(tmp_path).read_text(encoding="utf-8")).levels[0] == 1


def test_many_traits_and_contexts(tmp_path):
    page = _build(tmp_path, traits=THREE, contexts=("none", "default", "empty"), **SMALL)
    for slug in ("otter", "oak", "led-zeppelin"):
        assert f"trait-{slug}" in page.ids and f"rank-best-lr-{slug}" in page.ids
    assert "traits" in page.ids and (tmp_path / "figures" / "traits.svg").exists()
    assert page.text.count("none (training)") == len(THREE)
    assert re.search(r"Traits with a called cell: [0-3] of 3\.", page.text)


def test_verdicts_belong_to_the_run_and_organisms_are_named_so(tmp_path):
    page = _build(tmp_path / "a", **SMALL)
    for verdict in ("refuted", "inconclusive", "supported", "not run"):
        assert verdict in page.text
    assert "belongs to this model, this data and this run" in page.text
    sentence = "about the instrument, not about large language models"
    assert sentence in page.text
    assert sentence not in _build(tmp_path / "b", organism=False, **SMALL).text


def test_what_comes_from_data_is_text(tmp_path):
    evil = "<script>alert(1)</script>"
    make_run(
        tmp_path,
        model=evil,
        traits=((evil, "animals"), ('x" onload="alert(2)', "animals")),
        **SMALL,
    )
    run = json.loads((tmp_path / "run.json").read_text())
    run["warnings"] = [evil]
    run["first_example"] = {"text": evil, "ids": [1, 2], "tokens": [evil, "$x_{"]}
    run["optimizer"] = evil
    run["recipe"]["note"] = evil
    (tmp_path / "run.json").write_text(json.dumps(run))
    source = build_report(tmp_path).read_text(encoding="utf-8")
    page = Page(source)
    assert "script" not in page.tags and "<script" not in source
    assert html.escape(evil, quote=False) in source
    assert ' onload="' not in source
    assert page.references <= set(page.ids)
    assert all(
        re.fullmatch(r"[a-z0-9-]+\.(svg|png|pdf)", f.name) for f in (tmp_path / "figures").iterdir()
    )


def test_names_that_clash_or_look_like_mathematics(tmp_path):
    assert _slugs(["a/b", "A b", "a-b", "$", "水獺"]) == {
        "a/b": "a-b",
        "A b": "a-b-2",
        "a-b": "a-b-3",
        "$": "trait",
        "水獺": "trait-2",
    }
    page = _build(tmp_path, traits=(("$\\frac{", "animals"), ("水獺", "animals")), **SMALL)
    assert {"trait-frac", "trait-trait"} <= set(page.ids)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", None, "holds no run.json"),
        ("run.json", "{", "cannot be read as JSON"),
        ("run.json", "[]", "not a JSON object"),
        ("verdicts.json", "[", "cannot be read as JSON"),
        ("cells.csv", "trait,context,method,rank,lr\notter,default,lora,8,\n", "line 2"),
        ("cells.csv", "trait,context,method,rank,lr\notter,default,lora,,1e-3\n", "line 2"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, name, content, message):
    make_run(tmp_path, **SMALL)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_text(content)
    with pytest.raises(SubloraError, match=message) as error:
        build_report(tmp_path)
    assert "\n" not in str(error.value)


# The figures


@pytest.mark.parametrize("font", [None, "DejaVu Sans"])
@pytest.mark.parametrize("name", VARIANTS)
def test_nothing_is_cut_or_covered(tmp_path, name, font):
    data = load_run(make_run(tmp_path, **VARIANTS[name]))
    for title, draw in _drawings(data):
        figure = figures.render(draw, font)
        if figure is None:
            continue
        frame, renderer = figure.bbox, figure.canvas.get_renderer()
        boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in _texts(figure)]
        assert boxes
        for text, box in boxes:
            inside = (
                box.x0 >= frame.x0
                and box.y0 >= frame.y0
                and box.x1 <= frame.x1
                and box.y1 <= frame.y1
            )
            assert inside, f"{title}: “{text}” is cut"
        for (a, one), (b, two) in combinations(boxes, 2):
            # A text's box has the height of its tallest letters: a hair of shared air is no overlap.
            wide = min(one.x1, two.x1) - max(one.x0, two.x0)
            high = min(one.y1, two.y1) - max(one.y0, two.y0)
            assert wide <= 0.5 or high <= 1.0, f"{title}: “{a}” covers “{b}”"


@pytest.mark.parametrize("name", VARIANTS)
def test_figures_fit_a_column_and_their_type_can_be_read(tmp_path, name):
    data = load_run(make_run(tmp_path, **VARIANTS[name]))
    for title, draw in _drawings(data):
        figure = figures.render(draw)
        if figure is None:
            continue
        width = figures.PAGE if title in {"heatmap both", "rank_fixed_lr wide"} else figures.COLUMN
        assert figure.get_figwidth() == pytest.approx(width, abs=0.1), title
        assert min(t.get_fontsize() for t in _texts(figure)) >= 7.0, title


def test_the_heat_map_shows_each_cell_and_marks_the_called(tmp_path):
    data = load_run(make_run(tmp_path))
    figure = figures.render(partial(figures.heatmap, data, "otter", "transfer"))
    grid = [axes for axes in figure.axes if axes.texts]
    shown = sorted(t.get_text() for axes in grid for t in axes.texts)
    assert shown == sorted(figures.signed(float(c["effect"])) for c in _rows(tmp_path))
    dots = sum(len(axes.lines) for axes in grid)
    assert dots == sum(c["called"] == "1" for c in _rows(tmp_path))
    hatched = sum(p.get_hatch() is not None for axes in grid for p in axes.patches)
    broken = [
        c
        for c in _rows(tmp_path)
        if float(c["coherence"]) < 0.5 or float(c["number_takeover"]) > 0.25
    ]
    assert hatched == len(broken) > 0


def test_a_bar_spans_the_interval_around_its_control(tmp_path):
    data = load_run(make_run(tmp_path, ranks=(4, 16), rates=(1e-3,), full_rates=()))
    figure = figures.render(partial(figures.rank_best_lr, data, "otter"))
    bars = [
        tuple(line.get_ydata())
        for line in figure.axes[0].lines
        if line.get_color() == figures.STUDENT
    ]
    for cell in data.of("otter"):
        control = cell.p_target_report - cell.effect_report
        assert any(
            len(bar) == 2
            and bar
            == pytest.approx((control + cell.effect_report_low, control + cell.effect_report_high))
            for bar in bars
        )


def test_ranks_stand_on_a_scale_of_base_two(tmp_path):
    data = load_run(make_run(tmp_path, ranks=(1, 4, 8, 64)))
    axes = figures.render(partial(figures.rank_best_lr, data, "otter")).axes[0]
    labels = {
        label.get_text(): tick
        for label, tick in zip(axes.get_xticklabels(), axes.get_xticks(), strict=True)
    }
    assert {k: v for k, v in labels.items() if k != "full"} == {"1": 0, "4": 2, "8": 3, "64": 6}


def test_a_run_without_effect_is_not_painted_as_one(tmp_path):
    data = load_run(make_run(tmp_path, strength=0.0))
    figure = figures.render(partial(figures.heatmap, data, "otter", "transfer"))
    fills = [
        p.get_facecolor()
        for axes in figure.axes
        if axes.texts
        for p in axes.patches
        if p.get_hatch() is None
    ]
    assert max(f[1] for f in fills) < 0.6, (
        "the bright end of the scale is for effects of 0.1 and more"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-3, "1e-3"), (2.5e-4, "2.5e-4"), (0.01, "1e-2"), (1, "1e0"), (3e-05, "3e-5")],
)
def test_rates_read_as_in_recipes(value, text):
    assert figures.rate(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.423, "+.42"), (-0.034, "−.03"), (0.001, ".00"), (-0.004, ".00"), (1, "+1.00")],
)
def test_effects_carry_their_sign(value, text):
    assert figures.signed(value) == text
