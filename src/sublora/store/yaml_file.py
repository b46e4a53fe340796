"""A user's or a shipped YAML file, read and checked against its model."""

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from sublora.errors import SubloraError

Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path, model: type[Model], what: str) -> Model:
    """The file's content; `what` names it in errors ("trait file"). Raises SubloraError with the place of the first misfit."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = f"The {what} {path} cannot be read ({error}); give the path of a YAML file."
        raise SubloraError(why) from None
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        # the last three by strange numbers, dates and depths
        why = " ".join(str(error).split())[:300]
        raise SubloraError(f"The {what} {path} is not valid YAML: {why}.") from None
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        why = first["msg"].removeprefix("Value error, ")
        raise SubloraError(f"The {what} {path} does not fit at {where}: {why}.") from None


def yaml_files(folder: Path) -> dict[str, Path]:
    """Name without ending -> path of the YAML files in a folder, by name."""
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
