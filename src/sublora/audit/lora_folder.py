"""A LoRA adapter in peft's format. Its settings are checked, and no pattern in them is used as a regular expression."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from torch import nn

from sublora.audit.audited import Audited
from sublora.audit.student_folder import CONFIG, WEIGHTS
from sublora.audit.tensor_files import FLOATS, Stored, files_sha256, shown, stored_tensors
from sublora.errors import SubloraError, plain, require_none
from sublora.models.base import Base
from sublora.models.catalog import catalog
from sublora.packs.spec import StudentSpec
from sublora.packs.stack import lora_slots, master_dtype, padded, target_linears
from sublora.packs.student_files import PEFT_PREFIX

MOST_CONFIG = 1 << 20  # bytes of an adapter_config.json
MOST_RANK = 1 << 16
MOST_NORM = 1e5  # of one layer's update; above it no answer is left to be measured
PARTS = {"lora_A", "lora_B"}
MERGE = "merge it (docs/audit.md says how) and audit the full weights"
OTHER_BASE = "belongs to another base"
AGAIN = "save the adapter again"
# Settings of peft under which the tensors alone do not say what the adapter does.
REFUSED = {
    "use_dora": f"is a DoRA adapter, whose update depends on the base's weights; {MERGE}",
    "layer_replication": f"repeats layers of the base; {MERGE}",
    "alora_invocation_tokens": "acts on some tokens only (activated LoRA), which the audit cannot follow; train a plain LoRA",
    "use_qalora": f"is a QA-LoRA adapter, which the audit does not read; {MERGE}",
    "fan_in_fan_out": f"is made for transposed layers, which the audit does not read; {MERGE}",
    "target_parameters": f"trains bare parameters beside layers; {MERGE}",
    "trainable_token_indices": f"trains embeddings of single tokens; {MERGE}",
    "modules_to_save": f"trains whole modules beside the adapter; {MERGE}",
    "lora_bias": f"trains biases; {MERGE}",
}
# Starts of peft that change A and B alone; others change the base's weights as well (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA).
STARTS = ("gaussian", "eva", "orthogonal", "mica")

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
    return next((v for name, v in pattern.items() if _fits(name, layer)), otherwise)


def _fits(name: str, layer: str) -> bool:
    """Whether peft, to which a name is a regular expression, finds it at a layer's end: a dot stands for any character."""
    before, end = layer[: -len(name) or None], layer[len(layer) - len(name) :]
    whole = len(name) <= len(layer) and (len(name) == len(layer) or before.endswith("."))
    return whole and all(a in (".", b) for a, b in zip(name, end, strict=True))


def _config_faults(path: Path, config: Any) -> Iterator[str]:
    """What of an adapter's settings cannot be read, or says that the tensors are not all of it."""
    if not isinstance(config, dict):
        yield f"The file {path} holds no JSON object; {AGAIN}."
    kind, start, whose = config.get("peft_type"), config.get("init_lora_weights"), path.parent
    if kind != "LORA":
        yield f"The adapter {whose} is of the type {shown(kind)}; only LORA is read."
    yield from (f"The adapter {whose} {why}." for key, why in REFUSED.items() if config.get(key))
    if config.get("bias", "none") not in ("none", None):
        yield f"The adapter {whose} trains biases; {MERGE}."
    if isinstance(start, str) and start.lower() not in STARTS:
        yield f"The adapter {whose} was started with {shown(start)}, which changes the base's weights, or is not known; {MERGE}."


def _read_config(folder: Path) -> tuple[_Config, Any]:
    """The config, and the name of the base in it."""
    path = folder / CONFIG
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
        place = " ".join(shown(part).strip("'") for part in first["loc"])
        raise SubloraError(
            f"The {'rank ' if place == 'r' else ''}{place} of the adapter {folder} is {shown(first['input'])}: it {plain(first)}; {AGAIN}."
        ) from None


def _same_base(named: Any, base: Base) -> bool:
    """Whether a config's base and the given one have the same last name: folders differ between
    machines, and a hub's cache has the name above its snapshots."""
    if not isinstance(named, str) or not named.strip():
        return True

    def last(text: str) -> str:
        parts = [p for p in text.replace("\\", "/").lower().split("/") if p] or [""]
        cached = [p for p in parts if p.startswith("models--")]
        return cached[-1].rsplit("--", 1)[-1] if cached else parts[-1]

    known = catalog().get(base.name)
    return last(named) in {last(base.name), last(known.hub if known else base.name)}


