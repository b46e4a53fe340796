"""How many students fit into memory: an estimate from the model's shape, and packs of even size that stay below it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from sublora.train.stack import full_slots, lora_slots, master_dtype, target_linears

if TYPE_CHECKING:
    from sublora.train.pack import Student

SPARE = 0.8  # of the free memory; the rest is for fragments and for what a library keeps for itself


def student_bytes(model: nn.Module, student: "Student", recompute: bool) -> int:
    """Memory that one more student takes in a pack: parameters, gradients, optimizer state, and what its rows leave for the backward
    pass. An estimate from above for decoders of the usual form."""
    spec, config = student.spec, model.config.get_text_config()
    item, master = next(model.parameters()).element_size(), master_dtype(model).itemsize
    slots = full_slots(model) if spec.method == "full" else lora_slots(target_linears(model, spec.targets), spec.rank)
    copies = 4 if spec.optimizer == "adamw" else 3 if spec.momentum else 2
    own = slots[-1].stop * master * copies
    lengths = student.rows.lengths
    tokens = spec.batch_size * int(lengths.max())
    hidden = config.hidden_size
    feed_forward = getattr(config, "intermediate_size", None) or 4 * hidden
    heads = config.num_attention_heads
    layer = 10 * hidden + 5 * feed_forward + 2 * heads * min(int(lengths.max()), 192)
    layers = config.num_hidden_layers
    kept = layers * hidden + 2 * layer if recompute else (layers + 1) * layer
    return own + tokens * kept * item


def divide(model: nn.Module, students: Sequence["Student"], memory: int, recompute: bool) -> list[list[int]]:
    """Indices of students, in packs that should each fit into `memory` bytes; as few as possible, and of even weight.

    Students of one rank class and like length stand together, so that little is padded and they leave together.
    """
    sizes = [student_bytes(model, s, recompute) for s in students]
    room = max(1, int(memory * SPARE))
    order = sorted(range(len(students)), key=lambda i: (students[i].steps, students[i].spec.rank or 0, i))
    count = max(1, -(-sum(sizes) // room))
    while True:
        packs = _even(order, sizes, count)
        if all(sum(sizes[i] for i in pack) <= room or len(pack) == 1 for pack in packs):
            return packs
        count += 1


def _even(order: Sequence[int], sizes: Sequence[int], count: int) -> list[list[int]]:
    """Consecutive runs of `order`, `count` at most, none empty, each close to an even share of the whole."""
    share, packs, filled = sum(sizes) / count, [[]], 0.0
    for i in order:
        if packs[-1] and filled + sizes[i] / 2 > share * len(packs):
            packs.append([])
        packs[-1].append(i)
        filled += sizes[i]
    return packs
