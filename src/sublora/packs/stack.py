"""The weights of K students side by side: one flat buffer per group of students of equal shape.

A group is (K_g, P): all parameters of each of its students in one row. The tensors that layers use are views into it, and their
gradients are views into a buffer of the same shape, so that clipping and optimizers are a few operations on a student's whole row.
Students are ordered by group, so that a group is a slice of the pack. A group has adapters on the same layers and ranks of one
order of magnitude, padded with zeros to the largest of them; what is zero has no gradient and stays zero.
"""

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sublora.errors import SubloraError
from sublora.packs.inits import INITS
from sublora.packs.spec import StudentSpec

# Layers that read the same input; their products are one where all of them have an adapter.
SIBLINGS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("mlp.gate_proj", "mlp.up_proj"),
)


@dataclass(frozen=True)
class Slot:
    """Where one tensor of a student lies in its group's row."""

    name: str
    start: int
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape)


class Group:
    """Students of one shape: `flat` (K_g, P) float32 (float64 for a float64 model), `grad` alike, `views[name]` (K_g, *shape). `ranks` are
    the students' own, `rank` the one that the tensors have; both None for full fine-tunes."""

    def __init__(self, ranks: Sequence[int | None], slots: Sequence[Slot], flat: Tensor) -> None:
        self.ranks, self.slots, self.flat = tuple(ranks), tuple(slots), flat
        self.rank = max((r for r in ranks if r is not None), default=None)
        self.grad: Tensor | None = None
        self.views: dict[str, Tensor] = {}
        self._joint: dict[tuple[tuple[str, ...], ...], Tensor | None] = {}
        self._by_name = {slot.name: slot for slot in self.slots}
        self._make_views()

    def _make_views(self) -> None:
        count = self.flat.shape[0]
        self.views = {
            s.name: self.flat[:, s.start : s.stop].view(count, *s.shape) for s in self.slots
        }
        self._joint.clear()

    def train(self) -> None:
        """Make the views leaves whose gradients accumulate into one flat buffer."""
        self.grad = torch.zeros_like(self.flat)
        self._joint.clear()
        count = self.flat.shape[0]
        for slot in self.slots:
            leaf = self.views[slot.name].detach().requires_grad_()
            leaf.grad = self.grad[:, slot.start : slot.stop].view(count, *slot.shape)
            self.views[slot.name] = leaf

    def joint(self, layers: tuple[tuple[str, ...], ...]) -> Tensor | None:
        """Matrices of several layers as one tensor, (K_g * L, sum of o, i): `layers` names those of each layer that stand below each other.
        None where they do not lie at equal distances. A leaf like the views, with its gradient in the same place; use the one or the others
        in a step."""
        if layers not in self._joint:
            slots = [[self._by_name[n] for n in names] for names in layers]
            self._joint[layers] = self._joint_leaf(slots)
        return self._joint[layers]

    def _joint_leaf(self, layers: list[list[Slot]]) -> Tensor | None:
        first, count = layers[0], len(layers)
        stride = self.flat.shape[1] // count if count > 1 else self.flat.shape[1]
        even = stride * count == self.flat.shape[1] and all(
            [(s.start, s.shape) for s in slots] == [(t.start + n * stride, t.shape) for t in first]
            for n, slots in enumerate(layers)
        )
        near = all(
            a.stop == b.start and a.shape[1:] == b.shape[1:] for a, b in itertools.pairwise(first)
        )
        if not (even and near):
            return None
        width = first[0].shape[1]
        size = (self.flat.shape[0] * count, sum(s.shape[0] for s in first), width)

        def part(buffer: Tensor) -> Tensor:
            start = buffer.storage_offset() + first[0].start
            return buffer.as_strided(size, (stride, width, 1), start)

        leaf = part(self.flat)
        if self.grad is not None:
            leaf = leaf.detach().requires_grad_()
            leaf.grad = part(self.grad)
        return leaf

    def freeze(self) -> None:
        self.grad = None
        self._make_views()

    def tensors(self, row: int) -> dict[str, Tensor]:
        """A student's own tensors, by name, without the padding of its rank."""
        return {s.name: own_part(self.flat[row], self.ranks[row], s) for s in self.slots}

    def unpad(self, row: int, values: Tensor) -> Tensor:
        """(P,) numbers, one for each of this row's parameters, without those of the padding."""
        if self.ranks[row] in (None, self.rank):
            return values.clone()
        return torch.cat([own_part(values, self.ranks[row], s).reshape(-1) for s in self.slots])

    def pad(self, row: int, values: Tensor) -> Tensor:
        """The reverse of `unpad`: zeros at the padding."""
        return padded(values, self.ranks[row], self.slots)


def own_part(values: Tensor, rank: int | None, slot: Slot) -> Tensor:
    """One tensor of a student's row (P,), as a view without the padding of its rank."""
    whole = values[slot.start : slot.stop].view(slot.shape)
    if rank is None:
        return whole
    return whole[:rank] if slot.name.endswith("lora_A") else whole[:, :rank]


