"""Names of artifacts: the hash of all that can change what they hold."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

SCHEMA = 1
_ID = re.compile(r"([a-z][a-z0-9]*(?:-[a-z0-9]+)*)-([0-9a-f]{20})")


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, floats as their shortest exact decimal, ASCII only. `1`, `1.0` and `True` stay different,
    as do `0.0` and `-0.0`; a tuple is the same as a list. TypeError for anything that JSON would bend (keys that are no strings, paths,
    arrays), ValueError for NaN and infinity."""
    _check_plain(value)
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


_ATOMS = frozenset({str, bool, int, float, type(None)})


def _check_plain(value: Any) -> None:
    if isinstance(value, dict | list | tuple | Mapping):
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str):
                    raise TypeError(f"a spec has the key {key!r}; keys must be strings")
            value = value.values()
        for inner in value:
            # a call for each of the many texts of a plan would take most of its time
            if type(inner) not in _ATOMS:
                _check_plain(inner)
    elif value is not None and not isinstance(value, str | bool | int | float):
        raise TypeError(
            f"a spec holds a {type(value).__name__}; only plain JSON values can be hashed"
        )


def artifact_id(kind: str, spec: Mapping[str, Any]) -> str:
    """`KIND-` and 20 hexadecimal digits of the SHA-256 of the schema version, the kind and the spec."""
    text = canonical_json({"schema": SCHEMA, "kind": kind, "spec": dict(spec)})
    name = f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"
    kind_of(name)
    return name


def kind_of(name: str) -> str:
    """The kind that an id names. ValueError for a name that `artifact_id` cannot have made."""
    match = _ID.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not the name of an artifact")
    return match[1]
