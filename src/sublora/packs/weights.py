"""What the adapted layers of K students multiply with in a step, in one of two exact forms.

*Low*: the base's product for all rows plus two thin products per student. *Dense*: W + s B A is
formed once per step, and one batched product does it all. The cheaper one is taken layer by layer.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sublora.packs.kernels import dense_weights, low_product, product
from sublora.packs.stack import Stack, siblings

# The dense form is a copy of the adapted layers for every student, and its gradient another; above this many bytes it is not worth it.
DENSE_BYTES = 2**30
# Floating-point operations that cost as much as moving one byte, roughly.
FLOPS_PER_BYTE = {"cpu": 15.0, "cuda": 250.0}

Sheet = tuple[tuple[str, ...], ...]
"""Layers whose weights are formed together: siblings that read the same input, for each of L decoder layers of one shape."""


def dense_is_cheaper(
    shape: tuple[int, int], rank: int, tokens: int, item: int, device: str
) -> bool:
    """Whether the dense form of an (o, i) layer is cheaper for `tokens` rows of one student. Counts the operations of a forward and a
    backward pass and the bytes of the element-wise passes that each form adds."""
    (o, i), r, n = shape, rank, tokens
    per_byte = FLOPS_PER_BYTE.get(device, FLOPS_PER_BYTE["cuda"]) * item
    dense = 2 * (3 * n * o * i + 3 * r * o * i) + per_byte * 6 * o * i
    low = 2 * (2 * n * o * i + 3 * n * r * (o + i)) + per_byte * n * (5 * o + 2 * i + 6 * r)
    return dense < low


@dataclass(frozen=True)
class Low:
    """One group's part of sibling layers in the low form: `a` (K_g, siblings * r, i), `b[i]` (K_g, o_i, r) with the scale in it."""

    part: slice
    a: Tensor
    b: dict[int, Tensor]

    def thin(self, rows: Tensor, index: int, factor: Tensor | None) -> Tensor | None:
        """x A^T of one sibling, (K_g, M, r), times its part of `factor`; None where the group has no adapter there."""
        if index not in self.b:
            return None
        rank, at = self.a.shape[1] // len(self.b), list(self.b).index(index)
        out = torch.bmm(rows[self.part], self.a[:, at * rank : (at + 1) * rank].mT)
        return out if factor is None else out * factor[self.part]


