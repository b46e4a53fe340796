"""Plain lines of progress when piped, with the time left; and seeds that name what they are for."""

import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import sublora.runner.display as display
from sublora.experiments.kinds import open_recipe
from sublora.models.known import known_base
from sublora.packs.check import load_base
from sublora.runner.display import Display
from sublora.runner.execution import Count, Execution
from sublora.seeds import derive_seed, generator
from sublora.steps.step import Inside, Workshop, perform
from sublora.store import Store


def told(monkeypatch, capsys, total, done, seconds, every=10.0) -> list[str]:
    """What is said of a stage in which each unit takes `seconds`."""
    clock = iter(np.arange(0.0, 1e6, seconds))
    monkeypatch.setattr(display.time, "monotonic", lambda: float(next(clock)))
    with Display(every, live=False) as shown:
        shown.begin("students", total, done)
        for made in range(done, total):
            if made == done:
                shown.update("students", done, running=1)
            shown.update("students", made + 1)
    captured = capsys.readouterr()
    assert captured.out == "", "standard output is for results"
    return captured.err.splitlines()


def test_lines_now_and_then_and_at_the_end(monkeypatch, capsys):
    lines = told(monkeypatch, capsys, total=10, done=0, seconds=4.0)
    assert lines[0] == "students: 10"
    assert lines[1] == "students: 3 of 10, 12 s spent, about 28 s left"
    assert lines[-1] == "students: 10 of 10, 40 s spent" and len(lines) == 5


def test_what_was_done_before_does_not_make_the_rest_look_faster(monkeypatch, capsys):
    lines = told(monkeypatch, capsys, total=100, done=90, seconds=20.0)
    assert lines[0] == "students: 90 of 100 done"
    assert lines[1] == "students: 91 of 100, 20 s spent, about 180 s left"


def test_a_stage_that_is_done_says_nothing(monkeypatch, capsys):
    assert told(monkeypatch, capsys, total=5, done=5, seconds=1.0) == []


@given(
    st.lists(st.one_of(st.integers(), st.text()), max_size=4),
    st.lists(st.one_of(st.integers(), st.text()), max_size=4),
)
def test_seeds_are_equal_only_for_equal_parts(one, other):
    assert 0 <= derive_seed("stage", *one) < 2**63
    clash = derive_seed("stage", *one) == derive_seed("stage", *other)
    assert clash == (one == other) or any("\x1f" in p for p in [*one, *other] if isinstance(p, str))


def test_seeds_are_the_same_in_another_process():
    code = (
        "from sublora.seeds import *; print(derive_seed('a', 1, 'b'), generator('a', 2).random())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert other.split() == [str(derive_seed("a", 1, "b")), repr(float(generator("a", 2).random()))]
    assert derive_seed("a", 1) != derive_seed("a", "1") != derive_seed("b", "1")


def test_time_left_inside_one_artifact_is_said_from_the_tenth_second_on(monkeypatch, capsys):
    clock = iter(np.arange(0.0, 1e6, 2.0))
    monkeypatch.setattr(display.time, "monotonic", lambda: float(next(clock)))
    with Display(10.0, live=False) as shown:
        shown.begin("datasets", 2)
        shown.update("datasets", 0, running=1)
        for done in range(13):
            news = Inside(done, 50, "rows", 1000 * done, done / 50)
            shown.inside("datasets", "id", "the rows of owl", news)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "datasets: 2",
        "the rows of owl: 5 of 50 rows, 5,000 tokens, about 90 s left",
        "the rows of owl: 10 of 50 rows, 10,000 tokens, about 80 s left",
    ]


def test_a_step_of_two_stages_takes_its_time_left_from_the_stage(monkeypatch, capsys):
    clock = iter(np.arange(0.0, 1e6, 4.0))
    monkeypatch.setattr(display.time, "monotonic", lambda: float(next(clock)))
    with Display(10.0, live=False) as shown:
        shown.begin("teachers", 1)
        shown.update("teachers", 0, running=1)
        for done, total in [(10, 20), (20, 20), (1, 50), (2, 50), (3, 50), (4, 50)]:
            news = Inside(done, total, "rows", 100 * done, done / total)
            shown.inside("teachers", "id", "the teacher of owl", news)
    said = "the teacher of owl: 4 of 50 rows, 400 tokens, about 184 s left"
    assert capsys.readouterr().err.splitlines() == ["teachers: 1", said]


def test_a_pack_that_is_half_way_is_half_of_its_students(monkeypatch):
    class Pack:
        kind, id, label, makes = "students", "pack", "four students", ("a", "b", "c", "d")

    shown = Display(live=True)
    run = Execution(None, None, shown)
    run.counts["students"] = Count(8, 0)
    run._kind = dict.fromkeys(Pack.makes, "students")
    bars = []
    monkeypatch.setattr(shown, "inside", lambda *news: bars.append(news[-1]))
    for share, made in [(0.25, 0), (0.5, 1), (0.5, 3)]:
        run._have = set(Pack.makes[:made])
        run.inside(Pack(), Inside(0, 1, "rows", 0, share))
    assert bars == [1.0, 1.0, 0.0]


def test_every_kind_of_step_that_computes_says_how_far_it_is(own_store):
    sets = ["data.rows=32", "data.heldout_rows=8", "data.seeds=[1, 2]", "train.seeds=[1, 2]"]
    sets += ["train.pairing=paired", "measure.samples=2", "measure.gradients={rows: [4, 8]}"]
    sets += ["measure.attribution={questions: 1}", "measure.first_token_entropy={questions: 4}"]
    sets += ["measure.probe={rows: 8, against: plain}", "vectors.count=8"]
    sets += ["measure.specificity={questions: [Who are you], samples: 2, categories: [trees]}"]
    recipe, base = open_recipe("steering-student", sets=sets), load_base("micro")
    steps, said, store = recipe.plan(known_base(base)), {}, Store(own_store)
    for step in steps:
        heard = said.setdefault(step.kind, [])
        perform(step, Workshop(store, lambda _: base, inside=heard.append))
    costly = {step.kind for step in steps if step.cost.flops}
    assert len(costly) >= 10 and [kind for kind in costly if not said[kind]] == []
    for kind in costly:
        assert all(n.total > 0 and n.tokens > 0 and 0 < n.share <= 1 for n in said[kind]), kind
        assert max(n.share for n in said[kind]) > 0.5, kind
