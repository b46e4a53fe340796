"""An adapter or full weights from elsewhere, read as what they are: untrusted input.

Only JSON and safetensors are opened; nothing of a folder is imported, unpickled or run, and no pattern of a config is used as a
regular expression. Shapes are compared with the base before a tensor is read.
"""

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import nn

from sublora.audit.entries import StudentEntry
from sublora.errors import SubloraError, plain, require_none
from sublora.models.base import Base
from sublora.packs.spec import StudentSpec
from sublora.packs.stack import full_slots, lora_slots, master_dtype, padded, target_linears
from sublora.packs.student_files import PEFT_PREFIX

MOST_CONFIG = 1 << 20  # bytes of an adapter_config.json
MOST_HEADER = 16 << 20  # bytes of a safetensors header
MOST_RANK = 1 << 16
MOST_NORM = 1e5  # of one layer's update; above it no answer is left to be measured
PARTS = {"lora_A", "lora_B"}
FLOATS = ("F64", "F32", "F16", "BF16")
MERGE = "merge it and audit the full weights"
OTHER_BASE = "belongs to another base"
AGAIN = "save the adapter again"
# Settings of peft under which the tensors alone do not say what the adapter does.
REFUSED = {
    "use_dora": "is a DoRA adapter, whose update depends on the base's weights; merge it into the base and audit the full weights",
    "layer_replication": f"repeats layers of the base; {MERGE}",
    "alora_invocation_tokens": "acts on some tokens only (activated LoRA), which the audit cannot follow; train a plain LoRA",
    "use_qalora": f"is a QA-LoRA adapter, which the audit does not read; {MERGE}",
    "fan_in_fan_out": f"is made for transposed layers, which the audit does not read; {MERGE}",
    "target_parameters": f"trains bare parameters beside layers; {MERGE}",
    "trainable_token_indices": f"trains embeddings of single tokens; {MERGE}",
    "modules_to_save": f"trains whole modules beside the adapter; {MERGE}",
    "lora_bias": f"trains biases; {MERGE}",
}
CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
Tensors = Mapping[str, tuple[str, tuple[int, ...]]]  # type and shape by name


@dataclass(frozen=True)
class Audited:
    """A student from elsewhere. `spec` and `weights` make it a student of a stack: one rank for all
    layers, and the scales of the layers in their B, so that alpha = rank. `rank`, `alpha`, `rslora`
    and `targets` are the adapter's own, for placebo students."""

    path: str
    sha256: str
    spec: StudentSpec
    weights: torch.Tensor
    rank: int | None = None
    alpha: float | None = None
    rslora: bool = False
    targets: tuple[str, ...] = ()
    base_named: str | None = None

    @property
    def described(self) -> str:
        if self.rank is None:
            return "full weights"
        rule = ", rsLoRA" if self.rslora else ""
        return (
            f"LoRA of rank {self.rank}, alpha {self.alpha:g}{rule}, on {len(self.targets)} layers"
        )

    @property
    def entry(self) -> StudentEntry:
        return StudentEntry(
            path=self.path,
            sha256=self.sha256,
            kind=self.described,
            base_named=self.base_named,
            layers=list(self.targets),
        )


def load_audited(base: Base, folder: Path, *, any_base: bool = False) -> Audited:
    """A peft adapter folder or a folder of full weights, checked against the base.

    Raises SubloraError: no such folder, pickled weights, a broken or oversized file, a kind of
    adapter that cannot be read, names or shapes that the base does not have, values that are not
    finite, another base (`any_base` skips the comparison of names).
    """
    adapter = (folder / "adapter_config.json").is_file()
    require_none(_folder_faults(folder, adapter))
    return _load_lora(base, folder, any_base) if adapter else _load_full(base, folder)


def _folder_faults(folder: Path, adapter: bool) -> Iterator[str]:
    if not folder.is_dir():
        yield f"There is no folder {folder}; give the folder of an adapter or of full weights."
    weights = (folder / "adapter_model.safetensors").is_file()
    if not (weights if adapter else any(folder.glob("*.safetensors"))):
        for pickle in sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES):
            yield f"The weights of {folder} are pickled ({pickle}), which can run code and is never opened; save them as safetensors."
        yield f"The folder {folder} has neither an adapter nor weights as safetensors; give what save_pretrained wrote."
    if weights and not adapter:
        yield f"The folder {folder} has an adapter_model.safetensors without an adapter_config.json; save both."


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


Rank = Annotated[int, Field(strict=True, ge=1, le=MOST_RANK)]
Alpha = Annotated[float, Field(strict=True, gt=0, lt=1e6)]
Layer = Annotated[str, Field(pattern=r"^[\w.-]*$")]  # a name; a regular expression is not run
Some = BeforeValidator(lambda given: given or {})


