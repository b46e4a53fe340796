"""Loads any Hugging Face causal LM, or a shipped model, and knows its shape without loading it."""

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sublora.errors import SubloraError
from sublora.models.catalog import catalog
from sublora.models.chat import Chat, load_tokenizer
from sublora.models.kept import kept_folder, kept_models, read_origin

if TYPE_CHECKING:  # slow to import, and a plan needs neither
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SHIPPED = ("micro", "micro-null", "micro-b")


def shipped_folder(name: str) -> Path:
    return Path(str(files("sublora.organisms") / "weights" / name))


@dataclass(frozen=True)
class Base:
    """A loaded base model with its chat format. `identity` is all that its outputs depend on."""

    name: str
    model: "PreTrainedModel"
    chat: Chat
    identity: dict[str, str]
    window: int | None
    organism: bool

    def __repr__(self) -> str:
        kind = "a model organism" if self.organism else type(self.model).__name__
        return f"Base({self.name}, {self.model.num_parameters():,} parameters, {kind}, on {self.device})"

    @property
    def device(self) -> "torch.device":
        return next(self.model.parameters()).device


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def model_source(name: str) -> str:
    """A folder or hub id for `from_pretrained`. A GGUF file is turned into a folder in the store the first time. Raises SubloraError where
    there is no such model, one that can be fetched is not here, or a GGUF file cannot be read."""
    if name in SHIPPED:
        return str(shipped_folder(name))
    if "/" not in name and name in kept_models():
        return str(kept_folder(name))
    if name in catalog():
        why = f"The model {name} is not here yet; get it with `sublora fetch {name}`."
        raise SubloraError(why)
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.suffix == ".gguf" and path.is_file():
        from sublora.models.gguf_file import gguf_folder

        return str(gguf_folder(path))
    if _is_hub_id(name) and path.suffix != ".gguf":
        return name
    known = ", ".join(dict.fromkeys([*SHIPPED, *catalog(), *kept_models()]))
    hub = next((i for i in _shapes() if _bare(i) == _bare(name)), "owner/name")
    why = f"There is no model '{name}'; give {known}, a Hugging Face folder, a GGUF file, or a hub id with its owner, such as {hub}."
    raise SubloraError(why)


def placed(name: str) -> str:
    """A user's folder or file as the full path of the folder that is read, since a worker may stand elsewhere; any other name as it is."""
    if Path(name).expanduser().exists() and name not in SHIPPED and name not in catalog():
        return str(Path(model_source(name)).absolute())
    return name


@cache
def _folder_sha256(folder: str) -> str:
    digest = hashlib.sha256()
    weights = sorted(Path(folder).glob("*.safetensors"))
    for path in [*weights, Path(folder) / "config.json"]:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _identity(weights: str, chat: Chat, dtype: str, folder: str | None) -> dict[str, str]:
    read = {"template": chat.template_sha256, "tokenizer": chat.tokenizer_sha256}
    origin = read_origin(Path(folder)) if folder else None
    quantised = {"quantised": origin.quantised} if origin and origin.quantised else {}
    return {"weights": weights, **read, "dtype": dtype, **quantised}


def local_identity(folder: str, dtype: str) -> dict[str, str]:
    """`Base.identity` of a folder without loading its weights, so that a plan can see what is done."""
    return _identity(_folder_sha256(folder), Chat(read_tokenizer(folder, folder)), dtype, folder)


def chosen_device(device: str) -> str:
    """`auto` is a GPU if there is one. Raises SubloraError for a device that is not available."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        why = f"The device '{device}' is not available here; use --device cpu or auto."
        raise SubloraError(why) from None
    return device


def multiplies_bfloat16() -> bool:
    """Whether this machine has products of bfloat16: a GPU, or a processor with instructions for them."""
    import torch

    if torch.cuda.is_available():
        return True
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8").split()
    except OSError:
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)


def read_tokenizer(source: str, name: str, **options: Any) -> "PreTrainedTokenizerFast":
    """The tokenizer of a folder or hub id. Raises SubloraError where it cannot be loaded."""
    try:
        return load_tokenizer(source, **options)
    except Exception as error:  # transformers raises whatever its parts raise
        why = f"The tokenizer of {name} cannot be loaded ({_short(error)}); check the folder, or the network for a hub id."
        raise SubloraError(why) from None


def read_base(
    name: str, *, device: str = "cpu", dtype: str = "float32", revision: str | None = None
) -> Base:
    """Load a model in evaluation mode: fixed dtype, no remote code, safetensors only. `packs.check.load_base` also makes sure that packs
    can run it. Raises SubloraError: missing folder, no weights, no chat template, a tokenizer that does not fit."""
    source = model_source(name)
    folder = Path(source) if Path(source).is_dir() else None
    lacks = None
    if folder and not (folder / "config.json").is_file():
        lacks = "config.json; give a folder made by save_pretrained"
    elif folder and not list(folder.glob("*.safetensors")):
        lacks = ".safetensors weights; save the model as safetensors (pickles are not read)"
    if lacks:
        raise SubloraError(f"The folder {name} has no {lacks}.")
    hub, kept = source, None if folder else _cached(source, revision)
    if kept is not None:
        source, revision = str(kept), None
    tokenizer = read_tokenizer(source, name, **({"revision": revision} if revision else {}))
    chat, model = Chat(tokenizer), _weights(source, name, dtype, revision)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise SubloraError(
            f"The tokenizer of {name} has {len(tokenizer)} tokens, the model only {rows}; they do not belong together, "
            "use the model's own tokenizer."
        )
    told = kept.name if kept else getattr(model.config, "_commit_hash", None)
    weights = _folder_sha256(source) if folder else f"{hub}@{told or revision or 'main'}"
    identity = _identity(weights, chat, dtype, source if folder else None)
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    organism = folder is not None and (folder / "organism.json").is_file()
    return Base(name, model.to(device).eval(), chat, identity, window, organism)


def _cached(source: str, revision: str | None) -> Path | None:
    """The copy in the cache of a hub id where the hub does not answer: without a network the loaders would try for minutes, and say so line
    by line. None where it answers. Raises SubloraError where there is no copy either."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        HfApi().model_info(source, revision=revision, timeout=10)
    except Exception as error:  # the client raises whatever its parts raise
        with suppress(Exception):
            return Path(snapshot_download(source, revision=revision, local_files_only=True))
        which = f"{source}@{revision}" if revision else source
        why = f"The model {which} is not in the hub's cache, and the hub does not give it ({_short(error)}); check name, revision and network."
        raise SubloraError(why) from None
    return None


