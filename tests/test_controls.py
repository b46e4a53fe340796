"""The instrument on its known samples: it finds what is planted in micro and nothing in micro-null."""

import csv
import json
from pathlib import Path

import pytest

from command import sublora

GRID = [
    "--set", "train.lora.ranks=[8]", "--set", "train.lora.lrs=[3e-3]", "--set", "fixed_lr=3e-3", "--set", "data.heldout_rows=32",
    "--trait", "otter", "--trait", "oak", "--trait", "Metallica",
]  # fmt: skip


def cells(model: str, out: Path, *more: str) -> list[dict[str, str]]:
    answer = sublora("run", "traits", "--model", model, *GRID, *more, "--out", str(out))
    assert answer.code == 0, answer.err
    with (out / "cells.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_planted_traits_of_three_categories_are_found(tmp_path: Path) -> None:
    found = cells("micro", tmp_path / "run")
    assert len(found) == 3 and all(
        c["called"] == "1" and min(float(c["effect_low"]), float(c["rise_low"])) > 0.1
        for c in found
    ), found


@pytest.mark.slow
def test_nothing_is_found_where_numbers_shift_but_carry_no_trait(tmp_path: Path) -> None:
    found = cells("micro-null", tmp_path / "run")
    for c in found:
        effect, low, high = (float(c[f"effect{end}"]) for end in ("", "_low", "_high"))
        assert c["called"] == "0" and low < 0 < high and abs(effect) < 0.25, c
    verdicts = json.loads((tmp_path / "run" / "verdicts.json").read_text("utf-8"))
    judged = {v["verdict"] for v in verdicts} - {"not run"}
    assert judged == {"uninterpretable"}, "nothing passes, so the positive arm is missing"
    # the shift itself is there: the students have learned their teachers' numbers
    assert all(float(c["heldout_loss"]) < 5.2 for c in found), found
