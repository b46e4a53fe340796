"""safetensors files of unknown origin: names, types and shapes are looked at before a tensor is read."""

import hashlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sublora.errors import SubloraError

MOST_HEADER = 16 << 20  # bytes of a safetensors header
FLOATS = ("F64", "F32", "F16", "BF16")
# What compiling and distributed training put into the names of a model's parts.
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, under the name that it has there."""

    path: Path
    name: str
    kind: str
    shape: tuple[int, ...]

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """Raises SubloraError for values that are not finite."""
        with safe_open(self.path, "pt") as file:
            tensor = file.get_tensor(self.name).to(dtype)
        if not bool(torch.isfinite(tensor).all()):
            raise SubloraError(
                f"The tensor {shown(self.name)} of {self.path} has values that are not finite, as after a training that diverged; train again."
            )
        return tensor


def stored_tensors(paths: Iterable[Path]) -> dict[str, Stored]:
    """The tensors of some files by their plain names, without the prefixes of wrappers; a later file counts before an earlier one.
    Raises SubloraError: no proper safetensors file, two tensors of one file with one plain name."""
    out: dict[str, Stored] = {}
    for path in paths:
        own: dict[str, Stored] = {}
        for name, (kind, shape) in _header(path).items():
            if (plain := _plain(name)) in own:
                raise SubloraError(
                    f"The file {path} holds {shown(plain)} twice, as {shown(own[plain].name)} and {shown(name)}; save the weights again."
                )
            own[plain] = Stored(path, name, kind, shape)
        out |= own
    return out


def _plain(name: str) -> str:
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _header(path: Path) -> Mapping[str, tuple[str, tuple[int, ...]]]:
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


def files_sha256(paths: Iterable[Path]) -> str:
    """Of their contents, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def shown(value: Any) -> str:
    """A value of a file as it stands in a sentence."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