def _weights(source: str, name: str, dtype: str, revision: str | None) -> "PreTrainedModel":
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    options = {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            source, dtype=getattr(torch, dtype), revision=revision or "main", **options
        )
    except Exception as error:  # transformers raises whatever its parts raise
        why = f"The model {name} cannot be loaded ({_short(error)}); check the folder, or the network for a hub id."
        raise SubloraError(why) from None
    if loading["missing_keys"]:
        # the library would go on with random numbers in their place
        why = f"The weights of {name} lack {min(loading['missing_keys'])}; give the folder of a whole model."
        raise SubloraError(why)
    return model


def _short(error: Exception) -> str:
    text = re.sub(r"\[Errno -?\d+\] ", "", " ".join(str(error).split()))
    return text[:160] + ("..." if len(text) > 160 else "")


@dataclass(frozen=True)
class Shape:
    """What a model costs: enough to plan without loading it."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int
    tied: bool

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(out, in) of the adapter's target layers in one block."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        h, f = self.hidden, self.feed_forward
        return [(q, h), (kv, h), (kv, h), (h, q), (f, h), (f, h), (h, f)]

    @property
    def block_parameters(self) -> int:
        return self.layers * sum(o * i for o, i in self.linears)

    @property
    def parameters(self) -> int:
        return self.block_parameters + self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def norms(self) -> int:
        """Weights of the norms, which are no products and so in no count of operations."""
        return (2 * self.layers + 1) * self.hidden

    def lora_parameters(self, rank: int) -> int:
        return self.layers * rank * sum(o + i for o, i in self.linears)

    @property
    def width(self) -> int:
        """The largest rank that every target layer can have."""
        return min(min(pair) for pair in self.linears)


# What older families call these values.
OTHER_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "ffn_dim",
}


def shape_from_config(config: dict[str, Any]) -> Shape:
    text = config.get("text_config", config)
    text = text | {n: text[old] for n, old in OTHER_NAMES.items() if old in text and n not in text}
    heads, hidden = text["num_attention_heads"], text["hidden_size"]
    return Shape(
        hidden,
        text["num_hidden_layers"],
        heads,
        text.get("num_key_value_heads") or heads,
        text.get("head_dim") or hidden // heads,
        text.get("intermediate_size") or 4 * hidden,  # GPT-2, BLOOM and Falcon do not say it
        text["vocab_size"],
        bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
    )


def known_shape(name: str) -> Shape:
    """The shape of a model without loading it and without a network: a local config, the hub's local cache, or a known name. Raises
    SubloraError where none of them knows the model."""
    source = model_source(name)
    path = Path(source) / "config.json"
    if not path.is_file() and _is_hub_id(source):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(source, "config.json")
        path = Path(cached) if isinstance(cached, str) else path
    if path.is_file():
        try:
            return shape_from_config(json.loads(path.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            why = f"The file {path} does not describe a causal language model ({_short(error)})."
            raise SubloraError(why) from None
    known = _shapes()
    for hub, values in known.items():
        if _bare(hub) == _bare(source):
            return Shape(**values)
    why = f"The shape of {name} is not known here and nothing is downloaded for a plan; give its folder, or one of {', '.join(sorted(known))}."
    raise SubloraError(why)


def _shapes() -> dict[str, dict[str, Any]]:
    """Hub id -> shape."""
    import yaml

    return yaml.safe_load((files("sublora.models") / "shapes.yaml").read_text("utf-8"))


def _bare(name: str) -> str:
    """A hub id without its owner, and without what tells a chat model from its base."""
    return name.split("/")[-1].lower().replace("-instruct", "").removesuffix("-it")
