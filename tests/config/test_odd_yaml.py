"""YAML and JSON that readers choke on: one line that names the file."""

from pathlib import Path

import pytest

from budgeted_lora.config.brought import brought_anatomies
from budgeted_lora.config.files import read_mapping
from budgeted_lora.errors import BadInput

ODD = {
    "nested": "scale: " + "[" * 20_000,
    "nested mappings": "scale: " + "{a: " * 20_000,
    "digits": "scale: " + "1" * 5000,
    "date": "scale: 2001-99-99",
    "time": "scale: 2001-01-01 99:99:99",
    "a list as key": "? [a]\n: b",
    "control character": "scale: \x01",
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_odd_yaml_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(BadInput) as caught:
        read_mapping(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert str(tmp_path / "a.yaml") in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 200_000, "1" * 5000, "7", '{"a": ' + "1" * 5000 + "}"])
def test_an_odd_configuration_of_a_checkpoint_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    values = {"teachers": "folder", "teacher_ladder": {"A": {"folder": str(tmp_path)}}}
    with pytest.raises(BadInput, match=r"config\.json: not JSON"):
        brought_anatomies(values)
