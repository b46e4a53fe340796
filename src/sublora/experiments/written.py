"""What YAML files and flags say, in which every value knows the line or flag that wrote it."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sublora.errors import SubloraError, reason
from sublora.store.yaml_file import parse

Loc = tuple[str, ...]
Places = dict[Loc, str]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 1e-3 for a text and `on` for true. Here they are a number and a word, as in YAML 1.2."""


_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] != _BOOL]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _BOOL, re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


_REMOVED: Any = object()  # stands where null was written over a section


class Written(NamedTuple):
    """Values, and for each of them, and for each section, where it is written."""

    values: dict[str, Any]
    places: Places

    def put(self, over: "Written", *, quiet: bool = False, path: Loc = ()) -> "Written":
        """Write what another says over this, section by section; null over a section or list removes it.

        `quiet`: sections that are there keep their place, as what is missing in them is missing there.
        """
        for key, value in over.values.items():
            here = (*path, str(key))
            if not isinstance(value, dict):
                self._forget(here)
                below = self.values.get(key)
                removes = value is None and (isinstance(below, dict | list) or below is _REMOVED)
                self.values[key] = _REMOVED if removes else value
                self.places.update({at: p for at, p in over.places.items() if _under(at, here)})
                continue
            if not isinstance(self.values.get(key), dict):
                self._forget(here)
                self.values[key] = {}
            if here in over.places and not (quiet and here in self.places):
                self.places[here] = over.places[here]
            inner = Written(self.values[key], self.places)
            inner.put(Written(value, over.places), quiet=quiet, path=here)
        return self

    def _forget(self, path: Loc) -> None:
        for at in [at for at in self.places if _under(at, path)]:
            del self.places[at]

    def section(self, *path: str) -> "Written":
        """A section that is there."""
        values = self.values
        for key in path:
            values = values[key]
        cut = len(path)
        return Written(values, {at[cut:]: p for at, p in self.places.items() if _under(at, path)})

    def final(self) -> dict[str, Any]:
        """The values, without what was removed."""
        return {
            key: Written(value, {}).final() if isinstance(value, dict) else value
            for key, value in self.values.items()
            if value is not _REMOVED
        }


def _under(at: Loc, path: Loc) -> bool:
    return at[: len(path)] == path


def _lines(node: yaml.Node, path: Loc, out: Places, file: str) -> None:
    out[path] = f"{file} line {node.start_mark.line + 1}"
    if isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _lines(value, (*path, str(index)), out, file)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here, line = (*path, str(key.value)), f"{file} line {key.start_mark.line + 1}"
            if here in out:
                raise SubloraError(f"{line}: '{key.value}' stands twice; keep one.")
            _lines(value, here, out, file)
            out[here] = line


def read_file(path: Path) -> Written:
    """A YAML file. Raises SubloraError where it is no mapping, with the line of what is wrong."""
    places: Places = {}
    example = "see CONTRIBUTING.md for an example."
    try:
        node, data = parse(path.read_text(encoding="utf-8"), _Loader)
        if node is not None:
            _lines(node, (), places, path.name)
    except RecursionError:
        raise SubloraError(f"The recipe {path} is nested too deeply; {example}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SubloraError(
            f"The recipe {path} cannot be read ({reason(error)}); give a YAML file."
        ) from None
    except yaml.YAMLError as error:
        what = " ".join(str(error).split())
        raise SubloraError(f"The recipe {path} is not valid YAML: {what}.") from None
    if not isinstance(data, dict):
        raise SubloraError(f"The recipe {path} is empty or not a mapping; {example}")
    return Written(data, places)


def flagged(label: str, key: str, value: Any) -> Written:
    """One value, at a key with dots, as written by the flag `label`."""
    places: Places = {}

    def mark(value: Any, path: Loc) -> None:
        places[path] = label
        if isinstance(value, dict):
            for name, inner in value.items():
                mark(inner, (*path, str(name)))

    for part in reversed(key.strip().split(".")):
        value = {part: value}
    mark(value, ())
    return Written(value, places)


def override(text: str) -> Written:
    """A flag --set key=value, whose key may have dots. Raises SubloraError where it is none."""
    key, found, value = text.partition("=")
    if not found or not key.strip():
        raise SubloraError(f"--set {text!r} is not key=value, such as --set train.epochs=2.")
    try:
        return flagged(f"--set {text}", key, parse(value, _Loader)[1])
    except yaml.YAMLError:
        raise SubloraError(f"The value in --set {text!r} is not valid YAML; quote it.") from None
