"""Progress: a bar with the time left on a terminal, a plain line now and then when piped."""

import sys
import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Steps:
    """Counts the units of one stage at a time; lines go to standard error, so that standard output stays for results."""

    def __init__(self, every: float = 10.0) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.live = self.console.is_terminal
        self.every = every
        self._lock = threading.Lock()
        self._bar: Progress | None = None
        self._task = None
        self._name, self._total, self._done, self._before, self._started, self._said = (
            "",
            0,
            0,
            0,
            0.0,
            0.0,
        )
        self.running = self.failed = 0  # units of the stage, said beside those that are done

    def __enter__(self) -> "Steps":
        if self.live:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
                transient=False,
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def begin(self, name: str, total: int, done: int = 0) -> None:
        self._name, self._total, self._done, self._before = name, total, done, done
        self.running = self.failed = 0
        self._started = self._said = time.monotonic()
        if self._bar is not None:
            self._task = self._bar.add_task(name, total=total, completed=done)
        elif done < total:
            self.say(f"{name}: {done} of {total} done" if done else f"{name}: {total}")

    @property
    def done(self) -> int:
        return self._done

    def _others(self) -> str:
        return "".join(
            f", {n} {what}" for n, what in ((self.running, "running"), (self.failed, "failed")) if n
        )

    def advance(self, count: int = 1) -> None:
        """Count finished units; workers may call it at the same time."""
        with self._lock:
            self._advance(count)

    def _advance(self, count: int) -> None:
        self._done += count
        if self._bar is not None:
            self._bar.update(
                self._task, completed=self._done, description=self._name + self._others()
            )
            return
        now = time.monotonic()
        if now - self._said >= self.every or self._done >= self._total:
            self._said = now
            spent = now - self._started
            new, rest = self._done - self._before, self._total - self._done
            # students finish a pack at a time, so the first few say little about the rest
            left = spent / new * rest if new * 10 >= new + rest else 0.0
            self.say(
                f"{self._name}: {self._done} of {self._total}{self._others()}, {spent:.0f} s spent"
                + (f", about {left:.0f} s left" if left else "")
            )
