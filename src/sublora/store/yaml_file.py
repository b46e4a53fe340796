"""A user's or a shipped YAML file, read and checked against its model."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from sublora.errors import SubloraError, plain, reason

Model = TypeVar("Model", bound=BaseModel)
MOST_VALUES = 200_000  # that a file may stand for


def parse(
    text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader
) -> tuple[yaml.Node | None, Any]:
    """The root node (None of an empty text) and the values of a YAML text.

    Raises yaml.YAMLError, also where few lines of aliases of aliases stand for more than MOST_VALUES values.
    """
    reader = loader(text)
    node = reader.get_single_node()
    if node is None:
        return None, None
    if _size(node, {}) > MOST_VALUES:
        raise yaml.YAMLError(f"it stands for more than {MOST_VALUES:,} values")
    return node, reader.construct_document(node)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for when each alias is written out; an alias within itself has no end."""
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1
        inner = [] if isinstance(node, yaml.ScalarNode) else node.value
        parts = (
            part for entry in inner for part in (entry if isinstance(entry, tuple) else [entry])
        )
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def read_yaml(path: Path, model: type[Model], what: str) -> Model:
    """The file's content; `what` names it in errors ("trait file"). Raises SubloraError with the places that do not fit."""
    try:
        _, data = parse(path.read_text(encoding="utf-8"))
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
