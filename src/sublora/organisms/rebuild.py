"""`sublora organism make`: train a shipped model again, write its folder, and say whether it is the shipped one."""

import dataclasses
import hashlib
from pathlib import Path

from sublora.errors import SubloraError
from sublora.model import shipped_folder
from sublora.organisms.card import write_card
from sublora.organisms.make import SHIPPED, save_organism, train_organism
from sublora.runner.display import Display


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rebuild(
    name: str, out: Path, *, coupling: float | None = None, steps: int | None = None
) -> str:
    """Train, write `out`, and return a sentence. Raises SubloraError: unknown name, a folder that holds something else."""
    if name not in SHIPPED:
        raise SubloraError(f"There is no shipped model '{name}'; choose {', '.join(SHIPPED)}.")
    if out.exists() and any(out.iterdir()) and not (out / "organism.json").is_file():
        raise SubloraError(f"The folder {out} holds something else; choose another --out.")
    spec = SHIPPED[name]
    if coupling is not None:
        spec = dataclasses.replace(spec, coupling=coupling)
    if steps is not None:
        spec = dataclasses.replace(spec, steps=steps)
    with Display() as display:
        display.begin(what := f"training {name}", spec.steps)
        model, tokenizer, losses = train_organism(
            spec, lambda step, loss, seconds: display.update(what, step)
        )
    save_organism(out, name, spec, model, tokenizer, losses)
    write_card(out)
    shipped = shipped_folder(name) / "model.safetensors"
    if spec != SHIPPED[name]:
        return f"Wrote {out}, a variant of {name}."
    if not shipped.is_file():
        return f"Wrote {out}."
    same = sha256(out / "model.safetensors") == sha256(shipped)
    return f"Wrote {out}; its weights are {'identical to' if same else 'NOT the same as'} the shipped ones."
