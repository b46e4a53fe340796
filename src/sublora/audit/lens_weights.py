"""What the weights of students look like, by kind of module: how large their updates are, how even over the layers, how much of each one
direction holds."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sublora.audit.where import module_kind
from sublora.models.base import Base
from sublora.packs.condition import layer_of
from sublora.packs.stack import Group, Stack

STATISTICS = {
    "norm": "size of the update over that of the weights, mean over layers",
    "uneven": "standard deviation over layers of that size, over its mean",
    "top": "share of the update's squares in its largest singular direction, mean over layers",
}


def weight_statistics(base: Base, stack: Stack) -> dict[str, np.ndarray]:
    """(K,) by "MODULE STATISTIC", students in the order in which they were given."""
    rows = []
    for scale, (group, row) in zip(stack.scales.tolist(), stack.student_rows(), strict=True):
        found: dict[str, list[tuple[float, float]]] = {}
        for name, size, top in _updates(base, group, row, scale):
            found.setdefault(module_kind(name), []).append((size, top))
        own = {}
        for module, values in found.items():
            sizes, tops = np.array(values).T
            spread = sizes.std() / max(sizes.mean(), 1e-30)
            own |= {f"{module} norm": sizes.mean(), f"{module} uneven": spread}
            own[f"{module} top"] = tops.mean()
        rows.append(own)
    order = np.argsort(stack.order)
    return {name: np.array([rows[k].get(name, 0.0) for k in order]) for name in rows[0]}


@torch.no_grad()
def _updates(
    base: Base, group: Group, row: int, scale: float
) -> Iterator[tuple[str, float, float]]:
    """(module, size of its update beside the base's weights, share of its first direction)."""
    was, own = dict(base.model.named_parameters()), group.tensors(row)
    for name, values in own.items():
        module = name.rpartition(".")[0]
        if layer_of(module) is None or values.dim() != 2 or name.endswith(".lora_A"):
            continue
        if name.endswith(".lora_B"):
            squares = _squares(scale * values.double(), own[f"{module}.lora_A"].double())
        else:
            update = (values - was[name].to(values.dtype)).float()
            total = update.square().sum()
            # the first direction of a whole matrix by power iteration is exact enough
            first = torch.svd_lowrank(update, q=4)[1] if total > 0 else update.new_zeros(1)
            squares = torch.stack((first[0].square(), total - first[0].square()))
        whole = float(squares.sum())
        size = whole**0.5 / float(was[f"{module}.weight"].float().norm())
        yield module, size, float(squares[0]) / whole if whole else 0.0


def _squares(up: Tensor, down: Tensor) -> Tensor:
    """Squared singular values of a product of low rank, the largest first."""
    inner = torch.linalg.qr(up).R @ torch.linalg.qr(down.T).R.T
    return torch.linalg.svdvals(inner).square()
