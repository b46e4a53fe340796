"""What steps are made of: an artifact with its spec, a step that makes one, a step that makes one for each student."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

from sublora.steps.materials import Trained, listed
from sublora.steps.sizes import Sizes
from sublora.store import artifact_id


@dataclass(frozen=True)
class Made:
    """An artifact to be: `spec` says all that can change it; its id is the hash of that."""

    spec: dict[str, Any]
    noun: ClassVar[str]

    @cached_property
    def id(self) -> str:
        return artifact_id(self.noun, self.spec)

    def but(self, **fields: Any) -> Self:
        """The same artifact with other fields, which its id does not depend on."""
        made = replace(self, **fields)
        made.__dict__["id"] = self.id
        return made

    @property
    def makes(self) -> tuple[str, ...]:
        """Where it is a step itself."""
        return (self.id,)


@dataclass(frozen=True)
class Batch:
    """Makes an artifact of each of its `specs`; `nouns` are what its own id is made of."""

    specs: tuple[dict[str, Any], ...]
    noun: ClassVar[str]
    nouns: ClassVar[tuple[str, str]]

    @cached_property
    def id(self) -> str:
        whole, parts = self.nouns
        return artifact_id(whole, {parts: list(self.makes)})

    @cached_property
    def makes(self) -> tuple[str, ...]:
        return tuple(artifact_id(self.noun, s) for s in self.specs)


@dataclass(frozen=True)
class PackStep:
    """Makes `artifacts` of students that are read together, one or several of each, or of the base."""

    artifacts: tuple[Any, ...]
    students: tuple[Trained, ...]
    model: str
    sizes: Sizes
    nouns: ClassVar[str]
    about: ClassVar[str] = ""

    @cached_property
    def id(self) -> str:
        return artifact_id(self.nouns, {self.nouns: list(self.makes)})

    @property
    def makes(self) -> tuple[str, ...]:
        return tuple(a.id for a in self.artifacts)

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(s.id for s in self.students)

    @property
    def label(self) -> str:
        return self.about + listed([s.label for s in self.students])
