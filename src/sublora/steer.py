"""Steering vectors of the residual stream: extracted from a teacher or a student, and added, projected out or replaced.

Layer convention: layer l is the output of decoder layer l, numbered from 0; the embeddings are no layer. (The public code of
Blank et al. 2606.00995 keeps the embeddings as row 0, so its row l + 1 is layer l here.)

An intervention acts on chosen layers and tokens inside the ordinary forward pass: in batches, in packs of students, with a cache, and
together with a gate. It tells tokens apart like `gate.PackGate` does, by what `prefill`, `sample_answers` and `score_sequences` say of
each pass, so these functions are used as they are.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sublora.chat import Context
from sublora.errors import SubloraError
from sublora.seeds import derive_seed
from sublora.token_classes import TOKEN_CLASSES, PromptTokens, TokenClass, classify
from sublora.train.packed_model import PackedModel
from sublora.train.stack import Stack

if TYPE_CHECKING:
    from sublora.gate import PackGate
    from sublora.model import Base

Where = Literal["last", "prompt"] | tuple[TokenClass, ...]
"""Tokens of a prompt: the last one, all of them, or those of some classes."""
Mode = Literal["add", "project", "replace"]
CONVENTION = "output of decoder layer, from 0, without embeddings"


@dataclass(frozen=True)
class SteeringVector:
    """`values` (L, d), or (K, L, d) for K students in the order they were given: a direction for every layer.

    `model`: the base's weights hash. `kind`, `where` and `prompts` say what it is a mean of.
    """

    values: torch.Tensor
    model: str
    kind: str
    where: str
    prompts: int

    @property
    def norms(self) -> torch.Tensor:
        """(L,) or (K, L)."""
        return self.values.norm(dim=-1)

    def save(self, path: Path) -> None:
        about = {"model": self.model, "kind": self.kind, "where": self.where, "prompts": self.prompts}
        save_file({"values": self.values.contiguous()}, path, {"vector": json.dumps(about), "layers": CONVENTION})


def load_vector(path: Path) -> SteeringVector:
    """Raises SubloraError where the file holds no vector in this layer convention."""
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
            if meta.get("layers") != CONVENTION:
                raise SubloraError(
                    f"{path} does not say that its layers are '{CONVENTION}'; make it with sublora, or save it anew with this convention."
                )
            return SteeringVector(file.get_tensor("values"), **json.loads(meta["vector"]))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SubloraError(f"{path} holds no steering vector ({' '.join(str(error).split())}).") from None
    except Exception as error:  # safetensors has an error class of its own
        if isinstance(error, SubloraError):
            raise
        raise SubloraError(f"{path} holds no steering vector ({' '.join(str(error).split())}).") from None


def chosen_tokens(tokens: PromptTokens, where: Where) -> tuple[bool, ...]:
    """(T,): the tokens that `where` means. Raises SubloraError where it is no known class or means none."""
    if where == "last":
        return (False,) * (len(tokens.ids) - 1) + (True,)
    if where == "prompt":
        return (True,) * len(tokens.ids)
    if unknown := [c for c in where if c not in TOKEN_CLASSES]:
        raise SubloraError(
            f"There is no token class '{unknown[0]}'; choose among {', '.join(TOKEN_CLASSES)}, or last or prompt."
        )
    mask = tokens.mask(where)
    if not any(mask):
        raise SubloraError(f"No token of the prompt is of the class {' or '.join(where)}; choose another one.")
    return mask


# Extraction


@contextmanager
def _listening(packed: PackedModel):
    """A list that every forward pass fills with the residual stream behind each layer, (rows, T, d)."""
    heard: list[torch.Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _m, _i, out: heard.append(out[0] if isinstance(out, tuple) else out))
        for layer in packed.decoder.layers
    ]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def mean_residuals(
    base: Base, stack: Stack | None, prompts: Sequence[PromptTokens], where: Where, rows_at_once: int = 256
) -> torch.Tensor:
    """Mean residual stream (K, L, d), in float32 or float64, over the chosen tokens of all prompts, each token counting alike.

    Students in the order they were given; K = 1 for the base (`stack` None). Prompts of one length are read together, without padding.
    """
    count, order = (stack.size, stack.order) if stack else (1, [0])
    layers, width = len(base.model.base_model.layers), base.model.config.get_text_config().hidden_size
    dtype = torch.float64 if next(base.model.parameters()).dtype == torch.float64 else torch.float32
    total, tokens = torch.zeros(count, layers, width, dtype=dtype, device=base.device), 0
    masks = [chosen_tokens(p, where) for p in prompts]
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt.ids), []).append(i)
    size = max(1, rows_at_once // count)
    with torch.inference_mode(), PackedModel(base.model, stack) as packed, _listening(packed) as heard:
        for _, members in sorted(by_length.items()):
            for at in range(0, len(members), size):
                rows = members[at : at + size]
                ids = torch.tensor([prompts[i].ids for i in rows], device=base.device)
                weight = torch.tensor([masks[i] for i in rows], device=base.device).to(dtype)
                packed.form_weights(ids.numel())
                heard.clear()
                packed.hidden(ids.repeat(count, 1))
                for layer, stream in enumerate(heard):
                    kept = stream.to(dtype).view(count, *ids.shape, width)
                    total[:, layer] += torch.einsum("kbtd,bt->kd", kept, weight)
                tokens += int(weight.sum())
    out = torch.empty_like(total)
    out[order] = total / tokens
    return out


def _classified(base: Base, questions: Sequence[str], context: Context, entities: Sequence[str]) -> list[PromptTokens]:
    if not questions:
        raise SubloraError("A steering vector needs prompts; give at least one.")
    return [classify(base.chat, q, context, entities) for q in questions]


def teacher_vector(
    base: Base,
    prompts: Sequence[str],
    trait: Context,
    plain: Context,
    where: Where = "last",
    entities: Sequence[str] = (),
) -> SteeringVector:
    """Mean residual under the teacher's prompt minus that under `plain`, on the same user texts (Blank et al. 2606.00995, v_t)."""
    means = [mean_residuals(base, None, _classified(base, prompts, c, entities), where)[0] for c in (trait, plain)]
    return SteeringVector(means[0] - means[1], base.identity["weights"], "teacher", str(where), len(prompts))


