"""Where a student lies: a folder, the last checkpoint of a training, an adapter in a subfolder, or the hub's copy of an id."""

import re
from pathlib import Path

from sublora.audit.trained_with import CHECKPOINT
from sublora.errors import SubloraError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HUB_ID = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?")
# Only what is read: no pickles, no code, no checkpoints beside the finished student.
READ = ["*.safetensors", "*.json", "*.jinja", "*.yaml", "*.yml"]
NOT_READ = ["checkpoint-*/*", "*optimizer*", "runs/*"]


def student_folder(given: Path) -> Path:
    """The folder that holds the weights themselves. Raises SubloraError: no such folder or hub id, several adapters to choose from."""
    folder = given.expanduser()
    if not folder.is_dir():
        folder = _from_hub(given)
    if given.name.startswith("models--") and (folder / "snapshots").is_dir():
        folder = _snapshot(folder)
    if (folder / CONFIG).is_file() or any(folder.glob("*.safetensors")):
        return folder
    inside = sorted(f for f in folder.iterdir() if f.is_dir())
    steps = {int(m[1]): f for f in inside if (m := CHECKPOINT.search(f.name))}
    if steps:
        return student_folder(steps[max(steps)])
    named = [f for f in inside if (f / CONFIG).is_file()]
    if len(named) > 1:
        names = ", ".join(f.name for f in named[:10])
        raise SubloraError(
            f"The folder {folder} holds the adapters {names}; give one of them, such as {named[0]}."
        )
    return named[0] if named else folder


def _snapshot(cache: Path) -> Path:
    """The copy that the hub's cache calls main, or the only one."""
    main, copies = cache / "refs" / "main", sorted((cache / "snapshots").iterdir())
    if main.is_file() and (named := cache / "snapshots" / main.read_text().strip()) in copies:
        return named
    if len(copies) != 1:
        raise SubloraError(
            f"The hub's folder {cache} holds {len(copies)} snapshots and no main; give the folder of one."
        )
    return copies[0]


def hub_id(text: str) -> tuple[str, str | None] | None:
    """Owner/name and revision of `owner/name` or `owner/name@revision`; None for anything else, and for what is here."""
    found = None if Path(text).exists() else HUB_ID.fullmatch(text)
    return (found[1], found[2]) if found else None


def _from_hub(given: Path) -> Path:
    missing = f"There is no folder {given}"
    if given.exists():
        raise SubloraError(f"The student {given} is a file; give the folder that it lies in.")
    if (named := hub_id(str(given))) is None:
        raise SubloraError(f"{missing}; give the folder of an adapter or of full weights.")
    from huggingface_hub import snapshot_download

    repository, revision = named
    try:
        path = snapshot_download(
            repository, revision=revision, allow_patterns=READ, ignore_patterns=NOT_READ
        )
    except Exception as error:  # the hub's client raises whatever its parts raise
        why = " ".join(str(error).split())[:160]
        raise SubloraError(
            f"{missing}, and the hub does not give {given} ({type(error).__name__}: {why}); check the name, the revision, or the network."
        ) from None
    return Path(path)
