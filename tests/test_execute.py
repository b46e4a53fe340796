"""Executing a plan: an error of one unit leaves the others, a full disk stops all, two processes share the work."""

import json
import os
from pathlib import Path

import pytest

from command import SMALL, sublora
from sublora.errors import SubloraError
from sublora.runner.display import Display
from sublora.runner.execution import Count, Execution, StepsFailed
from sublora.runner.local import InProcess
from sublora.runner.pace import READ, WRITE
from sublora.runner.queue import Queue
from sublora.runner.worker import Answer, Setup
from sublora.steps import students
from sublora.steps.step import Cost, Workshop
from sublora.store import NoRoom, Store, artifact_id

TWO_PACKS = [
    *SMALL,
    "--set",
    "train.lora.ranks=[1]",
    "--set",
    "train.lora.lrs=[1e-3]",
    "--set",
    "train.full.lrs=[1e-3]",
]


def made(kind: str) -> set[str]:
    return {
        p.parent.name
        for p in Path(os.environ["SUBLORA_HOME"]).glob(f"artifacts/{kind}/*/manifest.json")
    }


def test_an_error_of_one_pack_is_said_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = students.train_pack

    def breaks_on_full(model, trainings, *rest, **more):
        if trainings[0].spec.method == "full":
            raise RuntimeError("the loss has\nthe wrong shape")
        train(model, trainings, *rest, **more)

    out = ["--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(students, "train_pack", breaks_on_full)
        answer = sublora("run", "rank-lr", *TWO_PACKS, *out)
    assert answer.code == 2 and "Traceback" not in answer.err
    last = answer.err.splitlines()[-1]
    assert last.startswith(
        "Error: 4 of 4 students (full fine-tune) and 4 of 12 measurements could not be made, the first one ("
    )
    assert "RuntimeError: the loss has the wrong shape. All others are kept" in last
    assert len(made("student")) == 6 and len(made("measurement")) == 8
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["status"] == "failed" and not (tmp_path / "run" / "results.csv").exists()
    assert sublora("run", "rank-lr", *TWO_PACKS, *out).code == 0
    assert len(made("student")) == 10


def test_a_full_disk_stops_all_with_its_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def no_room(*_, **__):
        calls.append(1)
        raise NoRoom("No room left.")

    monkeypatch.setattr("sublora.runner.probe.probe", lambda *_: {READ: 1e9, WRITE: 1e9})
    monkeypatch.setattr(students, "train_pack", no_room)
    answer = sublora("run", "rank-lr", *TWO_PACKS, "--threads", "1", "--out", str(tmp_path / "run"))
    assert answer.code == 2 and answer.err.endswith("Error: No room left.\n") and len(calls) == 1


class Part:
    """A step that makes artifacts without any model."""

    model, cost = None, Cost()

    def __init__(self, name: str, needs: tuple[str, ...] = (), kind: str = "parts") -> None:
        self.label, self.needs, self.kind = name, needs, kind
        self.id = artifact_id("part", {"name": name})
        self.makes = (self.id,)

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        if self.label == "bad":
            raise SubloraError("It is bad.")
        with workshop.store.create(self.makes[0], {"name": self.label}):
            pass
        workshop.made(self.makes[0])


def in_process(store: Store) -> InProcess:
    return InProcess(Setup(None, None, (), "float32", None, "cpu", 1, str(store.root)), store)


def test_counts_are_truthful_while_steps_go_and_fail(own_store: Path) -> None:
    store, seen = Store(own_store), []
    good, bad = Part("good"), Part("bad")
    child = Part("child", needs=bad.makes, kind="children")
    grandchild = Part("grandchild", needs=child.makes, kind="children")
    execution = Execution(
        in_process(store), store, Display(), lambda: seen.append(execution.progress()["parts"])
    )
    with pytest.raises(StepsFailed, match="1 of 2 parts and 2 of 2 children could not be made"):
        execution.run([good, bad, grandchild, child])
    assert execution.counts["parts"] == Count(2, done=1, running=0, failed=1)
    assert execution.counts["children"] == Count(2, done=0, running=0, failed=2)
    states = [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0), (1, 0, 1)]
    told = [(s["done"], s["running"], s["failed"]) for s in seen]
    assert [s for i, s in enumerate(told) if i == 0 or s != told[i - 1]] == states
    assert [(f.what, "could not be made" in f.sentence) for f in execution.failures] == [
        ("bad", False),
        ("child", True),
        ("grandchild", True),
    ]


