"""A model behind an OpenAI-compatible endpoint (vLLM, llama.cpp, `transformers serve`, a hosted API): asked many things at once, patiently.

The key comes from an environment variable and is put into one header and nowhere else: not into errors, logs, manifests or artifacts.
"""

import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from sublora.errors import SubloraError

LONGEST_ANSWER = 4_000_000  # bytes of a reply that are read
LONGEST_WAIT = 60.0  # seconds between two tries


class EndpointSpec(BaseModel):
    """Where a model is asked. Only `url`, `model` and `seeded` can change what it says."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    url: str = Field(description="base address, such as http://localhost:8000/v1")
    model: str = Field(min_length=1, description="the model's name there")
    key_env: str | None = Field(
        None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="environment variable with the key"
    )
    seeded: bool = Field(
        True,
        description="send a seed with every request; servers that know none may ignore or refuse it",
    )
    concurrency: int = Field(8, ge=1, le=256)
    requests_per_minute: int | None = Field(None, ge=1)
    timeout: float = Field(120.0, gt=0, description="seconds of one try")
    tries: int = Field(6, ge=1)
    price_in: float | None = Field(None, ge=0, description="price of a million tokens read")
    price_out: float | None = Field(None, ge=0, description="price of a million tokens written")

    @field_validator("url")
    @classmethod
    def _plain(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("give an address that begins with http:// or https://")
        if parts.username or parts.password or parts.query or parts.fragment:
            why = "the address must hold no user, password or query; put a key into the variable of key_env"
            raise ValueError(why)
        return url.rstrip("/")

    @property
    def identity(self) -> dict[str, Any]:
        return {"endpoint": self.url, "model": self.model, "seeded": self.seeded}

    def price(self, tokens_in: float, tokens_out: float) -> float | None:
        """What tokens cost, in the currency of the prices; None where none was given."""
        if self.price_in is None and self.price_out is None:
            return None
        return ((self.price_in or 0.0) * tokens_in + (self.price_out or 0.0) * tokens_out) / 1e6


@dataclass(frozen=True)
class Question:
    """One request: messages (role, text), and how the answer is drawn."""

    messages: tuple[tuple[str, str], ...]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    logprobs: bool = False  # ask for the log-probability of every token, which not all servers give


@dataclass(frozen=True)
class Reply:
    """An answer as text, the tokens that the server read before it, and its tokens as texts with their log-probabilities; None and () where
    the server does not say."""

    text: str
    read: int | None = None
    tokens: tuple[tuple[str, float], ...] = ()


@dataclass
class Counts:
    """What the asking took."""

    requests: int = 0
    retries: int = 0
    tokens_in: int = 0
    tokens_out: int = 0


class TryAgain(Exception):
    """A try that failed in a way that may pass; `after` seconds, where the server says so."""

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.after = after


@dataclass
class Endpoint:
    """Raises SubloraError with one sentence for what no further try would fix. `sleep` and `clock` are for tests."""

    spec: EndpointSpec
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    counts: Counts = field(default_factory=Counts)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _next: float = 0.0

    def _key(self) -> str | None:
        if (name := self.spec.key_env) is None:
            return None
        key = os.environ.get(name, "").strip()
        if not key:
            why = f"The environment variable {name}, which should hold the key of {self.spec.url}, is not set; set it."
            raise SubloraError(why)
        if not key.isascii() or not key.isprintable():
            why = f"The environment variable {name} holds no key that a request can carry; set it anew."
            raise SubloraError(why)
        return key

    def ask(self, question: Question) -> str:
        """The answer as text; "" where the model gave none."""
        return self.reply(question).text

    def reply(self, question: Question) -> Reply:
        """As `ask`, with all that the server says."""
        key = self._key()
        why = ""
        for attempt in range(self.spec.tries):
            self._wait_turn()
            with self._lock:
                self.counts.requests += 1
                self.counts.retries += attempt > 0
            try:
                return self._once(question, key)
            except TryAgain as error:
                why, after = str(error), error.after
                if attempt + 1 < self.spec.tries:
                    self.sleep(min(LONGEST_WAIT, 0.5 * 2**attempt if after is None else after))
        raise SubloraError(
            f"The endpoint {self.spec.url} gave no answer in {self.spec.tries} tries (the last: {why}); see that it runs, and run the same "
            "command again, what was finished is kept."
        )

    def ask_all(
        self,
        questions: Sequence[Question],
        done: Callable[[int, str], None],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Ask all, `concurrency` at a time; `done(index, answer)` is called from this thread's helpers one at a time, as answers come. On
        an error no further question is begun, those under way are finished and handed over, and the error is raised."""
        stop, handing = threading.Event(), threading.Lock()

        def one(index: int) -> None:
            if stop.is_set():
                return
            try:
                answer = self.ask(questions[index])
                with handing:
                    done(index, answer)
                    check()
            except BaseException:
                stop.set()
                raise

        with ThreadPoolExecutor(self.spec.concurrency) as pool:
            try:
                futures = [pool.submit(one, i) for i in range(len(questions))]
                finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
            finally:
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)

    def _wait_turn(self) -> None:
        """Keep to the rate: each request has a moment of its own, whoever makes it."""
        if self.spec.requests_per_minute is None:
            return
        with self._lock:
            now = self.clock()
            turn = max(now, self._next)
            self._next = turn + 60.0 / self.spec.requests_per_minute
        if turn > now:
            self.sleep(turn - now)

    def _once(self, question: Question, key: str | None) -> Reply:
        body: dict[str, Any] = {
            "model": self.spec.model,
            "messages": [{"role": role, "content": text} for role, text in question.messages],
            **{n: getattr(question, n) for n in ("max_tokens", "temperature", "top_p")},
        }
        if question.logprobs:
            body["logprobs"] = True
        if self.spec.seeded:
            body["seed"] = question.seed % 2**31
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        url, data = f"{self.spec.url}/chat/completions", json.dumps(body).encode()
        request = urllib.request.Request(url, data, headers, method="POST")
        try:
            with _OPENER.open(request, timeout=self.spec.timeout) as reply:
                raw = reply.read(LONGEST_ANSWER + 1)
        except urllib.error.HTTPError as error:
            raise self._refused(error, key) from None
        except (OSError, http.client.HTTPException) as error:  # down, slow, cut off
            why = str(getattr(error, "reason", error)) or type(error).__name__
            raise TryAgain(_short(why, key)) from None
        return self.read(raw)

    def _refused(self, error: urllib.error.HTTPError, key: str | None) -> Exception:
        """What an error status means: try again, or a sentence."""
        code, url = error.code, self.spec.url
        try:
            said = _short(error.read(4096).decode("utf-8", "replace"), key)
        except (OSError, http.client.HTTPException):
            said = ""
        if code in (401, 403):
            name = "a request without a key (name its variable in key_env)"
            if self.spec.key_env:
                name = f"the key in {self.spec.key_env}"
            return SubloraError(
                f"The endpoint {url} refused {name} (status {code}); give the right one."
            )
        if code in (408, 409, 425, 429) or code >= 500:
            after = error.headers.get("Retry-After", "") if error.headers else ""
            try:
                seconds = max(0.0, float(after))
            except ValueError:
                seconds = None
            return TryAgain(f"status {code}", seconds)
        return SubloraError(
            f"The endpoint {url} refused the request for {self.spec.model} with status {code}: {said}."
        )

    def read(self, raw: bytes) -> Reply:
        """What a reply says. Raises TryAgain for a reply that is none."""
        if len(raw) > LONGEST_ANSWER:
            raise TryAgain("a reply without end")
        try:
            reply = json.loads(raw)
            choice = reply["choices"][0]
            text = choice["message"].get("content")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise TryAgain("a reply that is no chat completion") from None
        if text is not None and not isinstance(text, str):
            raise TryAgain("an answer that is no text")
        usage, read = reply.get("usage"), None
        if isinstance(usage, dict):
            read = _whole(usage.get("prompt_tokens"))
            with self._lock:
                self.counts.tokens_in += read
                self.counts.tokens_out += _whole(usage.get("completion_tokens"))
        # a lone surrogate cannot be written to any file
        text = (text or "").encode("utf-8", "replace").decode("utf-8")
        return Reply(text, read, _weighed(choice.get("logprobs")))


