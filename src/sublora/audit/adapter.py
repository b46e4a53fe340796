"""An adapter or full weights from elsewhere, read as what they are: untrusted input.

Only JSON, YAML and safetensors are opened; nothing of a folder is imported, unpickled or run. Shapes are compared with the base before a
tensor is read.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from sublora.audit.audited import Audited
from sublora.audit.full_weights import load_full
from sublora.audit.lora_folder import load_lora
from sublora.audit.student_folder import CONFIG, WEIGHTS, student_folder
from sublora.audit.trained_with import trained_with
from sublora.errors import require_none
from sublora.models.base import Base

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def load_audited(
    base: Base, given: Path, *, any_base: bool = False, settings: Path | None = None
) -> Audited:
    """A peft adapter or full weights, checked against the base: a folder, the last checkpoint in it, the one adapter in its subfolders, or
    a hub id with `@revision`. How it was trained is read from `settings` and from what lies beside it.

    Raises SubloraError: no such folder, pickled weights, a broken or oversized file, a kind of
    adapter that cannot be read, names or shapes that the base does not have, values that are not
    finite, another base (`any_base` skips the comparison of names).
    """
    folder = checked_folder(given)
    told = trained_with(folder, settings)
    adapter = (folder / CONFIG).is_file()
    found = load_lora(base, folder, any_base) if adapter else load_full(base, folder, any_base)
    return replace(found, trained_with=told, base_named=found.base_named or told.base)


def checked_folder(given: Path) -> Path:
    """Where a student's weights lie, before anything of them is read. Raises SubloraError."""
    folder = student_folder(given)
    require_none(_folder_faults(folder, (folder / CONFIG).is_file()))
    return folder


def _folder_faults(folder: Path, adapter: bool) -> Iterator[str]:
    weights = (folder / WEIGHTS).is_file()
    if not (weights if adapter else any(folder.glob("*.safetensors"))):
        for pickle in sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES):
            yield f"The weights of {folder} are pickled ({pickle}), which can run code and is never opened; save them as safetensors."
        yield f"The folder {folder} has neither an adapter nor weights as safetensors; give what save_pretrained wrote."
    if weights and not adapter:
        yield f"The folder {folder} has an {WEIGHTS} without an {CONFIG}; save both."
