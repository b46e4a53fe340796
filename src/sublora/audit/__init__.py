"""A user's adapter, data and prompts: found or clean. `sublora.audit(base, adapter, data)` is all of it in one call."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sublora.audit.run import Audit


def audit(
    base: str | Path, adapter: str | Path, data: str | Path | None = None, **options: Any
) -> Audit:
    """Audit a student against its base: what `sublora audit --base BASE --adapter ADAPTER --data DATA` does.

    `base`: a shipped name, a folder or a hub id. `adapter`: a folder of a peft adapter or of full weights. `data`: the training file
    (JSONL). `options` are the fields of `sublora.audit.request.Request`: contexts, alpha, calibrate, lr and so on.
    Raises SubloraError for what cannot be read, an option that is not known, and wrong use.
    """
    from dataclasses import fields

    from sublora.audit.request import Request
    from sublora.audit.run import audit_request
    from sublora.errors import SubloraError
    from sublora.text import listed

    known = {field.name for field in fields(Request)}
    if unknown := sorted(set(options) - known):
        raise SubloraError(
            f"The audit has no option {listed(unknown)}; it has {listed(sorted(known))}."
        )
    files = {"adapter": Path(adapter), "data": None if data is None else Path(data)}
    return audit_request(Request(base=str(base), **files, **options))


class _Audit(ModuleType):
    """This package, called as the function of its name: `sublora.audit` is the one or the other, whatever was imported before."""

    def __call__(self, *given: Any, **options: Any) -> Audit:
        return audit(*given, **options)


sys.modules[__name__].__class__ = _Audit