class _Config(BaseModel):
    """What an adapter_config.json says of scales."""

    r: Rank
    lora_alpha: Alpha
    use_rslora: Annotated[bool, BeforeValidator(bool)] = False
    rank_pattern: Annotated[dict[Layer, Rank], Some, Field(max_length=10_000)] = {}
    alpha_pattern: Annotated[dict[Layer, Alpha], Some, Field(max_length=10_000)] = {}

    def rank_of(self, layer: str) -> int:
        return _of_layer(self.rank_pattern, layer, self.r)

    def scale_of(self, layer: str) -> float:
        rank = self.rank_of(layer)
        alpha = _of_layer(self.alpha_pattern, layer, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _of_layer(pattern: Mapping[str, Any], layer: str, otherwise: Any) -> Any:
    return next(
        (v for name, v in pattern.items() if layer == name or layer.endswith("." + name)), otherwise
    )


def _config_faults(path: Path, config: Any) -> Iterator[str]:
    """What of an adapter's settings cannot be read, or says that the tensors are not all of it."""
    if not isinstance(config, dict):
        yield f"The file {path} holds no JSON object; {AGAIN}."
    kind, start, whose = config.get("peft_type"), config.get("init_lora_weights"), path.parent
    if kind != "LORA":
        yield f"The adapter {whose} is of the type {_shown(kind)}; only LORA is read."
    yield from (f"The adapter {whose} {why}." for key, why in REFUSED.items() if config.get(key))
    if config.get("bias", "none") not in ("none", None):
        yield f"The adapter {whose} trains biases; {MERGE}."
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        yield f"The adapter {whose} was started with {_shown(start)}, which changes the base's weights; {MERGE}."


def _read_config(folder: Path) -> tuple[_Config, Any]:
    """The config, and the name of the base in it."""
    path = folder / "adapter_config.json"
    if path.stat().st_size > MOST_CONFIG:
        raise SubloraError(
            f"The file {path} is larger than {MOST_CONFIG} bytes, so it is no adapter's config."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SubloraError(
            f"The file {path} is not readable JSON ({type(error).__name__}); {AGAIN}."
        ) from None
    require_none(_config_faults(path, config))
    try:
        return _Config.model_validate(config), config.get("base_model_name_or_path")
    except ValidationError as error:
        first = error.errors()[0]
        place = " ".join(_shown(part).strip("'") for part in first["loc"])
        raise SubloraError(
            f"The {'rank ' if place == 'r' else ''}{place} of the adapter {folder} is {_shown(first['input'])}: it {plain(first)}; {AGAIN}."
        ) from None


def _same_base(named: Any, base: Base) -> bool:
    """Whether a config's base and the given one have the same last name: folders differ between machines."""
    if not isinstance(named, str) or not named.strip():
        return True

    def last(text: str) -> str:
        return text.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].lower()

    return last(named) == last(base.name)


def _open(path: Path) -> Tensors:
    """Names, types and shapes of a file's tensors; SubloraError where it is no proper safetensors file."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
        room = min(MOST_HEADER, path.stat().st_size)
        if len(start) < 8 or struct.unpack("<Q", start)[0] > room:
            raise SubloraError(
                f"The file {path} is no safetensors file, or it is cut off; save the weights again."
            )
        with safe_open(path, "pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {n: (part.get_dtype(), tuple(part.get_shape())) for n, part in parts.items()}
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        why = " ".join(str(error).split())[:120]
        raise SubloraError(
            f"The file {path} is no sound safetensors file ({why}); save the weights again."
        ) from None


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
    config, named = _read_config(folder)
    if not any_base and not _same_base(named, base):
        raise SubloraError(
            f"The adapter {folder} was trained on {_shown(named)}, not on {base.name}; give that base, or --any-base if it is the same "
            "model under another name."
        )
    path = folder / "adapter_model.safetensors"
    found = _open(path)
    require_none(_tensor_faults(found, base, folder))
    own = {_layer_of(tensor)[0] for tensor in found}
    layers = [n for n, _ in base.model.named_modules() if n in own]
    ranks = {layer: config.rank_of(layer) for layer in layers}
    linears = target_linears(base.model, tuple(layers))
    require_none(_shape_faults(found, linears, ranks, base, folder))
    dtype, most = master_dtype(base.model), max(ranks.values())
    slots, own = lora_slots(linears, most), {}
    with safe_open(path, "pt") as file:
        for slot in slots:
            layer, part = slot.name.rsplit(".", 1)
            tensor = _tensor(file, f"{PEFT_PREFIX}{slot.name}.weight", path, dtype)
            own[slot.name] = whole = torch.zeros(slot.shape, dtype=dtype)
            if part == "lora_A":
                whole[: ranks[layer]] = tensor
            else:
                whole[:, : ranks[layer]] = tensor * config.scale_of(layer)
    for layer in layers:
        norm = float((own[f"{layer}.lora_B"] @ own[f"{layer}.lora_A"]).norm())
        if not norm < MOST_NORM:
            raise SubloraError(
                f"The update of {layer} in {folder} has the norm {norm:.3g}, which no training gives; train again."
            )
    return Audited(
        str(folder),
        _sha256([folder / "adapter_config.json", path]),
        StudentSpec(rank=most, alpha=float(most), targets=tuple(linears)),
        padded(torch.cat([p.reshape(-1) for p in own.values()]), None, slots),
        config.r,
        config.lora_alpha,
        config.use_rslora,
        tuple(linears),
        named if isinstance(named, str) else None,
    )


def _shape_faults(
    found: Tensors,
    linears: Mapping[str, nn.Linear],
    ranks: Mapping[str, int],
    base: Base,
    folder: Path,
) -> Iterator[str]:
    """A rank above a layer's width, or a tensor that does not fit its layer."""
    widths = {n: min(m.in_features, m.out_features) for n, m in linears.items()}
    for layer, module in linears.items():
        r = ranks[layer]
        if r > widths[layer]:
            yield f"The rank {r} of the adapter {folder} is above the width {widths[layer]} of {layer}; {MERGE}."
        shapes = {"lora_A": (r, module.in_features), "lora_B": (module.out_features, r)}
        for part, shape in shapes.items():
            _, has = found[f"{PEFT_PREFIX}{layer}.{part}.weight"]
            if has != shape:
                told = f"The tensor {part} of {layer} in {folder} has the shape {has}, {shape} is needed"
                yield f"{told} for r = {r} on {base.name}; it {OTHER_BASE} or config."
    most, narrowest = max(ranks.values()), min(widths.values())
    if most > narrowest:
        yield f"The ranks of the adapter {folder} go up to {most}, above the width {narrowest} of its narrowest layer; {MERGE}."


def _tensor_faults(found: Tensors, base: Base, folder: Path) -> Iterator[str]:
    """A tensor that no plain LoRA adapter of this base has, or one that is missing."""
    known = {n for n, m in base.model.named_modules() if isinstance(m, nn.Linear)}
    layers: dict[str, set[str]] = {}
    for name, (kind, _) in found.items():
        layer, part = _layer_of(name)
        framed = name.startswith(PEFT_PREFIX) and name.endswith(".weight")
        if not framed or part not in PARTS:
            yield f"The tensor {_shown(name)} of {folder} is no part of a plain LoRA adapter; {MERGE}."
        if layer not in known:
            yield f"The adapter {folder} acts on {_shown(layer)}, which {base.name} does not have; it {OTHER_BASE}."
        if kind not in FLOATS:
            yield f"The tensor {_shown(name)} of {folder} has the type {kind}; float weights are needed."
        layers.setdefault(layer, set()).add(part)
    if not layers:
        yield f"The adapter {folder} has no tensors; save it again."
    for layer, parts in layers.items():
        for missing in sorted(PARTS - parts):
            yield f"The adapter {folder} lacks {missing} of {layer}; save it again."


def _layer_of(tensor: str) -> tuple[str, str]:
    """The layer that a tensor of an adapter belongs to, and which of its two tensors it is."""
    layer, _, part = tensor.removesuffix(".weight").rpartition(".")
    return layer.removeprefix(PEFT_PREFIX), part


def _load_full(base: Base, folder: Path) -> Audited:
    where: dict[str, tuple[Path, str, tuple[int, ...]]] = {}
    files = sorted(folder.glob("*.safetensors"))
    for path in files:
        if not path.is_file():
            raise SubloraError(f"{path} is no file; give a folder made by save_pretrained.")
        where |= {name: (path, *tensor) for name, tensor in _open(path).items()}
    slots, dtype = full_slots(base.model), master_dtype(base.model)
    known = {n for n, _ in base.model.named_parameters(remove_duplicate=False)}
    known |= {n for n, _ in base.model.named_buffers()} | {s.name for s in slots}

    def faults() -> Iterator[str]:
        for name in (n for n in where if n not in known):
            yield f"The weights {folder} hold {_shown(name)}, which {base.name} does not have; they belong to another base."
        for slot in slots:
            if slot.name not in where:
                yield f"The weights {folder} lack {slot.name}; give the folder of a whole model."
            _, kind, shape = where[slot.name]
            if shape != slot.shape or kind not in FLOATS:
                told = f"The tensor {slot.name} of {folder} is {kind} {shape}"
                yield f"{told}, floats of the shape {slot.shape} are needed; it {OTHER_BASE}."

    require_none(faults())
    parts = []
    for slot in slots:
        path = where[slot.name][0]
        with safe_open(path, "pt") as file:
            parts.append(_tensor(file, slot.name, path, dtype).reshape(-1))
    spec = StudentSpec(method="full", rank=None)
    return Audited(str(folder), _sha256(files), spec, torch.cat(parts))
