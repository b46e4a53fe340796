"""The page in a real browser: silent, offline, whole in light, dark and on a phone. Driven over a pipe."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from audit_fixture import idle_adapter, turned_weights
from command import SMALL, sublora
from report_fixture import make_run
from sublora.audit.adapter import load_audited
from sublora.audit.report import write_reports
from sublora.audit.request import Request
from sublora.audit.run import Job, audit
from sublora.audit.serving import Serving
from sublora.models.chat import Context
from sublora.packs.check import load_base
from sublora.report.page import build_report
from sublora.traits.trait import shipped_categories

pytestmark = pytest.mark.slow

BINARIES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars --enable-logging=stderr
--v=0 --remote-debugging-pipe""".split()


class Browser:
    """A browser spoken to by JSON messages over two pipes, each message ended by a zero byte."""

    def __init__(self, binary: str, profile: Path):
        # The browser reads at descriptor 3 and writes at 4; high numbers keep the pipes clear of those two.
        ends = [
            fcntl.fcntl(end, fcntl.F_DUPFD, 20) for pair in (os.pipe(), os.pipe()) for end in pair
        ]
        read, self._to, self._from, write = ends
        shell = f'exec "$0" "$@" 3<&{read} 4>&{write}'
        command = ["bash", "-c", shell, binary, *FLAGS, f"--user-data-dir={profile}"]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, closed in close()
        self._process = subprocess.Popen(
            command,
            pass_fds=(read, write),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        os.close(read)
        os.close(write)
        self._buffer, self._count, self.session = b"", 0, None
        self.events: list[dict] = []

    def _receive(self, deadline: float) -> dict:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self._from, 1 << 20) if ready else b""
            if not chunk:
                self._log.seek(0)
                raise AssertionError(
                    "The browser is silent: " + self._log.read().decode(errors="replace")[-2000:]
                )
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def call(self, method: str, **params) -> dict:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        view = memoryview(json.dumps(message).encode() + b"\0")
        while view:
            view = view[os.write(self._to, view) :]
        deadline = time.monotonic() + 60
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, event: str) -> None:
        deadline = time.monotonic() + 60
        while not any(e.get("method") == event for e in self.events):
            self.events.append(self._receive(deadline))

    def evaluate(self, expression: str):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def open(self, path: Path) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        self.wait_for("Page.loadEventFired")

    def show(self, width: int, height: int, scheme: str, mobile: bool = False) -> None:
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=2 if mobile else 1, mobile=mobile,
        )  # fmt: skip
        self.evaluate("document.body.offsetHeight")

    def screenshot(self, path: Path) -> None:
        image = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(image["data"]))

    def close(self) -> None:
        self.session = None
        try:
            self.call("Browser.close")
            self._process.wait(20)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        for end in (self._to, self._from):
            os.close(end)
        self._log.close()


def _binary() -> str:
    found = next((path for name in BINARIES if (path := shutil.which(name))), None)
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


SHOW_ALL = "document.querySelectorAll('details').forEach(d => d.open = true)"

# Every text with too little contrast to the background behind it: [text, ratio].
CONTRAST = """(() => {
  const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const part = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = c => { const f = part;
    return .2126 * f(c[0]) + .7152 * f(c[1]) + .0722 * f(c[2]); };
  const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] > 0) return c; } return [255, 255, 255]; };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), low = [];
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || e.closest('svg')) continue;
    const a = light(parse(getComputedStyle(e).color)), b = light(behind(e));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) low.push([walk.currentNode.data.trim().slice(0, 40), ratio]);
  }
  const probe = document.createElement('i'), figure = document.querySelector('figure');
  document.body.append(probe);
  const card = light(behind(figure));
  const least_of = {ink: 4.5, muted: 4.5, student: 3, control: 3, full: 3, teacher: 3};
  for (const [name, least] of Object.entries(figure ? least_of : {})) {
    probe.style.color = `var(--fig-${name})`;
    const a = light(parse(getComputedStyle(probe).color));
    const ratio = (Math.max(a, card) + .05) / (Math.min(a, card) + .05);
    if (ratio < least) low.push([name, ratio]);
  }
  probe.remove();
  return low;
})()"""

# Elements that reach beyond the window although no box of their own scrolls them.
SPILLS = """[...document.querySelectorAll('body *')]
  .filter(e => !e.closest('svg, .scroll, pre') || e.matches('.scroll, pre, svg.fig'))
  .filter(e => { const r = e.getBoundingClientRect(); return r.right > innerWidth + .5 || r.left < -.5; })
  .map(e => e.tagName + '.' + e.className)"""

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
    methods = [e.get("method") for e in browser.events]
    said = [
        e
        for e in browser.events
        if e.get("method") in {"Log.entryAdded", "Runtime.consoleAPICalled"}
    ]
    assert said == [] and "Runtime.exceptionThrown" not in methods
    asked = {
        e["params"]["request"]["url"]
        for e in browser.events
        if e.get("method") == "Network.requestWillBeSent"
    }
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}


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
        browser.screenshot(screenshots / f"{page.stem}-{'phone' if mobile else scheme}.png")
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
