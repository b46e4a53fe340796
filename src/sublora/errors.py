"""The one exception a user is meant to read: the command line prints it as a sentence and exits with 2."""

from collections.abc import Iterable


class SubloraError(Exception):
    """Wrong use or bad input. The message says in one sentence what is wrong, where, and how to fix it."""


def require_none(faults: Iterable[str]) -> None:
    """Raises SubloraError with the first fault, if there is one; no later one is looked for."""
    for fault in faults:
        raise SubloraError(fault)
