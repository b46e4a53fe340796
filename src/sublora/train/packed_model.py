"""One frozen base, K students: layers patched so that a batch of K x B rows runs each student's own weights.

Two exact forms of a LoRA layer: *low*, the base's product for all rows plus two thin products per student, and *dense*, where
W + s B A is formed once per step and one batched product does it all. The cheaper one is taken layer by layer.
Full fine-tunes use the dense form with their own stacked weights; norms and embeddings are stacked too.
"""

from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from sublora.train.stack import Stack

# Floating-point operations that cost as much as moving one byte; a rough figure is enough to choose a form.
FLOPS_PER_BYTE = {"cpu": 15.0, "cuda": 250.0}

# Decoder layers of the form x + attention(norm(x)), then h + mlp(norm(h)), under these very names.
TWO_PART_LAYERS = {"LlamaDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer", "MistralDecoderLayer"}


def dense_is_cheaper(out_features: int, in_features: int, rank: int, tokens: int, item: int, device: str) -> bool:
    """Whether W + s B A, formed once for `tokens` rows of one student, beats two thin products beside the base's.

    Counts the operations of a forward and a backward pass and the bytes of the element-wise passes that each form adds.
    """
    o, i, r, n = out_features, in_features, rank, tokens
    dense = 2 * (3 * n * o * i + 3 * r * o * i) + FLOPS_PER_BYTE[device] * item * 6 * o * i
    low = 2 * (2 * n * o * i + 3 * n * r * (o + i)) + FLOPS_PER_BYTE[device] * item * n * (5 * o + 2 * i + 6 * r)
    return dense < low


