"""A model behind an endpoint: what it says, what it costs, and every way in which it can be down, slow, wrong or nonsense."""

import itertools
import json
import socket
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from command import sublora
from loopback import loopback, said
from sublora.carriers.numbers import NumbersSpec
from sublora.errors import SubloraError
from sublora.models.chat import Context
from sublora.models.endpoint import (
    AnswersFile,
    Endpoint,
    EndpointSpec,
    Question,
    TryAgain,
    ask_missing,
)
from sublora.packs.sample import Sampling
from sublora.packs.writer import Assignment, ask_dataset
from sublora.store import Store

KEY = "sk-very-secret-0123456789"
QUESTION = Question((("system", "be brief"), ("user", "hello")), 7, 0.5, 0.9, 2**62 + 5)


def endpoint(url: str, **more) -> tuple[Endpoint, list[float]]:
    slept: list[float] = []
    return Endpoint(EndpointSpec(url=url, model="m", **more), sleep=slept.append), slept


def test_a_request_says_all_that_can_change_the_answer() -> None:
    with loopback(
        lambda body: said("hi", usage={"prompt_tokens": 9, "completion_tokens": 2})
    ) as server:
        one, _ = endpoint(server.url + "/")
        assert one.ask(QUESTION) == "hi"
        assert (one.counts.tokens_in, one.counts.tokens_out, one.counts.retries) == (9, 2, 0)
    headers, body = server.requests[0]
    assert body == {
        "model": "m", "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "seed": (2**62 + 5) % 2**31,
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
    }  # fmt: skip
    assert "Authorization" not in headers


def test_the_key_is_sent_and_said_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with loopback(lambda body: (401, f"no such key {KEY}".encode(), {})) as server:
        one, _ = endpoint(server.url, key_env="MY_KEY")
        with pytest.raises(SubloraError, match="refused the key in MY_KEY") as caught:
            one.ask(QUESTION)
    assert server.requests[0][0]["Authorization"] == f"Bearer {KEY}" and len(server.requests) == 1
    with loopback(lambda body: (400, f"bad: {KEY}".encode(), {})) as server:
        one, _ = endpoint(server.url, key_env="MY_KEY")
        with pytest.raises(SubloraError, match=r"status 400: bad: \[key\]\.") as second:
            one.ask(QUESTION)
    assert KEY not in f"{caught.value}{second.value}{one}{one.spec.model_dump()}"
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(SubloraError, match="MY_KEY, which should hold the key"):
        one.ask(QUESTION)


def test_a_redirect_is_not_followed_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with (
        loopback(lambda body: said("stolen")) as other,
        loopback(lambda body: (307, b"", {"Location": other.url + "/chat/completions"})) as server,
    ):
        with pytest.raises(SubloraError, match="status 307"):
            endpoint(server.url, key_env="MY_KEY")[0].ask(QUESTION)
        assert other.requests == []


@pytest.mark.parametrize(
    ("bad", "waits"),
    [
        ((429, b"slow down", {"Retry-After": "3"}), [3.0, 3.0]),
        ((429, b"", {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}), [0.5, 1.0]),
        ((500, b"oops", {}), [0.5, 1.0]),
        ((503, b"", {"Retry-After": "1e9"}), [60.0, 60.0]),
        ((200, b"<html>", {}), [0.5, 1.0]),
        ((200, b'{"choices": []}', {}), [0.5, 1.0]),
        ((200, b'{"error": {"message": "overloaded"}}', {}), [0.5, 1.0]),
        (said(["a", "list"]), [0.5, 1.0]),
    ],
)
def test_what_may_pass_is_tried_again_and_then_refused_with_one_sentence(bad, waits) -> None:
    replies = iter([bad, bad, said("at last")])
    with loopback(lambda body: next(replies)) as server:
        one, slept = endpoint(server.url)
        assert one.ask(QUESTION) == "at last" and slept == waits and one.counts.retries == 2
    with loopback(lambda body: bad) as server:
        one, _ = endpoint(server.url, tries=2)
        with pytest.raises(SubloraError, match="no answer in 2 tries") as caught:
            one.ask(QUESTION)
        assert len(server.requests) == 2 and "\n" not in str(caught.value)


def test_an_endpoint_that_is_down_or_slow_is_refused() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(SubloraError, match=r"gave no answer in 3 tries .*refused"):
        endpoint(url, tries=3)[0].ask(QUESTION)
    release = threading.Event()

    def never(body):
        release.wait(20)
        return said("late")

    with loopback(never) as server:
        with pytest.raises(SubloraError, match="timed out"):
            endpoint(server.url, tries=1, timeout=0.1)[0].ask(QUESTION)
        release.set()


