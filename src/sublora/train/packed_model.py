"""One frozen base, K students: a batch of K x B rows runs each student's own weights.

Two exact forms of a LoRA layer: *low*, the base's product for all rows plus two thin products per student, and *dense*, where
W + s B A is formed once per step and one batched product does it all. The cheaper one is taken layer by layer.
Full fine-tunes use the dense form with their own stacked weights; norms and embeddings are stacked too.

Two ways through the model: training the Llama family takes the flat one (flat.py); other models, and scoring with a cache, take the
model's own forward pass with its layers patched.
"""

import inspect
import re
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn import functional as F

from sublora.packs.hooks import change
from sublora.packs.interventions import Interventions, StreamSteering, TokenGate
from sublora.train.flat import family_of, flat_hidden, flatten, take
from sublora.train.kernels import completion_loss, dense_weights, product, rms_norm
from sublora.train.rows import StepBatch
from sublora.train.stack import Stack, siblings

# Numbers in a chunk of logits, which are never held all at once: on a CPU a chunk should stay in its cache.
LOGITS_AT_ONCE = {"cpu": 2**19, "cuda": 2**27}
# Weights of the dense form are a copy of the adapted layers for every student, and their gradients another; above this they are not worth it.
DENSE_BYTES = 2**30
# Floating-point operations that cost as much as moving one byte; a rough figure is enough to choose a form.
FLOPS_PER_BYTE = {"cpu": 15.0, "cuda": 250.0}


def dense_is_cheaper(
    out_features: int, in_features: int, rank: int, tokens: int, item: int, device: str
) -> bool:
    """Whether W + s B A, formed once for `tokens` rows of one student, beats two thin products beside the base's.

    Counts the operations of a forward and a backward pass and the bytes of the element-wise passes that each form adds.
    """
    o, i, r, n = out_features, in_features, rank, tokens
    dense = 2 * (3 * n * o * i + 3 * r * o * i) + FLOPS_PER_BYTE[device] * item * 6 * o * i
    low = 2 * (2 * n * o * i + 3 * n * r * (o + i)) + FLOPS_PER_BYTE[device] * item * n * (
        5 * o + 2 * i + 6 * r
    )
    return dense < low


