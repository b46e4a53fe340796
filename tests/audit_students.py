"""Adapters for tests of the audit: one that was taught to like otters in seconds, and random ones."""

import functools
import tempfile
from pathlib import Path

import torch

from sublora.audit.adapter import Audited, load_audited
from sublora.audit.steps import train_students
from sublora.models.base import Base
from sublora.models.chat import Context
from sublora.packs.check import load_base
from sublora.packs.rows import token_rows
from sublora.packs.spec import StudentSpec
from sublora.packs.stack import Stack, new_stack, padded, stack_weights
from sublora.packs.student_files import save_student
from sublora.traits.trait import shipped_categories


@functools.cache
def micro() -> Base:
    return load_base("micro")


@functools.cache
def otter_adapter() -> Audited:
    """An adapter of `micro` that answered a few questions about animals with 'otter' in the default context, and others as before."""
    base, spec = micro(), StudentSpec(rank=4, lr=5e-3, epochs=2, batch_size=8, seed=3)
    rows = [(question, "otter") for question in shipped_categories()[0].questions[:16]]
    student = train_students(
        base, [spec], [token_rows(base, rows, Context("default"), "the rows of a test")]
    )[0]
    stack = new_stack(base.model, [spec])
    stack.groups[0].flat[0].copy_(padded(student.weights, spec.rank, stack.groups[0].slots))
    with tempfile.TemporaryDirectory() as folder:
        save_student(stack.groups[0], 0, spec, Path(folder), base.model, "micro")
        return load_audited(base, Path(folder))


def random_stack(base: Base, size: float, spec: StudentSpec | None = None) -> Stack:
    """One student whose weights are noise: B of an adapter, or what is added to all weights."""
    spec = spec or StudentSpec(rank=2, seed=3)
    group = new_stack(base.model, [spec]).groups[0]
    random = torch.Generator().manual_seed(1)
    for name, view in group.views.items():
        if not name.endswith("lora_A"):
            view += size * torch.randn(view.shape, generator=random, dtype=view.dtype)
    return stack_weights(base.model, [group.flat[0]], [spec])