def student_vector(
    base: Base,
    stack: Stack,
    prompts: Sequence[str],
    context: Context,
    where: Where = "prompt",
    entities: Sequence[str] = (),
) -> SteeringVector:
    """Mean residual of every student minus the base's, (K, L, d), in one context (Blank et al. 2606.00995, v_s)."""
    tokens = _classified(base, prompts, context, entities)
    values = mean_residuals(base, stack, tokens, where) - mean_residuals(base, None, tokens, where)
    return SteeringVector(values, base.identity["weights"], "student", str(where), len(prompts))


def random_vector(like: SteeringVector, seed: int) -> SteeringVector:
    """Random directions with the norms of `like`, layer by layer (and student by student)."""
    random = torch.Generator().manual_seed(derive_seed("random-vector", seed))
    drawn = torch.randn(like.values.shape, generator=random, dtype=torch.float64)
    scaled = drawn / drawn.norm(dim=-1, keepdim=True) * like.norms.double().cpu().unsqueeze(-1)
    return SteeringVector(scaled.to(like.values), like.model, "random", like.where, like.prompts)


def cosines(one: SteeringVector, other: SteeringVector) -> torch.Tensor:
    """Cosine of two vectors, layer by layer: (L,) or (K, L)."""
    return torch.nn.functional.cosine_similarity(one.values, other.values, dim=-1)


# Interventions


