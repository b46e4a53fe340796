"""Steering: vectors added to the residual stream, projected out of it, or replaced by the base's component.

An intervention acts on chosen layers and tokens inside the ordinary forward pass: in batches, in packs of students, with a cache, and
together with a gate.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from sublora.errors import SubloraError
from sublora.models.base import Base
from sublora.models.token_classes import PromptTokens
from sublora.packs import hooks
from sublora.packs.interventions import Span
from sublora.packs.packed_model import PackedModel
from sublora.packs.stack import Stack
from sublora.packs.steer_spec import Mode, SteerSpec, Where
from sublora.packs.vectors import SteeringVector, chosen_tokens, random_vector


@dataclass(frozen=True)
class Steering:
    """What is done to the residual stream h behind `layers`, with v the vector's row there and u = v / ||v||:

    - `add`: h + strength v (v itself, or u with `unit`);
    - `project`: h - strength (h.u) u; at strength 1 nothing along v is left, and a second time changes nothing;
    - `replace`: h + strength ((h_base - h).u) u, h_base the plain base's residual at the same token: at strength 1 the component
      along v is the base's. For prompt tokens, which the base reads as the student does.

    With `first`, so many of the vector's principal directions are projected out or replaced together
    instead of u. `where` chooses prompt tokens (None for none), `generated` whether tokens behind the
    prompt are steered too. Raises SubloraError where these values contradict one another.
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
        have = 0 if self.vector.directions is None else self.vector.directions.shape[-3]
        why = None
        if self.mode not in ("add", "project", "replace"):
            why = f"There is no intervention '{self.mode}'; choose add, project or replace."
        elif not math.isfinite(self.strength):
            why = f"The strength of a steering vector is {self.strength}; give a finite number."
        elif not self.layers:
            why = "A steering vector acts on no layer; name at least one."
        elif self.where is None and not self.generated:
            why = (
                "A steering vector acts on no token; choose prompt tokens, generated ones or both."
            )
        elif self.first is not None and self.mode == "add":
            why = "Principal directions have no sign or length to add; add the vector, or project or replace."
        elif self.first is not None and not 1 <= self.first <= have:
            why = f"The steering vector has {have} principal directions and {self.first} are asked for; extract more, or ask for fewer."
        elif self.mode == "replace" and self.generated:
            why = "The base's component is known at prompt tokens, not at tokens that a student writes; replace with generated=False."
        if why:
            raise SubloraError(why)

    def check(self, base: Base) -> None:
        """Raises SubloraError where the vector or a layer does not fit the model."""
        layers = len(base.model.base_model.layers)
        width = base.model.config.get_text_config().hidden_size
        have = tuple(self.vector.values.shape[-2:])
        out = [layer for layer in self.layers if not 0 <= layer < layers]
        why = None
        if self.vector.model != base.identity["weights"]:
            why = f"The steering vector was made on another model than {base.name}; make one on this model."
        elif have != (layers, width):
            why = f"The steering vector has {have[0]} layers of width {have[1]}, {base.name} has {layers} of width {width}; make it anew there."
        elif not torch.isfinite(self.vector.values).all():
            why = "The steering vector has values that are not finite; make it again."
        elif out:
            why = f"There is no layer {out[0]} to steer; {base.name} has layers 0 to {layers - 1}."
        if why:
            raise SubloraError(why)


Acts = Sequence[Steering | None]
"""What is done under each condition; None for nothing."""


@dataclass(frozen=True)
class Tables:
    """What is done behind one layer under each of C conditions, for each of K students. `add` (C, K, d): vectors to add. `units` (C, K, R,
    d): orthonormal directions to move along, with `strengths` (C,); `target[i]` (K, T_i, R) is what shall stand along them at the tokens of
    prompt i, zeros for a projection. None where no condition does so; zeros where a condition does not."""

    add: Tensor | None = None
    units: Tensor | None = None
    strengths: Tensor | None = None
    target: list[Tensor] | None = None


