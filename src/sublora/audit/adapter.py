"""An adapter or full weights from elsewhere, read as what they are: untrusted input.

Only JSON and safetensors are opened; nothing of a folder is imported, unpickled or run, and no pattern of a config is used as a regular
expression. Shapes are compared with the base before a tensor is read.
"""

import hashlib
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sublora.errors import SubloraError
from sublora.model import Base
from sublora.train.spec import StudentSpec
from sublora.train.stack import (
    PEFT_PREFIX,
    full_slots,
    lora_slots,
    master_dtype,
    padded,
    target_linears,
)

MOST_CONFIG = 1 << 20  # bytes of an adapter_config.json
MOST_HEADER = 16 << 20  # bytes of a safetensors header
MOST_RANK = 1 << 16
MOST_NORM = 1e5  # of one layer's update; above it no answer is left to be measured
FLOATS = ("F64", "F32", "F16", "BF16")
# Settings of peft under which the tensors alone do not say what the adapter does.
REFUSED = {
    "use_dora": "is a DoRA adapter, whose update depends on the base's weights; merge it into the base and audit the full weights",
    "layer_replication": "repeats layers of the base; merge it and audit the full weights",
    "alora_invocation_tokens": "acts on some tokens only (activated LoRA), which the audit cannot follow; train a plain LoRA",
    "use_qalora": "is a QA-LoRA adapter, which the audit does not read; merge it and audit the full weights",
    "fan_in_fan_out": "is made for transposed layers, which the audit does not read; merge it and audit the full weights",
    "target_parameters": "trains bare parameters beside layers; merge it and audit the full weights",
    "trainable_token_indices": "trains embeddings of single tokens; merge it and audit the full weights",
    "modules_to_save": "trains whole modules beside the adapter; merge it and audit the full weights",
    "lora_bias": "trains biases; merge it and audit the full weights",
}
CHANGES_BASE = ("pissa", "olora", "corda", "loftq")


@dataclass(frozen=True)
class Audited:
    """A student from elsewhere. `spec` and `weights` make it a student of a stack: one rank for all layers, and the scales of the layers
    in their B, so that alpha = rank. `rank`, `alpha`, `rslora` and `targets` are the adapter's own, for placebo students."""

    path: str
    sha256: str
    spec: StudentSpec
    weights: torch.Tensor
    rank: int | None
    alpha: float | None
    rslora: bool
    targets: tuple[str, ...]
    base_named: str | None

    @property
    def described(self) -> str:
        if self.rank is None:
            return "full weights"
        rule = ", rsLoRA" if self.rslora else ""
        return (
            f"LoRA of rank {self.rank}, alpha {self.alpha:g}{rule}, on {len(self.targets)} layers"
        )

    def to_dict(self) -> dict[str, Any]:
        """As audit.json names a student."""
        return {
            "path": self.path,
            "sha256": self.sha256,
            "kind": self.described,
            "base_named": self.base_named,
            "layers": list(self.targets),
        }


def load_audited(base: Base, folder: Path, *, any_base: bool = False) -> Audited:
    """A peft adapter folder or a folder of full weights, checked against the base.

    Raises SubloraError: no such folder, pickled weights, a broken or oversized file, a kind of adapter that cannot be read, names or shapes
    that the base has not, values that are not finite, another base (`any_base` skips the comparison of names).
    """
    if not folder.is_dir():
        raise SubloraError(
            f"There is no folder {folder}; give the folder of an adapter or of full weights."
        )
    if (folder / "adapter_config.json").is_file():
        return _load_lora(base, folder, any_base)
    if any(folder.glob("*.safetensors")):
        if (folder / "adapter_model.safetensors").is_file():
            raise SubloraError(
                f"The folder {folder} has an adapter_model.safetensors without an adapter_config.json; save both."
            )
        return _load_full(base, folder)
    raise SubloraError(_nothing_to_read(folder))


def _nothing_to_read(folder: Path) -> str:
    pickles = sorted(
        p.name
        for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
        for p in folder.glob(pattern)
    )
    if pickles:
        return f"The weights of {folder} are pickled ({pickles[0]}), which can run code and is never opened; save them as safetensors."
    return f"The folder {folder} has neither an adapter nor weights as safetensors; give what save_pretrained wrote."