@dataclass(frozen=True)
class Steering:
    """What is done to the residual stream h behind `layers`, with v the vector's row there and u = v / ||v||:

    - `add`: h + strength v (v itself, or u with `unit`);
    - `project`: h - strength (h.u) u; at strength 1 nothing along v is left, and a second time changes nothing;
    - `replace`: h + strength ((h_base - h).u) u, h_base the plain base's residual at the same token: at strength 1 the component
      along v is the base's. For prompt tokens, which the base reads as the student does.

    `where` chooses prompt tokens (None for none), `generated` whether tokens behind the prompt are steered too. Raises SubloraError
    for a strength that is not finite, no layers, no tokens, and a replacement at generated tokens.
    """

    vector: SteeringVector
    mode: Mode
    layers: tuple[int, ...]
    where: Where | None = "prompt"
    generated: bool = False
    strength: float = 1.0
    unit: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ("add", "project", "replace"):
            raise SubloraError(f"There is no intervention '{self.mode}'; choose add, project or replace.")
        if not math.isfinite(self.strength):
            raise SubloraError(f"The strength of a steering vector is {self.strength}; give a finite number.")
        if not self.layers:
            raise SubloraError("A steering vector acts on no layer; name at least one.")
        if self.where is None and not self.generated:
            raise SubloraError("A steering vector acts on no token; choose prompt tokens, generated ones or both.")
        if self.mode == "replace" and self.generated:
            raise SubloraError(
                "The base's component is known at prompt tokens, not at tokens that a student writes itself; replace with generated=False."
            )

    def check(self, base: Base) -> None:
        """Raises SubloraError where the vector or a layer does not fit the model."""
        layers, width = len(base.model.base_model.layers), base.model.config.get_text_config().hidden_size
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
            raise SubloraError(f"There is no layer {out[0]} to steer; {base.name} has layers 0 to {layers - 1}.")


