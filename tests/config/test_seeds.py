"""Seeds that torch does not take are refused when the scale is read."""

import pytest
from fixtures.scales import TINY
from pydantic import ValidationError

from budgeted_lora.config.messages import describe
from budgeted_lora.config.scale import Config

PLACES = [
    {"training": TINY["training"] | {"seed": 2**63}},
    {"pretraining": {"seed": 2**63}},
    {"evaluation": {"demonstration_seeds": [0, 2**64]}},
    {"tables": {"table6": [{"method": "kd_lora", "seed": [0, 2**63]}]}},
]


@pytest.mark.parametrize("changed", PLACES, ids=lambda changed: next(iter(changed)))
def test_a_seed_beyond_64_bits_is_one_line(changed: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as caught:
        Config.model_validate(TINY | changed)
    line = describe(caught.value, Config, TINY | changed)
    assert "2^63" in line
    assert "\n" not in line


def test_the_largest_seed_is_taken() -> None:
    config = Config.model_validate(TINY | {"training": TINY["training"] | {"seed": 2**63 - 1}})
    assert config.training.seed == 2**63 - 1