def _read_config(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MOST_CONFIG:
        raise SubloraError(
            f"The file {path} is larger than {MOST_CONFIG} bytes, so it is no adapter's config."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SubloraError(
            f"The file {path} is not readable JSON ({type(error).__name__}); save the adapter again."
        ) from None
    if not isinstance(config, dict):
        raise SubloraError(f"The file {path} holds no JSON object; save the adapter again.")
    return config


def _check_config(config: Mapping[str, Any], where: Path) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise SubloraError(f"The adapter {where} is of the type {_shown(kind)}; only LORA is read.")
    for key, why in REFUSED.items():
        if config.get(key):
            raise SubloraError(f"The adapter {where} {why}.")
    if config.get("bias", "none") not in ("none", None):
        raise SubloraError(
            f"The adapter {where} trains biases; merge it and audit the full weights."
        )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        raise SubloraError(
            f"The adapter {where} was started with {_shown(start)}, which changes the base's weights; merge it and audit the full weights."
        )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _number(value: Any, what: str, where: Path) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6
    if not good or not value > 0:
        raise SubloraError(
            f"The {what} of the adapter {where} is {_shown(value)}; a positive number below 1e6 is needed."
        )
    return float(value)


def _rank(value: Any, where: Path) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST_RANK:
        raise SubloraError(
            f"The rank r of the adapter {where} is {_shown(value)}; a whole number from 1 to {MOST_RANK} is needed."
        )
    return value


def _same_base(named: Any, base: Base) -> bool:
    """Whether a config's base and the given one have the same last name: folders differ between machines."""
    if not isinstance(named, str) or not named.strip():
        return True

    def last(text: str) -> str:
        return text.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].lower()

    return last(named) == last(base.name)


def _pattern(config: Mapping[str, Any], key: str, where: Path) -> dict[str, Any]:
    found = config.get(key) or {}
    if not isinstance(found, dict) or len(found) > 10_000:
        raise SubloraError(
            f"The {key} of the adapter {where} is no list of layers; save the adapter again."
        )
    for name in found:
        if not all(ch.isalnum() or ch in "._-" for ch in name):
            raise SubloraError(
                f"The {key} of the adapter {where} has the pattern {_shown(name)}; only names of layers are read."
            )
    return found


def _of_layer(pattern: Mapping[str, Any], layer: str, otherwise: Any) -> Any:
    return next(
        (v for name, v in pattern.items() if layer == name or layer.endswith("." + name)), otherwise
    )


def _open(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Names, types and shapes of a file's tensors. Raises SubloraError where it is no proper safetensors file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
        if len(start) < 8 or struct.unpack("<Q", start)[0] > min(MOST_HEADER, size):
            raise SubloraError(
                f"The file {path} is no safetensors file, or it is cut off; save the weights again."
            )
        with safe_open(path, "pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()
            }
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise SubloraError(
            f"The file {path} is no sound safetensors file ({_line(error)}); save the weights again."
        ) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _tensor(file: Any, name: str, where: Path, dtype: torch.dtype) -> torch.Tensor:
    tensor = file.get_tensor(name).to(dtype)
    if not bool(torch.isfinite(tensor).all()):
        raise SubloraError(
            f"The tensor {_shown(name)} of {where} has values that are not finite, as after a training that diverged; train again."
        )
    return tensor


def _sha256(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _load_lora(base: Base, folder: Path, any_base: bool) -> Audited:
    config = _read_config(folder / "adapter_config.json")
    _check_config(config, folder)
    named = config.get("base_model_name_or_path")
    if not any_base and not _same_base(named, base):
        raise SubloraError(
            f"The adapter {folder} was trained on {_shown(named)}, not on {base.name}; give that base, or --any-base if it is the same "
            "model under another name."
        )
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        raise SubloraError(_nothing_to_read(folder))
    found = _open(path)
    layers = _lora_layers(found, base, folder)
    ranks, scales = {}, {}
    rank, alpha = (
        _rank(config.get("r"), folder),
        _number(config.get("lora_alpha"), "lora_alpha", folder),
    )
    rslora = bool(config.get("use_rslora"))
    rank_pattern, alpha_pattern = (
        _pattern(config, "rank_pattern", folder),
        _pattern(config, "alpha_pattern", folder),
    )
    for layer in layers:
        ranks[layer] = _rank(_of_layer(rank_pattern, layer, rank), folder)
        own_alpha = _number(_of_layer(alpha_pattern, layer, alpha), "alpha_pattern", folder)
        scales[layer] = own_alpha / (math.sqrt(ranks[layer]) if rslora else ranks[layer])
    linears = target_linears(base.model, tuple(layers))
    for layer, module in linears.items():
        r = ranks[layer]
        if r > min(module.in_features, module.out_features):
            raise SubloraError(
                f"The rank {r} of the adapter {folder} is above the width {min(module.in_features, module.out_features)} of {layer}; "
                "merge it and audit the full weights."
            )
        for part, shape in (
            ("lora_A", (r, module.in_features)),
            ("lora_B", (module.out_features, r)),
        ):
            _, has = found[f"{PEFT_PREFIX}{layer}.{part}.weight"]
            if has != shape:
                raise SubloraError(
                    f"The tensor {part} of {layer} in {folder} has the shape {has}, {shape} is needed for r = {r} on {base.name}; it belongs "
                    "to another base or config."
                )
    dtype, most = master_dtype(base.model), max(ranks.values())
    narrow = min(min(m.in_features, m.out_features) for m in linears.values())
    if most > narrow:
        raise SubloraError(
            f"The ranks of the adapter {folder} go up to {most}, above the width {narrow} of its narrowest layer; merge it and audit the "
            "full weights."
        )
    slots = lora_slots(linears, most)
    parts = []
    with safe_open(path, "pt") as file:
        for slot in slots:
            layer, part = slot.name.rsplit(".", 1)
            tensor = _tensor(file, f"{PEFT_PREFIX}{slot.name}.weight", path, dtype)
            whole = torch.zeros(slot.shape, dtype=dtype)
            if part == "lora_A":
                whole[: ranks[layer]] = tensor
            else:
                whole[:, : ranks[layer]] = tensor * scales[layer]
            parts.append(whole)
    own = dict(zip((s.name for s in slots), parts, strict=True))
    for layer in layers:
        norm = float((own[f"{layer}.lora_B"] @ own[f"{layer}.lora_A"]).norm())
        if not norm < MOST_NORM:
            raise SubloraError(
                f"The update of {layer} in {folder} has the norm {norm:.3g}, which no training gives; train again."
            )
    spec = StudentSpec(rank=most, alpha=float(most), targets=tuple(linears))
    weights = padded(torch.cat([p.reshape(-1) for p in parts]), None, slots)
    base_named = named if isinstance(named, str) else None
    return Audited(
        str(folder),
        _sha256([folder / "adapter_config.json", path]),
        spec,
        weights,
        rank,
        alpha,
        rslora,
        tuple(linears),
        base_named,
    )


def _lora_layers(
    found: Mapping[str, tuple[str, tuple[int, ...]]], base: Base, folder: Path
) -> list[str]:
    """The layers that an adapter's tensors belong to, in the model's order."""
    layers: dict[str, set[str]] = {}
    known = {n for n, m in base.model.named_modules() if isinstance(m, torch.nn.Linear)}
    for name, (kind, _) in found.items():
        stem, _, part = name.removesuffix(".weight").rpartition(".")
        layer = stem.removeprefix(PEFT_PREFIX)
        if (
            not name.startswith(PEFT_PREFIX)
            or not name.endswith(".weight")
            or part not in ("lora_A", "lora_B")
        ):
            raise SubloraError(
                f"The tensor {_shown(name)} of {folder} is no part of a plain LoRA adapter; merge it and audit the full weights."
            )
        if layer not in known:
            raise SubloraError(
                f"The adapter {folder} acts on {_shown(layer)}, which {base.name} has not; it belongs to another base."
            )
        if kind not in FLOATS:
            raise SubloraError(
                f"The tensor {_shown(name)} of {folder} has the type {kind}; float weights are needed."
            )
        layers.setdefault(layer, set()).add(part)
    if not layers:
        raise SubloraError(f"The adapter {folder} has no tensors; save it again.")
    for layer, parts in layers.items():
        if len(parts) != 2:
            missing = min({"lora_A", "lora_B"} - parts)
            raise SubloraError(f"The adapter {folder} lacks {missing} of {layer}; save it again.")
    return [n for n, _ in base.model.named_modules() if n in layers]


def _load_full(base: Base, folder: Path) -> Audited:
    files = sorted(folder.glob("*.safetensors"))
    where: dict[str, tuple[Path, str, tuple[int, ...]]] = {}
    for path in files:
        if not path.is_file():
            raise SubloraError(f"{path} is no file; give a folder made by save_pretrained.")
        for name, (kind, shape) in _open(path).items():
            where[name] = (path, kind, shape)
    slots, dtype = full_slots(base.model), master_dtype(base.model)
    tied = {n for n, _ in base.model.named_parameters(remove_duplicate=False)} - {
        s.name for s in slots
    }
    buffers = {n for n, _ in base.model.named_buffers()}
    for name in where:
        if name not in {s.name for s in slots} | tied | buffers:
            raise SubloraError(
                f"The weights {folder} hold {_shown(name)}, which {base.name} has not; they belong to another base."
            )
    parts = []
    for slot in slots:
        if slot.name not in where:
            raise SubloraError(
                f"The weights {folder} lack {slot.name}; give the folder of a whole model."
            )
        path, kind, shape = where[slot.name]
        if shape != slot.shape or kind not in FLOATS:
            raise SubloraError(
                f"The tensor {slot.name} of {folder} is {kind} {shape}, floats of the shape {slot.shape} are needed; it belongs to another base."
            )
        with safe_open(path, "pt") as file:
            parts.append(_tensor(file, slot.name, path, dtype).reshape(-1))
    spec = StudentSpec(method="full", rank=None)
    return Audited(str(folder), _sha256(files), spec, torch.cat(parts), None, None, False, (), None)