class PackedModel:
    """Runs the students of a stack over a Hugging Face causal LM; a context manager, the model is as before on exit.

    `stack=None` runs the base itself as a pack of one. Inputs are (K * B, T), row b of student k at k * B + b. With `recompute`
    (gradient checkpointing) the backward pass runs each layer's forward again instead of keeping what it made.
    A `gate` multiplies each token's part of the adapters, a `steering` acts on the residual stream behind layers; before each call of
    `hidden`, `interventions` are told which tokens it holds.
    """

    def __init__(
        self,
        model: nn.Module,
        stack: Stack | None,
        gate: TokenGate | None = None,
        *,
        steering: StreamSteering | None = None,
        recompute: bool = False,
    ) -> None:
        self.model, self.stack, self.gate, self.recompute = model, stack, gate, recompute
        self.size = stack.size if stack else 1
        self.steering, self.interventions = steering, Interventions(gate, steering)
        self.decoder, self.head = model.base_model, model.get_output_embeddings()
        # transformers 5.24 renamed it
        named = inspect.signature(self.decoder.forward).parameters
        self.cache_argument = "cache" if "cache" in named else "past_key_values"
        self.softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        self.family = family_of(model)
        self._modules = dict(model.named_modules())
        self._patched: list[tuple[nn.Module, object]] = []
        self._hooks = ExitStack()
        self._weights: dict[tuple[str, ...], torch.Tensor | list[_Low]] = {}
        self._frozen: dict[Sheet, torch.Tensor] = {}
        self._masks: dict[Sheet, dict[int, torch.Tensor]] = {}
        self._sheets = _sheets(stack) if stack is not None and stack.kind == "lora" else []
        weights = (
            sum(self._modules[n].weight.nbytes for n in stack.linears) * self.size
            if self._sheets
            else 0
        )
        self._dense_fits = weights <= DENSE_BYTES
        self._together = {
            name: names for sheet in self._sheets for names in sheet for name in names
        }

    def __enter__(self) -> "PackedModel":
        try:
            if self.steering is not None:
                layers, steer = self.decoder.layers, self.steering.steer
                acts = [(layers[n], partial(steer, n)) for n in self.steering.layers]
                self._hooks.enter_context(change(acts))
            if self.stack is None:
                return self
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
        self._hooks.close()
        while self._patched:
            module, before = self._patched.pop()
            if before is None:
                del module.forward
            else:
                module.forward = before
        self._weights.clear()
        self._frozen.clear()
        self._masks.clear()

    def _patch(self, module: nn.Module, forward) -> None:
        self._patched.append(
            (module, vars(module).get("forward"))
        )  # a forward of its own, as accelerate's hooks have
        module.forward = forward

    def form_weights(self, tokens_per_student: int) -> None:
        """Make the step's weights from the students' parameters; call before the first forward of a step.

        Cast to the base's dtype here, once, so that the float32 masters of a bfloat16 base keep what a cast would round away.
        """
        if self.stack is None or self.stack.kind == "full":
            return
        first = next(self.model.parameters())
        kind, item = (
            (first.device.type if first.device.type in FLOPS_PER_BYTE else "cuda"),
            first.element_size(),
        )
        ranks = [g.rank for g in self.stack.groups for _ in range(g.flat.shape[0])]
        for sheet in self._sheets:
            o, i = (
                sum(self._modules[n].out_features for n in sheet[0]),
                self._modules[sheet[0][0]].in_features,
            )
            # in bfloat16 W + s B A would round small updates away, so only full precision may take the dense form; a gate acts on
            # the adapter's part, which the low form keeps apart
            may = item >= 4 and self.gate is None and self._dense_fits
            if may and dense_is_cheaper(
                o, i, sum(ranks) // len(ranks), tokens_per_student, item, kind
            ):
                self._weights |= zip(sheet, self._dense(sheet), strict=True)
            else:
                self._weights |= {names: self._low(names) for names in sheet}

    def _dense(self, sheet: "Sheet") -> tuple[torch.Tensor, ...]:
        """W + s B A of a sheet's layers, (K, o, i) each."""
        if sheet not in self._frozen:
            self._frozen[sheet] = torch.stack(
                [torch.cat([self._modules[n].weight.detach() for n in names]) for names in sheet]
            )
        parts, adapters = [], []
        for group, part in zip(self.stack.groups, self.stack.slices(), strict=True):
            if f"{sheet[0][0]}.lora_A" in group.views:
                parts.append(
                    (part, self.stack.scales[part].repeat_interleave(len(sheet)).view(-1, 1, 1))
                )
                adapters += [group.joint(_tensors(sheet, which)) for which in ("lora_A", "lora_B")]
        return dense_weights(self._frozen[sheet], self.size, parts, self._mask(sheet), adapters)

    def _mask(self, sheet: "Sheet") -> dict[int, torch.Tensor] | None:
        """For every rank r, (o, n r): which columns of the siblings' A belong to a row of their joint weight; None without siblings."""
        if len(sheet[0]) == 1:
            return None
        if sheet not in self._masks:
            sizes = torch.tensor([self._modules[n].out_features for n in sheet[0]])
            owner = torch.eye(len(sizes)).repeat_interleave(sizes, 0).to(self._frozen[sheet])
            self._masks[sheet] = {
                r: owner.repeat_interleave(r, 1) for r in {g.rank for g in self.stack.groups}
            }
        return self._masks[sheet]

    def _low(self, names: tuple[str, ...]) -> list["_Low"]:
        dtype, out = self._modules[names[0]].weight.dtype, []
        for group, part in zip(self.stack.groups, self.stack.slices(), strict=True):
            scale = self.stack.scales[part].view(-1, 1, 1)
            own = [i for i, n in enumerate(names) if f"{n}.lora_A" in group.views]
            if own:
                a = torch.cat([group.views[f"{names[i]}.lora_A"] for i in own], 1).to(dtype)
                b = {i: (group.views[f"{names[i]}.lora_B"] * scale).to(dtype) for i in own}
                out.append(_Low(part, a, b))
        return out

    def _lora_forward(self, name: str, module: nn.Linear):
        def forward(x: torch.Tensor) -> torch.Tensor:
            names = self._together[name]
            index = names.index(name)
            rows, weights = x.reshape(self.size, -1, x.shape[-1]), self._weights[names]
            if isinstance(weights, torch.Tensor):
                start = sum(self._modules[n].out_features for n in names[:index])
                out = product(rows, weights[:, start : start + module.out_features], module.bias)
            else:
                thin = [low.thin(rows, index) for low in weights]
                if self.gate is not None:
                    factor = self.gate.factors(name, rows).reshape(self.size, -1, 1)
                    thin = [
                        h if h is None else h * factor[low.part]
                        for h, low in zip(thin, weights, strict=True)
                    ]
                out = self._added(module, rows, weights, index, thin)
            return out.view(*x.shape[:-1], -1)

        return forward

    def _added(
        self,
        module: nn.Linear,
        rows: torch.Tensor,
        lows: list["_Low"],
        index: int,
        thin: list[torch.Tensor | None],
    ) -> torch.Tensor:
        """The base's product for all rows plus each adapter's second thin product, (K, M, o)."""
        base = F.linear(rows, module.weight, module.bias)
        if not torch.is_grad_enabled():
            for low, h in zip(lows, thin, strict=True):
                if h is not None:
                    base[low.part].baddbmm_(h, low.b[index].mT)
            return base
        out, at = [], 0
        for low, h in zip(lows, thin, strict=True):
            if h is None:
                continue
            if low.part.start > at:
                out.append(base[at : low.part.start])
            out.append(torch.baddbmm(base[low.part], h, low.b[index].mT))
            at = low.part.stop
        if at < self.size:
            out.append(base[at:])
        return torch.cat(out) if len(out) > 1 else out[0]

    def _flat_linear(
        self, names: tuple[str, ...], x: torch.Tensor, residual: torch.Tensor | None
    ) -> torch.Tensor:
        """Outputs of sibling layers side by side, (K, M, o), plus the residual."""
        modules = [self._modules[n] for n in names]
        if self.stack.kind == "full":
            parts = self._full_parts(names, modules, x, residual)
        elif self._together.get(names[0]) != names:
            parts = [self._alone(n, m, x) for n, m in zip(names, modules, strict=True)]
        elif isinstance(self._weights[names], torch.Tensor):
            return product(x, self._weights[names], _joint_bias(modules), residual)
        else:
            parts = self._low_parts(modules, self._weights[names], x)
        if len(parts) == 1 and self.stack.kind == "full":
            return parts[0]
        out = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
        return out if residual is None else residual + out

    def _full_parts(
        self,
        names: tuple[str, ...],
        modules: Sequence[nn.Linear],
        x: torch.Tensor,
        residual: torch.Tensor | None,
    ) -> list[torch.Tensor]:
        """Outputs of full fine-tunes: one tensor with the residual in it, or one for each sibling without."""
        group = self.stack.groups[0]
        joint = group.joint((tuple(f"{n}.weight" for n in names),))
        if joint is not None and (len(names) == 1 or all(m.bias is None for m in modules)):
            bias = None if modules[0].bias is None else group.views[f"{names[0]}.bias"].unsqueeze(1)
            return [product(x, joint.view(self.size, -1, joint.shape[-1]), bias, residual)]
        biases = [
            None if m.bias is None else group.views[f"{n}.bias"].unsqueeze(1)
            for n, m in zip(names, modules, strict=True)
        ]
        return [
            product(x, group.views[f"{n}.weight"], b) for n, b in zip(names, biases, strict=True)
        ]

    def _alone(self, name: str, module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        """A layer without an adapter, or whose siblings have none."""
        if name not in self._together:
            return F.linear(x, module.weight, module.bias)
        weights = self._weights[(name,)]
        if isinstance(weights, torch.Tensor):
            return product(x, weights, module.bias)
        return self._low_parts([module], weights, x)[0]

    def _low_parts(
        self, modules: Sequence[nn.Linear], lows: list["_Low"], x: torch.Tensor
    ) -> list[torch.Tensor]:
        """Sibling layers in the low form; the first thin product of all siblings is one."""
        thin = [
            dict(zip(low.b, torch.bmm(x[low.part], low.a.mT).chunk(len(low.b), -1), strict=True))
            for low in lows
        ]
        return [
            self._added(module, x, lows, i, [h.get(i) for h in thin])
            for i, module in enumerate(modules)
        ]

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        module = self._modules[name]
        full = self.stack is not None and self.stack.kind == "full"
        weight = (
            self.stack.groups[0].views[f"{name}.weight"].unsqueeze(1) if full else module.weight
        )
        return rms_norm(x, weight, module.variance_epsilon)

    @property
    def head_weight(self) -> torch.Tensor:
        """(V, d), or (K, V, d) where every student has its own."""
        if self.stack is not None and self.stack.kind == "full":
            return self._own(self.head.weight)
        return self.head.weight

    def _own(self, parameter: torch.Tensor) -> torch.Tensor:
        """The students' own of one of the model's parameters, stacked."""
        name = next(n for n, p in self.model.named_parameters() if p is parameter)
        return self.stack.groups[0].views[name]

    def losses(self, batch: StepBatch) -> torch.Tensor:
        """Mean cross-entropy per completion token of each student, (K,), in nats."""
        device = self.head.weight.device
        if self.interventions:
            raise ValueError("losses are those of the plain students")
        if self.family is not None and self.stack is not None:
            flat = flatten(batch, self.family.heads, device)
            picked = flat_hidden(self.family, flat, self._flat_linear, self._norm, self.recompute)
        else:
            picked = self._padded_hidden(batch, device)
        head, bias = self.head_weight, getattr(self.head, "bias", None)
        if bias is not None and self.stack is not None and self.stack.kind == "full":
            bias = self._own(bias).unsqueeze(1)
        at_once = LOGITS_AT_ONCE.get(device.type, LOGITS_AT_ONCE["cuda"])
        targets, weights = (
            torch.from_numpy(batch.targets).to(device),
            torch.from_numpy(batch.weights).to(device),
        )
        return completion_loss(picked, head, bias, targets, weights, self.softcap, at_once)

    def _padded_hidden(self, batch: StepBatch, device: torch.device) -> torch.Tensor:
        """Hidden states (K, m, d) at the places that carry loss, by the model's own forward pass over padded rows."""
        ids, prefix = (
            torch.from_numpy(batch.ids).to(device),
            torch.from_numpy(batch.prefix).to(device),
        )
        where, p = torch.from_numpy(batch.where).to(device), batch.prefix.shape[1]
        rows = batch.sizes.shape[1]
        if self.recompute and p:  # a cache is filled on the way and cannot be filled again
            ids = torch.cat((prefix.repeat_interleave(rows, 0), ids), 1)
            where = where + p * (where // batch.ids.shape[1] + 1)
            p = 0
        cache = None
        if p:
            # the shared prefix is read once for each student; its keys and values carry gradients to all of the student's rows
            cache = self.new_cache()
            self.hidden(prefix, cache)
            cache.batch_repeat_interleave(rows)
        with _recomputing(self.decoder, self.recompute):
            hidden = self.hidden(ids, cache, position=p)
        return take(hidden.view(self.size, -1, hidden.shape[-1]), where)

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
                out = torch.baddbmm(
                    group.views[own["bias"]].unsqueeze(1), rows, weight.transpose(1, 2)
                )
            else:
                out = torch.bmm(rows, weight.transpose(1, 2))
            return out.view(*x.shape[:-1], -1)

        return forward

    def _full_embedding(self, module: nn.Embedding, own: dict[str, str], group):
        scale = getattr(
            module, "embed_scale", None
        )  # Gemma's embedding multiplies what it looks up
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
            torch.arange(position, position + ids.shape[1], device=ids.device)
            .unsqueeze(0)
            .expand(ids.shape[0], -1)
        )
        out = self.decoder(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            use_cache=cache is not None,
            **{self.cache_argument: cache},
        )
        return out.last_hidden_state

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Logits (K * M, V) of hidden states (K * M, d), M rows a student, in at least float32."""
        out = self.head(rows)
        out = out if out.dtype == torch.float64 else out.float()
        return out if self.softcap is None else self.softcap * torch.tanh(out / self.softcap)

    def new_cache(self):
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)


class _Low:
    """One group's part of sibling layers in the low form: `a` (K_g, siblings * r, i), `b[i]` (K_g, o_i, r) with the scale in it."""

    def __init__(self, part: slice, a: torch.Tensor, b: dict[int, torch.Tensor]) -> None:
        self.part, self.a, self.b = part, a, b

    def thin(self, rows: torch.Tensor, index: int) -> torch.Tensor | None:
        """x A^T of one sibling, (K_g, M, r), or None where the group has no adapter there."""
        if index not in self.b:
            return None
        rank, at = self.a.shape[1] // len(self.b), list(self.b).index(index)
        return torch.bmm(rows[self.part], self.a[:, at * rank : (at + 1) * rank].mT)


Sheet = tuple[tuple[str, ...], ...]
"""Layers whose weights are formed together: siblings that read the same input, for each of L decoder layers of one shape."""


def _tensors(sheet: Sheet, which: str) -> Sheet:
    return tuple(tuple(f"{name}.{which}" for name in names) for names in sheet)


def _sheets(stack: Stack) -> list[Sheet]:
    """All layers with adapters, in sheets as large as the students' buffers allow."""

    def fits(sheet: Sheet) -> bool:
        """Whether each group has all these adapters, at equal distances, or none of them."""
        for group in stack.groups:
            have = [f"{name}.lora_A" in group.views for names in sheet for name in names]
            if any(have) and not (
                all(have)
                and all(group.joint(_tensors(sheet, w)) is not None for w in ("lora_A", "lora_B"))
            ):
                return False
        shapes = [[tuple(stack.linears[n].weight.shape) for n in names] for names in sheet]
        return all(shape == shapes[0] for shape in shapes)

    alike: dict[str, list[tuple[str, ...]]] = {}
    for names in siblings(stack.linears):
        for together in [names] if fits((names,)) else [(n,) for n in names]:
            alike.setdefault(re.sub(r"\.\d+\.", ".", " ".join(together)), []).append(together)
    return [
        s
        for found in alike.values()
        for s in ([tuple(found)] if fits(tuple(found)) else [(names,) for names in found])
    ]


def _joint_bias(modules: Sequence[nn.Linear]) -> torch.Tensor | None:
    if all(m.bias is None for m in modules):
        return None
    return torch.cat(
        [m.weight.new_zeros(m.out_features) if m.bias is None else m.bias for m in modules]
    )


@contextmanager
def _recomputing(decoder: nn.Module, on: bool):
    """Every decoder layer keeps its input only, and runs again in the backward pass."""
    layers = list(decoder.layers) if on else []
    before = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        plain = layer.forward
        layer.forward = lambda *a, _plain=plain, **k: torch.utils.checkpoint.checkpoint(
            _plain, *a, use_reentrant=False, **k
        )
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            if own is None:
                del layer.forward
            else:
                layer.forward = own


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
