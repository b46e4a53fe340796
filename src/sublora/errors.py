"""The one exception a user is meant to read: the command line prints it as a sentence and exits with 2."""

from collections.abc import Iterable, Mapping
from typing import Any


class SubloraError(Exception):
    """Wrong use or bad input. The message says in one sentence what is wrong, where, and how to fix it."""


def require_none(faults: Iterable[str]) -> None:
    """Raises SubloraError with the first fault, if there is one; no later one is looked for."""
    for fault in faults:
        raise SubloraError(fault)


def reason(error: Exception) -> str:
    """Why a file cannot be read or written, without a number, a class or the path again."""
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text"
    return getattr(error, "strerror", None) or " ".join(str(error).split())


# What a value needs to be, by the kind of its misfit; `{...}` stands for what pydantic says of it.
NEEDS = {
    "missing": "this key is required",
    "int": "has to be a whole number (an integer)",
    "float": "has to be a number",
    "finite": "has to be a finite number",
    "bool": "has to be true or false",
    "string_type": "has to be a text",
    "string_too_short": "has to be a text that is not empty",
    "tuple": "has to be a list, such as [a, b]",
    "list": "has to be a list, such as [a, b]",
    "dict": "has to be a section of keys and values",
    "model": "has to be a section of keys and values",
    "greater_than_equal": "has to be greater than or equal to {ge:g}",
    "greater_than": "has to be greater than {gt:g}",
    "less_than_equal": "has to be less than or equal to {le:g}",
    "less_than": "has to be less than {lt:g}",
    "too_short": "has to be at least {min_length} long, and has {actual_length}",
    "literal": "has to be {expected}",
    "string_pattern": "does not have the form {pattern}",
    "union_tag_invalid": "has an unknown {discriminator}, use {expected_tags}",
    "union_tag_not_found": "needs {discriminator}",
}


def plain(misfit: Mapping[str, Any]) -> str:
    """One entry of pydantic's `ValidationError.errors()` in words of a user's file."""
    kinds = [kind for kind in NEEDS if misfit["type"].startswith(kind)]
    if not kinds:
        return misfit["msg"].removeprefix("Value error, ")
    needs = NEEDS[max(kinds, key=len)].format_map(misfit.get("ctx", {}))
    value = misfit.get("input")
    short = isinstance(value, str | int | float) and len(repr(value)) <= 60
    return f"{needs}, and is {value!r}" if short and "and has" not in needs else needs


def either(needs: list[str]) -> str:
    """What `plain` says of a value that may be of several types, as one sentence."""
    return ", or ".join([*(n.partition(", and is ")[0] for n in needs[:-1]), needs[-1]])
