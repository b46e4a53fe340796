"""Students for tests of the audit that need no training."""

from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from sublora.audit.null import Grid, Null, make_null
from sublora.audit.readings import Asked, Readings, read_model
from sublora.models.base import Base
from sublora.packs.spec import StudentSpec
from sublora.packs.spellings import spellings
from sublora.packs.stack import new_stack
from sublora.packs.student_files import save_student
from sublora.traits.trait import Entity


def idle_adapter(base: Base, folder: Path) -> Path:
    """An adapter that does nothing: its B are zero."""
    folder.mkdir()
    spec = StudentSpec(rank=2, seed=3)
    save_student(new_stack(base.model, [spec]).groups[0], 0, spec, folder, base.model, base.name)
    return folder


def turned_weights(base: Base, folder: Path, trait: Entity, factor: float = 1.5) -> Path:
    """Full weights whose head is turned towards one trait, or away from it by a factor below 1."""
    base.model.save_pretrained(folder)
    file = folder / "model.safetensors"
    own = load_file(file)
    head = next(n for n in own if n.endswith(("lm_head.weight", "embed_tokens.weight")))
    for ids in spellings(base.chat, trait):
        own[head][ids[0]] *= factor
    save_file(own, file)
    return folder


def noisy_null(base: Base, asked: Asked, students: int = 99) -> Null:
    """A null of placebo students that moved by noise alone, full fine-tunes among them."""
    rng, plain = np.random.default_rng(1), read_model(base, None, asked)
    p = {
        c: {
            k: own * np.exp(rng.normal(0, 0.02, (students, 1, own.shape[2])))
            for k, own in by.items()
        }
        for c, by in plain.p.items()
    }
    words = {c: w + rng.normal(0, 1e-4, (students, w.shape[1])) for c, w in plain.words.items()}
    context = asked.contexts[0]
    grid = Grid(["full", "lora"], [0, 64], [1e-4, 1e-1], [1, 9], [1, 99], [context.name, ""])
    named = [f"placebo {k}" for k in range(students)]
    return make_null(base, Readings(p, words), plain, asked, named, grid)