class PackSteering:
    """Interventions on all prompts that a pack reads, for `PackedModel(model, stack, steering=...)`; see `pack_steering`. `masks`,
    `generated` and `conditions` are as in `PackGate`; `tables` by layer."""

    def __init__(
        self,
        masks: Sequence[Sequence[bool]],
        generated: Sequence[bool],
        conditions: Sequence[int],
        tables: Mapping[int, Tables],
    ) -> None:
        self.masks, self.conditions = [tuple(map(bool, mask)) for mask in masks], list(conditions)
        self.layers, self._tables = sorted(tables), tables
        first = next(iter(tables.values()))
        like = first.units if first.add is None else first.add
        self._one, self.students = like.shape[:2] == (1, 1), like.shape[1]
        width = max(map(len, self.masks))
        rows = [[*m, *[False] * (width - len(m))] for m in self.masks]
        self._weights = torch.tensor(rows).to(like)
        self._generated = torch.tensor(list(map(bool, generated))).to(like).unsqueeze(1)
        self._now: _Pass | None = None

    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        if [len(m) for m in self.masks] != [len(p) for p in prompts]:
            raise SubloraError("The steering was made for other prompts; make it anew for these.")

    def kind(self, prompt: int, width: int) -> Hashable:
        return self.conditions[prompt], self.masks[prompt][:width]

    def read(self, spans: Sequence[Span], students: int, width: int) -> None:
        def left_filled(part: Tensor) -> Tensor:  # (..., T, R)
            return pad(part, (0, 0, width - part.shape[-2], 0))

        target = {
            layer: torch.stack([left_filled(table.target[i][:, a:b]) for i, a, b in spans], 1)
            for layer, table in self._tables.items()
            if table.target is not None
        }
        weight = torch.stack([left_filled(self._weights[i, a:b, None])[:, 0] for i, a, b in spans])
        flat = {layer: rows.flatten(0, 1) for layer, rows in target.items()}
        self._begin(weight.repeat(students, 1), [span.prompt for span in spans] * students, flat)

    def write(self, prompts: Sequence[int], width: int) -> None:
        self._begin(self._generated[list(prompts)].expand(-1, width), list(prompts), {})

    def _begin(self, weight: Tensor, prompts: list[int], target: dict[int, Tensor]) -> None:
        on, condition, student = float(weight.sum()), None, None
        if not self._one:
            condition = torch.tensor([self.conditions[i] for i in prompts])
            student = torch.arange(self.students).repeat_interleave(len(prompts) // self.students)
        self._now = _Pass(
            weight.unsqueeze(-1), on > 0, on == weight.numel(), condition, student, target
        )

    def steer(self, layer: int, stream: Tensor) -> Tensor:
        """The residual stream (rows, T, d) behind a layer, steered; in an inference pass `stream` itself is changed."""
        if self._now is None:
            raise ValueError("nothing was said of the tokens of this pass")
        if not self._now.any or layer not in self._tables:
            return stream
        table = self._tables[layer]
        out = stream.contiguous() if stream.is_inference() else stream.clone().contiguous()
        if table.add is not None:
            vector = self._rows(table.add).unsqueeze(-2)
            if self._now.all:
                out.add_(vector)
            else:
                out.addcmul_(self._now.weight, vector)
        if table.units is not None:
            self._move(out, table, self._now.target.get(layer))
        return out

    def _move(self, out: Tensor, table: Tables, target: Tensor | None) -> None:
        """out + weight * strength * (target - out U^T) U."""
        units, strength = self._rows(table.units), table.strengths
        if len(strength) > 1:
            strength = strength[self._now.condition].view(-1, 1, 1)
        shared = units.dim() == 2
        along = out.flatten(0, 1) @ units.mT if shared else out @ units.mT
        along = along.view(*out.shape[:2], -1)
        by = (along if target is None else along.sub_(target)).mul_(self._now.weight * strength)
        if shared:
            out.flatten(0, 1).addmm_(by.flatten(0, 1), units, alpha=-1)
        else:
            out.baddbmm_(by, units, alpha=-1)

    def _rows(self, table: Tensor) -> Tensor:
        """The part of a table (C, K, ...) for every row of the pass, or (...) where all have the same."""
        return table[0, 0] if self._one else table[self._now.condition, self._now.student]


@dataclass(frozen=True)
class _Pass:
    """What a forward pass holds: `weight` (rows, T, 1), whether any and whether all are on, the condition and student of each row
    where that matters, and what is to stand along the directions, (rows, T, R) by layer."""

    weight: Tensor
    any: bool
    all: bool
    condition: Tensor | None
    student: Tensor | None
    target: dict[int, Tensor]


def pack_steering(
    base: Base, steerings: Acts, prompts: Sequence[PromptTokens], stack: Stack | None = None
) -> PackSteering:
    """The interventions on Q prompts under each of C conditions (None: nothing is done), condition by condition: prompt q under condition c
    has index c * Q + q, as in `pack_gate`. A vector of one row serves all students; one of K rows serves each its own. Raises SubloraError
    where a vector, a layer or a token class does not fit."""
    for steering in steerings:
        if steering is not None:
            steering.check(base)
    asked = [None if s is None else s.where for s in steerings]
    masks = [
        (False,) * len(p.ids) if w is None else chosen_tokens(p, w) for w in asked for p in prompts
    ]
    layers = sorted({layer for s in steerings if s is not None for layer in s.layers})
    order = stack.order if stack else [0]
    own = [None if s is None else _of_students(s, order).to(base.device) for s in steerings]
    streams = []
    if any(s is not None and s.mode == "replace" for s in steerings):
        streams = _base_streams(base, prompts)
    at = {n: _tables(base, n, steerings, own, [s[n] for s in streams]) for n in layers}
    generated = [s is not None and s.generated for s in steerings for _ in prompts]
    return PackSteering(masks, generated, [c for c in range(len(steerings)) for _ in prompts], at)


def _of_students(steering: Steering, order: Sequence[int]) -> Tensor:
    """(K, R, L, d) in the stack's own order: the vector of each student as one direction, or its first principal directions."""
    vector, first = steering.vector, steering.first
    own, count = vector.values.dim() == 3, len(order)
    if own and len(vector.values) != count:
        why = f"The steering vector is that of {len(vector.values)} students and {count} are steered; give one for all or one for each."
        raise SubloraError(why)
    values = vector.values.unsqueeze(-3) if first is None else vector.directions[..., :first, :, :]
    return values[order] if own else values.expand(count, *values.shape)


def _tables(
    base: Base, layer: int, steerings: Acts, own: Sequence[Tensor | None], streams: Sequence[Tensor]
) -> Tables:
    """`own[c]` (K, R, L, d) as `_of_students` gives them; `streams[q]` (T, d), the base's behind the layer at the tokens of prompt q."""
    acting = {c: s for c, s in enumerate(steerings) if s is not None and layer in s.layers}
    adding = {c: s for c, s in acting.items() if s.mode == "add"}
    moving = {c: s for c, s in acting.items() if s.mode != "add"}
    like = {"dtype": next(base.model.parameters()).dtype, "device": base.device}
    count, _, _, width = next(o for o in own if o is not None).shape
    directions = {
        c: own[c][:, :, layer] if s.first else normalize(own[c][:, :, layer].double(), dim=-1)
        for c, s in acting.items()
    }
    add = torch.zeros(len(steerings), count, width, **like) if adding else None
    for c, s in adding.items():
        add[c] = (s.strength * (directions[c] if s.unit else own[c][:, :, layer]))[:, 0]
    if not moving:
        return Tables(add)
    most = max(s.first or 1 for s in steerings if s is not None)
    units = torch.zeros(len(steerings), count, most, width, **like)
    strengths = torch.zeros(len(steerings), **like)
    for c, s in moving.items():
        units[c, :, : directions[c].shape[1]] = directions[c].to(units.dtype)
        strengths[c] = s.strength
    if not any(s.mode == "replace" for s in moving.values()):
        return Tables(add, units, strengths)
    target = []
    for c in range(len(steerings)):
        components = [stream @ units[c].mT for stream in streams]
        replaced = c in moving and moving[c].mode == "replace"
        target += components if replaced else map(torch.zeros_like, components)
    return Tables(add, units, strengths, target)


def _base_streams(base: Base, prompts: Sequence[PromptTokens]) -> list[list[Tensor]]:
    """[prompt][layer] (T, d): the plain base's residual stream."""
    out, listen = [], hooks.listen(base.model.base_model.layers)
    with torch.inference_mode(), PackedModel(base.model, None) as packed, listen as heard:
        for prompt in prompts:
            heard.clear()
            packed.hidden(torch.tensor([prompt.ids], device=base.device))
            out.append([stream[0] for stream in heard])
    return out


def aimed(spec: SteerSpec, vector: SteeringVector, name: str) -> SteeringVector:
    """The vector that a recipe's spec means: this one, or random directions with its norms, drawn from the spec's seed and its name."""
    return vector if spec.random is None else random_vector(vector, f"{spec.random} {name}")


def steering_of(spec: SteerSpec, vector: SteeringVector, layers: int) -> Steering:
    """What a recipe's spec asks for, with an `aimed` vector, on a model of so many layers. Raises SubloraError where a layer of the spec is
    not there, or as `Steering` does."""
    first, last = spec.layers or (0, layers - 1)
    if last >= layers:
        why = f"There is no layer {last} to steer; the model has layers 0 to {layers - 1}."
        raise SubloraError(why)
    same = ("mode", "where", "generated", "strength", "unit", "first")
    values = {name: getattr(spec, name) for name in same}
    return Steering(vector, layers=tuple(range(first, last + 1)), **values)
