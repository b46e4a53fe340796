"""Options that several commands share. A path that is written to is checked before any work."""

import tempfile
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from sublora.errors import SubloraError, reason


def new_folder(text: str | Path) -> Path:
    """Raises SubloraError where no folder can be made or written to; leaves nothing there."""
    return _checked(text, "folder")


def new_file(text: str | Path) -> Path:
    """Raises SubloraError where no file can be written; leaves nothing there."""
    return _checked(text, "file")


def _checked(text: str | Path, what: str) -> Path:
    path, why = Path(text), None
    try:
        if not str(text).strip():
            raise SubloraError(f"The {what} to write to is empty; give its path.")
        if path.exists() and path.is_dir() != (what == "folder"):
            other = "folder" if path.is_dir() else "file"
            raise SubloraError(f"The path {path} is a {other}; give a {what} to write to.")
        above = (path, *path.absolute().parents) if what == "folder" else path.absolute().parents
        with tempfile.TemporaryDirectory(dir=next(p for p in above if p.exists()), prefix=".try-"):
            return path
    except (OSError, ValueError) as error:
        why = reason(error)
    raise SubloraError(f"The {what} {path} cannot be written to ({why}); give another path.")


def recipes(incomplete: str) -> list[str]:
    """Names of shipped recipes, for the shell to complete; imports nothing."""
    folder = Path(__file__).parents[1] / "experiments" / "recipes"
    return sorted(file.stem for file in folder.glob(f"{incomplete}*.yaml"))


def lists(incomplete: str) -> list[str]:
    """What `sublora ls` lists, for the shell to complete."""
    known = ("recipes", "traits", "contexts", "models", "claims", "runs")
    return [name for name in known if name.startswith(incomplete)]


RecipeArg = Annotated[
    str,
    Argument(
        help="A shipped recipe (`sublora ls recipes`) or a YAML file of your own.",
        autocompletion=recipes,
    ),
]
ModelOpt = Annotated[
    str | None,
    Option(
        "--model",
        "-m",
        help="A name of `sublora ls models`, a Hugging Face folder, a GGUF file, or a hub id.",
    ),
]
TraitOpt = Annotated[
    list[str] | None,
    Option("--trait", "-t", help="A trait (`sublora ls traits`); may be given several times."),
]
PresetOpt = Annotated[
    str | None,
    Option(
        help="Settings for the shipped models (micro), for small real ones (small), or of a paper: nief, blank, cloud, schrodi."
    ),
]
SetOpt = Annotated[
    list[str] | None, Option("--set", help="Override one value, such as --set train.epochs=2.")
]
JsonOpt = Annotated[
    bool, Option("--json", help="Print JSON, and all else on standard error; see docs/json.md.")
]


def folder_option(*names: str, help: str):
    """An option for a folder that is written to."""
    return Option(*names, help=help, parser=new_folder, metavar="FOLDER")


def file_option(*names: str, help: str):
    """An option for a file that is written."""
    return Option(*names, help=help, parser=new_file, metavar="FILE")
