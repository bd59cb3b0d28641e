"""YAML and JSON that readers choke on: one line that names the file."""

from pathlib import Path

import pytest

from budgeted_lora.config.brought import brought_anatomies
from budgeted_lora.config.files import read_mapping
from budgeted_lora.config.scale import load_config
from budgeted_lora.errors import BadInput

ODD = {
    "nested": "scale: " + "[" * 20_000,
    "nested mappings": "scale: " + "{a: " * 20_000,
    "digits": "scale: " + "1" * 5000,
    "date": "scale: 2001-99-99",
    "time": "scale: 2001-01-01 99:99:99",
    "a list as key": "? [a]\n: b",
    "control character": "scale: \x01",
    "itself": "scale: &a [*a]",
    "itself in a mapping": "scale: &a {b: *a}",
    "references": "a0: &a0 []\n" + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(9)),
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_odd_yaml_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(BadInput) as caught:
        read_mapping(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert str(tmp_path / "a.yaml") in str(caught.value)


SCALE = "scale: a\nteacher_ladder: {A: {layers: 1, hidden: 8, ffn: 8, heads: 1, kv_heads: 1}}\n"
FOUND = {
    "a name that is not text": ("tables: {-2: []}", "the name tables.-2 is not text; put it in quotes"),
    "a name of two lines": ('"a\\nb": 1', r"unknown key a\nb; config/README.md lists the keys of the top level"),
    "a name that a terminal obeys": ('"\\e[31m": 1', r"unknown key \x1b[31m; config/README.md lists the keys of the"),
    "many problems": ("\n".join(f"key{i}: 1" for i in range(30)), "; and 20 more"),
}


@pytest.mark.parametrize(("text", "message"), FOUND.values(), ids=FOUND)
def test_what_is_wrong_stands_on_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(SCALE + text)
    with pytest.raises(BadInput) as caught:
        load_config(tmp_path / "a.yaml")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 200_000, "1" * 5000, "7", '{"a": ' + "1" * 5000 + "}"])
def test_an_odd_configuration_of_a_checkpoint_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    values = {"teachers": "folder", "teacher_ladder": {"A": {"folder": str(tmp_path)}}}
    with pytest.raises(BadInput, match=r"config\.json: not JSON"):
        brought_anatomies(values)
