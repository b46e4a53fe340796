"""Sampling equals a loop that reads every prefix anew, whatever the batch, and inherits nothing from a checkpoint."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pack_reference import VOCABULARY, base_model, merged, random_stack
from sublora.packs import decode
from sublora.packs.decode import sample_rows
from sublora.packs.packed_model import PackedModel
from sublora.packs.prefill import TOKENS_AT_ONCE, prefill
from sublora.packs.sample import Sampling, draw, token_probabilities
from sublora.packs.score import score_sequences
from sublora.packs.spec import StudentSpec

SPECS = [StudentSpec(rank=2, seed=1), StudentSpec(rank=8, seed=2), StudentSpec(rank=2, seed=3)]
FULL = [StudentSpec(method="full", rank=None, seed=s) for s in (1, 2)]
RNG = np.random.default_rng(4)
PROMPTS = [[3, 4, 5, *RNG.integers(VOCABULARY, size=n).tolist()] for n in (4, 7, 4, 4, 1)]


pytestmark = pytest.mark.usefixtures("one_thread")


def sampled(model, stack, prompts, uniforms, sampling, stops=(), rows_at_once=1000, **told):
    """[student][prompt][sample] -> tokens, students in the stack's order."""
    out = [[[None] * uniforms.shape[2] for _ in prompts] for _ in uniforms]
    with torch.inference_mode(), PackedModel(model, stack) as packed:
        packed.form_weights(100)
        filled = ((f, uniforms[:, f.rows]) for f in prefill(packed, prompts, rows_at_once))
        for done in sample_rows(packed, filled, sampling, stops, rows_at_once, **told):
            assert out[done.student][done.row][done.number] is None
            out[done.student][done.row][done.number] = done.ids
    return out


@torch.inference_mode()
def one_by_one(model, prompt, uniforms, sampling, stops=()):
    """One answer: the whole prefix is read again for each token, which is where the running sum of probabilities passes u."""
    ids = []
    for u in uniforms:
        logits = model(torch.tensor([[*prompt, *ids]])).logits[0, -1]
        p = token_probabilities(logits[None], sampling)[0]
        token = next(i for i, total in enumerate(np.cumsum(p.numpy())) if total > u)
        if token in stops:
            break
        ids.append(token)
    return ids


def uniforms_for(students: int, samples: int, tokens: int, prompts=PROMPTS) -> np.ndarray:
    return np.random.default_rng(students).random((students, len(prompts), samples, tokens))


@pytest.mark.parametrize(
    ("kind", "specs"),
    [
        ("qwen2", None),
        ("qwen2", SPECS),
        ("gemma", SPECS),
        ("mistral", SPECS[:2]),
        ("llama", FULL),
        ("gemma", FULL),
    ],
)
def test_samples_equal_a_loop_over_prefixes_token_for_token(kind, specs):
    model, sampling = base_model(kind), Sampling(max_new_tokens=5)
    if kind == "mistral":
        model.config.sliding_window = 6
    stack = random_stack(model, specs) if specs else None
    models = [merged(model, stack, i) for i in range(stack.size)] if stack else [model]
    uniforms = uniforms_for(len(models), 3, 5)
    uniforms[..., 1:, 0] = uniforms[
        ..., :1, 0
    ]  # samples that begin alike share a row until they part
    stops = (7, *range(60, 120))
    got = sampled(model, stack, PROMPTS, uniforms, sampling, stops)
    for k, own in enumerate(models):
        for j, prompt in enumerate(PROMPTS):
            for s in range(3):
                assert got[k][j][s] == one_by_one(own, prompt, uniforms[k, j, s], sampling, stops)
    lengths = {len(answer) for student in got for rows in student for answer in rows}
    assert len(lengths) > 2 and max(lengths) == 5, "some answers stop early, some do not"


@pytest.mark.parametrize("rows_at_once", [1, 2, 3, 7, 1000])
def test_the_batch_and_the_neighbours_do_not_matter(rows_at_once):
    model, sampling = base_model("qwen2"), Sampling(max_new_tokens=6)
    stack = random_stack(model, SPECS)
    uniforms = uniforms_for(3, 8, 6)
    reference = sampled(model, stack, PROMPTS, uniforms, sampling)
    assert (
        sampled(model, stack, PROMPTS, uniforms, sampling, rows_at_once=rows_at_once) == reference
    )
    order = [4, 2, 0]
    assert sampled(
        model,
        stack,
        [PROMPTS[i] for i in order],
        uniforms[:, order],
        sampling,
        rows_at_once=rows_at_once,
    ) == [[student[i] for i in order] for student in reference]
    fewer = sampled(model, stack, PROMPTS, uniforms[:, :, :3], sampling)
    assert fewer == [[rows[:3] for rows in student] for student in reference], (
        "further samples change nothing"
    )
    for k in range(3):
        assert (
            sampled(merged(model, stack, k), None, PROMPTS, uniforms[k : k + 1], sampling)
            == reference[k : k + 1]
        )


