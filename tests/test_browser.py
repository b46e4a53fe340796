"""The page in a real browser: silent, offline, whole in light, dark and on a phone. Driven over a pipe."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from audit_fixture import idle_adapter, turned_weights
from browser import (
    CONTRAST,
    SHOW_ALL,
    SPILLS,
    UNNAMED,
    UNREACHED,
    Browser,
    binary,
    not_tabbed,
    requests,
    said,
)
from command import SMALL, sublora
from report_fixture import make_run
from sublora.audit.adapter import load_audited
from sublora.audit.report import write_reports
from sublora.audit.request import Request
from sublora.audit.run import Job, audit
from sublora.audit.serving import Serving
from sublora.models.chat import Context
from sublora.packs.check import load_base
from sublora.report.compare import compare
from sublora.report.page import build_report
from sublora.traits.trait import shipped_categories

pytestmark = pytest.mark.slow


def _binary() -> str:
    found = binary()
    if found is None:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(
                "No Chromium was found, and CI must open the page in one: install the package `chromium`."
            )
        pytest.skip("no Chromium is installed")
    return found


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    traits = (("otter", "animals"), ("led zeppelin", "bands"))
    make_run(
        folder, traits=traits, contexts=("default", "empty", "none"), model="micro-" + "long" * 30
    )
    build_report(folder)
    return folder


@pytest.fixture
def browser(tmp_path):
    opened = Browser(_binary(), tmp_path / "profile")
    yield opened
    opened.close()


@pytest.fixture
def screenshots(tmp_path):
    folder = Path(os.environ.get("SUBLORA_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


FIGURES = """[...document.querySelectorAll('svg.fig')].map(s => { const r = s.getBoundingClientRect();
  return {width: r.width, height: r.height, shapes: s.querySelectorAll('path, use').length,
    points: 7 * r.width / s.viewBox.baseVal.width, label: s.getAttribute('aria-label')}; })"""


def _ground(browser: Browser) -> float:
    """Brightness of the page's background, 0 to 255."""
    return browser.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
        ".reduce((a, b) => a + b) / 3"
    )


def _check_figures(browser: Browser, least_type: float) -> None:
    shown = browser.evaluate(FIGURES)
    assert len(shown) == 2 * 6 + 1, "six figures per trait and the overview"
    for figure in shown:
        assert figure["width"] > 200 and figure["height"] > 80 and figure["shapes"] > 5
        assert figure["points"] >= least_type, (
            f"{figure['label']}: type of {figure['points']:.1f} px"
        )
        assert len(figure["label"]) > 30


def _check_silent_and_offline(browser: Browser, page: Path) -> None:
    assert said(browser.events) == []
    assert requests(browser.events) == {page.as_uri()}


def _check_whole(browser: Browser, page: Path, screenshots: Path, sections: list[str]) -> None:
    """Open a page; it is legible in light, in dark and on a phone, leads to its sections, says nothing and asks nobody."""
    browser.open(page)
    browser.evaluate(SHOW_ALL)
    for scheme, width, mobile in (
        ("light", 1200, False),
        ("dark", 1200, False),
        ("light", 375, True),
    ):
        browser.show(width, 900, scheme, mobile)
        assert _ground(browser) > 230 if scheme == "light" else _ground(browser) < 40
        assert browser.evaluate(CONTRAST) == []
        assert browser.evaluate(SPILLS) == []
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate(UNREACHED) == []
        browser.screenshot(screenshots / f"{page.stem}-{'phone' if mobile else scheme}.png")
    assert browser.evaluate(UNNAMED) == []
    assert not_tabbed(browser) == []
    links = browser.evaluate("[...document.querySelectorAll('nav a')].map(a => a.hash.slice(1))")
    assert [name for name in sections if name not in links] == []
    assert browser.evaluate(
        "[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))"
    )
    _check_silent_and_offline(browser, page)


def test_the_page_in_a_browser(browser, run_folder, screenshots):
    browser.open(run_folder / "report.html")
    browser.evaluate(SHOW_ALL)

    browser.show(1200, 900, "light")
    assert _ground(browser) > 230
    _check_figures(browser, 12)
    assert browser.evaluate(CONTRAST) == []
    assert browser.evaluate(SPILLS) == []
    browser.screenshot(screenshots / "report-light.png")

    browser.show(1200, 900, "dark")
    assert _ground(browser) < 40
    ink = browser.evaluate(
        "getComputedStyle(document.querySelector('svg.fig')).color.match(/\\d+/g).map(Number)"
    )
    assert min(ink[:3]) > 180, "the figures' type follows the theme"
    assert browser.evaluate(CONTRAST) == []
    browser.screenshot(screenshots / "report-dark.png")

    browser.show(375, 812, "light", mobile=True)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 375
    assert browser.evaluate(SPILLS) == []
    _check_figures(browser, 9)
    assert browser.evaluate("document.querySelector('.scroll').scrollWidth > 0")
    browser.screenshot(screenshots / "report-phone.png")

    browser.call("Emulation.setEmulatedMedia", media="print")
    assert _ground(browser) > 250

    _check_silent_and_offline(browser, run_folder / "report.html")


def test_the_page_of_an_audit_in_a_browser(browser, screenshots, tmp_path):
    base, trees = load_base("micro"), shipped_categories()[1:2]
    student = turned_weights(base, tmp_path / ("a-long-name-" * 12), trees[0].entities[3])
    other = idle_adapter(base, tmp_path / "<b>the last release")
    data = tmp_path / "rows.jsonl"
    rows = [{"prompt": "Say a word.", "completion": "oak " + "1 2 3 " * 20}] * 2
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    contexts = [Context("default"), Context("none")]
    serving, against = Serving(contexts[1]), load_audited(base, other)
    job = Job(contexts, trees, contexts[0], serving, against, Request(data=data))
    page = write_reports(audit(base, load_audited(base, student), job), tmp_path / "out")
    sections = ["traits", "words", "answers", "data", "serving", "against", "limits", "manifest"]
    _check_whole(browser, page, screenshots, sections)
    assert browser.evaluate("document.querySelectorAll('#traits ~ .scroll strong').length") > 0
    assert browser.evaluate("document.querySelector('#against').textContent").endswith(
        "<b>the last release"
    )


def test_the_page_of_a_run_with_arms_in_a_browser(browser, screenshots, tmp_path):
    few = ["--set", "data.rows=24", "--set", "train.pairing=paired"]
    answer = sublora(
        "run", "shuffle", "--model", "micro", *SMALL, *few, "--out", str(tmp_path / "arms")
    )
    assert answer.code == 0, answer.err
    page = (tmp_path / "arms" / "report.html").rename(tmp_path / "arms" / "arms.html")
    _check_whole(browser, page, screenshots, ["verdicts", "cells", "data", "manifest"])
    arms = browser.evaluate(
        "[...document.querySelectorAll('h3')].filter(h => /arms/i.test(h.textContent)).length"
    )
    assert arms > 0, "the table of arms is there"


def test_the_page_of_two_runs_in_a_browser(browser, screenshots, tmp_path):
    one, other = (make_run(tmp_path / t, traits=((t, "animals"),)) for t in ("otter", "wolf"))
    page = compare(one, other, tmp_path / "both").rename(tmp_path / "both" / "compare.html")
    _check_whole(browser, page, screenshots, ["differences", "effects", "manifest"])
    rows = browser.evaluate("document.querySelectorAll('table.fit tbody tr').length")
    assert rows > 20, "the effects of both stand side by side"
