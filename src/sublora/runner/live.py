"""A run while it goes on: a page for this machine alone, behind a token, fed by server-sent events. The run needs none of it."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from select import select
from socket import MSG_PEEK
from threading import Event, Thread
from typing import Any

from sublora.analysis.effects import Effect
from sublora.report.page import environment, hash_of
from sublora.runner.folder import old_manifest

EVERY = 0.5  # seconds between two looks at the run
PATIENCE = 5.0  # seconds that a finished run waits for those who watch to take its page
MOST = 60  # effects that are shown
SCRIPT = (files("sublora.report") / "live.js").read_text("utf-8").strip()
KEYS = ("sentence", "status", "progress", "planned_seconds", "seconds", "warnings", "failed")
TYPES = {"svg": "image/svg+xml", "png": "image/png", "pdf": "application/pdf"}


class Live:
    """The page of the run in `folder`, from entering to leaving; `effects` gives what is known of them so far.

    It listens on 127.0.0.1 alone, at a free port, and answers only under its token. When the run is done, whoever watches gets the page
    that the run leaves, and then it is gone.
    """

    def __init__(self, folder: Path, effects: Callable[[], Sequence[Effect]]) -> None:
        self.folder, self._effects = folder, effects
        self.token, self.done = secrets.token_urlsafe(24), Event()
        self.watchers: set[object] = set()  # who has not got the last page yet
        self._seen, self._rows = -1, []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.hosts = {f"{name}:{self._server.server_port}" for name in ("127.0.0.1", "localhost")}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/{self.token}/"

    def __enter__(self) -> Live:
        Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.done.set()
            until = time.monotonic() + PATIENCE
            while self.watchers and time.monotonic() < until:
                time.sleep(0.05)
        self._server.shutdown()
        self._server.server_close()

    def state(self) -> dict[str, Any]:
        """What run.json says, and the effects so far; they are read anew only where more is measured."""
        run = old_manifest(self.folder)
        made = sum(kind.get("done", 0) for kind in (run.get("progress") or {}).values())
        if made != self._seen:
            with contextlib.suppress(Exception):  # the run goes on, whatever is wrong here
                self._rows = [_row(e) for e in list(self._effects())[:MOST]]
            self._seen = made
        return {key: run.get(key) for key in KEYS} | {"effects": self._rows}

    def page(self) -> bytes:
        """The page of the finished run, or the one that shows how it goes."""
        if self.done.is_set():
            page = (self.folder / "report.html").read_bytes()
            if self.watchers:
                self.watchers.pop()
            return page
        template = environment().get_template("live.html.j2")
        run = old_manifest(self.folder)
        shown = {"title": (run.get("recipe") or {}).get("title", self.folder.name), "run": run}
        text = template.render(**shown, script=SCRIPT, script_hash=hash_of(SCRIPT), live=True)
        return text.encode("utf-8")


def _row(effect: Effect) -> dict[str, Any]:
    i = effect.interval()
    labels = {k: v for k, v in effect.labels.items() if v not in (None, "") and k != "quantity"}
    name = ", ".join(f"{k} {v}" for k, v in labels.items())
    known = abs(i.low) < 1e6 and abs(i.high) < 1e6
    ends = {"low": i.low, "high": i.high} if known else {"low": None, "high": None}
    return {"name": name, "estimate": i.estimate, **ends, "students": len(effect.data_seeds)}


def _handler(live: Live) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            token, _, rest = self.path.lstrip("/").partition("/")
            known = secrets.compare_digest(token.encode(), live.token.encode())
            # a name of this machine alone: another site's name that leads here is not answered
            if not known or self.headers.get("Host") not in live.hosts:
                return self.send_error(404)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it was closed
                if rest == "":
                    return self._send("text/html; charset=utf-8", live.page())
                if rest == "events":
                    return self._events()
                if found := re.fullmatch(r"figures/([a-z0-9-]+\.(svg|png|pdf))", rest):
                    file = live.folder / "figures" / found[1]
                    if file.is_file():
                        return self._send(TYPES[found[2]], file.read_bytes())
                self.send_error(404)

        def _send(self, kind: str, body: bytes | None) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Cache-Control", "no-store")
            self.send_header("Referrer-Policy", "no-referrer")
            self.send_header("X-Content-Type-Options", "nosniff")
            if body is not None:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body or b"")

        def _events(self) -> None:
            """The state whenever it changes, and at the end the word that the page is there."""
            self._send("text/event-stream", None)
            said, me = "", object()
            live.watchers.add(me)
            try:
                while not (self._left() or live.done.wait(EVERY)):
                    now = json.dumps(live.state(), allow_nan=False)
                    self.wfile.write(b":\n\n" if now == said else f"data: {now}\n\n".encode())
                    self.wfile.flush()
                    said = now
                if self._left():
                    raise ConnectionAbortedError
                self.wfile.write(b"event: done\ndata: {}\n\n")
                self.wfile.flush()
            except OSError:  # whoever watched has gone
                live.watchers.discard(me)

        def _left(self) -> bool:
            """Whether the watcher has closed the page; one that is there sends nothing."""
            heard, _, _ = select([self.connection], [], [], 0)
            return bool(heard) and not self.connection.recv(1, MSG_PEEK)

        def log_message(self, *_: object) -> None:
            """Nothing: the terminal belongs to the run."""

    return Handler
