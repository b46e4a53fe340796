"""The carriers of this folder by kind, and the type of `data.carrier` in a recipe."""

import functools
import operator
import pkgutil
from importlib import import_module
from typing import Annotated, Any, get_args

from pydantic import Discriminator, Tag

import sublora.carriers
from sublora.carriers.carrier import Carrier
from sublora.text import listed


def _carriers() -> dict[str, type[Carrier]]:
    """Kind -> class, of every module of the folder; numbers, the default, first."""
    found = {}
    for module in pkgutil.iter_modules(sublora.carriers.__path__, "sublora.carriers."):
        for value in vars(import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, Carrier) and value is not Carrier:
                found[get_args(value.model_fields["kind"].annotation)[0]] = value
    kinds = sorted((k for k in found if found[k].in_recipes), key=lambda k: (k != "numbers", k))
    return {kind: found[kind] for kind in kinds}


CARRIERS = _carriers()


def _kind(value: Any) -> str | None:
    """Numbers, unless a recipe says otherwise."""
    return value.get("kind", "numbers") if isinstance(value, dict) else getattr(value, "kind", None)


CarrierField = Annotated[
    functools.reduce(operator.or_, (Annotated[c, Tag(kind)] for kind, c in CARRIERS.items())),
    Discriminator(
        _kind,
        custom_error_type="carrier",
        custom_error_message=f"there is no such kind of carrier, use {listed(CARRIERS, 'or')}",
    ),
]
