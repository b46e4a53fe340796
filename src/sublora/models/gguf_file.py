"""A GGUF file as an ordinary Hugging Face folder: read by transformers, dequantised to float32, kept in the store."""

import contextlib
import hashlib
import io
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sublora.errors import SubloraError
from sublora.models.kept import PLAIN_TYPES, Origin, kept_folder, kept_once, write_origin


@dataclass(frozen=True)
class Head:
    """What a file says of itself; `kind` is the type of its numbers (Q4_1, F16; the most frequent one where the file does not say it)."""

    architecture: str
    kind: str
    parameters: int
    licence: str


def gguf_folder(path: Path) -> Path:
    """The folder in the store that a file was turned into, which is done now where it was not. Raises SubloraError: no GGUF, cut short, no
    chat template, an architecture that transformers cannot read, missing packages."""
    sha256 = file_sha256(path)
    name = f"gguf-{sha256[:20]}"
    if not kept_folder(name).is_dir():
        with kept_once(name) as folder:
            if folder is not None:
                head = dequantise(path, folder)
                what = {
                    "summary": f"A {head.architecture} model",
                    "source": f"the file {path.name}",
                }
                said = {"licence": head.licence, "parameters": head.parameters}
                write_origin(folder, name, Origin(**what, **said, kind=head.kind, sha256=sha256))
    return kept_folder(name)


def file_sha256(path: Path) -> str:
    """Of a file's content, read once as long as the file does not change."""
    state = path.stat()
    return _sha256(path, state.st_size, state.st_mtime_ns)


@cache
def _sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def dequantise(path: Path, folder: Path) -> Head:
    """Write weights (float32, safetensors), config and tokenizer into `folder`, and say on standard error what is done and how long it
    took. Raises SubloraError as `gguf_folder` does."""
    began = time.monotonic()
    _tell(f"Reading {path.name} ({path.stat().st_size / 1e6:,.0f} MB) ...")
    head = read_head(path)
    try:
        # the library counts tensors on standard error, which is for a terminal only
        quiet = contextlib.nullcontext() if sys.stderr.isatty() else _silence()
        with quiet:
            model, tokenizer = _read(path)
        _check_finite(model, path)
        _save(model, folder)
        tokenizer.save_pretrained(folder)
    except (SubloraError, MemoryError):
        raise
    except OSError as error:
        if error.errno is not None:  # of the disk
            raise
        raise _unreadable(path, head, error) from None
    except Exception as error:  # transformers raises whatever its parts raise
        raise _unreadable(path, head, error) from None
    _tell(
        f"Dequantised {head.parameters:,} parameters of {head.kind} into float32 in {time.monotonic() - began:.0f} s."
        if head.kind not in PLAIN_TYPES
        else f"Read {head.parameters:,} parameters of {head.kind} in {time.monotonic() - began:.0f} s."
    )
    return head


def read_head(path: Path) -> Head:
    """Raises SubloraError: no GGUF, cut short, no chat template, an unknown architecture, missing packages."""
    if lacking := [name for name in ("gguf", "accelerate") if find_spec(name) is None]:
        what = " and ".join(lacking)
        why = f"A GGUF file is read with the package {what}, which is missing; install it with pip install 'sublora[gguf]'."
        raise SubloraError(why)
    from gguf import GGUFReader, LlamaFileType
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise SubloraError(f"The file {path} is no GGUF file: it does not begin with GGUF.")
    try:
        reader = GGUFReader(path)
        kinds: Counter[str] = Counter()
        for tensor in reader.tensors:
            kinds[tensor.tensor_type.name] += int(tensor.n_elements)
        keys = ("architecture", "license", "file_type")
        said = {key: _said(reader, f"general.{key}") for key in keys}
        template = _said(reader, "tokenizer.chat_template")
    except Exception:  # the reader takes the file as it comes: numpy's and Unicode's errors alike
        raise SubloraError(
            f"The file {path} is damaged or cut short ({path.stat().st_size:,} bytes cannot hold what its beginning promises); get it again."
        ) from None
    architecture = str(said["architecture"])
    if architecture not in GGUF_SUPPORTED_ARCHITECTURES:
        why = f"The file {path} holds a model of the architecture {architecture}, which this version of transformers cannot read from GGUF."
        raise SubloraError(f"{why} Give a Hugging Face folder of that model.")
    if not template:
        why = f"The file {path} has no chat template, so nothing can be asked; use the instruction-tuned model's file."
        raise SubloraError(why)
    try:
        kind = LlamaFileType(said["file_type"]).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:  # not said, or newer than the package
        kind = kinds.most_common(1)[0][0]
    return Head(architecture, kind, sum(kinds.values()), str(said["license"] or "not said"))


def _said(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _read(path: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    place = {"gguf_file": path.name, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **place)
    model, loading = AutoModelForCausalLM.from_pretrained(
        path.parent, dtype=torch.float32, output_loading_info=True, **place
    )
    if loading["missing_keys"]:
        why = f"The file {path} lacks the weights {min(loading['missing_keys'])}; get the file of a whole model."
        raise SubloraError(why)
    return model, tokenizer


def _check_finite(model: Any, path: Path) -> None:
    for name, weight in model.named_parameters():
        if not bool(weight.isfinite().all()):
            why = f"The weights {name} of {path} are not finite numbers; the file is damaged, get it again."
            raise SubloraError(why)


def _save(model: Any, folder: Path) -> None:
    """A model read from GGUF counts as quantised and refuses to be saved; the same weights in a plain one do not. What depends on the place
    or on the library's version is left out of its config, so that a file gives the same folder everywhere."""
    import torch

    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.save_pretrained(folder)
    path = folder / "config.json"
    said = json.loads(path.read_text("utf-8"))
    for key in ("_model_name_or_path", "transformers_version"):
        said.pop(key, None)
    path.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n", "utf-8")


def _unreadable(path: Path, head: Head, error: Exception) -> SubloraError:
    import transformers

    why = " ".join(str(error).split())[:160] or type(error).__name__
    return SubloraError(
        f"transformers {transformers.__version__} cannot read {path} ({head.architecture}): {why}; give a Hugging Face folder of that model."
    )


@contextlib.contextmanager
def _silence():
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
