"""The weights of K students side by side: one flat buffer per group of students of equal shape.

A group is (K_g, P): all parameters of each of its students in one row. The tensors that layers use are views into it, and their
gradients are views into a buffer of the same shape, so that clipping and optimizers are a few operations on whole buffers.
Students are ordered by group, so that a group is a slice of the pack: ranks are not padded to the largest.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sublora.errors import SubloraError
from sublora.seeds import derive_seed
from sublora.train.spec import StudentSpec

PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Slot:
    """Where one tensor of a student lies in its group's row."""

    name: str
    start: int
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape)


class Group:
    """Students of one shape: `flat` (K_g, P) float32 (float64 for a float64 model), `grad` alike, `views[name]` (K_g, *shape)."""

    def __init__(self, rank: int | None, slots: Sequence[Slot], flat: torch.Tensor) -> None:
        self.rank, self.slots, self.flat = rank, tuple(slots), flat
        self.grad: torch.Tensor | None = None
        self.views: dict[str, torch.Tensor] = {}
        self._make_views()

    def _make_views(self) -> None:
        count = self.flat.shape[0]
        self.views = {s.name: self.flat[:, s.start : s.stop].view(count, *s.shape) for s in self.slots}

    def train(self) -> None:
        """Make the views leaves whose gradients accumulate into one flat buffer."""
        self.grad = torch.zeros_like(self.flat)
        count = self.flat.shape[0]
        for slot in self.slots:
            leaf = self.views[slot.name].detach().requires_grad_()
            leaf.grad = self.grad[:, slot.start : slot.stop].view(count, *slot.shape)
            self.views[slot.name] = leaf

    def freeze(self) -> None:
        self.grad = None
        self._make_views()


def target_linears(model: nn.Module, targets: Sequence[str]) -> dict[str, nn.Linear]:
    """The linear layers that get an adapter: peft's 'all-linear' (all but the output head), or by the end of their name.

    Raises SubloraError: a name that no layer has, a quantised or otherwise special layer.
    """
    head = model.get_output_embeddings()
    if any(name.rsplit(".", 1)[-1] == "lora_A" for name, _ in model.named_modules()):
        raise SubloraError(
            "The model carries an adapter already; give the plain base model, or merge the adapter and save the result."
        )
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    if tuple(targets) != ("all-linear",):
        for target in targets:
            if not any(n == target or n.endswith("." + target) for n in linears):
                known = ", ".join(sorted({n.rsplit(".", 1)[-1] for n in linears}))
                raise SubloraError(f"The model has no linear layer named '{target}' for an adapter; it has {known}.")
        linears = {n: m for n, m in linears.items() if any(n == t or n.endswith("." + t) for t in targets)}
    for name, module in linears.items():
        if type(module) is not nn.Linear:
            raise SubloraError(
                f"The layer {name} is a {type(module).__name__}, not a plain linear layer, so it cannot be packed; load the model unquantised."
            )
    if not linears:
        raise SubloraError("The model has no plain linear layer that could get an adapter.")
    return linears


def check_rank(rank: int, linears: dict[str, nn.Linear]) -> None:
    """Raises SubloraError where a rank is above the smaller width of a layer."""
    narrow = min(linears, key=lambda n: min(linears[n].in_features, linears[n].out_features))
    width = min(linears[narrow].in_features, linears[narrow].out_features)
    if rank > width:
        raise SubloraError(
            f"Rank {rank} is above the width {width} of {narrow}; choose ranks up to {width} for this model."
        )


def lora_slots(linears: dict[str, nn.Linear], rank: int) -> list[Slot]:
    slots, start = [], 0
    for name, module in linears.items():
        for part, shape in (("lora_A", (rank, module.in_features)), ("lora_B", (module.out_features, rank))):
            slots.append(Slot(f"{name}.{part}", start, shape))
            start = slots[-1].stop
    return slots


def full_slots(model: nn.Module) -> list[Slot]:
    """All trainable tensors; a tied tensor stands once, under its first name."""
    slots, start = [], 0
    for name, parameter in model.named_parameters():
        slots.append(Slot(name, start, tuple(parameter.shape)))
        start = slots[-1].stop
    return slots


def master_dtype(model: nn.Module) -> torch.dtype:
    """Students' own weights: float64 for a float64 model, else float32, so that small updates are not rounded away."""
    return torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32


def _init_lora(slot: Slot, seed: int, dtype: torch.dtype) -> torch.Tensor:
    if slot.name.endswith("lora_B"):
        return torch.zeros(slot.shape, dtype=dtype)
    # peft's default: kaiming uniform with a = sqrt(5), that is U(-1/sqrt(in), 1/sqrt(in))
    bound = 1.0 / math.sqrt(slot.shape[1])
    random = torch.Generator().manual_seed(derive_seed("lora-init", seed, slot.name))
    return torch.empty(slot.shape, dtype=torch.float32).uniform_(-bound, bound, generator=random).to(dtype)


class Stack:
    """K students over one base. `order[i]` is the place, in the caller's list, of the pack's i-th student."""

    def __init__(
        self, kind: str, groups: list[Group], scales: torch.Tensor, order: list[int], linears: dict[str, nn.Linear]
    ) -> None:
        self.kind, self.groups, self.scales, self.order, self.linears = kind, groups, scales, order, linears
        self.size = sum(g.flat.shape[0] for g in groups)

    def slices(self) -> list[slice]:
        out, start = [], 0
        for group in self.groups:
            out.append(slice(start, start + group.flat.shape[0]))
            start = out[-1].stop
        return out

    def student_rows(self) -> list[tuple[Group, int]]:
        return [(group, i) for group in self.groups for i in range(group.flat.shape[0])]


