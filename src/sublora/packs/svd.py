"""A part of a LoRA update: its largest singular directions, or what is left without them."""

import torch

from sublora.packs.condition import SvdCut
from sublora.packs.stack import Group, Stack


def cut_stack(stack: Stack, cut: SvdCut) -> Stack:
    """The students of a LoRA stack with B A of every layer cut: kept are its `k` largest singular directions, or all but these. The cut is
    exact: with B = Q R, the singular directions of B A are Q times those of the small R A. The result has the same rank and scale; a
    direction that is cut away has a zero column in B."""
    groups = []
    for group in stack.groups:
        new = Group(group.ranks, group.slots, group.flat.clone())
        for name in {s.name.rsplit(".", 1)[0] for s in group.slots}:
            a, b = group.views[f"{name}.lora_A"], group.views[f"{name}.lora_B"]
            q, r = torch.linalg.qr(b.double())  # (K, out, rank), (K, rank, rank)
            u, values, v = torch.linalg.svd(r @ a.double(), full_matrices=False)
            values = values.clone()
            values[:, slice(cut.k, None) if cut.keep == "top" else slice(cut.k)] = 0
            new.views[f"{name}.lora_A"].copy_(v)
            new.views[f"{name}.lora_B"].copy_(q @ (u * values.unsqueeze(1)))
        groups.append(new)
    return Stack(stack.kind, groups, stack.scales, stack.order, stack.linears)