def load_lora(base: Base, folder: Path, any_base: bool) -> Audited:
    """The adapter in a folder. Raises SubloraError as `load_audited` does."""
    config, named = _read_config(folder)
    if not any_base and not _same_base(named, base):
        raise SubloraError(
            f"The adapter {folder} was trained on {shown(named)}, not on {base.name}; give that base, or --any-base if it is the same "
            "model under another name."
        )
    path = folder / WEIGHTS
    found = stored_tensors([path])
    require_none(_tensor_faults(found, base, folder))
    own = {_layer_of(tensor)[0] for tensor in found}
    layers = [n for n, _ in base.model.named_modules() if n in own]
    ranks = {layer: config.rank_of(layer) for layer in layers}
    linears = target_linears(base.model, tuple(layers))
    require_none(_shape_faults(found, linears, ranks, base, folder))
    return Audited(
        str(folder),
        files_sha256([folder / CONFIG, path]),
        StudentSpec(rank=max(ranks.values()), alpha=max(ranks.values()), targets=tuple(linears)),
        _weights(found, linears, ranks, config, folder, master_dtype(base.model)),
        config.r,
        config.lora_alpha,
        config.use_rslora,
        tuple(linears),
        named if isinstance(named, str) else None,
    )


def _weights(
    found: Mapping[str, Stored],
    linears: dict[str, nn.Linear],
    ranks: Mapping[str, int],
    config: _Config,
    folder: Path,
    dtype: torch.dtype,
) -> torch.Tensor:
    """A and B of all layers as a student's row, padded to one rank, their scales in B. Raises SubloraError for absurd ones."""
    slots, own = lora_slots(linears, max(ranks.values())), {}
    for slot in slots:
        layer, part = slot.name.rsplit(".", 1)
        tensor = found[f"{PEFT_PREFIX}{slot.name}.weight"].read(dtype)
        own[slot.name] = whole = torch.zeros(slot.shape, dtype=dtype)
        if part == "lora_A":
            whole[: ranks[layer]] = tensor
        else:
            whole[:, : ranks[layer]] = tensor * config.scale_of(layer)
    for layer in linears:
        norm = float((own[f"{layer}.lora_B"] @ own[f"{layer}.lora_A"]).norm())
        if not norm < MOST_NORM:
            raise SubloraError(
                f"The update of {layer} in {folder} has the norm {norm:.3g}, which no training gives; train again."
            )
    return padded(torch.cat([p.reshape(-1) for p in own.values()]), None, slots)


def _shape_faults(
    found: Mapping[str, Stored],
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
            has = found[f"{PEFT_PREFIX}{layer}.{part}.weight"].shape
            if has != shape:
                told = f"The tensor {part} of {layer} in {folder} has the shape {has}, {shape} is needed"
                yield f"{told} for r = {r} on {base.name}; it {OTHER_BASE} or config."
    most, narrowest = max(ranks.values()), min(widths.values())
    if most > narrowest:
        yield f"The ranks of the adapter {folder} go up to {most}, above the width {narrowest} of its narrowest layer; {MERGE}."


def _tensor_faults(found: Mapping[str, Stored], base: Base, folder: Path) -> Iterator[str]:
    """A tensor that no plain LoRA adapter of this base has, or one that is missing."""
    known = {n for n, m in base.model.named_modules() if isinstance(m, nn.Linear)}
    layers: dict[str, set[str]] = {}
    for name, tensor in found.items():
        layer, part = _layer_of(name)
        framed = name.startswith(PEFT_PREFIX) and name.endswith(".weight")
        if not framed or part not in PARTS:
            yield f"The tensor {shown(name)} of {folder} is no part of a plain LoRA adapter; {MERGE}."
        if layer not in known:
            yield f"The adapter {folder} acts on {shown(layer)}, which {base.name} does not have; it {OTHER_BASE}."
        if tensor.kind not in FLOATS:
            yield f"The tensor {shown(name)} of {folder} has the type {tensor.kind}; float weights are needed."
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
