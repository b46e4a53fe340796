"""What a recipe may say of steering vectors: how they are extracted, and what is done with them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from sublora.models.token_classes import TokenClass

Where = Literal["last", "prompt"] | tuple[TokenClass, ...]
"""Tokens of a prompt: the last one, all of them, or those of some classes."""
Mode = Literal["add", "project", "replace"]


def _ordered(layers: tuple[int, int]) -> tuple[int, int]:
    if layers[0] > layers[1]:
        raise ValueError(f"layers {list(layers)} end before they begin, write [first, last]")
    return layers


_Layer = Annotated[int, Field(ge=0)]
LayerRange = Annotated[tuple[_Layer, _Layer], AfterValidator(_ordered)]
"""(first, last), both included and counted from 0."""

_STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class VectorsSpec(BaseModel):
    """How the vectors of a recipe are extracted: the teacher's is trait prompt minus `plain`, a student's is student minus base."""

    model_config = _STRICT
    on: Literal["numbers", "questions"] = Field(
        "numbers", description="number prompts, or the category's questions"
    )
    count: int = Field(128, ge=1, description="number prompts; of questions, all are taken")
    teacher_at: Where = "last"
    student_at: Where = "prompt"
    plain: str = Field(
        "default", description="the context that the trait's prompt is compared with"
    )
    directions: int = Field(
        0,
        ge=0,
        description="principal directions of student minus base that are kept beside its mean",
    )
    students: bool = Field(
        False, description="extract the vector of every student, and its cosine with the teacher's"
    )
    layer: int = Field(0, ge=0, description="the layer at which cosines are judged")


class SteerSpec(BaseModel):
    """One intervention on the residual stream, see `steer.Steering`. `vector`: that of the trait's teacher, or each student's own. `first`:
    instead of the student's mean vector, that many of its principal directions (not for `add`). `random`: in its place random directions
    with its norms, drawn from this seed. `layers` (first, last), both included; None for all."""

    model_config = _STRICT
    vector: Literal["teacher", "student"]
    mode: Mode
    layers: LayerRange | None = None
    where: Where | None = "prompt"
    generated: bool = False
    strength: float = 1.0
    unit: bool = False
    first: int | None = Field(None, ge=1)
    random: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> SteerSpec:
        if self.where is None and not self.generated:
            raise ValueError("steers no token, choose prompt tokens, generated ones or both")
        if self.mode == "replace" and self.generated:
            why = "replaces at generated tokens, where the base's part is not known, set generated to false"
            raise ValueError(why)
        if self.first is not None and (
            self.vector == "teacher" or self.mode == "add" or self.random is not None
        ):
            why = "takes the first directions of a student, to project or replace, and of nothing else"
            raise ValueError(why)
        return self