def new_stack(model: nn.Module, specs: Sequence[StudentSpec]) -> Stack:
    """Fresh students. LoRA students of any ranks may share a stack; full fine-tunes have stacks of their own.

    Raises SubloraError: rank above a layer's width, unknown target layer.
    """
    device, dtype = next(model.parameters()).device, master_dtype(model)
    methods = {s.method for s in specs}
    if len(methods) > 1:
        raise SubloraError(
            "LoRA students and full fine-tunes cannot train in one pack; put them into packs of their own."
        )
    if methods == {"full"}:
        if len({s.optimizer for s in specs}) > 1:
            raise SubloraError(
                "Full fine-tunes with different optimizers cannot train in one pack; put them into packs of their own."
            )
        slots = full_slots(model)
        row = torch.cat([p.detach().reshape(-1).to(dtype) for p in model.parameters()])
        flat = row.expand(len(specs), -1).clone()
        return Stack("full", [Group(None, slots, flat)], torch.ones(len(specs)), list(range(len(specs))), {})
    if len({s.targets for s in specs}) > 1:
        raise SubloraError(
            "Students with adapters on different layers cannot train in one pack; put them into packs of their own."
        )
    linears = target_linears(model, specs[0].targets)
    kind = [(s.rank, s.optimizer) for s in specs]  # a group has one shape and one optimizer
    order = sorted(range(len(specs)), key=lambda i: (*kind[i], i))
    groups = []
    for rank, optimizer in sorted(set(kind)):
        check_rank(rank, linears)
        slots = lora_slots(linears, rank)
        members = [i for i in order if kind[i] == (rank, optimizer)]
        rows = [torch.cat([_init_lora(slot, specs[i].seed, dtype).reshape(-1) for slot in slots]) for i in members]
        groups.append(Group(rank, slots, torch.stack(rows).to(device)))
    scales = torch.tensor([specs[i].scale for i in order], dtype=dtype, device=device)
    return Stack("lora", groups, scales, order, linears)


def _peft_targets(modules: Sequence[str], model: nn.Module) -> list[str]:
    """Names by which peft finds exactly these layers: their short names, or the full ones where others share a short name."""
    short = {m.rsplit(".", 1)[-1] for m in modules}
    also = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.rsplit(".", 1)[-1] in short]
    return sorted(short if set(also) == set(modules) else modules)


def save_student(group: Group, row: int, spec: StudentSpec, folder: Path, model: nn.Module, base_name: str) -> None:
    """Write one student: a peft adapter folder, or `model.safetensors` of all weights with the model's config."""
    tensors = {s.name: group.flat[row, s.start : s.stop].view(s.shape).detach().cpu().contiguous() for s in group.slots}
    if spec.method == "full":
        dtype = next(model.parameters()).dtype
        # kept in the master dtype: rounding to a bf16 base would lose what was trained
        save_file(
            {k: v if dtype == torch.float64 else v.float() for k, v in tensors.items()},
            folder / "model.safetensors",
            {"format": "pt"},
        )
        (folder / "config.json").write_text(model.config.to_json_string(), encoding="utf-8")
        return
    names = {}
    for name, tensor in tensors.items():
        names[f"{PEFT_PREFIX}{name}.weight"] = tensor
    save_file(names, folder / "adapter_model.safetensors", {"format": "pt"})
    modules = sorted({s.name.rsplit(".", 1)[0] for s in group.slots})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": spec.rank,
        "lora_alpha": spec.alpha_value,
        "use_rslora": spec.alpha == "rslora",
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": _peft_targets(modules, model),
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def stack_weights(model: nn.Module, weights: Sequence[torch.Tensor], specs: Sequence[StudentSpec]) -> Stack:
    """A stack of students from their flat weights (`Trained.weights`), for measuring; all of one method and the same layers."""
    device, dtype = next(model.parameters()).device, master_dtype(model)
    full = specs[0].method == "full"
    linears = {} if full else target_linears(model, specs[0].targets)
    order = list(range(len(specs))) if full else sorted(range(len(specs)), key=lambda i: (specs[i].rank, i))
    groups = []
    for rank in dict.fromkeys(specs[i].rank for i in order):
        slots = full_slots(model) if full else lora_slots(linears, rank)
        groups.append(
            Group(rank, slots, torch.stack([weights[i] for i in order if specs[i].rank == rank]).to(device, dtype))
        )
    scales = torch.tensor([1.0 if full else specs[i].scale for i in order], dtype=dtype, device=device)
    return Stack("full" if full else "lora", groups, scales, order, linears)


def load_stack(model: nn.Module, folders: Sequence[Path], specs: Sequence[StudentSpec]) -> Stack:
    """Students from their folders, for measuring. Raises SubloraError where a file does not fit the base."""
    return stack_weights(model, [_load_flat(model, f, s) for f, s in zip(folders, specs, strict=True)], specs)


def _load_flat(model: nn.Module, folder: Path, spec: StudentSpec) -> torch.Tensor:
    full = spec.method == "full"
    slots = full_slots(model) if full else lora_slots(target_linears(model, spec.targets), spec.rank)
    file = folder / ("model.safetensors" if full else "adapter_model.safetensors")
    tensors = load_file(file)
    keys = [s.name if full else f"{PEFT_PREFIX}{s.name}.weight" for s in slots]
    if set(keys) != set(tensors) or any(tuple(tensors[k].shape) != s.shape for k, s in zip(keys, slots, strict=True)):
        raise SubloraError(f"The weights in {file} do not fit the base model; they belong to another one.")
    return torch.cat([tensors[k].to(master_dtype(model)).reshape(-1) for k in keys])
