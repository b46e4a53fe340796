"""With which weights an adapter starts: whatever it is, the student begins as the base, and trains as peft does."""

import pytest
import torch

from pack_reference import base_model
from sublora.packs.inits import INITS
from sublora.packs.spec import StudentSpec
from sublora.packs.stack import new_stack

SPECS = [StudentSpec(rank=rank, seed=3, init=init) for init in INITS for rank in (2, 4)]


def test_every_student_begins_as_the_base_with_an_adapter_that_can_learn():
    stack = new_stack(base_model("qwen2"), SPECS)
    for group, row in stack.student_rows():
        own = group.tensors(row)
        for name in {n.rsplit(".", 1)[0] for n in own}:
            a, b = own[f"{name}.lora_A"], own[f"{name}.lora_B"]
            assert (b @ a).abs().max() < 1e-6 and a.abs().max() > 0


def test_an_orthogonal_adapter_starts_with_both_sides_and_needs_an_even_rank():
    model = base_model("qwen2")
    (group, row), *_ = new_stack(model, [StudentSpec(rank=4, init="orthogonal")]).student_rows()
    assert all(t.abs().max() > 0 for t in group.tensors(row).values())
    with pytest.raises(ValueError, match="even"):
        StudentSpec(rank=3, init="orthogonal")


def test_a_principal_adapter_reads_what_the_layer_amplifies_most():
    model = base_model("qwen2")
    stack = new_stack(model, [StudentSpec(rank=2, init="principal")])
    (group, row), *_ = stack.student_rows()
    for name, module in stack.linears.items():
        a, weight = group.tensors(row)[f"{name}.lora_A"], module.weight.to(torch.float64)
        gains = (weight @ a.to(weight).T).norm(dim=0) * 3**0.5
        assert torch.allclose(gains, torch.linalg.svdvals(weight)[:2], atol=1e-5)


def test_the_default_is_not_written_so_that_older_ids_stay():
    assert "init" not in StudentSpec().model_dump(mode="json")
    assert StudentSpec(init="principal").model_dump(mode="json")["init"] == "principal"
