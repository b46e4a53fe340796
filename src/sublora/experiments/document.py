"""Recipe files: YAML with line numbers, `extends`, presets and --set; errors that name the line or flag at fault."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from sublora.errors import SubloraError, either, plain
from sublora.experiments.written import Places, Written, flagged, override, read_file

Checked = TypeVar("Checked", bound=BaseModel)


def _folder(name: str) -> dict[str, Path]:
    found = sorted((files("sublora.experiments") / name).iterdir(), key=str)
    paths = [Path(str(file)) for file in found if file.name.endswith(".yaml")]
    return {path.stem: path for path in paths}


def shipped_recipes() -> dict[str, Path]:
    return _folder("recipes")


def find_recipe(name: str) -> Path:
    """A shipped recipe's file, or the user's YAML file. Raises SubloraError with close names."""
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    path = Path(name)
    if path.suffix in {".yaml", ".yml"}:
        if path.is_file():
            return path
        raise SubloraError(f"There is no recipe file {name}; check the path.")
    if path.is_dir():
        raise SubloraError(f"{name} is a folder and no recipe; give a YAML file or a shipped name.")
    close = difflib.get_close_matches(name, shipped, n=2, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}?" if close else "`sublora ls recipes` lists them."
    raise SubloraError(f"There is no recipe '{name}'; {hint}")


def _check_section(written: Written, *path: str, what: str) -> None:
    """Raises SubloraError where the section is there and no mapping."""
    value: Any = written.values
    for key in path:
        value = value.get(key) or {}
    if not isinstance(value, dict):
        raise SubloraError(f"{written.places[path]}: {what}.")


def _whole(path: Path, behind: tuple[Path, ...] = ()) -> tuple[Written, dict[str, Any]]:
    """A file over all that it extends, with its presets, and what it says under `measured`."""
    own = read_file(path)
    _check_section(own, "measured", what="measured is not a mapping, such as {minutes: 2}")
    _check_section(own, "presets", what="presets is not a mapping of names to settings")
    measured = own.values.pop("measured", None) or {}
    base = _extended(own, path, behind)
    inherited = base.values.setdefault("presets", {})
    presets = own.values["presets"] = own.values.get("presets") or {}
    own.places.setdefault(("presets",), path.name)
    for name, value in list(presets.items()):
        what = f"the preset '{name}' is not a mapping of settings"
        _check_section(own, "presets", name, what=what)
        if value is None and name in inherited:
            del presets[name], inherited[name]
        elif value is None:
            presets[name] = {}
        else:
            part = own.section("presets", name)
            shared = _extended(part, path, behind)
            shared.values.pop("presets", None)
            presets[name] = shared.put(part).values
            own.places.update({("presets", name, *at): p for at, p in shared.places.items()})
    return base.put(own), measured


def _extended(own: Written, path: Path, behind: tuple[Path, ...]) -> Written:
    """What the key `extends`, which is taken out, names: a recipe, a shared preset, or a file beside this one; of a list, each over those
    before it."""
    names = own.values.pop("extends", None)
    found = Written({}, {})
    for name in names if isinstance(names, list) else [] if names is None else [names]:
        found.put(_named(name, own.places["extends",], path, behind))
    return found


def _named(name: Any, where: str, path: Path, behind: tuple[Path, ...]) -> Written:
    known = _folder("presets") | shipped_recipes()
    beside = path.parent / str(name)
    file = known.get(str(name), beside if beside.suffix in {".yaml", ".yml"} else None)
    if file is None or not file.is_file():
        close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else "name a recipe, a preset or a file."
        raise SubloraError(f"{where}: there is no '{name}' to extend; {hint}")
    if file in (path, *behind):
        raise SubloraError(f"{where}: {path.stem} extends itself; name another recipe.")
    return _whole(file, (path, *behind))[0]


def presets_of(name: str) -> list[str]:
    """The names of a recipe's presets."""
    return list(_whole(find_recipe(name))[0].values["presets"])


@dataclass(frozen=True)
class Document:
    """A recipe's values with preset and flags applied, not yet checked, and where each of them was written."""

    path: Path
    values: dict[str, Any]
    preset: str
    places: Places
    flags: Places
    measured: Mapping[str, Any] = field(default_factory=dict)  # what a run took; not in the recipe

    def place(self, loc: Sequence[str | int]) -> str:
        """The line or flag at fault for the value at `loc`, or that of the section that it would stand in."""
        path = tuple(map(str, loc))
        if path in self.flags:
            return self.flags[path]
        heads = (path[:stop] for stop in range(len(path), 0, -1))
        return next((self.places[head] for head in heads if head in self.places), self.path.name)

    def checked(self, model: type[Checked]) -> Checked:
        """The recipe of this class. Raises SubloraError naming the line or flag of each unknown key and wrong value."""
        try:
            return model.model_validate(self.values)
        except ValidationError as error:
            raise SubloraError(_explain(error, self, model)) from None