def _weighed(said: Any) -> tuple[tuple[str, float], ...]:
    """The tokens of `logprobs`; () where it is anything else."""
    try:
        return tuple((str(t["token"]), float(t["logprob"])) for t in said["content"])
    except (TypeError, LookupError, ValueError, OverflowError):
        return ()


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 10**9 else 0


def _short(text: str, key: str | None) -> str:
    """A server's own words on one line, without the key, which some of them repeat."""
    text = " ".join(text.split())
    return (text.replace(key, "[key]") if key else text)[:160].rstrip(".")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


class AnswersFile:
    """Answers in a file as they come, one JSON line each, so that none is asked for twice; a line that was cut off is left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, str] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
                try:
                    entry = json.loads(line)
                    name, answer = entry["key"], entry["answer"]
                except (ValueError, LookupError, TypeError, RecursionError):
                    continue
                if isinstance(name, str) and isinstance(answer, str):
                    self.answers[name] = answer
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")  # whatever was cut off ends here

    def add(self, key: str, answer: str) -> None:
        self.answers[key] = answer
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "answer": answer}, ensure_ascii=False) + "\n")


def ask_missing(
    endpoint: Endpoint,
    kept: AnswersFile,
    questions: dict[str, Question],
    check: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """The answers by key: those that are kept, and the rest asked for now and kept as they come."""
    todo = [name for name in questions if name not in kept.answers]
    asked = [questions[name] for name in todo]
    endpoint.ask_all(asked, lambda i, answer: kept.add(todo[i], answer), check)
    return {name: kept.answers[name] for name in questions}
