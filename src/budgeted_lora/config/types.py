"""What every section of the configuration is made of."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Method = Literal["kd_full", "kd_lora", "budgeted_lora"]
Init = Literal["first", "middle", "last", "mixed", "scratch"]

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0)]


class Strict(BaseModel):
    """Refuses unknown keys and numbers that are none; instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
