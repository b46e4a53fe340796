"""A server on loopback that speaks the chat completions protocol as well or as badly as a test asks."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, bytes, dict[str, str]]


def said(text: Any, **more: Any) -> Reply:
    """A well-formed reply."""
    body = {"choices": [{"message": {"role": "assistant", "content": text}}], **more}
    return 200, json.dumps(body).encode(), {}


class Loopback:
    """`answer(body)` makes each reply; `requests` keeps (headers, body) in the order of their coming."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.most_at_once = 0


@contextmanager
def loopback(answer: Callable[[dict[str, Any]], Reply]) -> Iterator[Loopback]:
    lock, at_once = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                server_.requests.append((dict(self.headers), body))
                at_once[0] += 1
                server_.most_at_once = max(server_.most_at_once, at_once[0])
            try:
                status, raw, headers = answer(body)
            finally:
                with lock:
                    at_once[0] -= 1
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server_ = Loopback(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    try:
        yield server_
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
