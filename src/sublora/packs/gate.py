"""Adapters switched on and off at single tokens: a mask times the adapter's contribution, inside one ordinary forward pass.

A LoRA layer gives W x + m s B A x, with m the mask of the token that stands there; the mask is a number for each token, so it is
multiplied to A x, the thin side. Prompts are read whole and in batches, and with a cache the mask of a place follows its token.
The public code of Nief et al. (2606.00831) feeds the prompt in chunks instead and toggles the adapter between them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sublora.errors import SubloraError
from sublora.packs import hooks
from sublora.packs.condition import Condition, GeneratedPolicy, ModuleGroup, layer_and_group
from sublora.packs.interventions import Span

if TYPE_CHECKING:  # slow to import, and packs do without it
    from peft import PeftModel


@dataclass(frozen=True)
class Gate:
    """One adapter's gate over a batch of B prompts of T columns, padding included.

    `mask` (B, T): a factor for each prompt token, usually 0 or 1. `generated` says what the adapter does at the tokens after the prompt:
    `on`, `off`, or `mask`, which takes `answer_mask` (B, G), a factor for each of them. `layers` (first, last) and `modules` limit where it
    acts at all. With several sequences a prompt (`num_return_sequences`), one row a prompt is given.
    """

    mask: Tensor
    generated: GeneratedPolicy
    answer_mask: Tensor | None = None
    layers: tuple[int, int] | None = None
    modules: ModuleGroup = "all"

    def __post_init__(self) -> None:
        answer, why = self.answer_mask, None
        if self.mask.dim() != 2:
            why = (
                f"mask has shape {tuple(self.mask.shape)}; give (prompts, tokens), padding included"
            )
        elif self.generated not in ("on", "off", "mask"):
            why = f"policy for generated tokens is '{self.generated}'; choose on, off or mask"
        elif (self.generated == "mask") != (answer is not None):
            why = "answer_mask belongs to the policy 'mask' for generated tokens, and to no other; give both or neither"
        elif answer is not None and (answer.dim() != 2 or len(answer) != len(self.mask)):
            why = f"answer_mask has shape {tuple(answer.shape)} beside {len(self.mask)} prompts; give (prompts, generated tokens)"
        if why:
            raise SubloraError(f"A gate's {why}.")

    def selects(self, module: str) -> bool:
        return Condition(generated="on", layers=self.layers, modules=self.modules).selects(module)

    def columns(self, start: int, stop: int) -> Tensor:
        """(B, stop - start): the factors of these columns. Raises SubloraError behind the end of `answer_mask`."""
        rows, width = self.mask.shape
        first, last = max(start, width) - width, stop - width
        parts = [self.mask[:, start:stop]]
        if last > 0 and self.answer_mask is None:
            value = 1.0 if self.generated == "on" else 0.0
            parts.append(torch.full((rows, last - first), value, device=self.mask.device))
        elif last > 0 and last > self.answer_mask.shape[1]:
            why = f"The gate has values for {self.answer_mask.shape[1]} generated tokens and the model reads more; give a longer answer_mask."
            raise SubloraError(why)
        elif last > 0:
            parts.append(self.answer_mask[:, first:last])
        return torch.cat([p.float() for p in parts], 1)


class AdapterGate:
    """Gates for the LoRA adapters of a peft model, by adapter name.

        gate = AdapterGate(model)
        with gate({"default": Gate(mask, generated="off")}):
            model.generate(...)

    Inside, each named adapter that is active acts through its gate and the others as they are; `model` can be called or generate as usual,
    with several adapters active, left padding and a cache. Checked when it is made: masks of 0 give the base, masks of 1 the adapter.

    Raises SubloraError: no LoRA adapter, DoRA, merged weights, adapters on anything but linear layers, or a check that fails.
    """

    def __init__(self, model: PeftModel) -> None:
        from peft.tuners.lora import LoraLayer

        self.model = model
        self.layers = {n: m for n, m in model.named_modules() if isinstance(m, LoraLayer)}
        self._start, self._shape = 0, (0, 0)
        self._now: dict[tuple[str, bool], Tensor] = {}
        for name, module in self.layers.items():
            _check_layer(name, module)
        if not self.layers:
            why = "The model has no LoRA adapter that could be gated; load one with peft."
            raise SubloraError(why)
        self.adapters = sorted({a for layer in self.layers.values() for a in layer.lora_A})
        self._check()

    @contextmanager
    def __call__(self, gates: Mapping[str, Gate]):
        """Gate the named adapters. Raises SubloraError for a name that is no adapter, or a gate that selects no layer."""
        if unknown := sorted(set(gates) - set(self.adapters)):
            why = f"There is no adapter '{unknown[0]}' to gate; the model has {', '.join(map(repr, self.adapters))}."
            raise SubloraError(why)
        for name, gate in gates.items():
            if not any(gate.selects(layer) for layer in self.layers):
                last = max(layer_and_group(layer)[0] for layer in self.layers)
                why = f"The gate of '{name}' selects no layer of the adapter; its layers are numbered up to {last}."
                raise SubloraError(why)
        acts = [
            self._masked(layer, name, gate, gate.selects(layer_name))
            for layer_name, layer in self.layers.items()
            for name, gate in gates.items()
            if name in layer.lora_A
        ]
        decoder = self.model.get_base_model().base_model
        try:
            with hooks.before(decoder, self._read_columns), hooks.change(acts):
                yield self
        finally:
            self._now.clear()

    def _read_columns(self, args: tuple, kwargs: dict) -> None:
        """Where the tokens of this forward pass stand: behind what the cache holds."""
        given = (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args[:1])
        tokens = next(t for t in given if t is not None)
        # `past_key_values` is the name before transformers 5.24
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        self._start = 0 if cache is None else int(cache.get_seq_length())
        self._shape = (tokens.shape[0], tokens.shape[1])
        self._now.clear()

    def _masked(
        self, layer: nn.Module, name: str, gate: Gate, selected: bool
    ) -> tuple[nn.Module, hooks.Change]:
        # the factor of a token commutes with B, so the thin side is cheaper; a bias of B would escape it there
        part = layer.lora_B[name] if layer.lora_B[name].bias is not None else layer.lora_A[name]

        def masked(out: Tensor) -> Tensor:
            factor = self._now.get((name, selected))
            if factor is None or factor.dtype != out.dtype or factor.device != out.device:
                factor = self._now[name, selected] = self._factor(name, gate, selected).to(out)
            return out * factor

        return part, masked

    def _factor(self, name: str, gate: Gate, selected: bool) -> Tensor:
        """(rows, tokens, 1) of this forward pass."""
        rows, width = self._shape
        prompts, columns = gate.mask.shape
        if rows % prompts:
            why = f"The gate of '{name}' has {prompts} rows and the batch {rows}; give one row for each prompt of the batch."
            raise SubloraError(why)
        if self._start == 0 and width < columns:
            why = f"The gate of '{name}' has a mask of {columns} tokens and the prompt only {width}; give one value for each token of the prompt."
            raise SubloraError(why)
        if not selected:
            return torch.zeros(rows, width, 1)
        factor = gate.columns(self._start, self._start + width)
        return factor.repeat_interleave(rows // prompts, 0).unsqueeze(-1)

    @torch.no_grad()
    def _check(self) -> None:
        """All-off is the base, all-on is the adapter; on a few tokens, for the adapters that are active now."""
        device, training = next(self.model.parameters()).device, self.model.training
        ids = torch.tensor([[1, 2, 0, 3], [2, 2, 1, 0]], device=device)

        def gated(value: float) -> Tensor:
            gate = Gate(torch.full(ids.shape, value, device=device), "on" if value else "off")
            with self(dict.fromkeys(self.adapters, gate)):
                return self.model(input_ids=ids).logits

        self.model.eval()
        try:
            with self.model.disable_adapter():
                base = self.model(input_ids=ids).logits
            plain, off, on = self.model(input_ids=ids).logits, gated(0.0), gated(1.0)
        finally:
            self.model.train(training)
        both = ((off, base, "off is not the base"), (on, plain, "on is not the plain adapter"))
        for got, want, what in both:
            room = {torch.float64: 1e-9, torch.float32: 1e-4}.get(want.dtype, 0.05)
            room *= max(1.0, float(want.float().abs().max()))
            if not torch.allclose(got.float(), want.float(), atol=room, rtol=0):
                raise SubloraError(
                    f"The adapter gated all {what}, so it changes more than its LoRA layers (trained biases, embeddings or saved "
                    "modules); gate an adapter of LoRA layers alone."
                )


def _check_layer(name: str, layer: nn.Module) -> None:
    inner, why = layer.get_base_layer(), None
    if getattr(layer, "merged", False):
        why = f"is merged into the weights at {name}, so it cannot be told from the base; load it unmerged, or unmerge it"
    elif any(getattr(layer, "use_dora", {}).values()):
        why = f"at {name} is a DoRA, whose contribution depends on the whole weight's norm and cannot be gated by token; train a plain LoRA"
    elif getattr(layer, "lora_variant", None):
        why = f"at {name} is a variant of LoRA that cannot be gated; train a plain LoRA"
    elif not isinstance(inner, nn.Linear) or len(getattr(layer, "lora_embedding_A", ())):
        kind = type(inner).__name__
        why = f"at {name} sits on a {kind}; only adapters of linear layers can be gated by token"
    if why:
        raise SubloraError(f"The adapter {why}.")


class PackGate:
    """The gates of all prompts that a pack reads, for `PackedModel(model, stack, gate)`. `masks[i]` (T_i,) are the factors of prompt i's
    tokens, `generated[i]` that of the tokens after it, and `conditions[i]` says which column of `select` it goes by: `select[name]` (C,),
    whether a condition lets the adapter act in that linear layer."""

    def __init__(
        self,
        masks: Sequence[Sequence[float]],
        generated: Sequence[float],
        conditions: Sequence[int],
        select: Mapping[str, Sequence[bool]],
    ) -> None:
        self.masks = [tuple(map(float, mask)) for mask in masks]
        self.generated = torch.tensor(list(map(float, generated)))
        self.conditions = torch.tensor(list(conditions), dtype=torch.long)
        self._select = {name: tuple(map(bool, chosen)) for name, chosen in select.items()}
        self._tokens = torch.zeros(0, 0)
        self._rows = torch.zeros(0, dtype=torch.long)
        self._now: dict[tuple[bool, ...], Tensor] = {}

    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        if len(prompts) != len(self.masks):
            raise SubloraError(
                f"There are {len(self.masks)} masks for {len(prompts)} prompts; give one for each."
            )
        for mask, prompt in zip(self.masks, prompts, strict=True):
            if len(mask) != len(prompt):
                why = f"A mask has {len(mask)} values for a prompt of {len(prompt)} tokens; give one value for each token."
                raise SubloraError(why)

    def kind(self, prompt: int, width: int) -> Hashable:
        return int(self.conditions[prompt]), self.masks[prompt][:width]

    def read(self, spans: Sequence[Span], students: int, width: int) -> None:
        rows = [self.masks[i][start:stop] for i, start, stop in spans]
        tokens = torch.tensor([(0.0,) * (width - len(row)) + row for row in rows])
        self._begin(tokens.repeat(students, 1), [span.prompt for span in spans] * students)

    def write(self, prompts: Sequence[int], width: int) -> None:
        tokens = self.generated[list(prompts)].unsqueeze(1).expand(-1, width)
        self._begin(tokens, list(prompts))

    def _begin(self, tokens: Tensor, prompts: list[int]) -> None:
        self._tokens, self._rows = tokens, self.conditions[prompts]
        self._now.clear()

    def factors(self, name: str, like: Tensor) -> Tensor:
        """The factors (rows, tokens) of this pass in a linear layer; dtype and device of `like`."""
        chosen = self._select[name]
        if chosen not in self._now:
            factor = self._tokens
            if not all(chosen):
                factor = factor * torch.tensor(chosen)[self._rows].unsqueeze(1)
            self._now[chosen] = factor.to(like)
        return self._now[chosen]


def pack_gate(
    masks: Sequence[Sequence[Sequence[float]]],
    conditions: Sequence[Condition],
    linears: Sequence[str],
) -> PackGate:
    """The gate of Q prompts under each of C conditions, condition by condition: prompt q under condition c has index c * Q + q.
    `masks[c][q]` are the factors of its tokens; `linears` names the layers that have an adapter."""
    count = len(masks[0])
    generated = [c.acts_on("generated") for c in conditions for _ in range(count)]
    owner = [k for k in range(len(conditions)) for _ in range(count)]
    select = {name: [c.selects(name) for c in conditions] for name in linears}
    return PackGate([mask for rows in masks for mask in rows], generated, owner, select)
