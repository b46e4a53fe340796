"""Measurement conditions: at which tokens, in which layers and modules, and with which part of its update an adapter acts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sublora.errors import SubloraError
from sublora.models.token_classes import PromptTokens, TokenClass
from sublora.packs.steer_spec import LayerRange, SteerSpec

ModuleGroup = Literal["all", "attention", "feed-forward"]
GeneratedPolicy = Literal["on", "off", "mask"]

_STRICT = ConfigDict(extra="forbid", frozen=True)
# the linear layers of a block, as the families Llama, Qwen, Mistral, Gemma and OLMo name them
GROUP_LINEARS = {
    "attention": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    "feed-forward": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
}


class Placement(BaseModel):
    """Where a student's adapter sits: `layers` (first, last), both included and counted from 0, and a group of modules."""

    model_config = _STRICT
    layers: LayerRange
    modules: ModuleGroup = "all"

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the layers that get an adapter, by their ends."""
        groups = GROUP_LINEARS if self.modules == "all" else (self.modules,)
        first, last = self.layers
        names = [name for group in groups for name in GROUP_LINEARS[group]]
        return tuple(f"layers.{n}.{name}" for n in range(first, last + 1) for name in names)


class SvdCut(BaseModel):
    """A part of the update B A of every layer: its `k` largest singular directions (`top`), or all others (`rest`)."""

    model_config = _STRICT
    keep: Literal["top", "rest"]
    k: int = Field(ge=1)


class Condition(BaseModel):
    """A gate on an adapter. Exactly what is not said here stays as in the plain adapter.

    `on`: the adapter acts at prompt tokens of these classes only; `off`: at all but these. `generated` says what it does at the
    tokens that the model writes itself, and has no default, because a result depends on it: `on`, `off`, or `mask`, which treats
    them as one more class, `generated`, of the lists above. `layers` (first, last), both included, and `modules` limit it further.
    `steer` acts on the residual stream besides, whether the adapter is on or off.
    """

    model_config = _STRICT
    on: tuple[TokenClass, ...] | None = None
    off: tuple[TokenClass, ...] | None = None
    generated: GeneratedPolicy
    layers: LayerRange | None = None
    modules: ModuleGroup = "all"
    svd: SvdCut | None = None
    steer: SteerSpec | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Condition:
        if self.svd is not None and self.steer is not None:
            raise ValueError("cuts the update and steers, give each a condition of its own")
        if self.on is not None and self.off is not None:
            why = "gives both 'on' and 'off', whose classes could overlap, keep one of them"
            raise ValueError(why)
        listed = (self.on or ()) + (self.off or ())
        if "generated" in listed and self.generated != "mask":
            why = f"lists 'generated' and says generated: {self.generated}, set it to mask or take it off the list"
            raise ValueError(why)
        return self

    @property
    def by_class(self) -> bool:
        """Whether the classes of tokens matter, so that entities have to be located."""
        return self.on is not None or self.off is not None

    def acts_on(self, token: TokenClass) -> bool:
        """Whether the adapter acts at a token of this class."""
        if token == "generated" and self.generated != "mask":
            return self.generated == "on"
        if self.on is not None:
            return token in self.on
        return self.off is None or token not in self.off

    def mask(self, tokens: PromptTokens) -> tuple[bool, ...]:
        """(T,): whether the adapter acts at each token of a prompt."""
        return tuple(self.acts_on(c) for c in tokens.classes)

    def selects(self, module: str) -> bool:
        """Whether the adapter acts in a linear layer, by its full name."""
        if self.layers is None and self.modules == "all":
            return True
        layer, group = layer_and_group(module)
        inside = self.layers is None or self.layers[0] <= layer <= self.layers[1]
        return inside and self.modules in ("all", group)


def layer_of(module: str) -> int | None:
    """The index of the block that a module or tensor stands in, by its name; None for one outside the blocks."""
    number = re.search(r"\.(\d+)\.", f".{module}.")
    return int(number.group(1)) if number else None


def layer_and_group(module: str) -> tuple[int, ModuleGroup]:
    """The index of the block that a linear layer stands in, and whether it belongs to attention or feed-forward. Raises SubloraError for a
    name that says neither."""
    number = layer_of(module)
    parts = module.lower()
    attention = any(word in parts for word in ("attn", "attention"))
    forward = any(word in parts for word in ("mlp", "ffn", "feed_forward", "feedforward"))
    if number is None or attention == forward:
        raise SubloraError(
            f"The layer '{module}' cannot be placed in attention or feed-forward of a numbered block by its name; gate by tokens "
            "alone, or adapt only layers that can."
        )
    return number, "attention" if attention else "feed-forward"


def check_layers(condition: Condition, modules: Iterable[str], name: str) -> None:
    """Raises SubloraError where a condition's layers or modules select none of an adapter's layers."""
    names = list(modules)
    if names and not any(map(condition.selects, names)):
        last = max(layer_and_group(n)[0] for n in names)
        why = f"The condition '{name}' selects none of the adapter's layers; they are numbered up to {last}, give layers and modules among them."
        raise SubloraError(why)
