"""Adapters switched on and off at single tokens: a mask times the adapter's contribution, inside one ordinary forward pass.

A LoRA layer gives W x + m s B A x, with m the mask of the token that stands there; the mask is a number for each token, so it is
multiplied to A x, the thin side. Prompts are read whole and in batches, and with a cache the mask of a place follows its token.
The public code of Nief et al. (2606.00831) feeds the prompt in chunks instead and toggles the adapter between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from sublora.condition import Condition, GeneratedPolicy, ModuleGroup, layer_and_group
from sublora.errors import SubloraError

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class Gate:
    """One adapter's gate over a batch of B prompts of T columns, padding included.

    `mask` (B, T): a factor for each prompt token, usually 0 or 1. `generated`: what the adapter does at the tokens after the prompt:
    `on`, `off`, or `mask`, which takes `answer_mask` (B, G), a factor for each of them. `layers` (first, last) and `modules` limit
    where the adapter acts at all. With several sequences a prompt (`num_return_sequences`), one row a prompt is given.
    """

    mask: torch.Tensor
    generated: GeneratedPolicy
    answer_mask: torch.Tensor | None = None
    layers: tuple[int, int] | None = None
    modules: ModuleGroup = "all"

    def __post_init__(self) -> None:
        if self.mask.dim() != 2:
            raise SubloraError(
                f"A gate's mask has shape {tuple(self.mask.shape)}; give (prompts, tokens), padding included."
            )
        if self.generated not in ("on", "off", "mask"):
            raise SubloraError(
                f"A gate's policy for generated tokens is '{self.generated}'; choose on, off or mask."
            )
        if (self.generated == "mask") != (self.answer_mask is not None):
            raise SubloraError(
                "A gate's answer_mask belongs to the policy 'mask' for generated tokens, and to no other; give both or neither."
            )
        if self.answer_mask is not None and (
            self.answer_mask.dim() != 2 or self.answer_mask.shape[0] != self.mask.shape[0]
        ):
            raise SubloraError(
                f"A gate's answer_mask has shape {tuple(self.answer_mask.shape)} beside {self.mask.shape[0]} prompts; give "
                "(prompts, generated tokens)."
            )

    def selects(self, module: str) -> bool:
        return Condition(generated="on", layers=self.layers, modules=self.modules).selects(module)

    def columns(self, start: int, stop: int) -> torch.Tensor:
        """(B, stop - start): the factors of these columns. Raises SubloraError behind the end of `answer_mask`."""
        width = self.mask.shape[1]
        parts = [self.mask[:, start:stop]]
        if stop > width:
            first, last = max(start, width) - width, stop - width
            if self.answer_mask is None:
                value = 1.0 if self.generated == "on" else 0.0
                parts.append(
                    torch.full((len(self.mask), last - first), value, device=self.mask.device)
                )
            elif last > self.answer_mask.shape[1]:
                raise SubloraError(
                    f"The gate has values for {self.answer_mask.shape[1]} generated tokens and the model reads more; give a longer "
                    "answer_mask."
                )
            else:
                parts.append(self.answer_mask[:, first:last])
        return torch.cat([p.float() for p in parts], 1)


class AdapterGate:
    """Gates for the LoRA adapters of a peft model, by adapter name.

        gate = AdapterGate(model)
        with gate({"default": Gate(mask, generated="off")}):
            model.generate(...)

    Inside, every active adapter that is named acts through its gate and the others as they are; `model` can be called or generate as
    usual, with several adapters active (`model.base_model.set_adapter([...])`), left padding and a cache. On exit, also after an
    exception, no hook is left. Checked when it is made: with every mask at 0 the model is the base, with every mask at 1 the adapter.

    Raises SubloraError: no LoRA adapter, DoRA, merged weights, adapters on anything but linear layers, or a check that fails.
    """

    def __init__(self, model: PeftModel) -> None:
        from peft.tuners.lora import LoraLayer

        self.model = model
        self.layers: dict[str, nn.Module] = {}
        self._start = 0
        self._shape = (0, 0)
        self._now: dict[tuple[str, bool], torch.Tensor] = {}
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer):
                _check_layer(name, module)
                self.layers[name] = module
        if not self.layers:
            raise SubloraError(
                "The model has no LoRA adapter that could be gated; load one with peft."
            )
        self.adapters = sorted({a for layer in self.layers.values() for a in layer.lora_A})
        self._check()

    @contextmanager
    def __call__(self, gates: Mapping[str, Gate]):
        """Gate the named adapters. Raises SubloraError for a name that is no adapter, or a gate that selects no layer."""
        if unknown := sorted(set(gates) - set(self.adapters)):
            raise SubloraError(
                f"There is no adapter '{unknown[0]}' to gate; the model has {', '.join(map(repr, self.adapters))}."
            )
        for name, gate in gates.items():
            if not any(gate.selects(layer) for layer in self.layers):
                last = max(layer_and_group(layer)[0] for layer in self.layers)
                raise SubloraError(
                    f"The gate of '{name}' selects no layer of the adapter; its layers are numbered up to {last}."
                )
        handles = [self._decoder().register_forward_pre_hook(self._read_columns, with_kwargs=True)]
        try:
            for layer_name, layer in self.layers.items():
                for name, gate in gates.items():
                    if name in layer.lora_A:
                        handles.append(self._hook(layer, name, gate, gate.selects(layer_name)))
            yield self
        finally:
            for handle in handles:
                handle.remove()
            self._now.clear()

    def _decoder(self) -> nn.Module:
        return self.model.get_base_model().base_model

    def _read_columns(self, _: nn.Module, args: tuple, kwargs: dict) -> None:
        """Where the tokens of this forward pass stand: behind what the cache holds."""
        tokens = kwargs.get("input_ids")
        tokens = kwargs.get("inputs_embeds") if tokens is None else tokens
        tokens = args[0] if tokens is None else tokens
        cache = kwargs.get(
            "cache", kwargs.get("past_key_values")
        )  # the name before transformers 5.24
        self._start = 0 if cache is None else int(cache.get_seq_length())
        self._shape = (tokens.shape[0], tokens.shape[1])
        self._now.clear()

    def _hook(self, layer: nn.Module, name: str, gate: Gate, selected: bool):
        # the factor of a token commutes with B, so the thin side is cheaper; a bias of B would escape it there
        part = layer.lora_B[name] if layer.lora_B[name].bias is not None else layer.lora_A[name]

        def masked(_: nn.Module, __: tuple, out: torch.Tensor) -> torch.Tensor:
            factor = self._now.get((name, selected))
            if factor is None or factor.dtype != out.dtype or factor.device != out.device:
                factor = self._now[name, selected] = self._factor(name, gate, selected).to(out)
            return out * factor

        return part.register_forward_hook(masked)

    def _factor(self, name: str, gate: Gate, selected: bool) -> torch.Tensor:
        """(rows, tokens, 1) of this forward pass."""
        rows, width = self._shape
        prompts = gate.mask.shape[0]
        if rows % prompts:
            raise SubloraError(
                f"The gate of '{name}' has {prompts} rows and the batch {rows}; give one row for each prompt of the batch."
            )
        if self._start == 0 and width < gate.mask.shape[1]:
            raise SubloraError(
                f"The gate of '{name}' has a mask of {gate.mask.shape[1]} tokens and the prompt only {width}; give one value for each "
                "token of the prompt."
            )
        if not selected:
            return torch.zeros(rows, width, 1)
        factor = gate.columns(self._start, self._start + width)
        return factor.repeat_interleave(rows // prompts, 0).unsqueeze(-1)

    @torch.no_grad()
    def _check(self) -> None:
        """All-off is the base, all-on is the adapter; on a few tokens, for the adapters that are active now."""
        device = next(self.model.parameters()).device
        ids = torch.tensor([[1, 2, 0, 3], [2, 2, 1, 0]], device=device)
        training = self.model.training
        self.model.eval()
        try:
            with self.model.disable_adapter():
                base = self.model(input_ids=ids).logits
            plain = self.model(input_ids=ids).logits
            for value, want, what in (
                (0.0, base, "off is not the base"),
                (1.0, plain, "on is not the plain adapter"),
            ):
                gate = Gate(torch.full(ids.shape, value, device=device), "on" if value else "off")
                with self(dict.fromkeys(self.adapters, gate)):
                    got = self.model(input_ids=ids).logits
                scale = max(1.0, float(want.float().abs().max()))
                room = {torch.float64: 1e-9, torch.float32: 1e-4}.get(want.dtype, 0.05) * scale
                if not torch.allclose(got.float(), want.float(), atol=room, rtol=0):
                    raise SubloraError(
                        f"The adapter gated all {what}, so it changes more than its LoRA layers (trained biases, embeddings or saved "
                        "modules); gate an adapter of LoRA layers alone."
                    )
        finally:
            self.model.train(training)


def _check_layer(name: str, layer: nn.Module) -> None:
    if getattr(layer, "merged", False):
        raise SubloraError(
            f"The adapter is merged into the weights at {name}, so it cannot be told from the base; load it unmerged, or unmerge it."
        )
    if any(getattr(layer, "use_dora", {}).values()):
        raise SubloraError(
            f"The adapter at {name} is a DoRA, whose contribution depends on the norm of the whole weight and cannot be gated by "
            "token; train a plain LoRA."
        )
    if getattr(layer, "lora_variant", None):
        raise SubloraError(
            f"The adapter at {name} is a variant of LoRA that cannot be gated; train a plain LoRA."
        )
    if not isinstance(layer.get_base_layer(), nn.Linear) or len(
        getattr(layer, "lora_embedding_A", ())
    ):
        kind = type(layer.get_base_layer()).__name__
        raise SubloraError(
            f"The adapter at {name} sits on a {kind}; only adapters of linear layers can be gated by token."
        )


class PackGate:
    """The gates of all prompts that a pack reads, for `PackedModel(model, stack, gate)`.

    `masks[i]` (T_i,) are the factors of prompt i's tokens, `generated[i]` that of the tokens written after it, and `conditions[i]`
    says which row of `select` it goes by: `select[name]` (C,) bool, whether a condition lets the adapter act in that linear layer.
    Before each forward pass `read` or `write` says which tokens it holds.
    """

    def __init__(
        self,
        masks: Sequence[Sequence[float]],
        generated: Sequence[float],
        conditions: Sequence[int],
        select: Mapping[str, Sequence[bool]],
    ) -> None:
        self.masks = [tuple(float(v) for v in mask) for mask in masks]
        self.generated = torch.tensor([float(v) for v in generated])
        self.conditions = torch.tensor(list(conditions), dtype=torch.long)
        self._select = {name: tuple(bool(v) for v in chosen) for name, chosen in select.items()}
        self._tokens = torch.zeros(0, 0)
        self._rows = torch.zeros(0, dtype=torch.long)
        self._now: dict[tuple[bool, ...], torch.Tensor] = {}

    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        """Raises SubloraError where the masks do not fit the prompts."""
        if len(prompts) != len(self.masks):
            raise SubloraError(
                f"There are {len(self.masks)} masks for {len(prompts)} prompts; give one for each."
            )
        for mask, prompt in zip(self.masks, prompts, strict=True):
            if len(mask) != len(prompt):
                raise SubloraError(
                    f"A mask has {len(mask)} values for a prompt of {len(prompt)} tokens; give one value for each token."
                )

    def heads(self, prompts: Sequence[int], width: int) -> tuple[list[int], list[int]]:
        """Prompts that agree in the gate of their first `width` tokens: (the first of each kind, the kind of each), as places in
        `prompts`."""
        kinds: dict[tuple, int] = {}
        first, kind, conditions = [], [], self.conditions.tolist()
        for place, i in enumerate(prompts):
            key = (conditions[i], self.masks[i][:width])
            if key not in kinds:
                kinds[key] = len(kinds)
                first.append(place)
            kind.append(kinds[key])
        return first, kind

    def read(self, prompts: Sequence[int], students: int, start: int, stop: int) -> None:
        """The next forward pass holds columns start to stop of these prompts, one a row, for each of the students."""
        self._tokens = torch.tensor([self.masks[i][start:stop] for i in prompts]).repeat(
            students, 1
        )
        self._rows = self.conditions[list(prompts)].repeat(students)
        self._now.clear()

    def write(self, prompts: Sequence[int], width: int) -> None:
        """The next forward pass holds `width` generated tokens after each of these prompts, one a row."""
        self._tokens = self.generated[list(prompts)].unsqueeze(1).expand(-1, width)
        self._rows = self.conditions[list(prompts)]
        self._now.clear()

    def of(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """The factors (rows, tokens) of the current forward pass in a linear layer, in the dtype and on the device of `like`."""
        chosen = self._select[name]
        if chosen not in self._now:
            factor = (
                self._tokens
                if all(chosen)
                else self._tokens * torch.tensor(chosen)[self._rows].unsqueeze(1)
            )
            self._now[chosen] = factor.to(like)
        return self._now[chosen]


def pack_gate(
    masks: Sequence[Sequence[Sequence[float]]],
    conditions: Sequence[Condition],
    linears: Sequence[str],
) -> PackGate:
    """The gate of Q prompts under each of C conditions, condition by condition: prompt q under condition c has index c * Q + q.

    `masks[c][q]` are the factors of its tokens; `linears` names the layers that have an adapter.
    """
    count = len(masks[0])
    return PackGate(
        [mask for rows in masks for mask in rows],
        [float(c.acts_on("generated")) for c in conditions for _ in range(count)],
        [k for k in range(len(conditions)) for _ in range(count)],
        {name: [c.selects(name) for c in conditions] for name in linears},
    )
