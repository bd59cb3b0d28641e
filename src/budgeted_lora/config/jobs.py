"""What an evaluation job is told: the evaluation section of a scale and the few values it shares with the data."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError

from budgeted_lora.config.scale import Config, Positive, describe
from budgeted_lora.config.sections import Evaluation
from budgeted_lora.errors import BadInput


class EvaluationSettings(Evaluation):
    """The evaluation section with the window and slice settings it depends on; unknown keys are refused."""

    sequence_length: Positive = Field(description="Tokens of a window, and the most a prompt with its answer may have.")
    rows: Literal["packed", "document"] = Field(description="Joined and cut, or one document a row.")
    validation_tokens: Positive = Field(description="Tokens the perplexity is measured on at most.")
    slice_per_mille: int = Field(ge=1, lt=1000, description="Which (probe, input) pairs are queries.")
    hold_out_words: bool = Field(description="Whether queries use only words that no training demonstration has.")
    prompt_space: bool = Field(description="Whether a space follows `Q:` and `A:`.")


def evaluation_settings(config: Config) -> dict[str, Any]:
    """The plain values of `EvaluationSettings` for a scale, as a rule's `params:` take them."""
    shared = {
        "sequence_length": config.sequence_length,
        "rows": config.rows,
        "validation_tokens": config.corpus.validation_tokens,
        "slice_per_mille": config.corpus.slice_per_mille,
        "hold_out_words": config.corpus.hold_out_words,
        "prompt_space": config.corpus.prompt_space,
    }
    return config.evaluation.model_dump(mode="json") | shared


def read_settings(values: Mapping[str, Any]) -> EvaluationSettings:
    """Validated settings.

    Raises:
        BadInput: a key is unknown, missing or out of range.
    """
    try:
        return EvaluationSettings.model_validate(dict(values))
    except ValidationError as error:
        raise BadInput(f"evaluation settings: {describe(error)}") from None
