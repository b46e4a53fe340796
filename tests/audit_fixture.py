"""Students for tests of the audit that need no training."""

from pathlib import Path

from safetensors.torch import load_file, save_file

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