def read_document(
    name: str,
    *,
    preset: str | None = None,
    sets: Sequence[str] = (),
    model: str | None = None,
    traits: Sequence[str] = (),
) -> Document:
    """Read a recipe's file, apply a preset, then the flags, then --set; in this order. A preset A+B stands over the preset A.

    Raises SubloraError: unknown recipe or preset, or a file that is no recipe, with its line.
    """
    path = find_recipe(name)
    whole, measured = _whole(path)
    presets = whole.values["presets"]
    chosen = preset or "micro"
    if preset is not None and preset not in presets:
        raise SubloraError(
            f"The recipe {path.stem} has no preset '{preset}'; it has {', '.join(presets) or 'none'}."
        )
    for part in (chosen.partition("+")[0], *([chosen] if "+" in chosen else [])):
        if part in presets:
            whole.put(whole.section("presets", part))
    del whole.values["presets"]
    given = [flagged(f"--trait {' '.join(traits)}", "traits", list(traits))] if traits else []
    given += [flagged(f"--model {model}", "model", model)] if model is not None else []
    flags: Places = {}
    for flag in [*given, *map(override, sets)]:
        flags |= flag.places
        whole.put(flag, quiet=True)
    return Document(path, whole.final(), chosen, whole.places, flags, measured)


_UNKNOWN = {"extra_forbidden", "invalid_key"}


def _explain(error: ValidationError, document: Document, root: type[BaseModel]) -> str:
    """Every misfit as a line: where (line or flag), what, and the keys that are known there; in the order of the recipe's lines."""
    misfits = error.errors()
    unknown = {e["loc"][:-1] for e in misfits if e["type"] in _UNKNOWN}
    inside = {e["loc"][:stop] for e in misfits for stop in range(len(e["loc"]))}
    found: dict[tuple[str, str], dict[str, None]] = {}  # at each place, all that the value could be
    for misfit in misfits:
        # a misspelt key is also a missing one, and a list without its wrong entries too short: say the first of the two
        missing = misfit["type"] == "missing" and misfit["loc"][:-1] in unknown
        short = misfit["type"] == "too_short" and misfit["loc"] in inside
        if not missing and not short:
            where, what, words = _located(misfit, document, root)
            found.setdefault((where, what), {})[words] = None
    flags = {flag: number for number, flag in enumerate(document.flags.values())}

    def order(at: tuple[str, str]) -> tuple[bool, str, int]:
        file, _, line = at[0].rpartition(" line ")
        return at[0] in flags, file, flags.get(at[0], int(line) if line.isdigit() else 0)

    lines = ("{}: {}".format(*at) + either(list(found[at])) for at in sorted(found, key=order))
    return "\n".join(line if line.endswith("?") else f"{line}." for line in lines)


def _located(
    misfit: Mapping[str, Any], document: Document, root: type[BaseModel]
) -> tuple[str, str, str]:
    """The place of a misfit (line or flag), the key, and what is wrong with it."""
    loc: list[str | int] = []
    options = known = [root]
    for part in misfit["loc"]:
        inner = [annotation for option in options for annotation in _inside(option, part)]
        # what is nowhere in the schema names a member of a union, unless it is the unknown key
        if inner or (misfit["type"] in _UNKNOWN and part == misfit["loc"][-1]):
            loc.append(part)
            known, options = options, inner
    if misfit["type"] == "misfit":
        loc = misfit["ctx"]["where"].split(".")
    what, where = ".".join(map(str, loc)), document.place(loc)
    if misfit["type"] == "extra_forbidden":
        keys = sorted({key for o in known if _is_model(o) for key in o.model_fields})
        close = difflib.get_close_matches(str(loc[-1]), keys, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"known keys are {', '.join(keys)}"
        return where, "", f"unknown key '{what}'; {hint}"
    return where, f"{what}: " if what else "", plain(misfit)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _members(annotation: Any) -> list[Any]:
    """The classes that a value of this annotation may have."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [member for option in get_args(annotation) for member in _members(option)]
    return [annotation]


def _inside(annotation: Any, part: str | int) -> list[Any]:
    """The classes of what stands in a value at a key or an index."""
    inner: tuple[Any, ...] = ()
    if _is_model(annotation) and part in annotation.model_fields:
        inner = (annotation.model_fields[part].annotation,)
    elif get_origin(annotation) is dict:
        inner = get_args(annotation)[1:]
    elif get_origin(annotation) in (tuple, list) and isinstance(part, int):
        inner = tuple(a for a in get_args(annotation) if a is not Ellipsis)
    return [member for annotation in inner for member in _members(annotation)]