def padded(values: Tensor, rank: int | None, slots: Sequence[Slot]) -> Tensor:
    """A student's numbers of its own rank, (p,), as a row of `slots`, which may have a larger one."""
    if rank is None:
        return values
    out = values.new_zeros(slots[-1].stop)
    start = 0
    for slot in slots:
        part = own_part(out, rank, slot)
        part.copy_(values[start : start + part.numel()].view(part.shape))
        start += part.numel()
    return out


def target_linears(model: nn.Module, targets: Sequence[str]) -> dict[str, nn.Linear]:
    """The linear layers that get an adapter: peft's 'all-linear' (all but the output head), or by the end of their name. Raises
    SubloraError: a name that no layer has, a quantised or otherwise special layer."""
    head = model.get_output_embeddings()
    if any(name.rsplit(".", 1)[-1] == "lora_A" for name, _ in model.named_modules()):
        why = "The model carries an adapter already; give the plain base model, or merge the adapter and save the result."
        raise SubloraError(why)
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    if tuple(targets) != ("all-linear",):
        found = {t: {n for n in linears if f".{n}".endswith(f".{t}")} for t in targets}
        if missing := [t for t in targets if not found[t]]:
            known = ", ".join(sorted({n.rsplit(".", 1)[-1] for n in linears}))
            why = f"The model has no linear layer named '{missing[0]}' for an adapter; it has {known}."
            raise SubloraError(why)
        chosen = set().union(*found.values())
        linears = {n: m for n, m in linears.items() if n in chosen}
    for name, module in linears.items():
        if type(module) is not nn.Linear:
            why = f"The layer {name} is a {type(module).__name__}, which computes in its own way, so no adapter on it can be packed; "
            why += "give a model of plain linear layers, unquantised."
            raise SubloraError(why)
    if not linears:
        kinds = sorted(
            {
                type(m).__name__
                for m in model.modules()
                if getattr(m, "weight", None) is not None and m.weight.ndim == 2
            }
        )
        raise SubloraError(
            f"The model has no plain linear layer that could get an adapter; its weights are in {', '.join(kinds)}."
        )
    return linears


def check_rank(rank: int, linears: dict[str, nn.Linear]) -> None:
    """Raises SubloraError where a rank is above the smaller width of a layer."""
    narrow = min(linears, key=lambda n: min(linears[n].in_features, linears[n].out_features))
    width = min(linears[narrow].in_features, linears[narrow].out_features)
    if rank > width:
        why = f"Rank {rank} is above the width {width} of {narrow}; choose ranks up to {width} for this model."
        raise SubloraError(why)


def siblings(names: Collection[str]) -> list[tuple[str, ...]]:
    """The layers in groups that read the same input: known siblings where all are among `names`, any other layer alone."""
    out: dict[tuple[str, ...], None] = {}
    for name in names:
        own = next(((s, n) for s in SIBLINGS for n in s if name.endswith("." + n)), None)
        together = (name,)
        if own is not None:
            stem = name.removesuffix(own[1])
            found = tuple(stem + n for n in own[0])
            together = found if all(n in names for n in found) else together
        out[together] = None
    return list(out)


def lora_slots(linears: dict[str, nn.Linear], rank: int) -> list[Slot]:
    """Siblings' A stand behind each other, and then their B, so that each can be taken as one tensor."""
    shapes: dict[str, tuple[int, int]] = {}
    for together in siblings(linears):
        shapes |= {f"{n}.lora_A": (rank, linears[n].in_features) for n in together}
        shapes |= {f"{n}.lora_B": (linears[n].out_features, rank) for n in together}
    return _one_after_the_other(shapes)


def full_slots(model: nn.Module) -> list[Slot]:
    """All trainable tensors; a tied tensor stands once, under its first name."""
    return _one_after_the_other({n: tuple(p.shape) for n, p in model.named_parameters()})


def slots_of(model: nn.Module, spec: StudentSpec) -> list[Slot]:
    """All tensors of a student on this model."""
    if spec.method == "full":
        return full_slots(model)
    return lora_slots(target_linears(model, spec.targets), spec.rank)


def _one_after_the_other(shapes: Mapping[str, tuple[int, ...]]) -> list[Slot]:
    ends = [0, *itertools.accumulate(map(math.prod, shapes.values()))]
    return [Slot(name, start, shape) for (name, shape), start in zip(shapes.items(), ends)]  # noqa: B905


def master_dtype(model: nn.Module) -> torch.dtype:
    """Students' own weights: float64 for a float64 model, else float32, so that small updates are not rounded away."""
    return torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32


def rank_class(rank: int | None) -> int:
    """Students of one class share a group: ranks up to 8, up to 64, up to 512, ... Padding costs less than the many small products of a
    group for every rank."""
    return 0 if rank is None else max(0, math.ceil(math.log(rank, 8) - 1e-9) - 1)


