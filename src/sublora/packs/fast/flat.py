"""A step of the Llama family over flat tokens: no padding between rows, a shared prefix read once, siblings in one product.

The layers are those of Hugging Face's Llama, Mistral, Qwen2 and Qwen3: x + attention(norm(x)), then h + down(silu(gate) * up). Their
weights stay where they are; only the way through them is written here.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from sublora.packs.fast.attention import Asked, Heads, Layout, Turns, flat_attention, turns
from sublora.packs.fast.elementwise import gated, rms_norm
from sublora.packs.full import full_joint
from sublora.packs.kernels import take
from sublora.packs.rows import StepBatch
from sublora.packs.stack import SIBLINGS, Stack
from sublora.packs.weights import AdapterWeights

LAYERS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
NORMS = {"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"}


def flat_model(
    model: nn.Module, stack: Stack, adapters: AdapterWeights | None, recompute: bool
) -> "FlatModel | None":
    """None where a part of the model has another form (another layer, a sliding window, partial rotation)."""
    decoder, config = model.base_model, model.config
    layers = getattr(decoder, "layers", None)
    if not layers or any(type(layer).__name__ not in LAYERS for layer in layers):
        return None
    norms = [m for n, m in decoder.named_modules() if n.rsplit(".", 1)[-1].endswith("norm")]
    known = (
        all(type(m).__name__ in NORMS for m in norms)
        and getattr(config, "hidden_act", None) == "silu"
        and not _slides(config)
        and len({layer.self_attn.head_dim for layer in layers}) == 1
        and getattr(config, "partial_rotary_factor", 1.0) in (None, 1.0)
        and type(getattr(decoder, "embed_tokens", None)) is nn.Embedding
    )
    return FlatModel(model, stack, adapters, recompute) if known else None


def _slides(config) -> bool:
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return any(kind != "full_attention" for kind in kinds)
    sliding = bool(getattr(config, "sliding_window", None))
    return sliding and getattr(config, "use_sliding_window", True)


class FlatModel:
    """Hidden states of K students; with `recompute` the backward pass runs each layer's forward again."""

    def __init__(
        self, model: nn.Module, stack: Stack, adapters: AdapterWeights | None, recompute: bool
    ) -> None:
        self.decoder, self.stack, self.adapters = model.base_model, stack, adapters
        self.recompute = recompute
        self.modules = dict(model.named_modules())
        names = {module: name for name, module in self.modules.items()}
        self.layers = [names[layer] for layer in self.decoder.layers]
        self.final_norm = names[self.decoder.norm]
        attention, config = self.decoder.layers[0].self_attn, model.config
        counts = (config.num_attention_heads, config.num_key_value_heads)
        self.heads = Heads(*counts, attention.head_dim, float(attention.scaling))
        self.head_norms = hasattr(attention, "q_norm")  # Qwen3 normalises every head

    def hidden(self, batch: StepBatch) -> Tensor:
        """Last hidden states (K, m, d) at the places that carry loss."""
        flat = flatten(batch, self.heads, self.decoder.embed_tokens.weight.device)
        x = self.decoder.embed_tokens(flat.ids)
        turned = turns(*self.decoder.rotary_emb(x, flat.positions), self.heads)
        for layer in self.layers:
            last = layer is self.layers[-1]
            args = (layer, turned, *((flat.last, flat.where) if last else (flat.layout, None)))
            again = partial(torch.utils.checkpoint.checkpoint, self._layer, use_reentrant=False)
            x = (again if self.recompute else self._layer)(x, *args)
        return self._norm(self.final_norm, x)

    def _layer(
        self, x: Tensor, name: str, turned: Turns, layout: Layout, where: Tensor | None
    ) -> Tensor:
        qkv, gate_up = (tuple(f"{name}.{part}" for part in parts) for parts in SIBLINGS)
        both = self._linear(qkv, self._norm(f"{name}.input_layernorm", x))
        if self.head_norms:
            both = self._normed_heads(name, both)
        attended = flat_attention(both, turned, layout)
        if where is not None:  # after the last attention no place needs another one
            x = take(x, where)
        x = self._linear((f"{name}.self_attn.o_proj",), attended, x)
        both = self._linear(gate_up, self._norm(f"{name}.post_attention_layernorm", x))
        return self._linear((f"{name}.mlp.down_proj",), gated(both), x)

    def _linear(self, names: tuple[str, ...], x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.adapters is not None:
            return self.adapters.joint(names, x, residual)
        biased = [self.modules[n].bias is not None for n in names]
        return full_joint(self.stack.groups[0], names, biased, x, residual)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        module = self.modules[name]
        weight = module.weight
        if self.adapters is None:
            weight = self.stack.groups[0].views[f"{name}.weight"].unsqueeze(1)
        return rms_norm(x, weight, module.variance_epsilon)

    def _normed_heads(self, name: str, both: Tensor) -> Tensor:
        heads, (k, m, _) = self.heads, both.shape
        parts = both.split([n * heads.width for n in (heads.query, heads.key, heads.key)], -1)
        normed = [
            self._norm(f"{name}.self_attn.{norm}", part.reshape(k, -1, heads.width)).view(k, m, -1)
            for norm, part in zip(("q_norm", "k_norm"), parts[:2], strict=True)
        ]
        return torch.cat((*normed, parts[2]), -1)


@dataclass(frozen=True)
class FlatBatch:
    """A step's tokens one after the other: `ids`, `positions` (K, M); `where` (K, m), the places that carry loss, which are all that
    the last layer is `last` asked for."""

    ids: Tensor
    positions: Tensor
    where: Tensor
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

    def put(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    places, asked = put(tokens), Asked(*map(put, _asked(batch, b, t)))
    every, last = Layout(places, m, p, heads), Layout(places, m, p, heads, asked)
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
