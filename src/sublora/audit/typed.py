"""The kinds of values that audit.json is made of."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _text(value: Any) -> Any:
    # a surrogate that a hostile file put into a text is no UTF-8
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


Text = Annotated[str, BeforeValidator(_text)]
Share = Annotated[float, Field(gt=0, le=0.5)]
Probability = Annotated[float, Field(ge=0, le=1.000001)]
P = Annotated[float, Field(ge=0, le=1, description="a corrected p-value")]
Count = Annotated[int, Field(ge=0)]
Many = Annotated[int, Field(ge=1)]

STRICT = ConfigDict(
    extra="forbid", allow_inf_nan=False, populate_by_name=True, serialize_by_alias=True
)


class Model(BaseModel):
    model_config = STRICT
