"""The options of an evaluation job: the scale's evaluation section, and the few keys it shares with the data."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from budgeted_lora.config.messages import describe
from budgeted_lora.config.scale import Config
from budgeted_lora.config.sections import Evaluation
from budgeted_lora.config.types import Packing, Positive, key
from budgeted_lora.errors import BadInput


class EvaluationOptions(Evaluation):
    """The evaluation section, with the keys of windows and held-out slice that it depends on."""

    sequence_length: Positive = key(..., "Tokens of a window, and the most a prompt with its answer may have.")
    rows: Packing = key(..., "Packing: documents joined and cut, or one document per window.")
    validation_tokens: Positive = key(..., "Maximum number of tokens to measure perplexity on.")
    slice_per_mille: int = key(..., "Which (probe, input) pairs are queries.", ge=1, lt=1000)
    hold_out_words: bool = key(..., "Whether queries use only words that no training demonstration has.")
    prompt_space: bool = key(..., "Whether a space follows `Q:` and `A:`.")


def evaluation_options(config: Config) -> dict[str, Any]:
    """The values of a scale's `EvaluationOptions`, as plain data for a rule's `params:`."""
    shared = {
        "sequence_length": config.sequence_length,
        "rows": config.rows,
        "validation_tokens": config.corpus.validation_tokens,
        "slice_per_mille": config.corpus.slice_per_mille,
        "hold_out_words": config.corpus.hold_out_words,
        "prompt_space": config.corpus.prompt_space,
    }
    return config.evaluation.model_dump(mode="json") | shared


def read_options(values: Mapping[str, Any]) -> EvaluationOptions:
    """Validated options.

    Raises:
        BadInput: a key is unknown, missing or out of range.
    """
    try:
        return EvaluationOptions.model_validate(dict(values))
    except ValidationError as error:
        raise BadInput(f"evaluation options: {describe(error, EvaluationOptions)}") from None
