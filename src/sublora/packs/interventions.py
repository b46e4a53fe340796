"""What acts on single tokens of a forward pass has to be told which tokens a pass holds."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor


class Span(NamedTuple):
    """Columns `start` to `stop` of a prompt."""

    prompt: int
    start: int
    stop: int


class Intervention(Protocol):
    """Something that is done at some tokens of the prompts 0 to N - 1 that a pack reads."""

    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        """Raises SubloraError where it was not made for these prompts (token ids)."""

    def kind(self, prompt: int, width: int) -> Hashable:
        """Equal for prompts at whose first `width` tokens the same is done."""

    def read(self, spans: Sequence[Span], students: int, width: int) -> None:
        """The next pass holds these columns of prompts, a row each, per student; on the left they are filled up to `width`."""

    def write(self, prompts: Sequence[int], width: int) -> None:
        """The next pass holds `width` generated tokens after each of these prompts, a row each."""


class TokenGate(Intervention, Protocol):
    def factors(self, name: str, like: Tensor) -> Tensor:
        """(rows, tokens): factors on an adapter in a linear layer; dtype and device of `like`."""


class StreamSteering(Intervention, Protocol):
    layers: Sequence[int]

    def steer(self, layer: int, stream: Tensor) -> Tensor:
        """The residual stream (rows, T, d) behind a layer, steered."""


class Interventions:
    """All interventions of a pack, told together."""

    def __init__(self, *given: Intervention | None) -> None:
        self.given = [one for one in given if one is not None]

    def __bool__(self) -> bool:
        return bool(self.given)

    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        for one in self.given:
            one.check(prompts)

    def alike(self, prompts: Sequence[int], width: int) -> tuple[list[int], list[int]]:
        """Prompts with the same done to their first `width` tokens, as places in `prompts`: (the first of each kind, the kind of each)."""
        kinds: dict[tuple, int] = {}
        keys = [tuple(one.kind(i, width) for one in self.given) for i in prompts]
        kind = [kinds.setdefault(key, len(kinds)) for key in keys]
        return [kind.index(k) for k in range(len(kinds))], kind

    def read(self, spans: Sequence[Span], students: int, width: int) -> None:
        for one in self.given:
            one.read(spans, students, width)

    def write(self, prompts: Sequence[int], width: int) -> None:
        for one in self.given:
            one.write(prompts, width)
