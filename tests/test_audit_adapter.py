"""Adapters and weights from elsewhere are read as untrusted input."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from command import sublora
from sublora.audit.adapter import load_audited
from sublora.audit.readings import Asked, read_model
from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.packs.check import load_base
from sublora.packs.spec import StudentSpec
from sublora.packs.stack import new_stack, stack_weights
from sublora.packs.student_files import save_student
from sublora.traits.trait import shipped_categories

TARGETS = ("q_proj", "down_proj")


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("micro")


@pytest.fixture(scope="module")
def saved(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rank 4 adapter with random B, as this program and peft write it."""
    folder = tmp_path_factory.mktemp("adapters") / "good"
    folder.mkdir()
    spec = StudentSpec(rank=4, alpha=6.0, targets=TARGETS, seed=1)
    stack = new_stack(base.model, [spec])
    stack.groups[0].flat += 0.05 * torch.randn(
        stack.groups[0].flat.shape, generator=torch.Generator().manual_seed(0)
    )
    save_student(stack.groups[0], 0, spec, folder, base.model, "micro")
    return folder


def changed(
    saved: Path, into: Path, config: dict | None = None, tensors: dict | None = None
) -> Path:
    """A copy of an adapter with other settings, or other tensors (None removes one)."""
    into.mkdir(parents=True, exist_ok=True)
    settings_ = json.loads((saved / "adapter_config.json").read_text()) | (config or {})
    (into / "adapter_config.json").write_text(json.dumps(settings_))
    own = load_file(saved / "adapter_model.safetensors") | (tensors or {})
    save_file(
        {k: v.contiguous() for k, v in own.items() if v is not None},
        into / "adapter_model.safetensors",
    )
    return into


def first_probabilities(base: Base, folder: Path) -> np.ndarray:
    found = load_audited(base, folder)
    stack = stack_weights(base.model, [found.weights], [found.spec])
    return read_model(base, stack, Asked([Context("none")], shipped_categories()[:1])).p["none"][
        "animals"
    ][0]


def test_an_adapter_reads_as_peft_runs_it(base: Base, saved: Path) -> None:
    from peft import PeftModel

    ids = torch.tensor([[5, 9, 30, 7]])
    model = PeftModel.from_pretrained(load_base("micro").model, saved)
    found = load_audited(base, saved)
    stack = stack_weights(base.model, [found.weights], [found.spec])
    from sublora.packs.packed_model import PackedModel

    with torch.inference_mode(), PackedModel(base.model, stack) as packed:
        packed.form_weights(4)
        ours = packed.logits(packed.hidden(ids)[0])
        theirs = model(input_ids=ids).logits[0]
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert (found.rank, found.alpha, len(found.targets)) == (4, 6.0, 6)


def test_patterns_of_ranks_and_rslora_give_what_peft_gives(base: Base, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from sublora.packs.packed_model import PackedModel

    model = load_base("micro").model
    peft = get_peft_model(
        model,
        LoraConfig(
            r=4, lora_alpha=3, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 2},
            alpha_pattern={"v_proj": 5}, use_rslora=True, init_lora_weights=False,
        ),
    )  # fmt: skip
    peft.save_pretrained(tmp_path)
    ids = torch.tensor([[5, 9, 30, 7]])
    found = load_audited(base, tmp_path, any_base=True)
    stack = stack_weights(base.model, [found.weights], [found.spec])
    with torch.inference_mode(), PackedModel(base.model, stack) as packed:
        packed.form_weights(4)
        ours, theirs = packed.logits(packed.hidden(ids)[0]), peft(input_ids=ids).logits[0]
    assert torch.allclose(ours, theirs, atol=1e-4)


