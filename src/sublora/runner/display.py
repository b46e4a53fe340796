"""How a run goes, on standard error: a bar for each kind on a terminal, a plain line now and then when piped."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sublora.steps.step import Inside


@dataclass
class _Line:
    """A kind: so many artifacts, of which `before` were there when it began at `started` (seconds)."""

    total: int
    before: int
    task: TaskID | None
    done: int = 0
    started: float = 0.0
    said: float = 0.0
    begun: bool = False


@dataclass
class _Unit:
    """A step that is being made, or one of its stages of `total`: first heard of at `started`, when so much of it was done."""

    started: float
    share: float
    said: float
    total: int


class Display:
    """Counts artifacts by kind, several kinds at a time."""

    def __init__(self, every: float = 10.0, live: bool | None = None) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.live = self.console.is_terminal if live is None else live
        self.every = every
        self._bars: Progress | None = None
        self._lines: dict[str, _Line] = {}
        self._units: dict[str, _Unit] = {}

    def __enter__(self) -> Display:
        if self.live:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._bars = Progress(*columns, console=self.console)
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def say(self, text: str) -> None:
        if self._bars is not None:
            self._bars.console.print(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def begin(self, kind: str, total: int, done: int = 0) -> None:
        """A kind of artifacts, of which so many are there already."""
        task = None
        if self._bars is not None:
            task = self._bars.add_task(kind, total=total, completed=done, start=False)
        self._lines[kind] = _Line(total, done, task, done)

    def update(self, kind: str, done: int, running: int = 0, failed: int = 0) -> None:
        line, now = self._lines[kind], time.monotonic()
        others = "".join(
            f", {n} {what}" for n, what in ((running, "running"), (failed, "failed")) if n
        )
        first, more = not line.begun, done > line.done
        if first:
            line.started = line.said = now
        line.begun, line.done = True, done
        if self._bars is not None:
            if first:
                self._bars.start_task(line.task)
            self._bars.update(line.task, completed=done, description=kind + others)
            return
        if first and running and not more:
            some = f"{done} of {line.total} done" if done else str(line.total)
            self.say(f"{kind}: {some}")
        elif more and (now - line.said >= self.every or done >= line.total):
            line.said = now
            self.say(f"{kind}: {done} of {line.total}{others}{self._times(line, now)}")

    def inside(self, kind: str, name: str, label: str, news: Inside, ahead: float = 0.0) -> None:
        """How far one step is, and by how many artifacts it is ahead of those that it has made."""
        line, now = self._lines[kind], time.monotonic()
        unit = self._units.get(name)
        if unit is None or unit.total != news.total:
            unit = self._units[name] = _Unit(now, news.share, now, news.total)
        new = news.share - unit.share
        left = (now - unit.started) * (1 - news.share) / new if new > 0 else None
        said = f"{news.done:,} of {news.total:,} {news.unit}, {news.tokens:,} tokens"
        if self._bars is not None:
            done = min(line.done + ahead, line.total - 0.01)
            self._bars.update(line.task, completed=done, description=f"{kind}, {said}")
        elif now - unit.said >= self.every:
            unit.said = now
            about = "" if left is None else f", about {left:.0f} s left"
            self.say(f"{label}: {said}{about}")

    def _times(self, line: _Line, now: float) -> str:
        spent = now - line.started
        new, rest = line.done - line.before, line.total - line.done
        # students finish a pack at a time, so the first few say little about the rest
        left = spent / new * rest if new * 10 >= new + rest else 0.0
        return f", {spent:.0f} s spent" + (f", about {left:.0f} s left" if left else "")
