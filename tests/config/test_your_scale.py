"""The scale file of a reader's own model: the example in config/, and what follows from what is asked."""

from dataclasses import replace
from pathlib import Path

import pytest

from budgeted_lora.config.scale import load_config
from budgeted_lora.config.your_scale import YourScale
from tools.your_model import EXAMPLE, PATH

ROOT = Path(__file__).resolve().parents[2]


def test_the_example_is_what_the_command_writes() -> None:
    assert (ROOT / PATH).read_text() == EXAMPLE.text(), "run `python tools/your_model.py --write`"


def load(folder: Path, scale: YourScale):
    (folder / f"{scale.name}.yaml").write_text(scale.text())
    return load_config(folder / f"{scale.name}.yaml")


def test_a_file_says_what_was_chosen(tmp_path: Path) -> None:
    config = load(tmp_path, replace(EXAMPLE, layers=15, rule="paper", budgets=[0.4], characters=10**6))
    assert (config.student.layers, config.training.init) == (15, "importance")
    assert (config.lora.low_rank_init, config.budget.order) == ("zero", "mac")
    assert config.corpus.characters == 10**6
    assert config.tables["table2"] == config.tables["table8"]
    assert config.tables["table2"][0].budget == [0.4]
    whole = load(tmp_path, EXAMPLE)
    assert (whole.training.init, whole.lora.low_rank_init, whole.budget.order) == (
        "first",
        "activation_svd",
        "gradient",
    )


def test_a_model_of_the_hub_is_pinned(tmp_path: Path) -> None:
    place = {"hub": "owner/name", "revision": "0" * 40}
    [teacher] = load(tmp_path, replace(EXAMPLE, source="hub", place=place)).teacher_ladder.values()
    assert (teacher.hub, teacher.revision, teacher.layers) == ("owner/name", "0" * 40, 30)


@pytest.mark.parametrize("name", ['a "b"', "ü: {x}", "a # b"])
def test_odd_names_of_files_are_quoted(tmp_path: Path, name: str) -> None:
    config = load(tmp_path, replace(EXAMPLE, files=[name], text_field=name, place={"folder": name}))
    assert config.corpus.files == [name]
    assert config.corpus.text_field == name


def test_a_gpu_gets_longer_windows_and_larger_batches(tmp_path: Path) -> None:
    config = load(tmp_path, replace(EXAMPLE, on_gpu=True))
    assert config.sequence_length == 1024
    assert config.training.micro_batch_windows == 8
    assert config.training.teacher_cache == "online"
    assert load(tmp_path, replace(EXAMPLE, limit=64)).sequence_length == 64
