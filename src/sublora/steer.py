"""Steering: vectors added to the residual stream, projected out of it, or replaced by the base's component.

An intervention acts on chosen layers and tokens inside the ordinary forward pass: in batches, in packs of students, with a cache, and
together with a gate. It tells tokens apart like `gate.PackGate` does, by what `prefill`, `sample_answers` and `score_sequences` say of
each pass, so these functions are used as they are.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sublora.errors import SubloraError
from sublora.steer_spec import Mode, SteerSpec, Where
from sublora.token_classes import PromptTokens
from sublora.train.packed_model import PackedModel
from sublora.train.stack import Stack
from sublora.vectors import SteeringVector, chosen_tokens, listening, random_vector

if TYPE_CHECKING:
    from sublora.gate import PackGate
    from sublora.model import Base


@dataclass(frozen=True)
class Steering:
    """What is done to the residual stream h behind `layers`, with v the vector's row there and u = v / ||v||:

    - `add`: h + strength v (v itself, or u with `unit`);
    - `project`: h - strength (h.u) u; at strength 1 nothing along v is left, and a second time changes nothing;
    - `replace`: h + strength ((h_base - h).u) u, h_base the plain base's residual at the same token: at strength 1 the component
      along v is the base's. For prompt tokens, which the base reads as the student does.

    With `first`, the first so many of the vector's principal directions, u_1 to u_n, are projected out or replaced together instead of
    u. `where` chooses prompt tokens (None for none), `generated` whether tokens behind the prompt are steered too. Raises SubloraError
    for a strength that is not finite, no layers, no tokens, directions that the vector does not have or that are to be added, and a
    replacement at generated tokens.
    """

    vector: SteeringVector
    mode: Mode
    layers: tuple[int, ...]
    where: Where | None = "prompt"
    generated: bool = False
    strength: float = 1.0
    unit: bool = False
    first: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("add", "project", "replace"):
            raise SubloraError(
                f"There is no intervention '{self.mode}'; choose add, project or replace."
            )
        if not math.isfinite(self.strength):
            raise SubloraError(
                f"The strength of a steering vector is {self.strength}; give a finite number."
            )
        if not self.layers:
            raise SubloraError("A steering vector acts on no layer; name at least one.")
        if self.where is None and not self.generated:
            raise SubloraError(
                "A steering vector acts on no token; choose prompt tokens, generated ones or both."
            )
        if self.first is not None and self.mode == "add":
            raise SubloraError(
                "Principal directions have no sign or length to add; add the vector, or project or replace."
            )
        have = 0 if self.vector.directions is None else self.vector.directions.shape[-3]
        if self.first is not None and not 1 <= self.first <= have:
            raise SubloraError(
                f"The steering vector has {have} principal directions and {self.first} are asked for; extract more, or ask for fewer."
            )
        if self.mode == "replace" and self.generated:
            raise SubloraError(
                "The base's component is known at prompt tokens, not at tokens that a student writes itself; replace with generated=False."
            )

    def check(self, base: Base) -> None:
        """Raises SubloraError where the vector or a layer does not fit the model."""
        layers, width = (
            len(base.model.base_model.layers),
            base.model.config.get_text_config().hidden_size,
        )
        if self.vector.model != base.identity["weights"]:
            raise SubloraError(
                f"The steering vector was made on another model than {base.name}; make one on this model."
            )
        if self.vector.values.shape[-2:] != (layers, width):
            raise SubloraError(
                f"The steering vector has {self.vector.values.shape[-2]} layers of width {self.vector.values.shape[-1]}, "
                f"{base.name} has {layers} of width {width}; make one on this model."
            )
        if not torch.isfinite(self.vector.values).all():
            raise SubloraError("The steering vector has values that are not finite; make it again.")
        if out := [layer for layer in self.layers if not 0 <= layer < layers]:
            raise SubloraError(
                f"There is no layer {out[0]} to steer; {base.name} has layers 0 to {layers - 1}."
            )


class PackSteering:
    """Interventions on all prompts that a pack reads, for `PackedModel(model, stack, steering=...)`; see `pack_steering`.

    For each layer that is steered at all: `add` (C, K, d) the vectors to add, `along` the orthonormal directions (C, K, R, d) with their
    strengths (C,), zero where a condition does nothing of the kind, and `target[i]` (K, T_i, R) what is to stand along the directions at
    the tokens of prompt i, zeros for a projection. `masks`, `generated` and `conditions` are as in `PackGate`.
    """

    def __init__(
        self,
        masks: Sequence[Sequence[bool]],
        generated: Sequence[bool],
        conditions: Sequence[int],
        add: dict[int, torch.Tensor],
        along: dict[int, tuple[torch.Tensor, torch.Tensor]],
        target: dict[int, list[torch.Tensor]],
    ) -> None:
        self.masks, self.conditions = [tuple(map(bool, mask)) for mask in masks], list(conditions)
        self._add, self._along, self._target = add, along, target
        self.layers = sorted({*add, *along})
        self.gate: PackGate | None = None
        self._like = next(iter([*add.values(), *(units for units, _ in along.values())]))
        self.students = self._like.shape[1]
        width = max(map(len, self.masks))
        self._weights = torch.tensor([[*m, *[False] * (width - len(m))] for m in self.masks]).to(
            self._like
        )
        self._generated = torch.tensor(list(map(bool, generated))).to(self._like).unsqueeze(1)
        self._now: _Pass | None = None

    def beside(self, gate: PackGate | None) -> PackSteering:
        """The same interventions, which also tell a gate what each pass holds."""
        out = copy.copy(self)
        out.gate = gate
        return out

    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        """Raises SubloraError where the masks do not fit the prompts."""
        if self.gate is not None:
            self.gate.check(prompts)
        if [len(m) for m in self.masks] != [len(p) for p in prompts]:
            raise SubloraError("The steering was made for other prompts; make it anew for these.")

    def heads(self, prompts: Sequence[int], width: int) -> tuple[list[int], list[int]]:
        """As `PackGate.heads`: prompts that agree in all that is done to their first `width` tokens."""
        kinds: dict[tuple, int] = {}
        first, kind = [], []
        for place, i in enumerate(prompts):
            key: tuple[Any, ...] = (self.conditions[i], self.masks[i][:width])
            if self.gate is not None:
                key += (int(self.gate.conditions[i]), self.gate.masks[i][:width])
            if key not in kinds:
                kinds[key] = len(kinds)
                first.append(place)
            kind.append(kinds[key])
        return first, kind

    def read(self, prompts: Sequence[int], students: int, start: int, stop: int) -> None:
        """As `PackGate.read`."""
        if self.gate is not None:
            self.gate.read(prompts, students, start, stop)
        target = {
            layer: torch.stack([rows[i][:, start:stop] for i in prompts], 1).flatten(0, 1)
            for layer, rows in self._target.items()
        }
        self._begin(
            self._weights[list(prompts), start:stop].repeat(students, 1),
            list(prompts) * students,
            target,
        )

    def write(self, prompts: Sequence[int], width: int) -> None:
        """As `PackGate.write`."""
        if self.gate is not None:
            self.gate.write(prompts, width)
        self._begin(self._generated[list(prompts)].expand(-1, width), list(prompts), {})

    def _begin(
        self, weight: torch.Tensor, prompts: list[int], target: dict[int, torch.Tensor]
    ) -> None:
        on = float(weight.sum())
        condition = student = None
        if self._like.shape[:2] != (1, 1):
            condition = torch.tensor([self.conditions[i] for i in prompts])
            student = torch.arange(self.students).repeat_interleave(len(prompts) // self.students)
        self._now = _Pass(
            weight.unsqueeze(-1), on > 0, on == weight.numel(), condition, student, target
        )

    def on(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """The residual stream (rows, T, d) behind a layer, steered; in an inference pass `stream` itself is changed."""
        if self._now is None:
            raise ValueError("nothing was said of the tokens of this pass")
        if not self._now.any:
            return stream
        out = (
            stream.contiguous()
            if stream.is_inference()
            else stream.clone(memory_format=torch.contiguous_format)
        )
        if layer in self._add:
            self._added(out, self._add[layer])
        if layer in self._along:
            self._moved(out, *self._along[layer], self._now.target.get(layer))
        return out

    def _added(self, out: torch.Tensor, table: torch.Tensor) -> None:
        vector = self._rows(table).unsqueeze(-2)
        if self._now.all:
            out.add_(vector)
        else:
            out.addcmul_(self._now.weight, vector)

    def _moved(
        self,
        out: torch.Tensor,
        table: torch.Tensor,
        strengths: torch.Tensor,
        target: torch.Tensor | None,
    ) -> None:
        """out + weight * strength * (target - out U^T) U."""
        units = self._rows(table)
        strength = (
            strengths if len(strengths) == 1 else strengths[self._now.condition].view(-1, 1, 1)
        )
        shared = units.dim() == 2
        along = out.flatten(0, 1) @ units.mT if shared else out @ units.mT
        along = along.view(*out.shape[:2], -1)
        by = (along if target is None else along.sub_(target)).mul_(self._now.weight * strength)
        if shared:
            out.flatten(0, 1).addmm_(by.flatten(0, 1), units, alpha=-1)
        else:
            out.baddbmm_(by, units, alpha=-1)

    def _rows(self, table: torch.Tensor) -> torch.Tensor:
        """The part of a table (C, K, ...) for every row of the pass, (rows, ...), or (...) where all have the same."""
        if table.shape[:2] == (1, 1):
            return table[0, 0]
        return table[self._now.condition, self._now.student]


@dataclass(frozen=True)
class _Pass:
    """What the next forward pass holds: `weight` (rows, T, 1), whether any and whether all are on, the condition and student of each
    row where that matters, and what is to stand along the directions, (rows, T, R) by layer."""

    weight: torch.Tensor
    any: bool
    all: bool
    condition: torch.Tensor | None
    student: torch.Tensor | None
    target: dict[int, torch.Tensor]


def pack_steering(
    base: Base,
    steerings: Sequence[Steering | None],
    prompts: Sequence[PromptTokens],
    stack: Stack | None = None,
) -> PackSteering:
    """The interventions on Q prompts under each of C conditions (None: nothing is done), condition by condition: prompt q under
    condition c has index c * Q + q, as in `pack_gate`. A vector of one row serves all students; one of K rows serves each its own.

    Raises SubloraError where a vector, a layer or a token class does not fit.
    """
    count, order = (stack.size, stack.order) if stack else (1, [0])
    width, device = base.model.config.get_text_config().hidden_size, base.device
    dtype = next(base.model.parameters()).dtype
    most = max([1, *(s.first for s in steerings if s is not None and s.first)])
    shape = (len(steerings), count, most, width)
    add: dict[int, torch.Tensor] = {}
    units: dict[int, torch.Tensor] = {}
    strengths: dict[int, torch.Tensor] = {}
    replaced: dict[int, list[int]] = {}
    for c, steering in enumerate(steerings):
        if steering is None:
            continue
        steering.check(base)
        own = _of_students(steering, count, order).to(device)
        for layer in steering.layers:
            at = own[:, :, layer]
            unit = at if steering.first else torch.nn.functional.normalize(at.double(), dim=-1)
            if steering.mode == "add":
                table = add.setdefault(
                    layer, torch.zeros(len(steerings), count, width, dtype=dtype, device=device)
                )
                table[c] = (steering.strength * (unit if steering.unit else at))[:, 0]
                continue
            table = units.setdefault(layer, torch.zeros(shape, dtype=dtype, device=device))
            table[c, :, : unit.shape[1]] = unit.to(dtype)
            strengths.setdefault(layer, torch.zeros(len(steerings), dtype=dtype, device=device))[
                c
            ] = steering.strength
            if steering.mode == "replace":
                replaced.setdefault(layer, []).append(c)
    masks = [
        chosen_tokens(p, s.where)
        if s is not None and s.where is not None
        else (False,) * len(p.ids)
        for s in steerings
        for p in prompts
    ]
    return PackSteering(
        masks,
        [s is not None and s.generated for s in steerings for _ in prompts],
        [c for c in range(len(steerings)) for _ in prompts],
        add,
        {layer: (units[layer], strengths[layer]) for layer in units},
        _base_components(base, prompts, units, replaced, len(steerings)),
    )


def _of_students(steering: Steering, count: int, order: Sequence[int]) -> torch.Tensor:
    """(K, R, L, d) in the stack's own order: the vector of each student as one direction, or its first principal directions."""
    vector = steering.vector
    own = vector.values.dim() == 3
    if own and len(vector.values) != count:
        raise SubloraError(
            f"The steering vector is that of {len(vector.values)} students and {count} are steered; give one for all or one for each."
        )
    mean, first = vector.values.unsqueeze(-3), steering.first
    values = mean if first is None else vector.directions[..., :first, :, :]
    return values[order] if own else values.expand(count, *values.shape)


