"""All weights of a student, as save_pretrained or a merge wrote them, with what its config.json says beside them."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from sublora.audit.audited import Audited
from sublora.audit.tensor_files import FLOATS, Stored, files_sha256, shown, stored_tensors
from sublora.errors import SubloraError, require_none
from sublora.models.base import Base
from sublora.packs.spec import StudentSpec
from sublora.packs.stack import full_slots, master_dtype

# Settings that change no output of a model that answers: names, types, training, and the tokens of `generate`.
NO_MATTER = {
    *PreTrainedConfig().to_dict(),
    *("model_type", "vocab_size", "max_position_embeddings", "initializer_range", "pretraining_tp"),
    *("use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "attention_dropout"),
} - {"tie_word_embeddings"}
FARTHEST = 1.0  # from the base, as a share of its length; two unrelated models are 1.4 apart
OTHER_BASE = "it belongs to another base"


def load_full(base: Base, folder: Path, any_base: bool) -> Audited:
    """The weights in a folder. Raises SubloraError as `load_audited` does."""
    whole = folder / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
    for path in files:
        if not path.is_file():
            raise SubloraError(f"{path} is no file; give a folder made by save_pretrained.")
    require_none(_config_faults(base, folder / "config.json"))
    found = stored_tensors(files)
    slots, dtype = full_slots(base.model), master_dtype(base.model)
    require_none(_faults(base, folder, found))
    parameters, parts, far, size = dict(base.model.named_parameters()), [], 0.0, 0.0
    for slot in slots:
        parts.append(found[slot.name].read(dtype).reshape(-1))
        own = parameters[slot.name].detach().to("cpu", dtype).reshape(-1)
        far, size = math.hypot(far, (parts[-1] - own).norm()), math.hypot(size, own.norm())
    if far > FARTHEST * size and not any_base:
        raise SubloraError(
            f"The weights {folder} are as far from {base.name} as an unrelated model ({far / size:.2f} of its length); give the base that they "
            "were trained from, or --any-base."
        )
    spec = StudentSpec(method="full", rank=None)
    return Audited(str(folder), files_sha256(files), spec, torch.cat(parts))


def _faults(base: Base, folder: Path, found: Mapping[str, Stored]) -> Iterator[str]:
    """What says that these are not all weights of a student of this base, and no others."""
    for tensor in found.values():
        if tensor.kind not in FLOATS:
            yield f"The weights {folder} are quantised ({shown(tensor.name)} is {tensor.kind}); save them as bfloat16 or float32."
    parameters = dict(base.model.named_parameters(remove_duplicate=False))
    buffers = dict(base.model.named_buffers())
    for name in found:
        # older versions of the library kept the angles of positions, and none reads them
        if name not in parameters | buffers and not name.endswith("rotary_emb.inv_freq"):
            yield f"The weights {folder} hold {shown(name)}, which {base.name} does not have; they belong to another base."
    slots = {slot.name: slot.shape for slot in full_slots(base.model)}
    for name, shape in slots.items():
        if name not in found:
            yield f"The weights {folder} lack {name}; give the folder of a whole model."
        if (has := found[name].shape) == shape:
            continue
        told = f"The tensor {name} of {folder} has the shape {has}, {base.name} has {shape}"
        words = (
            parameters[name] is base.model.get_input_embeddings().weight and has[1:] == shape[1:]
        )
        why = (
            "tokens were added or taken, so resize the base alike and save it"
            if words
            else OTHER_BASE
        )
        yield f"{told}; {why}."
    for name in set(found) & set(parameters | buffers) - set(slots):
        twin = next((n for n in slots if parameters[n] is parameters.get(name)), None)
        other = found[twin].read(torch.float32) if twin else buffers[name].float().cpu()
        own = found[name].read(torch.float32)
        if own.shape != other.shape or not torch.equal(own, other):
            of = f"its {twin}, to which {base.name} ties it" if twin else f"that of {base.name}"
            yield f"The tensor {name} of {folder} is another than {of}; save base and student untied, each with its own."


def _config_faults(base: Base, path: Path) -> Iterator[str]:
    """Settings under which the same weights answer otherwise."""
    if not path.is_file():
        return
    mine = base.model.config
    try:
        given = json.loads(path.read_bytes())
        if given.get("model_type") != mine.model_type:
            kind = shown(given.get("model_type"))
            yield f"The model {path.parent} is of the type {kind}, {base.name} of {mine.model_type!r}; {OTHER_BASE}."
        theirs = type(mine).from_dict(given).to_dict()
    except Exception as error:  # the library raises whatever strange settings bring it to
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise SubloraError(
            f"The file {path} is no config of a {mine.model_type} model ({why}); save the model again."
        ) from None
    for key, value in mine.to_dict().items():
        if key not in NO_MATTER and theirs.get(key) != value:
            told = f"{shown(theirs.get(key))} in {path}, {shown(value)} in {base.name}"
            yield f"The setting {key} is {told}, so the same weights answer otherwise; give a base with the student's settings."
