"""A configuration is refused in one clear line, or means what it says; its page says every key."""

import difflib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from budgeted_lora import config_docs
from budgeted_lora.config import Config, load_config
from budgeted_lora.errors import BadInput
from budgeted_lora.rows import Row
from budgeted_lora.scale_file import merge, read_scale
from budgeted_lora.strict import Strict

ROOT = Path(__file__).resolve().parents[1]
SCALES = sorted(
    path for path in (ROOT / "config").glob("*.yaml") if re.search(r"^scale:", path.read_text(), re.MULTILINE)
)
TEACHER = {"layers": 4, "hidden": 32, "ffn": 64, "heads": 4, "kv_heads": 1}
MINIMAL = {
    "scale": "tiny",
    "corpus": {"packages": ["numpy"]},
    "student": {"layers": 2},
    "teacher_ladder": {"A": TEACHER},
}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def save(values: object, name: str = "tiny") -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
        return path

    return save


def refusal(path: Path, **overrides: object) -> str:
    with pytest.raises(BadInput) as caught:
        load_config(path, overrides)
    line = str(caught.value)
    assert "\n" not in line
    assert str(path.parent) in line
    return line


def test_minimal_scale_has_defaults(write: Write) -> None:
    config = load_config(write(MINIMAL))
    assert config.first_teacher == "A"
    assert config.teacher_ladder["A"].kv == 8
    assert (config.training.temperature, config.training.kd_weight, config.compression.svd_threshold) == (3.0, 0.8, 0.5)


BAD = {
    "unknown key": ({"learning_rate": 1}, "unknown key learning_rate"),
    "unknown key in a section": ({"training": {"tokns": 5}}, "unknown key training.tokns"),
    "unknown key in a row": ({"tables": {"t": [{"method": "kd_full", "rnk": 1}]}}, "unknown key tables.t.0.rnk"),
    "F above 1": ({"tables": {"t": [{"method": "budgeted_lora", "budget": 1.2}]}}, "1.2.*less than or equal to 1"),
    "F below 0": (
        {"tables": {"t": [{"method": "budgeted_lora", "budget": [0.4, -0.1]}]}},
        "-0.1.*greater than or equal to 0",
    ),
    "unknown method": ({"tables": {"t": [{"method": "lora"}]}}, "tables.t.0.method is 'lora'.*'kd_full'"),
    "unknown choice": ({"rows": "loose"}, "rows is 'loose'.*'packed' or 'document'"),
    "not a number": ({"training": {"tokens": "many"}}, "training.tokens is 'many'.*integer"),
    "no tokens": ({"training": {"tokens": 0}}, "training.tokens is 0.*greater than 0"),
    "missing key": ({"teacher_ladder": {"A": {"layers": 4}}}, "teacher_ladder.A.hidden is missing"),
    "no teacher": ({"teacher_ladder": {}}, "teacher_ladder is {}"),
    "heads do not divide": ({"teacher_ladder": {"A": TEACHER | {"heads": 5}}}, "heads 5 must divide hidden 32"),
    "kv heads do not divide": ({"teacher_ladder": {"A": TEACHER | {"kv_heads": 3}}}, "kv_heads 3 must divide heads"),
    "student deeper than the teacher": ({"student": {"layers": 9}}, "student.layers 9 exceeds the 4 layers"),
    "schedule ends before it starts": (
        {"budget": {"schedules": {"short": [0.5, 0.3]}}},
        "short: start 0.5 is after end 0.3",
    ),
    "schedule outside the run": ({"budget": {"schedules": {"short": [0.5, 1.3]}}}, "1.3.*less than or equal to 1"),
    "unknown schedule": ({"budget": {"schedule": "slow"}}, "budget.schedule 'slow' is not among"),
    "broken micro-batches": (
        {"training": {"batch_windows": 6, "micro_batch_windows": 4}},
        "6 is not a multiple of.* 4",
    ),
    "a step that GPUs cannot share": (
        {"gpus_per_run": 3, "training": {"batch_windows": 4, "micro_batch_windows": 2}},
        "training.batch_windows 4 is not a multiple of gpus_per_run 3",
    ),
    "slice of everything": ({"corpus": {"packages": ["numpy"], "slice_per_mille": 1000}}, "1000.*less than 1000"),
    "no packages": ({"corpus": {"packages": []}}, "corpus.packages must name at least one package"),
    "no files": ({"corpus": {"source": "files"}}, "corpus.files must name at least one file"),
    "no probes folder": ({"evaluation": {"probes": "folder"}}, "evaluation.probes_folder must name the folder"),
    "no checkpoint folder": ({"teachers": "folder"}, "teacher_ladder.A.folder must name a checkpoint folder"),
    "no checkpoint name": ({"teachers": "hub"}, "teacher_ladder.A.hub must name a checkpoint"),
    "no pretraining tokens": ({"teachers": "pretrain"}, "teacher_ladder.A.tokens must say how long"),
}


