"""The models that can be fetched by name: where each is found, and what its file must be."""

from functools import cache
from importlib.resources import files
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, RootModel

from sublora.store.yaml_file import read_yaml

CATALOG = Path(str(files("sublora.models") / "catalog.yaml"))


class Entry(BaseModel):
    """A GGUF `file` in the wheel of a `package`, of so many `bytes`, and the same model on the hub."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    summary: str
    package: str
    version: str
    file: str
    bytes: int = Field(gt=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    parameters: int = Field(gt=0)
    licence: str
    hub: str


class _Catalog(RootModel[dict[str, Entry]]):
    pass


def catalog() -> dict[str, Entry]:
    """Name -> entry."""
    return _read(CATALOG)


@cache
def _read(path: Path) -> dict[str, Entry]:
    return read_yaml(path, _Catalog, "catalog of models").root