@dataclass(frozen=True, eq=False)
class Stack:
    """K students over one base. `order[i]` is the place, in the caller's list, of the pack's i-th student."""

    kind: str
    groups: list[Group]
    scales: Tensor
    order: list[int]
    linears: dict[str, nn.Linear]

    @property
    def size(self) -> int:
        return len(self.order)

    def slices(self) -> list[slice]:
        """Which students of the pack each group holds."""
        ends = [0, *itertools.accumulate(g.flat.shape[0] for g in self.groups)]
        return [slice(*pair) for pair in itertools.pairwise(ends)]

    def student_rows(self) -> list[tuple[Group, int]]:
        return [(group, i) for group in self.groups for i in range(group.flat.shape[0])]


def _layers(model: nn.Module, specs: Sequence[StudentSpec]) -> dict[tuple, dict[str, nn.Linear]]:
    targets = {s.targets for s in specs if s.method == "lora"}
    return {names: target_linears(model, names) for names in targets}


def _arranged(
    model: nn.Module, specs: Sequence[StudentSpec], rows: Callable[[int, list[Slot]], Tensor]
) -> Stack:
    """The stack of these students; `rows(i, slots)` gives the row of student i. Raises SubloraError: rank above a layer's width, unknown
    target layer, LoRA and full fine-tunes together."""
    like = {"device": next(model.parameters()).device, "dtype": master_dtype(model)}
    methods = {s.method for s in specs}
    if len(methods) > 1:
        why = "LoRA students and full fine-tunes cannot train in one pack; put them into packs of their own."
        raise SubloraError(why)
    if methods == {"full"}:
        slots, order = full_slots(model), list(range(len(specs)))
        flat = torch.stack([rows(i, slots) for i in order]).to(**like)
        group = Group([None] * len(specs), slots, flat)
        return Stack("full", [group], torch.ones(len(specs)), order, {})
    layers = _layers(model, specs)
    kind = [(tuple(layers[s.targets]), rank_class(s.rank)) for s in specs]
    order = sorted(range(len(specs)), key=lambda i: (*kind[i], specs[i].rank, i))
    groups = []
    for _, members in itertools.groupby(order, key=lambda i: kind[i]):
        chosen = list(members)
        linears, ranks = layers[specs[chosen[0]].targets], [specs[i].rank for i in chosen]
        check_rank(max(ranks), linears)
        slots = lora_slots(linears, max(ranks))
        flat = torch.stack([rows(i, slots) for i in chosen]).to(**like)
        groups.append(Group(ranks, slots, flat))
    scales = torch.tensor([specs[i].scale for i in order], **like)
    every = {name: module for linears in layers.values() for name, module in linears.items()}
    names = [n for n, _ in model.named_modules() if n in every]
    return Stack("lora", groups, scales, order, {n: every[n] for n in names})


def new_stack(model: nn.Module, specs: Sequence[StudentSpec]) -> Stack:
    """Fresh students. LoRA students of any ranks and layers may share a stack; full fine-tunes have stacks of their own. Raises
    SubloraError: rank above a layer's width, unknown target layer."""
    dtype, layers = master_dtype(model), _layers(model, specs)

    def fresh(i: int, slots: list[Slot]) -> Tensor:
        spec = specs[i]
        if spec.method == "full":
            return torch.cat([p.detach().reshape(-1).to(dtype) for p in model.parameters()])
        out, init = torch.zeros(slots[-1].stop, dtype=dtype), INITS[spec.init]
        for slot in slots:
            own = own_part(out, spec.rank, slot)
            weight = layers[spec.targets][slot.name[: -len(".lora_A")]].weight
            values = init(slot.name, tuple(own.shape), weight, spec.seed)
            if values is not None:
                own.copy_(values)
        return out

    return _arranged(model, specs, fresh)


@torch.no_grad()
def update_norms(group: Group, row: int, spec: StudentSpec, model: nn.Module) -> dict[str, float]:
    """||W - W_0||, Frobenius, of every module that trained: s B A of a LoRA layer, all weights of a tensor in a full fine-tune."""
    own = group.tensors(row)
    if spec.method == "full":
        was = dict(model.named_parameters())
        return {n: float((t - was[n].to(t.dtype)).norm()) for n, t in own.items()}
    names = [n.removesuffix(".lora_A") for n in own if n.endswith(".lora_A")]
    return {n: spec.scale * float((own[f"{n}.lora_B"] @ own[f"{n}.lora_A"]).norm()) for n in names}


def stack_weights(
    model: nn.Module, weights: Sequence[Tensor], specs: Sequence[StudentSpec]
) -> Stack:
    """A stack of students from their flat weights (`Trained.weights`), for measuring; all of one method."""
    return _arranged(model, specs, lambda i, slots: padded(weights[i], specs[i].rank, slots))
