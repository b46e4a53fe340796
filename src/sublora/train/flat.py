"""A step of the Llama family over flat tokens: no padding between rows, a shared prefix read once, siblings in one product.

The layers are those of Hugging Face's Llama, Mistral, Qwen2 and Qwen3: x + attention(norm(x)), then h + down(silu(gate) * up). Their
weights stay where they are; only the way through them is written here. Other models take their own forward pass (packed_model.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.utils.checkpoint
from torch import nn

from sublora.train.attention import Asked, Heads, Layout, Turns, flat_attention, turns
from sublora.train.kernels import gated
from sublora.train.rows import StepBatch
from sublora.train.stack import SIBLINGS

LAYERS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
NORMS = {"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"}

# (names of layers with the same input, x (K, M, i), residual) -> their outputs side by side, (K, M, o), plus the residual
Linear = Callable[[tuple[str, ...], torch.Tensor, torch.Tensor | None], torch.Tensor]
Norm = Callable[[str, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Layer:
    """Names of one layer's modules, from the top of the model."""

    name: str
    head_norms: bool  # Qwen3 normalises every head's queries and keys

    @property
    def qkv(self) -> tuple[str, ...]:
        return tuple(f"{self.name}.{n}" for n in SIBLINGS[0])

    @property
    def gate_up(self) -> tuple[str, ...]:
        return tuple(f"{self.name}.{n}" for n in SIBLINGS[1])

    @property
    def out(self) -> tuple[str, ...]:
        return (f"{self.name}.self_attn.o_proj",)

    @property
    def down(self) -> tuple[str, ...]:
        return (f"{self.name}.mlp.down_proj",)


@dataclass(frozen=True)
class Family:
    """What is needed of a model whose layers have the known form."""

    decoder: nn.Module
    layers: tuple[Layer, ...]
    heads: Heads
    final_norm: str


def family_of(model: nn.Module) -> Family | None:
    """The model's parts, or None where any of them is not of the known form (another layer, a sliding window, partial rotation)."""
    decoder = model.base_model
    layers, config = getattr(decoder, "layers", None), model.config
    if not layers or any(type(layer).__name__ not in LAYERS for layer in layers):
        return None
    names = {module: name for name, module in model.named_modules()}
    norms = [m for n, m in decoder.named_modules() if n.rsplit(".", 1)[-1].endswith("norm")]
    attention = layers[0].self_attn
    plain = (
        all(type(m).__name__ in NORMS for m in norms)
        and getattr(config, "hidden_act", None) == "silu"
        and not _slides(config)
        and len({layer.self_attn.head_dim for layer in layers}) == 1
        and getattr(config, "partial_rotary_factor", 1.0) in (None, 1.0)
        and type(getattr(decoder, "embed_tokens", None)) is nn.Embedding
    )
    if not plain:
        return None
    heads = Heads(
        config.num_attention_heads,
        config.num_key_value_heads,
        attention.head_dim,
        float(attention.scaling),
    )
    return Family(
        decoder,
        tuple(Layer(names[layer], hasattr(layer.self_attn, "q_norm")) for layer in layers),
        heads,
        names[decoder.norm],
    )


def _slides(config) -> bool:
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return any(kind != "full_attention" for kind in kinds)
    return bool(getattr(config, "sliding_window", None)) and getattr(
        config, "use_sliding_window", True
    )


@dataclass(frozen=True)
class FlatBatch:
    """A step's tokens one after the other: `ids`, `positions` (K, M); `where` (K, m), the places that carry loss, which are all that
    the last layer is `last` asked for."""

    ids: torch.Tensor
    positions: torch.Tensor
    where: torch.Tensor
    layout: Layout
    last: Layout


