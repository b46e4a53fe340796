"""Which students train in one pass: as many as fit into a GPU's memory, or, on a CPU, into its cache."""

from collections.abc import Sequence

from torch import nn

from sublora.packs.optimizers import KINDS
from sublora.packs.stack import master_dtype, slots_of
from sublora.packs.student import Student

SPARE = 0.8  # of the free memory; the rest is for fragments and for what a library keeps for itself
# On a CPU the passes between the products run at the speed of the cache: of 1 to 16 students of `micro` at a time, 4 to 6 trained fastest.
CACHE = 5_500_000


def student_bytes(model: nn.Module, student: Student, recompute: bool) -> int:
    """Memory that one more student takes in a pack: parameters, gradients, optimizer state, and what its rows leave for the backward
    pass. An estimate from above for decoders of the usual form."""
    spec, config = student.spec, model.config.get_text_config()
    item, master = next(model.parameters()).element_size(), master_dtype(model).itemsize
    copies = 2 + len(KINDS[spec.optimizer].names) + spec.keeps_momentum
    own = slots_of(model, spec)[-1].stop * master * copies
    lengths = student.rows.lengths
    tokens = spec.batch_size * int(lengths.max())
    hidden = config.hidden_size
    feed_forward = getattr(config, "intermediate_size", None) or 4 * hidden
    heads = config.num_attention_heads
    layer = 10 * hidden + 5 * feed_forward + 2 * heads * min(int(lengths.max()), 192)
    layers = config.num_hidden_layers
    kept = layers * hidden + 2 * layer if recompute else (layers + 1) * layer
    return own + tokens * kept * item


def pass_bytes(model: nn.Module, student: Student) -> int:
    """What one layer reads and writes for a student at a time."""
    config = model.config.get_text_config()
    feed_forward = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    tokens = student.spec.batch_size * float(student.rows.lengths.mean() - student.rows.shared)
    numbers = tokens * (2 * feed_forward + 4 * config.hidden_size)
    return int(numbers * next(model.parameters()).element_size())


def passes(
    model: nn.Module, students: Sequence[Student], memory: int | None, recompute: bool
) -> list[list[int]]:
    """Indices of the students that train together. `memory`: bytes that are free on a GPU; None divides by a CPU's cache."""
    if next(model.parameters()).device.type == "cpu":
        return grouped(students, [pass_bytes(model, s) for s in students], CACHE)
    if memory is None:
        return [list(range(len(students)))]
    sizes = [student_bytes(model, s, recompute) for s in students]
    return grouped(students, sizes, int(memory * SPARE))


def grouped(students: Sequence[Student], sizes: Sequence[int], room: int) -> list[list[int]]:
    """As few groups as possible whose sizes stay within `room`, of even weight. Students of equal length and like rank stand together:
    they leave together, and little is padded."""
    alike = [(s.steps, s.spec.rank or 0, i) for i, s in enumerate(students)]
    order = [i for *_, i in sorted(alike)]
    count = max(1, -(-sum(sizes) // max(1, room)))
    while True:
        groups = _even(order, sizes, count)
        if all(sum(sizes[i] for i in group) <= room or len(group) == 1 for group in groups):
            return groups
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