class PackedModel:
    """Runs the students of a stack over a Hugging Face causal LM; a context manager, the model is as before on exit.

    `stack=None` runs the base itself as a pack of one. Inputs are (K * B, T), row b of student k at k * B + b.
    """

    def __init__(self, model: nn.Module, stack: Stack | None) -> None:
        self.model, self.stack = model, stack
        self.size = stack.size if stack else 1
        self.decoder, self.head = model.base_model, model.get_output_embeddings()
        self.softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        layers = getattr(self.decoder, "layers", None)
        self._last = layers[-1] if layers is not None and type(layers[-1]).__name__ in TWO_PART_LAYERS else None
        self._patched: list[nn.Module] = []
        self._weights: dict[str, torch.Tensor | list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self._dense: dict[str, bool] = {}

    def __enter__(self) -> "PackedModel":
        if self.stack is None:
            return self
        try:
            if self.stack.kind == "lora":
                for name, module in self.stack.linears.items():
                    self._patch(module, self._lora_forward(name, module))
            else:
                self._patch_full()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for module in self._patched:
            del module.forward
        self._patched.clear()
        self._weights.clear()

    def _patch(self, module: nn.Module, forward) -> None:
        module.forward = forward
        self._patched.append(module)

    def form_weights(self, tokens_per_student: int) -> None:
        """Make the step's weights from the students' parameters; call before the first forward of a step.

        Cast to the base's dtype here, once, so that the float32 masters of a bfloat16 base keep what a cast would round away.
        """
        if self.stack is None or self.stack.kind == "full":
            return
        kind = next(self.model.parameters()).device.type
        kind = kind if kind in FLOPS_PER_BYTE else "cuda"
        item = next(self.model.parameters()).element_size()
        ranks = [g.rank for g in self.stack.groups for _ in range(g.flat.shape[0])]
        for name, module in self.stack.linears.items():
            o, i = module.weight.shape
            # in bfloat16 W + s B A would round small updates away, so only full precision may take the dense form
            dense = item >= 4 and dense_is_cheaper(o, i, sum(ranks) // len(ranks), tokens_per_student, item, kind)
            self._dense[name] = dense
            parts = []
            for group, part in zip(self.stack.groups, self.stack.slices(), strict=True):
                scale = self.stack.scales[part].view(-1, 1, 1)
                a, b = group.views[f"{name}.lora_A"], group.views[f"{name}.lora_B"]
                if dense:
                    parts.append(torch.baddbmm(module.weight.to(a.dtype), b * scale, a))
                else:
                    parts.append((a.to(module.weight.dtype), (b * scale).to(module.weight.dtype)))
            self._weights[name] = (torch.cat(parts) if len(parts) > 1 else parts[0]) if dense else parts

    def _lora_forward(self, name: str, module: nn.Linear):
        def forward(x: torch.Tensor) -> torch.Tensor:
            k = self.size
            if self._dense[name]:
                weight = self._weights[name]
                rows = x.reshape(k, -1, x.shape[-1])
                turned = weight.transpose(1, 2)
                out = torch.bmm(rows, turned) if module.bias is None else torch.baddbmm(module.bias, rows, turned)
                return out.view(*x.shape[:-1], -1)
            base = F.linear(x, module.weight, module.bias)
            rows = x.reshape(k, -1, x.shape[-1])
            added = [
                torch.bmm(torch.bmm(rows[part], a.transpose(1, 2)), b.transpose(1, 2))
                for (a, b), part in zip(self._weights[name], self.stack.slices(), strict=True)
            ]
            return base + (torch.cat(added) if len(added) > 1 else added[0]).view_as(base)

        return forward

    def _patch_full(self) -> None:
        """Every module that owns parameters gets a forward that uses the students' own, stacked."""
        group = self.stack.groups[0]
        names = {id(p): n for n, p in self.model.named_parameters()}
        for module in self.model.modules():
            own = {n: names[id(p)] for n, p in module.named_parameters(recurse=False)}
            if not own:
                continue
            if type(module) is nn.Linear:
                self._patch(module, self._full_linear(own, group))
            elif isinstance(module, nn.Embedding):
                self._patch(module, self._full_embedding(module, own, group))
            else:
                self._patch(module, self._full_other(module, own, group))

    def _full_linear(self, own: dict[str, str], group):
        def forward(x: torch.Tensor) -> torch.Tensor:
            weight = group.views[own["weight"]]
            rows = x.reshape(self.size, -1, x.shape[-1])
            if "bias" in own:
                out = torch.baddbmm(group.views[own["bias"]].unsqueeze(1), rows, weight.transpose(1, 2))
            else:
                out = torch.bmm(rows, weight.transpose(1, 2))
            return out.view(*x.shape[:-1], -1)

        return forward

    def _full_embedding(self, module: nn.Embedding, own: dict[str, str], group):
        scale = getattr(module, "embed_scale", None)  # Gemma's embedding multiplies what it looks up
        silent = module.padding_idx  # torch gives the row of this token no gradient

        def forward(ids: torch.Tensor) -> torch.Tensor:
            table = group.views[own["weight"]]
            vocabulary = table.shape[1]
            first = torch.arange(self.size, device=ids.device).view(-1, 1) * vocabulary
            flat = (ids.reshape(self.size, -1) + first).reshape(ids.shape)
            out = F.embedding(flat, table.reshape(-1, table.shape[-1]))
            if silent is not None and out.requires_grad:
                out = torch.where((ids == silent).unsqueeze(-1), out.detach(), out)
            return out if scale is None else out * scale.to(out.dtype)

        return forward

    def _full_other(self, module: nn.Module, own: dict[str, str], group):
        plain = type(module).forward

        def single(parameters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
            return torch.func.functional_call(
                _Unpatched(module, plain), {f"inner.{n}": p for n, p in parameters.items()}, (x,)
            )

        def forward(x: torch.Tensor) -> torch.Tensor:
            stacked = {n: group.views[full] for n, full in own.items()}
            rows = x.reshape(self.size, -1, *x.shape[1:])
            return torch.func.vmap(single)(stacked, rows).view_as(x)

        return forward

    def hidden(
        self, ids: torch.Tensor, cache=None, position: int = 0, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Last hidden states (K * B, T, d) of ids (K * B, T) that stand at `position`, after what the cache holds."""
        positions = (
            torch.arange(position, position + ids.shape[1], device=ids.device).unsqueeze(0).expand(ids.shape[0], -1)
        )
        out = self.decoder(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return out.last_hidden_state

    def hidden_at(self, ids: torch.Tensor, where: torch.Tensor, cache=None, position: int = 0) -> torch.Tensor:
        """Last hidden states (K, M, d) of chosen places; `where` (K, M) counts a student's B * T positions.

        After the last attention no position needs another one, so the rest of the model runs on the chosen ones alone where the
        last layer has the usual form.
        """
        last = self._last
        if last is None:
            return take(self.hidden(ids, cache, position), where)

        def forward(hidden_states: torch.Tensor, **kwargs: object) -> torch.Tensor:
            attended, _ = last.self_attn(hidden_states=last.input_layernorm(hidden_states), **kwargs)
            chosen = take(hidden_states + attended, where)
            return chosen + last.mlp(last.post_attention_layernorm(chosen))

        last.forward = forward
        try:
            return self.hidden(ids, cache, position)
        finally:
            del last.forward

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Logits (K * M, V) of hidden states (K * M, d), M rows a student, in at least float32."""
        out = self.head(rows)
        out = out if out.dtype == torch.float64 else out.float()
        return out if self.softcap is None else self.softcap * torch.tanh(out / self.softcap)

    def new_cache(self):
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)


def take(hidden: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Rows `where` (K, M) of each student's B * T positions of hidden (K * B, T, d): (K, M, d)."""
    k, width = where.shape[0], hidden.shape[-1]
    return hidden.reshape(k, -1, width).gather(1, where.unsqueeze(-1).expand(-1, -1, width))


class _Unpatched(nn.Module):
    """The module with its own forward, so that a patched module can be called functionally without meeting its patch."""

    def __init__(self, inner: nn.Module, plain) -> None:
        super().__init__()
        self.inner, self._plain = inner, plain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._plain(self.inner, x)


@contextmanager
def evaluating(model: nn.Module):
    """No dropout while a pack trains: adapters have none, and the base is frozen. Every module's mode is put back."""
    modes = [m.training for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in zip(model.modules(), modes, strict=True):
            module.training = mode


@contextmanager
def quiet_gradients(model: nn.Module):
    """The base's parameters need no gradients while a pack trains."""
    flags = [p.requires_grad for p in model.parameters()]
    for p in model.parameters():
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p, flag in zip(model.parameters(), flags, strict=True):
            p.requires_grad_(flag)