def flatten(batch: StepBatch, heads: Heads, device: torch.device) -> FlatBatch:
    k, b = batch.sizes.shape
    t, p = batch.ids.shape[1], batch.prefix.shape[1]
    real = np.arange(t) < batch.sizes[..., None]
    m = p + int(batch.sizes.sum(1).max()) + 1
    tokens = np.full((k, b, t), m - 1, dtype=np.int64)
    tokens[real] = (p + np.cumsum(real.reshape(k, -1), axis=1) - 1).reshape(k, b, t)[real]
    ids, positions = np.zeros((k, m), np.int64), np.zeros((k, m), np.int64)
    ids[:, :p], positions[:, :p] = batch.prefix, np.arange(p)
    student = np.broadcast_to(np.arange(k)[:, None, None], real.shape)[real]
    ids[student, tokens[real]] = batch.ids.reshape(k, b, t)[real]
    positions[student, tokens[real]] = np.broadcast_to(p + np.arange(t), real.shape)[real]
    where = np.take_along_axis(tokens.reshape(k, -1), batch.where, axis=1)

    def put(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    places = put(tokens)
    every, last = (
        Layout(places, m, p, heads),
        Layout(places, m, p, heads, Asked(*map(put, _asked(batch, b, t)))),
    )
    return FlatBatch(put(ids), put(positions), put(where), every, last)


def _asked(batch: StepBatch, b: int, t: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The places that carry loss as queries of their rows, see `Asked`."""
    k, m = batch.where.shape
    real = batch.weights > 0
    row, at = batch.where // t, batch.where % t
    student = np.broadcast_to(np.arange(k)[:, None], (k, m))
    counts = np.zeros((k, b), np.int64)
    np.add.at(counts, (student[real], row[real]), 1)
    # places come row by row, so a query's number is its own minus that of its row's first
    number = np.arange(m) - (np.cumsum(counts, axis=1) - counts)[student, row]
    places = np.full((k, b, int(counts.max())), -1, np.int64)
    places[student[real], row[real], number[real]] = at[real]
    slots = np.where(real, row * places.shape[2] + number, 0)
    return places, slots, real


def flat_hidden(
    family: Family, batch: FlatBatch, linear: Linear, norm: Norm, recompute: bool
) -> torch.Tensor:
    """Last hidden states (K, m, d) at the places that carry loss; `recompute` keeps only each layer's input for the backward pass."""
    x = family.decoder.embed_tokens(batch.ids)
    cos, sin = family.decoder.rotary_emb(x, batch.positions)
    turned = turns(cos, sin, family.heads)
    for layer in family.layers:
        last = layer is family.layers[-1]
        layout, where = (batch.last, batch.where) if last else (batch.layout, None)

        def run(x: torch.Tensor, layer=layer, layout=layout, where=where) -> torch.Tensor:
            return _layer(family, layer, x, turned, layout, where, linear, norm)

        x = torch.utils.checkpoint.checkpoint(run, x, use_reentrant=False) if recompute else run(x)
    return norm(family.final_norm, x)


def _layer(
    family: Family,
    layer: Layer,
    x: torch.Tensor,
    turned: Turns,
    layout: Layout,
    where: torch.Tensor | None,
    linear: Linear,
    norm: Norm,
) -> torch.Tensor:
    both = linear(layer.qkv, norm(f"{layer.name}.input_layernorm", x), None)
    if layer.head_norms:
        both = _normed_heads(family.heads, layer, both, norm)
    attended = flat_attention(both, turned, layout)
    if where is not None:  # after the last attention no place needs another one
        x = take(x, where)
    x = linear(layer.out, attended, x)
    both = linear(layer.gate_up, norm(f"{layer.name}.post_attention_layernorm", x), None)
    return linear(layer.down, gated(both), x)


def _normed_heads(heads: Heads, layer: Layer, both: torch.Tensor, norm: Norm) -> torch.Tensor:
    k, m, _ = both.shape
    widths: Sequence[int] = [
        heads.query * heads.width,
        heads.key * heads.width,
        heads.key * heads.width,
    ]
    q, key, value = both.split(widths, -1)
    q = norm(f"{layer.name}.self_attn.q_norm", q.reshape(k, -1, heads.width)).view(k, m, -1)
    key = norm(f"{layer.name}.self_attn.k_norm", key.reshape(k, -1, heads.width)).view(k, m, -1)
    return torch.cat((q, key, value), -1)


def take(hidden: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Places `where` (K, m) of hidden (K, M, d): (K, m, d)."""
    return hidden.gather(1, where.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
