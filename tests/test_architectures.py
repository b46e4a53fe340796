"""Architectures beside the Llama family: they train as peft does, or are refused at load with the reason."""

from typing import Any

import numpy as np
import pytest
import torch

from pack_reference import case, distance, full_loop, peft_loop, train
from sublora.errors import SubloraError
from sublora.models.base import known_shape
from sublora.packs.check import check_full, load_base
from sublora.packs.packed_model import PackedModel
from sublora.packs.rows import assemble
from sublora.packs.stack import target_linears
from tiny_models import make_other

ALIKE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {"intermediate_size": 64, "initializer_range": 0.2} | ALIKE
GROUPED = {"num_key_value_heads": 2} | WIDE
OLD = {"n_layer": 2, "n_head": 4, "initializer_range": 0.2}
EXPERTS = {
    "head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
} | GROUPED
FAMILIES: dict[str, dict[str, Any]] = {
    "Bloom": {"hidden_size": 32} | OLD,
    "Mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "Mixtral": {"num_local_experts": 4} | GROUPED,
    "Qwen3Moe": EXPERTS,
    "OPT": {"ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.2} | ALIKE,
    "Phi": WIDE,
    "GPT2": {"n_embd": 32} | OLD,
    "Falcon": {"initializer_range": 0.2} | ALIKE,
    "Granite": {"logits_scaling": 2.0} | GROUPED,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("others")
    return lambda family: make_other(family, FAMILIES[family], root / family)


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("Bloom", "BloomForCausalLM.*rows of several lengths cannot be read as one batch"),
        ("Mamba", "MambaForCausalLM.*it keeps more than keys and values"),
        ("Granite", "GraniteForCausalLM.*logits are not its head applied to the last hidden state"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_load(folder, family: str, why: str) -> None:
    with pytest.raises(SubloraError, match=why):
        load_base(str(folder(family)))


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("Mixtral", "its layer MixtralTopKRouter gives more than one output"),
        ("Qwen3Moe", "its layer Qwen3MoeTopKRouter gives more than one output"),
        ("OPT", "its layer OPTLearnedPositionalEmbedding takes more than one input"),
    ],
)
def test_a_full_fine_tune_that_cannot_be_packed_is_refused_before_any_work(
    folder, family: str, why: str
) -> None:
    with pytest.raises(SubloraError, match=f"{why}.*drop train.full"):
        check_full(load_base(str(folder(family))))


@pytest.mark.parametrize(
    ("family", "why"),
    [("GPT2", "no plain linear layer.*Conv1D"), ("Falcon", "is a FalconLinear, which computes")],
)
def test_a_model_without_plain_layers_gets_no_adapter(folder, family: str, why: str) -> None:
    with pytest.raises(SubloraError, match=why):
        target_linears(load_base(str(folder(family))).model, ("all-linear",))


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"Mamba"}))
def test_a_plan_knows_the_shape(folder, family: str) -> None:
    shape = known_shape(str(folder(family)))
    assert (shape.hidden, shape.layers, shape.heads) == (32, 2, 4)


@pytest.mark.parametrize("family", ["Phi", "OPT", "Mixtral"])
def test_adapters_train_as_in_peft(folder, family: str) -> None:
    model = load_base(str(folder(family))).model
    only = ("q_proj", "v_proj") if family == "Mixtral" else ("all-linear",)
    one = case("one", targets=only)
    weights, losses = peft_loop(model, one)
    found = train(model, [one, case("other", data=1, rank=2, targets=only)])["one"]
    assert distance(found["weights"], weights) < 1e-3
    assert found["losses"] == pytest.approx(losses, rel=1e-4)


def test_a_head_with_a_bias_trains_and_is_measured(folder) -> None:
    base = load_base(str(folder("Phi")))
    check_full(base)
    one = case("full", method="full", lr=1e-3)
    weights, found = full_loop(base.model, one)[0], train(base.model, [one])["full"]["weights"]
    # no loss depends on what is added to all keys, so rounding alone moves it
    keys = [name for name in weights if name.endswith("k_proj.bias")]
    assert len([(found.pop(key), weights.pop(key)) for key in keys]) == 2
    assert distance(found, weights) < 1e-3
    # a loss of the base itself, whose parameters may carry gradients
    batch = assemble([one.student.rows], [np.arange(4)])
    bias = base.model.lm_head.bias
    with PackedModel(base.model, None) as packed:
        packed.losses(batch).sum().backward()
    assert bias.grad.shape == bias.shape and torch.isfinite(bias.grad).all()
