"""A real browser, driven over a pipe, and what is asked of every page in it."""

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


def binary() -> str | None:
    """The path of an installed Chromium."""
    return next((path for name in BINARIES if (path := shutil.which(name))), None)


SHOW_ALL = "document.querySelectorAll('details').forEach(d => d.open = true)"

# Every text with too little contrast to the background behind it: [text, ratio].
CONTRAST = """(() => {
  const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const part = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = c => { const f = part;
    return .2126 * f(c[0]) + .7152 * f(c[1]) + .0722 * f(c[2]); };
  const over = (c, below) => below.map((v, i) => c[3] * c[i] + (1 - c[3]) * v);
  const behind = e => { if (!e) return [255, 255, 255]; const c = parse(getComputedStyle(e).backgroundColor);
    return c.length === 3 ? c : over(c, behind(e.parentElement)); };
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

# What can be pressed, typed into or looked at and has no name for those who cannot see it.
UNNAMED = """[document.documentElement, ...document.querySelectorAll(
    'a[href], button, input, select, summary, [role=region], [role=img], img, table th')]
  .filter(e => !(e.lang || e.getAttribute('aria-label') || e.alt || e.labels?.length || e.textContent.trim()
    || document.getElementById(e.getAttribute('aria-labelledby'))))
  .map(e => e.outerHTML.slice(0, 80))"""

# What takes no key: boxes that scroll out of the reach of Tab, and marks whose link stands nowhere else on the page.
UNREACHED = """(() => {
  const links = new Set([...document.querySelectorAll('a[href]:not([tabindex="-1"])')].map(a => a.getAttribute('href')));
  const marks = [...document.querySelectorAll('a[tabindex="-1"]')].filter(a => !links.has(a.getAttribute('href')));
  const boxes = [...document.querySelectorAll('body *')].filter(e => e.tabIndex < 0 && e.scrollWidth > e.clientWidth + 1
    && /auto|scroll/.test(getComputedStyle(e).overflowX));
  return [...marks, ...boxes].map(e => e.outerHTML.slice(0, 80));
})()"""
TABBED = "a[href]:not([tabindex='-1']), button, input, summary, [tabindex='0']"


def not_tabbed(browser: Browser) -> list[str]:
    """What Tab, pressed through the whole page, did not come to."""
    browser.evaluate("window.met = new Set(); addEventListener('focusin', e => met.add(e.target))")
    for _ in range(browser.evaluate(f'document.querySelectorAll("{TABBED}").length') + 2):
        for kind in ("rawKeyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", type=kind, key="Tab", windowsVirtualKeyCode=9)
    left = f'[...document.querySelectorAll("{TABBED}")].filter(e => e.checkVisibility() && !met.has(e))'
    return browser.evaluate(f"{left}.map(e => e.outerHTML.slice(0, 80))")


def said(events: list[dict]) -> list[dict]:
    """What a page wrote to the console, and exceptions of its script."""
    spoken = {"Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"}
    return [event for event in events if event.get("method") in spoken]


def requests(events: list[dict]) -> set[str]:
    """Addresses that a page asked for, itself included."""
    sent = [e for e in events if e.get("method") == "Network.requestWillBeSent"]
    asked = {event["params"]["request"]["url"] for event in sent}
    return {url for url in asked if not url.startswith("data:")}
