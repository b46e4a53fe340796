"""The page of a run while it goes on: loopback only, behind a token, and without any say in the run."""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import pytest

from command import SMALL
from sublora.experiments.kinds import open_recipe
from sublora.runner import live as module
from sublora.runner.live import Live
from sublora.runner.queue import soonest
from sublora.runner.run import RunOptions, draw, run

ONE = ["data.rows=16", "train.lora.ranks=[4]", "data.seeds=[1]", "train.seeds=[1]"]
TINY = [*SMALL[1::2], *ONE, "data.heldout_rows=8"]


def get(url: str, path: str = "", host: str | None = None) -> tuple[int, bytes, dict[str, str]]:
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=20)
    connection.request("GET", place.path + path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, answer.read(), dict(answer.getheaders())


def events(url: str) -> Iterator[tuple[str, dict]]:
    """(event, data), until the server ends."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
    connection.request("GET", place.path + "events")
    answer, name = connection.getresponse(), "message"
    assert answer.getheader("Content-Type") == "text/event-stream"
    while line := answer.readline().decode():
        if line.startswith("event: "):
            name = line[7:].strip()
        elif line.startswith("data: "):
            yield name, json.loads(line[6:])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = {"sentence": "What <is> done.", "status": "running", "recipe": {"title": "A title"}}
    run["progress"] = {"students": {"total": 4, "done": 1, "running": 1, "failed": 0}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "one.svg").write_text("<svg/>")
    return tmp_path


def test_it_answers_this_machine_under_its_token_only(folder: Path) -> None:
    with Live(folder, list) as live:
        assert live._server.server_address[0] == "127.0.0.1" and len(live.token) >= 32
        status, page, headers = get(live.url)
        assert status == 200 and b"What &lt;is&gt; done." in page and b"connect-src 'self'" in page
        assert headers["Referrer-Policy"] == "no-referrer"
        assert get(live.url, "figures/one.svg")[:2] == (200, b"<svg/>")
        bare = live.url.replace(live.token, "")
        for url, path in (
            (bare, ""),
            (bare, "events"),
            (live.url[:-2], ""),
            (live.url, "run.json"),
        ):
            assert get(url, path)[0] == 404
        assert get(live.url, "figures/../run.json")[0] == get(live.url, "figures/two.svg")[0] == 404
        assert get(live.url, host="evil.example:80")[0] == 404
        (folder / "report.html").write_text("the end")
    with pytest.raises(OSError):
        get(live.url)


def test_a_watcher_who_leaves_and_effects_that_fail_do_not_matter(folder: Path) -> None:
    def broken() -> list:
        raise ValueError("no effects yet")

    (folder / "report.html").write_text("the end")
    with Live(folder, broken) as live:
        kind, state = next(events(live.url))
        assert (kind, state["effects"]) == ("message", [])
        assert state["progress"]["students"]["done"] == 1


def test_an_interrupted_run_does_not_wait_for_those_who_watch(folder: Path) -> None:
    watcher = []
    with pytest.raises(KeyboardInterrupt), Live(folder, list) as live:
        watcher.append(events(live.url))
        next(watcher[0])
        raise KeyboardInterrupt
    assert not live.done.is_set()


def test_a_watched_run_measures_what_it_has_trained_before_it_trains_more() -> None:
    recipe = open_recipe("rank-lr", model="micro", traits=["otter", "wolf"])
    steps = recipe.plan(recipe.known())
    early = soonest(steps)
    assert sorted(s.id for s in early) == sorted(s.id for s in steps)
    made: set[str] = set()
    for step in early:
        assert made.issuperset(step.needs), step.label
        made |= set(step.makes)
    assert early[0].kind == "measurements" and not early[0].needs
    kinds = [step.kind for step in early]
    first = kinds.index("measurements", 2)
    assert kinds[first:].count("students (LoRA)") > 2, (
        "students are trained after the first answers"
    )


@pytest.mark.slow
def test_a_run_shows_its_first_effects_and_then_the_page_that_it_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    opened, heard, pages = [], [], []

    class Watched(Live):
        def __enter__(self) -> Live:
            opened.append(super().__enter__())
            Thread(target=watch, args=(self.url,)).start()
            return opened[0]

    def watch(url: str) -> None:
        for kind, state in events(url):
            heard.append((kind, state))
            if kind == "done":
                return pages.append(get(url)[1])

    def report(out: Path) -> Path:
        last.update(opened[0].state())
        return draw(out)

    last: dict = {}
    monkeypatch.setattr(module, "Live", Watched)
    recipe = open_recipe("rank", model="micro", traits=["otter"], sets=TINY)
    result = run(recipe, tmp_path / "run", RunOptions(serve=True), report=report)
    assert opened[0].url in capsys.readouterr().err
    assert heard[-1][0] == "done" and any(state.get("progress") for _, state in heard)
    assert pages == [(tmp_path / "run" / "report.html").read_bytes()]
    (cell,) = result.load().effects.rows()
    (early,) = last["effects"]
    assert early["estimate"] == pytest.approx(cell["effect"]) and early["students"] == 1
    assert early["low"] == pytest.approx(cell["effect_low"]) and last["sentence"]