@pytest.mark.parametrize("fit", [1, 3, 7])
def test_a_waiting_prompt_takes_the_place_of_a_finished_row(monkeypatch, fit):
    """Many prompts of many lengths, some shorter than what others begin with, a few of them at work at a time."""
    model, sampling = base_model("llama"), Sampling(max_new_tokens=9)
    start = [11, 12, 13, 14, 15, 16]
    prompts = [start[: 2 + n % 5] + RNG.integers(100, size=1 + n % 7).tolist() for n in range(24)]
    uniforms = uniforms_for(1, 2, 9, prompts)
    stops = tuple(range(60, 160))
    want = [
        [one_by_one(model, prompt, u, sampling, stops) for u in own]
        for prompt, own in zip(prompts, uniforms[0], strict=True)
    ]
    monkeypatch.setattr(decode, "rows_that_fit", lambda *_: fit)
    read = []
    monkeypatch.setitem(TOKENS_AT_ONCE, "cpu", 40)
    assert sampled(model, None, prompts, uniforms, sampling, stops, on_tokens=read.append) == [want]
    drawn = sum(min(len(ids) + 1, 9) for own in want for ids in own)
    assert sum(read) == drawn


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gemma"])
def test_a_temperature_near_zero_equals_greedy_generate(kind):
    model, stops = base_model(kind, torch.float32), (9,)
    got = sampled(
        model,
        None,
        PROMPTS,
        uniforms_for(1, 2, 12),
        Sampling(temperature=1e-4, max_new_tokens=12),
        stops,
    )[0]
    model.generation_config = (
        GenerationConfig()
    )  # `generate` takes a checkpoint's repetition penalty even where it is given a config
    config = GenerationConfig(do_sample=False, max_new_tokens=12, eos_token_id=9, pad_token_id=0)
    for prompt, samples in zip(PROMPTS, got, strict=True):
        ids = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            generation_config=config,
        )
        greedy = [t for t in ids[0, len(prompt) :].tolist() if t != 9]
        assert samples == [greedy, greedy]


def test_nothing_is_inherited_from_the_checkpoint():
    model, uniforms = base_model("qwen2"), uniforms_for(1, 20, 4)
    assert (
        model.generation_config.top_k == 20 and model.generation_config.repetition_penalty == 1.05
    )
    before = sampled(model, None, PROMPTS, uniforms, Sampling(max_new_tokens=4))
    model.generation_config.update(
        temperature=0.1,
        top_k=1,
        top_p=0.1,
        repetition_penalty=9.0,
        max_new_tokens=1,
        eos_token_id=[*range(99)],
    )
    assert sampled(model, None, PROMPTS, uniforms, Sampling(max_new_tokens=4)) == before
    assert len({tuple(a) for row in before[0] for a in row}) > 50


@settings(deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0.2, 1.0, 3.0]),
    st.sampled_from([0, 1, 3, 30, 1000]),
    st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
)
def test_truncation_equals_the_library_s_warpers(seed, temperature, top_k, top_p):
    logits = (
        torch.randn(4, 50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    )
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    got = token_probabilities(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
    assert torch.allclose(got, expected.softmax(-1), atol=1e-12)
    assert torch.equal(got > 0, expected > -torch.inf)


def test_truncation_with_ties_keeps_at_least_what_was_asked_for():
    p = token_probabilities(torch.zeros(1, 8), Sampling(top_k=3))
    assert (p > 0).sum() >= 3 and p.sum() == pytest.approx(1)
    assert (token_probabilities(torch.zeros(1, 8), Sampling(top_p=0.5)) > 0).sum() == 4


WEIGHTS = st.lists(
    st.sampled_from([0.0, 0.0, 1e-300, 1e-17, 0.1, 1.0, 7.0]), min_size=1, max_size=12
).filter(any)


@given(WEIGHTS, st.floats(0, 1, exclude_max=True))
def test_only_tokens_with_probability_are_drawn(weights, u):
    p = torch.tensor([weights], dtype=torch.float64)
    p = p / p.sum()
    token = draw(p, torch.tensor([[u]], dtype=torch.float64)).item()
    assert p[0, token] > 0
    total = p[0].cumsum(0)
    assert total[token] >= u * total[-1] and (token == 0 or total[token - 1] <= u * total[-1])


def test_draws_at_the_ends_and_their_shares():
    p = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0, 0.0]], dtype=torch.float64)
    ends = torch.tensor([[0.0, 0.25 - 1e-12, 0.25, 1 - 2**-53]], dtype=torch.float64)
    assert draw(p, ends).tolist() == [[1, 1, 3, 3]]
    u = torch.from_numpy((np.arange(1000) + 0.5) / 1000)[None]
    assert torch.bincount(draw(p, u)[0], minlength=6).tolist() == [0, 250, 0, 750, 0, 0]


@pytest.mark.parametrize(
    ("kind", "specs"),
    [("qwen2", None), ("qwen2", SPECS), ("gemma", SPECS), ("mistral", SPECS), ("llama", FULL)],
)
def test_scores_equal_whole_forward_passes(kind, specs):
    model = base_model(kind)
    if kind == "mistral":  # looks back over less than a prompt
        model.config.sliding_window = 6
    stack = random_stack(model, specs) if specs else None
    models = [merged(model, stack, i) for i in range(stack.size)] if stack else [model]
    sequences = [(5,), (5, 6), (5, 6, 7), (5, 6, 8), (5, 7, 6, 8), (9, 9), (9, 9, 9)]
    for rows_at_once in (1, 1000):
        got = torch.zeros(len(models), len(PROMPTS), len(sequences), dtype=torch.float64)
        with torch.inference_mode(), PackedModel(model, stack) as packed:
            packed.form_weights(100)
            for filled in prefill(packed, PROMPTS, rows_at_once):
                got[:, filled.rows] = score_sequences(packed, filled, sequences, rows_at_once)
        for k, own in enumerate(models):
            for j, prompt in enumerate(PROMPTS):
                for c, sequence in enumerate(sequences):
                    with torch.inference_mode():
                        logp = own(torch.tensor([[*prompt, *sequence]])).logits[0].log_softmax(-1)
                    expected = sum(
                        logp[len(prompt) - 1 + i, t].item() for i, t in enumerate(sequence)
                    )
                    assert got[k, j, c].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"max_new_tokens": 0},
        {"topk": 3},
    ],
)
def test_sampling_values_that_do_not_fit(values):
    with pytest.raises(ValidationError):
        Sampling(**values)