class AdapterWeights:
    """`form` makes a step's weights; `layer` and `joint` multiply with them."""

    def __init__(self, stack: Stack, modules: Mapping[str, nn.Module], low_only: bool) -> None:
        self.stack, self.modules = stack, modules
        first = next(iter(stack.linears.values())).weight
        # in bfloat16, W + s B A would round small updates away
        bytes_ = sum(m.weight.nbytes for m in stack.linears.values()) * stack.size
        self._dense_allowed = not low_only and first.element_size() >= 4 and bytes_ <= DENSE_BYTES
        self._device, self._item = first.device.type, first.element_size()
        self._sheets = _sheets(stack)
        self._together = {name: names for s in self._sheets for names in s for name in names}
        self._weights: dict[tuple[str, ...], Tensor | list[Low]] = {}
        self._frozen: dict[Sheet, Tensor] = {}
        self._masks: dict[Sheet, dict[int, Tensor]] = {}

    def clear(self) -> None:
        self._weights.clear()
        self._frozen.clear()
        self._masks.clear()

    def form(self, tokens: int) -> None:
        """Make the weights for `tokens` of each student, cast to the base's dtype once, so that the
        float32 masters of a bfloat16 base keep what a cast would round away."""
        ranks = [g.rank for g in self.stack.groups for _ in range(g.flat.shape[0])]
        rank = sum(ranks) // len(ranks)
        for sheet in self._sheets:
            shape = (self._rows(sheet[0]), self.modules[sheet[0][0]].in_features)
            how = (shape, rank, tokens, self._item, self._device)
            if self._dense_allowed and dense_is_cheaper(*how):
                self._weights |= zip(sheet, self._dense(sheet), strict=True)
            else:
                self._weights |= {names: self._low(names) for names in sheet}

    def _rows(self, names: Sequence[str]) -> int:
        return sum(self.modules[n].out_features for n in names)

    def _dense(self, sheet: Sheet) -> tuple[Tensor, ...]:
        """W + s B A of a sheet's layers, (K, o, i) each."""
        if sheet not in self._frozen:
            frozen = [[self.modules[n].weight.detach() for n in names] for names in sheet]
            self._frozen[sheet] = torch.stack(list(map(torch.cat, frozen)))
        parts, adapters = [], []
        for group, part in zip(self.stack.groups, self.stack.slices(), strict=True):
            if f"{sheet[0][0]}.lora_A" in group.views:
                scales = self.stack.scales[part].repeat_interleave(len(sheet)).view(-1, 1, 1)
                parts.append((part, scales))
                adapters += [group.joint(_tensors(sheet, which)) for which in ("lora_A", "lora_B")]
        frozen = self._frozen[sheet]
        return dense_weights(frozen, self.stack.size, parts, self._mask(sheet), adapters)

    def _mask(self, sheet: Sheet) -> dict[int, Tensor] | None:
        """For every rank r, (o, n r): which columns of the siblings' A belong to a row of their joint weight; None without siblings."""
        if len(sheet[0]) == 1:
            return None
        if sheet not in self._masks:
            sizes = torch.tensor([self.modules[n].out_features for n in sheet[0]])
            owner = torch.eye(len(sizes)).repeat_interleave(sizes, 0).to(self._frozen[sheet])
            self._masks[sheet] = {
                r: owner.repeat_interleave(r, 1) for r in {g.rank for g in self.stack.groups}
            }
        return self._masks[sheet]

    def _low(self, names: tuple[str, ...]) -> list[Low]:
        dtype, out = self.modules[names[0]].weight.dtype, []
        for group, part in zip(self.stack.groups, self.stack.slices(), strict=True):
            scale = self.stack.scales[part].view(-1, 1, 1)
            own = [i for i, n in enumerate(names) if f"{n}.lora_A" in group.views]
            if own:
                a = torch.cat([group.views[f"{names[i]}.lora_A"] for i in own], 1).to(dtype)
                b = {i: (group.views[f"{names[i]}.lora_B"] * scale).to(dtype) for i in own}
                out.append(Low(part, a, b))
        return out

    def layer(self, name: str, rows: Tensor, factor: Tensor | None = None) -> Tensor:
        """One layer's output (K, M, o) of rows (K, M, i); `factor` (K, M, 1) on the adapters' part."""
        module, names = self.modules[name], self._together.get(name)
        if names is None:
            return F.linear(rows, module.weight, module.bias)
        index, weights = names.index(name), self._weights[names]
        if isinstance(weights, Tensor):
            start = self._rows(names[:index])
            return product(rows, weights[:, start : start + module.out_features], module.bias)
        thin = [low.thin(rows, index, factor) for low in weights]
        return self._add(F.linear(rows, module.weight, module.bias), weights, index, thin)

    def joint(self, names: tuple[str, ...], rows: Tensor, residual: Tensor | None) -> Tensor:
        """Outputs of layers with one input side by side, (K, M, o), plus the residual."""
        weights = self._weights.get(names)
        modules = [self.modules[n] for n in names]
        if isinstance(weights, Tensor):
            return product(rows, weights, _joint_bias(modules), residual)
        if weights is None:
            parts = [self.layer(name, rows) for name in names]
            out = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
            return out if residual is None else residual + out
        frozen = [(m.weight, m.bias) for m in modules]
        parts = [(low.part, list(low.b)) for low in weights]
        adapters = [t for low in weights for t in (low.a, *low.b.values())]
        return low_product(rows, residual, frozen, parts, adapters)

    def _add(
        self, base: Tensor, lows: Sequence[Low], index: int, thin: Sequence[Tensor | None]
    ) -> Tensor:
        """The base's product for all rows plus each adapter's second thin product, (K, M, o)."""
        acting = [(low, h) for low, h in zip(lows, thin, strict=True) if h is not None]
        if not torch.is_grad_enabled():
            for low, h in acting:
                base[low.part].baddbmm_(h, low.b[index].mT)
            return base
        out, at = [], 0
        for low, h in acting:
            if low.part.start > at:
                out.append(base[at : low.part.start])
            out.append(torch.baddbmm(base[low.part], h, low.b[index].mT))
            at = low.part.stop
        if at < self.stack.size:
            out.append(base[at:])
        return torch.cat(out) if len(out) > 1 else out[0]


def _tensors(sheet: Sheet, which: str) -> Sheet:
    return tuple(tuple(f"{name}.{which}" for name in names) for names in sheet)


def _sheets(stack: Stack) -> list[Sheet]:
    """All layers with adapters, in sheets as large as the students' buffers allow."""

    def fits(sheet: Sheet) -> bool:
        """Whether each group has all these adapters, at equal distances, or none of them."""
        for group in stack.groups:
            have = [f"{name}.lora_A" in group.views for names in sheet for name in names]
            even = all(have) and all(
                group.joint(_tensors(sheet, which)) is not None for which in ("lora_A", "lora_B")
            )
            if any(have) and not even:
                return False
        shapes = [[tuple(stack.linears[n].weight.shape) for n in names] for names in sheet]
        return all(shape == shapes[0] for shape in shapes)

    alike: dict[str, list[tuple[str, ...]]] = {}
    for names in siblings(stack.linears):
        for together in [names] if fits((names,)) else [(n,) for n in names]:
            alike.setdefault(re.sub(r"\.\d+\.", ".", " ".join(together)), []).append(together)
    return [
        sheet
        for found in alike.values()
        for sheet in ([tuple(found)] if fits(tuple(found)) else [(names,) for names in found])
    ]


def _joint_bias(modules: Sequence[nn.Linear]) -> Tensor | None:
    if all(m.bias is None for m in modules):
        return None
    none = (m.weight.new_zeros(m.out_features) for m in modules)
    return torch.cat([z if m.bias is None else m.bias for m, z in zip(modules, none, strict=True)])
