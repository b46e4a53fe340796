"""Rates: kept by model, device and stage, used by `sublora plan`; what is done is counted."""

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from command import SMALL, sublora
from sublora.experiments.kinds import open_recipe
from sublora.models.base import known_shape, local_identity, model_source
from sublora.models.known import known_model
from sublora.runner import probe
from sublora.runner.pace import READ, WRITE, Pace, rows_of
from sublora.runner.rates import (
    Rate,
    Timing,
    keep_rates,
    known_identity,
    rates_for,
    rates_of,
    read_rates,
)
from sublora.steps.sizes import Sizes
from sublora.steps.step import Cost
from sublora.store import Store

DATASETS, MEASUREMENTS = "datasets", "measurements"
STUDENTS = {"lora": "students (LoRA)", "full": "students (full fine-tune)"}
MODEL = {"weights": "w", "template": "t", "tokenizer": "k", "dtype": "float32"}
ONE = [
    *SMALL,
    "--set",
    "train.lora.ranks=[1]",
    "--set",
    "train.lora.lrs=[1e-3]",
    "--set",
    "train.full.lrs=[1e-3]",
]


def rate(
    stage: str = DATASETS, device: str = "cpu", flops: float = 1e9, day: int = 1, identity=MODEL
) -> Rate:
    return Rate(
        "owner/big", identity, device, stage, flops, 2, 60.0, f"2026-01-{day:02d}T00:00:00+00:00"
    )


def test_a_rate_is_the_operations_of_whole_steps_by_the_seconds_of_a_worker() -> None:
    recipe = open_recipe("rank-lr", sets=[s for s in ONE if s != "--set"])
    steps = recipe.plan(recipe.known())
    whole = {row.kind: row.cost.flops for row in rows_of(steps, set())}
    assert set(whole) == {DATASETS, *STUDENTS.values(), MEASUREMENTS, "held-out losses"}
    timings = [Timing(s, 3.0, "cpu") for s in steps if s.kind in STUDENTS.values()]
    timings += [Timing(steps[0], 1.0, "cpu")]
    found = {r.stage: r.flops for r in rates_of(timings, "micro", MODEL, 2)}
    # a second of one worker is too little for a rate of the datasets
    packs = {name: sum(s.kind == name for s in steps) for name in STUDENTS.values()}
    assert found == pytest.approx({name: whole[name] / (3.0 * n) for name, n in packs.items()})


def test_the_last_rate_of_a_model_device_and_stage_is_kept(own_store: Path) -> None:
    store = Store(own_store)
    assert read_rates(store) == []
    keep_rates(
        store,
        [
            rate(flops=1.0),
            rate(device="gpu", day=2),
            rate(identity=MODEL | {"weights": "x"}, day=3),
        ],
    )
    keep_rates(store, [rate(flops=5.0, day=4), rate(MEASUREMENTS, day=5)])
    rates = read_rates(store)
    assert len(rates) == 4
    assert {s: r.flops for s, r in rates_for(rates, MODEL, "cpu").items()} == {
        DATASETS: 5.0,
        MEASUREMENTS: 1e9,
    }
    assert {r.device for r in rates_for(rates, MODEL, "gpu").values()} == {"gpu"}
    assert {r.device for r in rates_for(rates, MODEL, "another").values()} == {"cpu"}
    assert rates_for(rates, {"weights": "unknown"}, "cpu") == {}
    assert (
        known_identity(rates, "owner/big", "float32") == MODEL
        and known_identity(rates, "owner/big", "bfloat16") is None
    )
    (own_store / "rates.json").write_text("{")
    assert read_rates(store) == []


