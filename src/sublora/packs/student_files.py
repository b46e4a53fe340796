"""A student's folder: a peft adapter, or all weights with the model's config."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sublora.errors import SubloraError
from sublora.packs.spec import StudentSpec
from sublora.packs.stack import Group, Stack, master_dtype, slots_of, stack_weights

PEFT_PREFIX = "base_model.model."


def save_student(
    group: Group, row: int, spec: StudentSpec, folder: Path, model: nn.Module, base_name: str
) -> None:
    """Write one student of a group into a folder."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in group.tensors(row).items()}
    if spec.method == "full":
        # kept in the master dtype: rounding to a bf16 base would lose what was trained
        dtype = master_dtype(model)
        whole = {name: t.to(dtype) for name, t in tensors.items()}
        save_file(whole, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(model.config.to_json_string(), encoding="utf-8")
        return
    named = {f"{PEFT_PREFIX}{name}.weight": tensor for name, tensor in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_name}
    config |= {"r": spec.rank, "lora_alpha": spec.alpha_value, "use_rslora": spec.alpha == "rslora"}
    targets = _peft_targets({s.name.rsplit(".", 1)[0] for s in group.slots}, model)
    config |= {"target_modules": targets, "modules_to_save": None, "lora_dropout": 0.0}
    config |= {"bias": "none", "use_dora": False, "fan_in_fan_out": False}
    config |= {"init_lora_weights": True, "inference_mode": True}
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")


def _peft_targets(modules: set[str], model: nn.Module) -> list[str]:
    """Names by which peft finds exactly these layers: their short names, or the full ones where others share a short name."""
    short = {m.rsplit(".", 1)[-1] for m in modules}
    linears = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    found = {n for n in linears if n.rsplit(".", 1)[-1] in short}
    return sorted(short if found == modules else modules)


def load_stack(model: nn.Module, folders: Sequence[Path], specs: Sequence[StudentSpec]) -> Stack:
    """Students from their folders, for measuring. Raises SubloraError where a file does not fit the base."""
    weights = [_load_flat(model, f, s) for f, s in zip(folders, specs, strict=True)]
    return stack_weights(model, weights, specs)


def _load_flat(model: nn.Module, folder: Path, spec: StudentSpec) -> torch.Tensor:
    full = spec.method == "full"
    file = folder / ("model.safetensors" if full else "adapter_model.safetensors")
    slots = {s.name: s.shape for s in slots_of(model, spec)}
    shapes = slots if full else {f"{PEFT_PREFIX}{n}.weight": shape for n, shape in slots.items()}
    tensors = load_file(file)
    if {name: tuple(t.shape) for name, t in tensors.items()} != shapes:
        why = f"The weights in {file} do not fit the base model; they belong to another one."
        raise SubloraError(why)
    return torch.cat([tensors[name].to(master_dtype(model)).reshape(-1) for name in shapes])