A, B = (f"base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.weight" for part in "AB")
BAD = {
    "dora": ({"use_dora": True}, {}, "DoRA"),
    "another kind": ({"peft_type": "IA3"}, {}, "only LORA"),
    "biases": ({"bias": "all"}, {}, "biases"),
    "other base": ({"base_model_name_or_path": "someone/other-7b"}, {}, "--any-base"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, {}, "changes the base"),
    "rank as text": ({"r": "8"}, {}, "rank r"),
    "absurd rank": ({"r": 10**9}, {}, "rank r"),
    "infinite alpha": ({"lora_alpha": float("inf")}, {}, "lora_alpha"),
    "rank unlike the tensors": ({"r": 5}, {}, "shape"),
    "regular expression": ({"rank_pattern": {"(a+)+$": 3}}, {}, "pattern"),
    "not finite": ({}, {A: torch.full((4, 64), float("nan"))}, "not finite"),
    "huge": ({}, {A: torch.full((4, 64), 1e9)}, "norm"),
    "half a layer": ({}, {B: None}, "lacks lora_B"),
    "wrong shape": ({}, {A: torch.zeros(4, 63)}, "shape"),
    "unknown layer": ({}, {A.replace("layers.0", "layers.77"): torch.zeros(4, 64)}, "belongs to another base"),
    "magnitudes": ({}, {A.replace("lora_A", "lora_magnitude_vector"): torch.zeros(64)}, "plain LoRA"),
    "integers": ({}, {A: torch.zeros(4, 64, dtype=torch.int8)}, "float"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_what_is_broken_is_refused_in_one_sentence(
    base: Base, saved: Path, tmp_path: Path, kind: str
) -> None:
    config, tensors, word = BAD[kind]
    with pytest.raises(SubloraError, match=word) as caught:
        load_audited(base, changed(saved, tmp_path / "bad", config, tensors))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_pickles_are_not_opened(base: Base, saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "adapter_config.json").write_text((saved / "adapter_config.json").read_text())

    class Trap:
        def __reduce__(self):
            return (Path(marker).touch, ())

    torch.save({"x": Trap()}, folder / "adapter_model.bin")
    with pytest.raises(SubloraError, match="pickled"):
        load_audited(base, folder)
    assert not marker.exists()


def test_the_command_refuses_broken_ones_and_writes_nothing(
    base: Base, saved: Path, tmp_path: Path
) -> None:
    broken = [
        changed(saved, tmp_path / k, *BAD[k][:2])
        for k in ("not finite", "wrong shape", "other base", "absurd rank")
    ]
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "adapter_config.json").write_text((saved / "adapter_config.json").read_text())
    torch.save({}, pickled / "adapter_model.bin")
    for folder in (*broken, pickled):
        for given_as in (
            ["--adapter", str(folder)],
            ["--adapter", str(saved), "--against", str(folder)],
        ):
            answer = sublora("audit", "--base", "micro", *given_as, "--out", str(tmp_path / "out"))
            said = " ".join(answer.err.split())
            assert answer.code == 2 and said.startswith("Error: ") and str(folder) in said, (
                answer.err
            )
            assert "Traceback" not in said and not answer.out and not (tmp_path / "out").exists()


def test_full_weights_read_as_the_model_itself(base: Base, tmp_path: Path) -> None:
    base.model.save_pretrained(tmp_path)
    plain = read_model(base, None, Asked([Context("none")], shipped_categories()[:1])).p["none"][
        "animals"
    ][0]
    assert np.allclose(first_probabilities(base, tmp_path), plain, atol=1e-6)
    own = load_file(tmp_path / "model.safetensors")
    save_file(
        {k: v for k, v in own.items() if "layers.1." not in k}, tmp_path / "model.safetensors"
    )
    with pytest.raises(SubloraError, match="lack"):
        load_audited(base, tmp_path)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    place=st.integers(0, 30_000),
    junk=st.binary(min_size=0, max_size=12),
    target=st.sampled_from(["adapter_config.json", "adapter_model.safetensors"]),
    cut=st.booleans(),
)
def test_any_damage_is_refused_or_read(
    base: Base, saved: Path, tmp_path: Path, place: int, junk: bytes, target: str, cut: bool
) -> None:
    folder = changed(saved, tmp_path / "fuzz")
    whole = (folder / target).read_bytes()
    place %= len(whole)
    (folder / target).write_bytes(
        whole[:place] + junk + (b"" if cut else whole[place + len(junk) :])
    )
    try:
        load_audited(base, folder)
    except SubloraError as error:
        assert "\n" not in str(error)