@pytest.mark.parametrize(("over", "expected"), BAD.values(), ids=BAD.keys())
def test_bad_values_are_refused_in_one_line(write: Write, over: dict, expected: str) -> None:
    assert re.search(expected, refusal(write(merge(MINIMAL, over)))), refusal(write(merge(MINIMAL, over)))


def test_overrides_are_checked_like_the_file(write: Write) -> None:
    assert load_config(write(MINIMAL), {"device": "cpu"}).device == "cpu"
    assert "unknown key devices" in refusal(write(MINIMAL), devices="cpu")


def test_missing_scale_names_the_known_ones(write: Write) -> None:
    path = write(MINIMAL)
    assert "no such scale file; expected one of: tiny" in refusal(path.with_name("huge.yaml"))


@pytest.mark.parametrize(("text", "expected"), [("a: [1", "not YAML"), ("- 1\n", "found list"), ("", "found NoneType")])
def test_a_file_that_is_no_mapping_is_refused(write: Write, text: str, expected: str) -> None:
    assert expected in refusal(write(text))


def test_extends_merges_sections_and_replaces_tables(write: Write) -> None:
    write(MINIMAL | {"tables": {"a": [{"method": "kd_full"}]}, "training": {"tokens": 512, "clip": 2.0}}, "base")
    child = write({"extends": "base", "scale": "child", "training": {"tokens": 1024}, "tables": {"b": []}}, "child")
    config = load_config(child)
    assert (config.scale, config.training.tokens, config.training.clip) == ("child", 1024, 2.0)
    assert list(config.tables) == ["b"]


def test_null_goes_back_to_the_default(write: Write) -> None:
    write(MINIMAL | {"training": {"clip": 2.0, "tokens": 512}}, "base")
    child = write({"extends": "base", "scale": "child", "training": {"clip": None}}, "child")
    assert load_config(child).training.clip == Config.model_validate(MINIMAL).training.clip
    assert load_config(child).training.tokens == 512


def test_a_scale_needs_a_name_of_its_own(write: Write) -> None:
    write(MINIMAL, "base")
    assert "scale is missing" in refusal(write({"extends": "base"}, "child"))


def test_extends_ring_is_refused(write: Write) -> None:
    write({"extends": "b"}, "a")
    path = write({"extends": "a"}, "b")
    assert "extends itself by way of b.yaml, a.yaml" in refusal(path)


def test_extends_of_a_missing_scale_is_refused(write: Write) -> None:
    assert "nowhere.yaml: no such scale file" in refusal(write({"extends": "nowhere"}))


@pytest.mark.parametrize("path", SCALES, ids=lambda path: path.stem)
def test_shipped_scales_are_named_after_their_file(path: Path) -> None:
    assert read_scale(path)["scale"] == path.stem
    assert load_config(path).tables
    assert f"`{path.name}`" in config_docs.render()


def test_three_scales_are_shipped() -> None:
    assert {"mini", "smoke", "paper"} <= {path.stem for path in SCALES}


def test_page_is_in_step_with_the_types() -> None:
    page = (ROOT / "config" / "README.md").read_text(encoding="utf-8")
    lines = difflib.unified_diff(
        page.splitlines(), config_docs.render().splitlines(), "config/README.md", "config.py", lineterm=""
    )
    difference = "\n".join(lines)
    assert not difference, f"run `python -m budgeted_lora.config_docs --write`\n{difference}"


def leaves(model: type[Strict]) -> list[tuple[str, str]]:
    """Name and description of every key that is not itself a section."""
    found = []
    for name, field in model.model_fields.items():
        nested = isinstance(field.annotation, type) and issubclass(field.annotation, Strict)
        found += leaves(field.annotation) if nested else [(f"{model.__name__}.{name}", field.description or "")]
    return found


@pytest.mark.parametrize(("key", "description"), [*leaves(Config), *leaves(Row)], ids=lambda value: value[:40])
def test_every_key_says_what_it_is_and_where_it_is_from(key: str, description: str) -> None:
    assert re.search(r"\w.* \[(S|D|U|ours)\]$", description), key
