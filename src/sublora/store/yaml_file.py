"""A user's or a shipped YAML file, read and checked against its model."""

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from sublora.errors import SubloraError, plain, reason

Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path, model: type[Model], what: str) -> Model:
    """The file's content; `what` names it in errors ("trait file"). Raises SubloraError with the places that do not fit."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = f"The {what} {path} cannot be read ({reason(error)}); give the path of a YAML file."
        raise SubloraError(why) from None
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        # the last three by strange numbers, dates and depths
        why = " ".join(str(error).split())[:300]
        raise SubloraError(f"The {what} {path} is not valid YAML: {why}.") from None
    try:
        return model.model_validate(data)
    except ValidationError as error:
        faults = [(".".join(map(str, e["loc"])) or "the file", plain(e)) for e in error.errors()]
        why = "; ".join(f"at {where}: {words}" for where, words in faults)
        raise SubloraError(f"The {what} {path} does not fit {why}.") from None


def yaml_files(folder: Path) -> dict[str, Path]:
    """Name without ending -> path of the YAML files in a folder, by name."""
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