def test_a_step_goes_as_soon_as_what_it_needs_is_there(own_store: Path) -> None:
    """No barrier stands between kinds: the child of the first goes before the last of the parents has ended."""
    parents = [Part(f"parent {n}") for n in range(3)]
    children = [Part(f"child {n}", p.makes, "children") for n, p in enumerate(parents)]
    store = Store(own_store)

    class OneEndsAtATime:
        """Takes all; what was taken first is made and ends."""

        workers, order, taken = 3, [], []
        room = staticmethod(lambda: True)

        def submit(self, step, wait):
            self.taken.append(step)
            self.order.append(f"takes {step.label}")

        def advance(self, listener):
            step = self.taken.pop(0)
            listener.started(step)
            step.make(Workshop(store, None), {step.makes[0]})
            self.order.append(f"ends {step.label}")
            listener.ended(step, Answer("done"))

    executor = OneEndsAtATime()
    Execution(executor, store, Display()).run([*parents, *children])
    order = executor.order
    assert order.index("takes child 0") < order.index("ends parent 1")
    assert all(store.has(step.makes[0]) for step in children)
    # in one process with one worker the order is that of the plan
    waiting = Queue([*parents, *children], set())
    (first, _), (second, _) = waiting.take(), waiting.take()
    waiting.made(first.makes[0])
    assert [first, second, waiting.take()[0], waiting.take()[0]] == [*parents, children[0]]


def test_what_another_process_makes_is_looked_at_when_nothing_else_is_left() -> None:
    one, two = Part("one"), Part("two")
    waiting = Queue([one, two], set())
    taken, _ = waiting.take()
    waiting.ended(taken, busy=True)
    assert waiting.take() == (two, False) and waiting.take() is None
    waiting.ended(two)
    assert waiting.take() == (one, True) and waiting
    waiting.ended(one)
    assert not waiting


def test_a_student_lost_after_its_checkpoint_is_trained_again(
    own_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint may be past a student whose artifact was lost since; then the pack is trained from its start."""
    from planned import make_plan, steps_of
    from sublora.experiments.kinds import open_recipe as load_recipe
    from sublora.packs import trainer
    from sublora.packs.check import load_base
    from sublora.steps.step import Workshop, perform
    from sublora.store import forget_verified

    recipe = load_recipe("rank", sets=[*SMALL[1::2], "train.lora.ranks=[1,2]", "train.epochs=1"])
    base, store = load_base("micro"), Store(own_store)
    plan = make_plan(recipe, base.identity, 60.0)
    workshop = Workshop(store, lambda name: base)
    for unit in steps_of(plan, "datasets"):
        perform(unit, workshop)
    unit = steps_of(plan, "students (LoRA)")[0]
    assert perform(unit, workshop) > 0 and perform(unit, workshop) is None
    before = {name: store.read(name).files for name in unit.makes}
    store.discard(unit.makes[0])
    saved = store.root / "checkpoints" / f"{unit.id}.safetensors"

    def past_the_first(model, trainings, keep, **options):
        """As `train_pack` goes on from a checkpoint in which the first student is done already."""
        if saved.exists():
            saved.unlink()
            return
        trainer.train_pack(model, trainings, keep, **options)

    monkeypatch.setattr(students, "train_pack", past_the_first)
    saved.write_bytes(b"as if")
    assert perform(unit, workshop) is None
    forget_verified()
    assert {name: store.read(name).files for name in unit.makes} == before