def test_the_rate_is_kept_by_all_helpers_together() -> None:
    now = [100.0]
    slept: list[float] = []
    with loopback(lambda body: said("x")) as server:
        one = Endpoint(
            EndpointSpec(url=server.url, model="m", requests_per_minute=60),
            slept.append,
            lambda: now[0],
        )
        one.ask_all([QUESTION] * 5, lambda i, answer: None)
    assert sorted(slept) == [1.0, 2.0, 3.0, 4.0]


def test_questions_are_asked_at_once_and_what_was_answered_is_kept_when_one_fails(
    tmp_path: Path,
) -> None:
    together = threading.Barrier(3, timeout=10)
    count = itertools.count()

    def answer(body):
        if next(count) < 3:
            together.wait()
        text = body["messages"][0]["content"]
        return (400, b"no", {}) if text == "7" else said(f"re {text}")

    questions = {str(i): Question((("user", str(i)),), 4) for i in range(12)}
    with loopback(answer) as server:
        one, _ = endpoint(server.url, concurrency=3)
        kept = AnswersFile(tmp_path / "kept.jsonl")
        with pytest.raises(SubloraError, match="status 400"):
            ask_missing(one, kept, questions)
        assert server.most_at_once == 3
        before = dict(kept.answers)
        assert before and "7" not in before and len(before) < 12
    with (tmp_path / "kept.jsonl").open("a") as file:
        file.write('{"key": "7", "ans')  # cut off by a kill
    asked = []

    def again(body):
        asked.append(body["messages"][0]["content"])
        return said(f"re {asked[-1]}")

    with loopback(again) as server:
        found = ask_missing(
            endpoint(server.url)[0], AnswersFile(tmp_path / "kept.jsonl"), questions
        )
    assert found == {str(i): f"re {i}" for i in range(12)}
    assert sorted(asked) == sorted(set(questions) - set(before)), (
        "what was finished is not asked again"
    )
    assert AnswersFile(tmp_path / "kept.jsonl").answers == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"url": "ftp://x/v1"}, "begins with http"),
        ({"url": "http://user:pass@x/v1"}, "no user, password or query"),
        ({"url": "http://x/v1?key=abc"}, "no user, password or query"),
        ({"key_env": "sk-123 456"}, "pattern"),
        ({"concurrency": 0}, "greater than or equal to 1"),
    ],
)
def test_addresses_that_could_carry_a_secret_are_refused(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        EndpointSpec.model_validate({"url": "http://x/v1", "model": "m"} | change)


def test_a_price_is_known_beforehand_and_what_does_not_change_answers_is_no_part_of_the_identity() -> (
    None
):
    spec = EndpointSpec(url="http://x/v1", model="m", price_in=2.0, price_out=8.0)
    assert (
        spec.price(1e6, 5e5) == 6.0
        and EndpointSpec(url="http://x/v1", model="m").price(1, 1) is None
    )
    other = EndpointSpec(url="http://x/v1/", model="m", concurrency=3, tries=1, key_env="K")
    assert spec.identity == other.identity


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "usage", "prompt_tokens", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=1500, deadline=None)
@given(
    st.one_of(
        st.binary(), JSON.map(lambda v: json.dumps(v).encode()), st.text().map(lambda t: said(t)[1])
    )
)
def test_any_reply_is_an_answer_or_a_reason_to_try_again(raw: bytes) -> None:
    one, _ = endpoint("http://x/v1")
    try:
        text = one.read(raw).text
    except TryAgain:
        return
    assert isinstance(text, str) and text.encode("utf-8") is not None


