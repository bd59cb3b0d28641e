"""The kinds of values that a configuration is made of; each choice is typed here and nowhere else."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

Method = Literal["kd_full", "kd_lora", "budgeted_lora"]
Init = Literal["first", "middle", "last", "mixed", "importance", "scratch"]
Packing = Literal["packed", "document"]  # how documents become windows; the key is `rows`
Precision = Literal["float32", "bfloat16"]
ControllerKind = Literal["greedy", "uniform"]
GateHardening = Literal["soft", "one"]
Elastic = Literal["elastic"]  # what a row has in place of one budget: a training for several

# Choices of which the first is the paper's; a recipe leaves that one out, and holds one of ours.
OwnLowRankInit = Literal["svd", "activation_svd"]
LowRankInit = Literal["zero", OwnLowRankInit]
OwnRemovalOrder = Literal["energy", "activation", "gradient"]
RemovalOrder = Literal["mac", OwnRemovalOrder]
OwnTrainDense = Literal["kept", "all"]
TrainDense = Literal["none", OwnTrainDense]
Ranks = Literal["fixed", "allocated"]
Truncation = Literal["weights", "outputs"]

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
BelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
Above0 = Annotated[float, Field(gt=0.0)]
Betas = tuple[BelowOne, BelowOne]
GateLogit = Annotated[float, Field(ge=-20.0, le=20.0)]  # a gate of 2e-9 at least: a start divides by it
Between0And1 = Annotated[float, Field(gt=0.0, lt=1.0)]
Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch takes
ElasticBudgets = Annotated[list[BelowOne], Field(min_length=2)]
Count = Annotated[int, Field(ge=0)]
Legs = Annotated[list[Positive], Field(min_length=1)]


def _written_out(path: str) -> str:
    if path.startswith("~"):
        raise ValueError(f"{path!r} begins with ~, which only a shell reads; write the folder out")
    return path


LocalPath = Annotated[str, AfterValidator(_written_out)]


def _leaves(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of."""
    inside = get_args(annotation)
    if not inside:
        yield annotation
    for one in inside:
        yield from _leaves(one)


class Strict(BaseModel):
    """Frozen; rejects unknown keys, NaN and infinity, and true or false for a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, values: Any) -> Any:
        given = values.items() if isinstance(values, dict) else ()
        for name, value in given:
            if isinstance(value, bool) and name in cls.model_fields:
                kinds = set(_leaves(cls.model_fields[name].annotation))
                if kinds & {int, float} and bool not in kinds:
                    found = f"{name} is {str(value).lower()}, which YAML makes of yes, no, on and off"
                    raise ValueError(f"{found}; expected a number")
        return values


class Growing(Strict):
    """A section whose `LATER` keys are left out where they say nothing.

    Ids of cells hash a section, and results record it; both are to stay what they were before there was the key.
    """

    LATER: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        usual = {name: type(self).model_fields[name].default for name in self.LATER}
        return {name: value for name, value in handler(self).items() if usual.get(name, ...) != value}


def key(default: Any, text: str, **limits: Any) -> Any:
    """A key of the configuration; `text` says what it means, with its tag at the end, for config/README.md."""
    return Field(default, description=text, **limits)
