"""What is known of a model without loading its weights: enough to plan."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sublora.errors import SubloraError
from sublora.models.base import (
    Base,
    Shape,
    known_shape,
    local_identity,
    model_source,
    read_tokenizer,
    shape_from_config,
)
from sublora.models.chat import Chat


@dataclass(frozen=True)
class Known:
    """`identity` is that of `Base`. Without a tokenizer (`chat`) typical numbers of tokens are assumed. `device` (cpu or cuda) is where
    students are trained, which decides how many stand in a pack. `kept` holds what an experiment derives from all this, so that it is
    derived once."""

    name: str
    identity: Mapping[str, str]
    shape: Shape | None = None
    chat: Chat | None = field(default=None, repr=False, compare=False)
    device: str = "cpu"
    kept: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)


def known_model(name: str, dtype: str = "float32", device: str = "cpu") -> Known:
    """Of a model whose folder is on this machine. Raises SubloraError where it is not."""
    source = model_source(name)
    if not Path(source).is_dir():
        why = f"The model {name} is not on this machine; fetch it, or run the recipe, which does."
        raise SubloraError(why)
    chat = Chat(read_tokenizer(source, name))
    return Known(name, local_identity(source, dtype), known_shape(name), chat, device)


def known_base(base: Base, device: str | None = None) -> Known:
    """Of a loaded model; students are trained on `device`, or where the model is."""
    shape = shape_from_config(base.model.config.to_dict())
    return Known(base.name, base.identity, shape, base.chat, device or base.device.type)
