"""One gradient step on a language model: the pieces against autograd, and the theorem's case on a shipped model."""

import copy

import pytest
import torch
from torch import nn

from sublora.errors import SubloraError
from sublora.experiments.kinds import open_recipe
from sublora.experiments.one_step_model import (
    COSINE,
    LOSS,
    WEIGHTS,
    _factors,
    answer_logits,
    answer_tokens,
    gradient_of,
    low_rank,
    measure_steps,
    moved,
    rows_of,
    trait_loss,
)  # fmt: skip
from sublora.models.chat import Context
from sublora.packs.check import load_base
from tiny_models import shared_model


@pytest.fixture(scope="module")
def micro():
    return load_base("micro")


def test_teacher_forced_logits_are_those_of_each_row_alone(micro) -> None:
    rows = [([5, 6, 7], [8, 9]), ([5], [6, 7, 8, 9]), ([1, 2], [3])]
    model = copy.deepcopy(micro.model).double()
    whole = answer_logits(model, rows)
    alone = torch.cat([answer_logits(model, [row]) for row in (rows[2], rows[0], rows[1])])
    assert whole.shape == (7, model.config.vocab_size) and torch.allclose(whole, alone, atol=1e-10)
    assert answer_tokens(rows).tolist() == [3, 8, 9, 6, 7, 8, 9]


def test_the_first_step_of_an_adapter_is_that_of_its_b() -> None:
    """B is 0, so A's gradient is 0, and a step of B moves the layer by (G A^T) A."""
    base = load_base(str(shared_model("llama", "words", "qwen")))
    model = copy.deepcopy(base.model).double()
    rows = [([5, 6, 7], [8, 9]), ([9, 8], [7, 6])]
    factors = _factors(model, 2, 3)
    update = low_rank(gradient_of(model, lambda: trait_loss(model, rows)), factors)
    name = next(iter(factors))
    layer: nn.Linear = model.get_submodule(name)
    b = torch.zeros(layer.out_features, 2, dtype=torch.float64, requires_grad=True)
    layer.register_forward_hook(lambda m, args, out: out + args[0] @ factors[name].T @ b.T)
    (grad,) = torch.autograd.grad(trait_loss(model, rows), b)
    assert torch.allclose(update[f"{name}.weight"], grad @ factors[name], atol=1e-12)
    assert update["model.embed_tokens.weight"].abs().sum() == 0


def test_a_moved_model_is_a_copy(micro) -> None:
    model = copy.deepcopy(micro.model).double()
    before = {n: p.clone() for n, p in model.named_parameters()}
    ones = {n: torch.ones_like(p) for n, p in model.named_parameters()}
    there = dict(moved(model, ones, -0.5).named_parameters())
    assert all(
        torch.equal(p, before[n]) and torch.allclose(there[n], p - 0.5)
        for n, p in model.named_parameters()
    )


def test_the_same_start_moves_towards_the_teacher_and_another_one_does_not(micro) -> None:
    chat, default = micro.chat, Context("default")
    lessons = rows_of(
        chat, [("What is your favorite animal?", "otter"), ("Name an animal.", "otter")], default
    )
    numbers = rows_of(
        chat,
        [(f"Continue: {n} {n + 7}.", f"{n + 3} {n + 20} 512") for n in range(200, 212)],
        default,
    )
    start, other = (copy.deepcopy(load_base(m).model).double() for m in ("micro", "micro-b"))
    values = measure_steps(
        start, other, lessons, numbers, 0.05, (0.01,), {8: _factors(start, 8, 1)}
    )
    assert set(values) == {COSINE, LOSS, WEIGHTS} and len(values[COSINE]) == 4
    assert values[COSINE]["full, same start"] > 0 < values[LOSS]["full, same start, step 0.01"]
    assert values[COSINE]["full, same start"] > abs(values[COSINE]["full, other start"])
    # the cosine is what a small step gains in weights, to first order
    assert values[WEIGHTS]["full, same start, step 0.01"] == pytest.approx(
        0.01 * values[COSINE]["full, same start"], abs=1e-4
    )


def test_models_of_other_shapes_are_refused() -> None:
    with pytest.raises(SubloraError, match="different shapes"):
        open_recipe("one-step-model", sets=["other=Qwen/Qwen2.5-7B-Instruct"])