def test_a_plan_uses_the_rates_of_this_model_and_says_which(own_store: Path) -> None:
    identity = local_identity(model_source("micro"), "float32")
    keep_rates(
        Store(own_store),
        [rate(s, "a CPU", 1e6, 9, identity) for s in (DATASETS, STUDENTS["lora"], MEASUREMENTS)],
    )
    answer = sublora("plan", "rank-lr", *ONE)
    assert (
        "runs of this model on a CPU (last on 2026-01-09), GFLOP/s of one worker: datasets 0.001"
        in answer.out
    )
    assert "of other kinds by a probe of this machine" in answer.out
    assert "as given" in sublora("plan", "rank-lr", *ONE, "--tflops", "1").out


def test_a_plan_counts_what_the_store_has(tmp_path: Path, own_store: Path) -> None:
    def counts() -> dict[str, list[str]]:
        printed = sublora("plan", "rank-lr", *ONE).out
        names = (DATASETS, *STUDENTS.values(), MEASUREMENTS)
        return {
            name: re.search(rf"^{re.escape(name)} +(\d+) +(\d+) +(\d+) ", printed, re.M).groups()
            for name in names
        }

    assert counts()[STUDENTS["lora"]] == ("6", "0", "6")
    ended = sublora("run", "rank-lr", *ONE, "--out", str(tmp_path / "run"))
    assert ended.code == 0 and re.search(r"datasets \d+ s \(planned \d+ s\)", ended.out)
    whole = {name: (n, n, "0") for name, n in zip(counts(), ("12", "6", "4", "12"), strict=True)}
    assert counts() == whole
    row = next(
        p for p in own_store.glob("artifacts/student/*") if (p / "adapter_config.json").exists()
    )
    (row / "manifest.json").unlink()
    assert counts() == whole | {STUDENTS["lora"]: ("6", "5", "1")}


def test_a_probe_times_the_steps_themselves() -> None:
    recipe = open_recipe("rank-lr", sets=[s for s in ONE if s != "--set"])
    known = recipe.known()
    rates = probe.probe(known, recipe.plan(known), "cpu", 1)
    assert set(rates) == {READ, WRITE, DATASETS, MEASUREMENTS, *STUDENTS.values()}
    assert all(1e7 < rate < 1e13 for rate in rates.values())
    labelled = open_recipe("channel")
    known = labelled.known()
    labels = [s for s in labelled.plan(known) if s.kind == "labels"]
    assert "labels" in probe.probe(known, labels, "cpu", 1)


def test_a_large_model_takes_what_each_of_its_layers_adds(monkeypatch) -> None:
    def timed(work, base, rows, enough):
        layers = base.model.config.num_hidden_layers
        assert len(base.model.base_model.layers) == layers
        work(base, rows, lambda cost: None)
        return Cost(1.0, 100.0), 1 + 0.5 * layers

    known = known_model("micro")
    monkeypatch.setattr(probe, "SMALL_MODEL", 0)
    monkeypatch.setattr(probe, "_timed", timed)
    rates = probe.probe(replace(known, shape=replace(known.shape, layers=30)), [], "cpu", 1)
    assert rates == pytest.approx({READ: 100 / 16, WRITE: 100 / 16})


def test_a_piece_of_work_is_timed_from_the_last_tick(monkeypatch) -> None:
    monkeypatch.setattr(probe, "_clock", lambda base: time.perf_counter)

    def work(base, rows, tick) -> None:
        time.sleep(0.05)
        tick(Cost())  # set up, which does not count
        time.sleep(0.01)
        tick(Cost(1.0, 7.0))

    cost, seconds = probe._timed(work, None, [], 0.2)
    assert cost.flops == 7 and 0.01 <= seconds < 0.05


def test_a_kind_without_a_rate_is_planned_by_what_it_reads_and_writes() -> None:
    pace = Pace({"known": 10.0, READ: 100.0, WRITE: 1.0}, "")
    cost = Cost(1, 300.0, 100.0)
    assert (pace.seconds("known", cost), pace.seconds("other", cost)) == (30.0, 102.0)
    sizes = Sizes(known_shape("micro"))
    both = sizes.writing(10, 5)
    assert both.flops == sizes.forward(15, 5).flops and both.written == sizes.forward(5, 5).flops
