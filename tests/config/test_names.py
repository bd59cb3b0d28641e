"""Names become parts of file names, of a shell's words and of Snakemake's patterns: only plain ones are taken."""

from pathlib import Path

import pytest
import yaml
from fixtures.scales import TINY

from budgeted_lora.config.scale import load_config
from budgeted_lora.errors import BadInput

ODD = ["8B (base)", "meta/8B", "a+b", "a b", "~", "..", "-rf", "a{b}", "$HOME", "a'b", "é", "a\nb", "", "x" * 65]


def refusal(folder: Path, **changed: object) -> str:
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY | changed))
    with pytest.raises(BadInput) as caught:
        load_config(folder / "tiny.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ODD)
def test_a_teacher_or_schedule_of_another_name_is_refused(tmp_path: Path, name: str) -> None:
    line = refusal(tmp_path, teacher_ladder={name: TINY["teacher_ladder"]["A"]}, tables={})
    assert f"teacher_ladder: the name {name!r} is expected to begin with a letter or digit" in line
    line = refusal(tmp_path, budget={"schedules": {"short": [0.1, 0.3], name: [0.1, 0.5]}}, tables={})
    assert f"budget.schedules: the name {name!r}" in line


@pytest.mark.parametrize("name", ["0.13B", "Llama-3.2_1B", "8B", "x" * 64])
def test_plain_names_are_taken(tmp_path: Path, name: str) -> None:
    values = TINY | {"teacher_ladder": {name: TINY["teacher_ladder"]["A"]}, "tables": {}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    assert load_config(tmp_path / "tiny.yaml").first_teacher == name


def test_a_scale_of_another_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "my scale.yaml").write_text(yaml.safe_dump(TINY | {"scale": "my scale"}))
    with pytest.raises(BadInput, match="scale: the name 'my scale' is expected to begin with"):
        load_config(tmp_path / "my scale.yaml")


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"corpus": {"source": "files", "files": ["a.txt", "~/corpus/*.txt"]}}, "corpus.files"),
        ({"corpus": {"source": "hub", "hub": {"name": "~/pile"}}}, "corpus.hub.name"),
        ({"evaluation": {"probes": "folder", "probes_folder": "~me/probes"}}, "evaluation.probes_folder"),
        ({"teachers": "folder", "teacher_ladder": {"A": TINY["teacher_ladder"]["A"] | {"folder": "~/A"}}}, "folder"),
    ],
)
def test_a_home_that_only_a_shell_knows_is_refused(tmp_path: Path, changed: dict[str, object], key: str) -> None:
    line = refusal(tmp_path, **changed, **({} if "tables" in changed else {"tables": {}}))
    assert key in line
    assert "begins with ~, which only a shell reads; write the folder out" in line
