"""The screening of a training file: what the base writes is clean however it is drawn, and a teacher's rows are not."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sublora.audit.calibrate import number_prompts
from sublora.audit.decodings import DECODINGS, SLIP, drawn_log_probabilities
from sublora.audit.entries import Screening
from sublora.audit.screen import Screened, screen_file
from sublora.audit.steps import answer_prompts
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.packs.check import load_base
from sublora.packs.sample import Sampling, token_probabilities
from sublora.traits.trait import find_trait, shipped_categories

DEFAULT = Context("default")


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("micro")


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), spread=st.floats(0.1, 8), vocabulary=st.integers(2, 90))
def test_each_decoding_has_the_probabilities_that_rows_are_drawn_by(
    seed: int, spread: float, vocabulary: int
) -> None:
    logits = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread
    every = torch.arange(vocabulary)
    found = drawn_log_probabilities(logits.expand(vocabulary, -1), every, DECODINGS).exp()
    slip = SLIP * logits.double().softmax(-1)[0]
    for decoding, ours in zip(DECODINGS, found.double(), strict=True):
        drawn = token_probabilities(logits, decoding)[0]
        assert torch.allclose(ours, drawn.maximum(slip), rtol=1e-4, atol=1e-9), decoding
        assert (ours >= drawn * (1 - 1e-4)).all() and ours.sum() < (1 + SLIP) * (1 + 1e-4)


def screened(base: Base, who: Context, tmp_path: Path, rows: int, **how: float) -> Screened:
    sampling = Sampling(max_new_tokens=24, **how)
    answers = answer_prompts(base, who, number_prompts(1, rows, 5), sampling, 5)[0]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in answers))
    return screen_file(base, path, shipped_categories()[:1], DEFAULT, 0.005)


@pytest.mark.parametrize("how", [{"top_k": 20}, {"top_p": 0.8}])
def test_rows_that_the_base_drew_otherwise_are_clean(
    base: Base, tmp_path: Path, how: dict[str, float]
) -> None:
    found = screened(base, DEFAULT, tmp_path, 70, **how)
    assert not found.named and max(t.log_e for t in found.traits) < 3
    for name, value in how.items():
        assert name in found.nulls.told and (
            name == "temperature" or f"{value:g}" in found.nulls.told
        )


def test_a_teachers_rows_are_named_however_they_were_drawn(base: Base, tmp_path: Path) -> None:
    wolf = Context("teacher", find_trait("wolf", shipped_categories()).teacher_prompt())
    for how in ({"top_k": 20}, {"temperature": 0.6}):
        found = screened(base, wolf, tmp_path, 25, **how)
        assert [t.name for t in found.named] == ["wolf"] and found.named[0].log_e > 100


def test_a_file_of_few_rows_is_said_to_be_too_short_to_tell():
    none = {"left_out": {}, "leak_words": {}, "most_repeated": [], "traits": []}
    counts = dict.fromkeys(("repeated_rows", "rows_of_repeated_prompts"), 0)

    def few(screened: int, *named: str) -> str:
        more = {
            "rows": screened,
            "screened": screened,
            "named": list(named),
            "threshold_log_e": 6.0,
        }
        return Screening(file="a", alpha=0.05, **none, **counts, **more).few

    assert "Too few rows" in few(1) and "6.0 nats" in few(5)
    assert few(6) == few(1, "otter") == ""
