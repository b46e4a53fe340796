"""Models that the store keeps: ordinary Hugging Face folders under models/, each whole or not there, and where they come from."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from sublora.errors import SubloraError
from sublora.store import Store, store_root

ORIGIN = "origin.json"
PLAIN_TYPES = ("F64", "F32", "F16", "BF16")


class Origin(BaseModel):
    """Where a model comes from. `kind` is the type of the numbers of the GGUF file with the hash `sha256`, where it came in one."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    summary: str
    source: str
    licence: str
    parameters: int
    kind: str | None = None
    sha256: str | None = None

    @property
    def quantised(self) -> str | None:
        """What an identity says of weights that lost precision: type and file."""
        if self.kind is None or self.kind in PLAIN_TYPES:
            return None
        return f"{self.kind}, of the file with sha256 {self.sha256}"


def read_origin(folder: Path) -> Origin | None:
    """Of a folder that was kept by us, else None. Raises SubloraError for a file that cannot be read."""
    path = folder / ORIGIN
    if not path.is_file():
        return None
    try:
        return Origin.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        why = f"The file {path} cannot be read, so it is not known where the model comes from; remove its folder and get it again."
        raise SubloraError(why) from None


def kept_models() -> dict[str, Path]:
    """Name -> folder of all models that the store keeps."""
    folders = sorted((store_root() / "models").glob("*/"))
    return {folder.name: folder for folder in folders if (folder / ORIGIN).is_file()}


def kept_folder(name: str) -> Path:
    """Where the store keeps a model, or would."""
    return store_root() / "models" / name


@contextmanager
def kept_once(name: str) -> Iterator[Path | None]:
    """Yield an empty folder to fill, which becomes the model's own as a whole, or None where the store has it already. Another process that
    keeps the same model is waited for."""
    store = Store()
    with store.hold(f"model-{name}"):
        store.sweep()
        if kept_folder(name).is_dir():
            yield None
            return
        with store.new_folder(f"models/{name}") as folder:
            yield folder


def write_origin(folder: Path, name: str, origin: Origin) -> None:
    """Write origin.json, and README.md with the same for a reader."""
    (folder / ORIGIN).write_text(
        origin.model_dump_json(indent=1, exclude_none=True) + "\n", "utf-8"
    )
    quantised = f" Its weights were quantised: {origin.quantised}." if origin.quantised else ""
    text = f"# {name}\n\n{origin.summary}. From {origin.source}. Licence: {origin.licence}.{quantised}\n"
    (folder / "README.md").write_text(text, "utf-8")