def _base_components(
    base: Base,
    prompts: Sequence[PromptTokens],
    units: dict[int, torch.Tensor],
    replaced: dict[int, list[int]],
    conditions: int,
) -> dict[int, list[torch.Tensor]]:
    """For each layer with a replacement and each prompt of each condition, (K, T, R): the plain base's components along each student's
    directions at every token, zeros under conditions that project."""
    found: dict[int, list[torch.Tensor]] = {layer: [] for layer in replaced}
    if not replaced:
        return found
    streams: list[list[torch.Tensor]] = []
    with (
        torch.inference_mode(),
        PackedModel(base.model, None) as packed,
        listening(packed) as heard,
    ):
        for prompt in prompts:
            heard.clear()
            packed.hidden(torch.tensor([prompt.ids], device=base.device))
            streams.append([stream[0] for stream in heard])
    for layer, at in replaced.items():
        for c in range(conditions):
            for stream in streams:
                component = stream[layer] @ units[layer][c].mT
                found[layer].append(component if c in at else torch.zeros_like(component))
    return found


def aimed(spec: SteerSpec, vector: SteeringVector, name: str) -> SteeringVector:
    """The vector that a recipe's spec means: this one, or random directions with its norms, drawn from the spec's seed and its name."""
    return vector if spec.random is None else random_vector(vector, f"{spec.random} {name}")


def steering_of(spec: SteerSpec, vector: SteeringVector, layers: int) -> Steering:
    """What a recipe's spec asks for, with an `aimed` vector, on a model of so many layers.

    Raises SubloraError where a layer of the spec is not there, or as `Steering` does.
    """
    first, last = spec.layers or (0, layers - 1)
    if last >= layers:
        raise SubloraError(
            f"There is no layer {last} to steer; the model has layers 0 to {layers - 1}."
        )
    return Steering(
        vector,
        spec.mode,
        tuple(range(first, last + 1)),
        spec.where,
        spec.generated,
        spec.strength,
        spec.unit,
        spec.first,
    )