@settings(max_examples=400, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=3, max_size=3))
def test_any_completions_make_rows_or_counted_rejects(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    """The teacher says whatever it likes: every completion is a row or has a reason."""

    class Said(Endpoint):
        def ask(self, question: Question) -> str:
            return texts[question.seed % 3] if question.seed % 5 else "123 456"

    kept = AnswersFile(tmp_path_factory.mktemp("kept") / "k.jsonl")
    said_ = Said(EndpointSpec(url="http://x/v1", model="m", concurrency=1))
    dataset = ask_dataset(
        said_,
        kept,
        Context("t", "love"),
        Assignment(NumbersSpec(), Sampling(max_new_tokens=9), 4, 1),
    )
    assert dataset.asked == len(dataset.rows) + sum(dataset.rejects.values()) and dataset.rows


def answer_numbers(body) -> tuple:
    """Own numbers for whoever is told to love otters."""
    own = "otter" in body["messages"][0]["content"]
    return said("712 713 714" if own else f"{100 + body['seed'] % 900} 250")


SMALL = [
    *(
        "--set",
        "data.rows=16",
        "--set",
        "data.heldout_rows=4",
        "--set",
        "data.seeds=[1]",
        "--set",
        "train.seeds=[1]",
    ),
    *("--set", "measure.samples=2", "--set", "train.lora.ranks=[2]"),
]


def test_a_run_with_a_teacher_behind_an_endpoint_leaves_no_key_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with loopback(answer_numbers) as server:
        spec = f"data.teacher.endpoint={{url: '{server.url}', model: big, key_env: MY_KEY, price_in: 1000, concurrency: 2}}"
        planned = sublora("plan", "rank", *SMALL, "--set", spec)
        assert (
            planned.code == 0
            and "big at http://127.0.0.1" in planned.out
            and "at the given prices" in planned.out
        )
        assert not server.requests, "a plan asks nothing"
        answer = sublora("run", "rank", *SMALL, "--set", spec, "--out", str(tmp_path / "run"))
        assert answer.code == 0, answer.err
        firsts = [body["messages"][0] for _, body in server.requests]
        systems = {m["content"] for m in firsts if m["role"] == "system"}  # none for neutral rows
        count = len(server.requests)
        assert len(systems) == 2 and count == 60
        again = sublora("run", "rank", *SMALL, "--set", spec, "--out", str(tmp_path / "other"))
        assert again.code == 0 and len(server.requests) == count, "the store has the rows"
    store = Store()
    written = [p for root in (tmp_path, store.root) for p in root.rglob("*") if p.is_file()]
    assert len(written) > 10 and not [p for p in written if KEY.encode() in p.read_bytes()]
    assert KEY not in answer.out + answer.err and "behind an endpoint" in answer.err
    assert not list((store.root / "checkpoints").glob("*.jsonl")), (
        "answers are kept until the dataset stands"
    )


def test_a_run_whose_endpoint_fails_goes_on_where_it_was(tmp_path: Path) -> None:
    served = itertools.count()

    def limited(body):
        return answer_numbers(body) if next(served) < 9 else (403, b"out of credit", {})

    def command(url: str) -> list[str]:
        spec = f"data.teacher.endpoint={{url: '{url}', model: big, concurrency: 1}}"
        return ["run", "rank", *SMALL, "--set", spec, "--out", str(tmp_path / "run")]

    state = {"answer": limited}
    with loopback(lambda body: state["answer"](body)) as server:
        failed = sublora(*command(server.url))
        assert (
            failed.code == 2
            and "refused a request without a key" in failed.err
            and "Traceback" not in failed.err
        )
        assert sublora("store", "gc").code == 0, "what was paid for is not tidied away"
        state["answer"] = answer_numbers
        before = len(server.requests)
        assert sublora(*command(server.url)).code == 0
        assert len(server.requests) - before == 60 - 9


@pytest.mark.slow
def test_rows_of_a_served_model(tmp_path: Path) -> None:
    """The same through a real server of another project: `transformers serve` with a shipped model."""
    import os
    import subprocess
    import sys
    import time
    import urllib.request

    from sublora.models.base import shipped_folder

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = str(shipped_folder("micro"))
    script = Path(sys.executable).with_name("transformers")
    process = subprocess.Popen(
        [str(script), "serve", model, "--host", "127.0.0.1", "--port", str(port)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until = time.monotonic() + 180
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                assert process.poll() is None and time.monotonic() < until
                time.sleep(0.5)
        spec = f"data.teacher.endpoint={{url: 'http://127.0.0.1:{port}/v1', model: '{model}', concurrency: 2}}"
        answer = sublora("run", "rank", *SMALL, "--set", spec, "--out", str(tmp_path / "run"))
        assert answer.code == 0, answer.err
        sets = json.loads((tmp_path / "run" / "run.json").read_text())["datasets"]
        assert all(d["rows"] == (4 if d["heldout"] else 16) for d in sets), (
            "micro writes number lists there as it does here"
        )
        # as a judge it says words and no score, which is refused with one sentence; its verdicts are kept all the same
        spec = f"judge={{url: 'http://127.0.0.1:{port}/v1', model: '{model}', concurrency: 2}}"
        small = [*SMALL[:8], "--set", "answers=1"]
        judged = sublora("run", "judged", *small, "--set", spec, "--out", str(tmp_path / "judged"))
        assert judged.code == 2 and "could be read as a score from 0 to 100" in judged.err, (
            judged.err
        )
        assert "Traceback" not in judged.err and list((Store().root / "verdicts").glob("*.jsonl"))
    finally:
        process.terminate()
        process.wait(30)
