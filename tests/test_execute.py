"""Executing a plan: an error of one unit leaves the others, a full disk stops all, two processes share the work."""

import json
import os
from pathlib import Path

import pytest
from sublora.execute import Count, Execution
from sublora.progress import Steps

from command import SMALL, sublora
from sublora import stages
from sublora.errors import SubloraError
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
    train = stages.train_pack

    def breaks_on_full(model, students, *rest, **more):
        if students[0].spec.method == "full":
            raise RuntimeError("the loss has\nthe wrong shape")
        train(model, students, *rest, **more)

    out = ["--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(stages, "train_pack", breaks_on_full)
        answer = sublora("run", "rank-lr", *TWO_PACKS, *out)
    assert answer.code == 2 and "Traceback" not in answer.err
    last = answer.err.splitlines()[-1]
    assert last.startswith(
        "Error: 4 of 8 students and 4 of 10 measurements could not be made, the first one ("
    )
    assert "RuntimeError: the loss has the wrong shape. All others are kept" in last
    assert len(made("student")) == 4 and len(made("measurement")) == 6
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["status"] == "failed" and not (tmp_path / "run" / "results.csv").exists()
    assert sublora("run", "rank-lr", *TWO_PACKS, *out).code == 0
    assert len(made("student")) == 8


def test_a_full_disk_stops_all_with_its_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def no_room(*_, **__):
        calls.append(1)
        raise NoRoom("No room left.")

    monkeypatch.setattr(stages, "train_pack", no_room)
    answer = sublora("run", "rank-lr", *TWO_PACKS, "--threads", "1", "--out", str(tmp_path / "run"))
    assert answer.code == 2 and answer.err.endswith("Error: No room left.\n") and len(calls) == 1


class Unit:
    """Makes artifacts without any model."""

    def __init__(self, name: str, needs: tuple[str, ...] = ()) -> None:
        self.id = self.label = name
        self.makes, self.needs = (artifact_id("part", {"name": name}),), needs


def test_counts_are_truthful_while_units_go_and_fail(own_store: Path) -> None:
    store, seen = Store(own_store), []
    good, bad = Unit("good"), Unit("bad")

    class InTurn:
        workers = 1

        def run(self, units, watch):
            for unit in units:
                watch.started(unit)
                if unit is bad:
                    watch.failed(unit, SubloraError("It is bad."))
                    continue
                with store.create(unit.makes[0], {"name": unit.id}):
                    pass
                watch.made(unit.makes[0])
                watch.finished(unit, None, "")

    execution = Execution(
        InTurn(), store, Steps(), lambda: seen.append(str(execution.counts.get("parts")))
    )
    execution._run_stage("parts", [good, bad])
    assert execution.counts["parts"] == Count(2, done=1, running=0, failed=1)
    states = [str(Count(2, *c)) for c in ((0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0), (1, 0, 1))]
    assert [s for i, s in enumerate(seen) if i == 0 or s != seen[i - 1]] == states
    child = Unit("child", needs=bad.makes)
    execution._run_stage("children", [child])
    assert (
        execution.counts["children"].failed == 1
        and "could not be made" in execution.failures[-1].sentence
    )


def test_a_student_lost_after_its_checkpoint_is_trained_again(
    own_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint may be past a student whose artifact was lost since; then the pack is trained from its start."""
    from sublora.packs.check import load_base
    from sublora.plan import make_plan
    from sublora.recipe import load_recipe
    from sublora.stages import Maker, perform
    from sublora.store import forget_verified
    from sublora.train import pack
    from sublora.units import data_units, train_units

    recipe = load_recipe("rank", sets=[*SMALL[1::2], "train.lora.ranks=[1,2]", "train.epochs=1"])
    base, store = load_base("micro"), Store(own_store)
    plan = make_plan(recipe, base.identity, 60.0)
    maker = Maker(base, store)
    for unit in data_units(plan):
        perform(unit, maker)
    unit = train_units(plan)[0]
    assert perform(unit, maker) > 0 and perform(unit, maker) is None
    before = {name: store.read(name).files for name in unit.makes}
    store.discard(unit.makes[0])
    saved = store.root / "checkpoints" / f"{unit.id}.safetensors"

    def past_the_first(model, students, keep, **options):
        """As `train_pack` goes on from a checkpoint in which the first student is done already."""
        if saved.exists():
            saved.unlink()
            return
        pack.train_pack(model, students, keep, **options)

    monkeypatch.setattr(stages, "train_pack", past_the_first)
    saved.write_bytes(b"as if")
    assert perform(unit, maker) is None
    forget_verified()
    assert {name: store.read(name).files for name in unit.makes} == before
