"""config/schema.json is that of the types, accepts the scales that load, and refuses what they refuse."""

from pathlib import Path

import jsonschema
import pytest

from budgeted_lora.config.files import read_mapping
from budgeted_lora.config.scale import Config
from tools import config_schema

ROOT = Path(__file__).resolve().parents[2]
SCALES = [path for path in sorted((ROOT / "config").glob("*.yaml")) if "scale" in read_mapping(path)]
CHECK = jsonschema.Draft202012Validator(config_schema.schema())


def test_schema_is_in_step_with_the_types() -> None:
    jsonschema.Draft202012Validator.check_schema(config_schema.schema())
    written = (ROOT / config_schema.PATH).read_text(encoding="utf-8")
    assert written == config_schema.render(), "run `python tools/config_schema.py --write`"


@pytest.mark.parametrize("path", SCALES, ids=lambda path: path.stem)
def test_every_scale_names_the_schema_and_follows_it(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=schema.json\n")
    assert [error.message for error in CHECK.iter_errors(read_mapping(path))] == []


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"traning": {}}, ()),
        ({"training": {"token": 5}}, ("training",)),
        ({"training": {"tokens": 0}}, ("training",)),
        ({"teachers": "hubs"}, ("teachers",)),
        ({"corpus": {"shards": {"train": -1}}}, ("corpus",)),
        ({"teacher_ladder": {"A": {"layers": 0}}}, ("teacher_ladder",)),
        ({"tables": {"table2": [{"budget": 0.4}]}}, ("tables",)),
        ({"tables": {"table2": [{"method": "kd_lora", "rnak": 2}]}}, ("tables",)),
    ],
)
def test_mistakes_are_found_where_they_are(values: dict, place: tuple[str, ...]) -> None:
    errors = list(CHECK.iter_errors({"scale": "x"} | values))
    assert [tuple(error.absolute_path)[: len(place)] for error in errors] == [place]


def test_a_file_may_say_little_and_reset_any_key() -> None:
    nothing = {name: None for name in Config.model_fields if name != "scale"}
    assert not list(CHECK.iter_errors({"scale": "x", "extends": "mini", "training": {"betas": None}}))
    assert not list(CHECK.iter_errors(nothing | {"scale": "x"}))
    assert [error.message for error in CHECK.iter_errors({})] == ["'scale' is a required property"]