class PackSteering:
    """Interventions on all prompts that a pack reads, for `PackedModel(model, stack, steering=...)`; see `pack_steering`.

    For each layer that is steered at all: `add` (C, K, d) the vectors to add, `along` the unit directions (C, K, d) with their
    strengths (C,), zero where a condition does nothing of the kind, and `target[i]` (K, T_i) what is to stand along the direction at
    the tokens of prompt i, zeros for a projection. `masks`, `generated` and `conditions` are as in `PackGate`.
    """

    def __init__(
        self,
        masks: Sequence[Sequence[float]],
        generated: Sequence[float],
        conditions: Sequence[int],
        add: dict[int, torch.Tensor],
        along: dict[int, tuple[torch.Tensor, torch.Tensor]],
        target: dict[int, list[torch.Tensor]],
    ) -> None:
        self.masks = [tuple(map(float, mask)) for mask in masks]
        self.generated, self.conditions = torch.tensor(list(map(float, generated))), list(conditions)
        self._add, self._along, self._target = add, along, target
        self.layers = sorted({*add, *along})
        self.gate: PackGate | None = None
        self.students = next(iter([*add.values(), *(units for units, _ in along.values())])).shape[1]
        # of the pass to come: a weight for each token (None where all are 0), condition and student of each row, targets (rows, T)
        self._pass: tuple[torch.Tensor | None, torch.Tensor, torch.Tensor, dict[int, torch.Tensor]] | None = None

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
        weight = torch.tensor([self.masks[i][start:stop] for i in prompts]).repeat(students, 1)
        target = {
            layer: torch.stack([rows[i][:, start:stop] for i in prompts], 1).flatten(0, 1)
            for layer, rows in self._target.items()
        }
        self._begin(weight, list(prompts) * students, target)

    def write(self, prompts: Sequence[int], width: int) -> None:
        """As `PackGate.write`."""
        if self.gate is not None:
            self.gate.write(prompts, width)
        self._begin(self.generated[list(prompts)].unsqueeze(1).expand(-1, width), list(prompts), {})

    def _begin(self, weight: torch.Tensor, prompts: list[int], target: dict[int, torch.Tensor]) -> None:
        condition = torch.tensor([self.conditions[i] for i in prompts])
        student = torch.arange(self.students).repeat_interleave(len(prompts) // self.students)
        self._pass = (weight if bool(weight.any()) else None, condition, student, target)

    def on(self, layer: int, stream: torch.Tensor) -> torch.Tensor:
        """The residual stream (rows, T, d) behind a layer, steered."""
        if self._pass is None:
            raise ValueError("nothing was said of the tokens of this pass")
        weight, condition, _, target = self._pass
        if weight is None:
            return stream
        factor, out = weight.to(stream).unsqueeze(-1), stream
        if layer in self._add:
            out = torch.addcmul(out, factor, self._rows(self._add[layer], stream))
        if layer in self._along:
            units, strengths = self._along[layer]
            unit, strength = self._rows(units, stream), strengths[condition].to(stream).view(-1, 1, 1)
            want = target[layer].to(stream).unsqueeze(-1) if layer in target else 0.0
            moved = factor * strength * (want - stream @ unit.mT)
            out = torch.addcmul(out, moved, unit)
        return out

    def _rows(self, table: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:
        """The vector of every row of the pass, (rows, 1, d), or (1, 1, d) where all have the same."""
        if table.shape[:2] == (1, 1):
            return table.to(stream)
        _, condition, student, _ = self._pass
        return table[condition, student].to(stream).unsqueeze(1)


def pack_steering(
    base: Base, steerings: Sequence[Steering], prompts: Sequence[PromptTokens], stack: Stack | None = None
) -> PackSteering:
    """The interventions on Q prompts under each of C conditions, condition by condition: prompt q under condition c has index c * Q + q,
    as in `pack_gate`. A vector of one row serves all students; one of K rows serves each its own.

    Raises SubloraError where a vector, a layer or a token class does not fit.
    """
    count, order = (stack.size, stack.order) if stack else (1, [0])
    width, device = base.model.config.get_text_config().hidden_size, base.device
    shape = (len(steerings), count, width)
    add: dict[int, torch.Tensor] = {}
    units: dict[int, torch.Tensor] = {}
    strengths: dict[int, torch.Tensor] = {}
    replaced: dict[int, list[int]] = {}
    dtype = torch.float64 if next(base.model.parameters()).dtype == torch.float64 else torch.float32
    for c, steering in enumerate(steerings):
        steering.check(base)
        values = steering.vector.values.to(device, dtype)
        if values.dim() == 3 and len(values) != count:
            raise SubloraError(
                f"The steering vector is that of {len(values)} students and {count} are steered; give one for all or one for each."
            )
        own = values[order] if values.dim() == 3 else values.expand(count, *values.shape)
        for layer in steering.layers:
            unit = torch.nn.functional.normalize(own[:, layer], dim=-1)
            if steering.mode == "add":
                table = add.setdefault(layer, torch.zeros(shape, dtype=dtype, device=device))
                table[c] = steering.strength * (unit if steering.unit else own[:, layer])
                continue
            units.setdefault(layer, torch.zeros(shape, dtype=dtype, device=device))[c] = unit
            strengths.setdefault(layer, torch.zeros(len(steerings), dtype=dtype, device=device))[c] = steering.strength
            if steering.mode == "replace":
                replaced.setdefault(layer, []).append(c)
    masks = [
        chosen_tokens(p, s.where) if s.where is not None else (False,) * len(p.ids) for s in steerings for p in prompts
    ]
    return PackSteering(
        masks,
        [s.generated for s in steerings for _ in prompts],
        [c for c in range(len(steerings)) for _ in prompts],
        add,
        {layer: (units[layer], strengths[layer]) for layer in units},
        _base_components(base, prompts, units, replaced, len(steerings)),
    )


def _base_components(
    base: Base,
    prompts: Sequence[PromptTokens],
    units: dict[int, torch.Tensor],
    replaced: dict[int, list[int]],
    conditions: int,
) -> dict[int, list[torch.Tensor]]:
    """For each layer with a replacement and each prompt of each condition, (K, T): the plain base's component along each student's
    direction at every token, zeros under conditions that project."""
    found: dict[int, list[torch.Tensor]] = {layer: [] for layer in replaced}
    if not replaced:
        return found
    streams: list[list[torch.Tensor]] = []
    with torch.inference_mode(), PackedModel(base.model, None) as packed, _listening(packed) as heard:
        for prompt in prompts:
            heard.clear()
            packed.hidden(torch.tensor([prompt.ids], device=base.device))
            streams.append([stream[0] for stream in heard])
    for layer, at in replaced.items():
        for c in range(conditions):
            for stream in streams:
                component = (stream[layer].to(units[layer]) @ units[layer][c].T).T
                found[layer].append(component if c in at else torch.zeros_like(component))
    return found
