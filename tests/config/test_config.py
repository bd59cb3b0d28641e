"""A configuration is refused in one clear line, or means what it says; its page says every key."""

import difflib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from budgeted_lora.config.files import merge, merged_layers, read_layers
from budgeted_lora.config.rows import Row
from budgeted_lora.config.scale import Config, load_config
from budgeted_lora.config.types import Strict
from budgeted_lora.errors import BadInput
from budgeted_lora.workflow.graph import load_graph
from tools import config_docs

ROOT = Path(__file__).resolve().parents[2]
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
    assert config.teacher_ladder["A"].anatomy.kv == 8
    assert (config.training.temperature, config.training.kd_weight, config.compression.svd_threshold) == (3.0, 0.8, 0.5)


BAD = {
    "a key of other sections": (
        {"learning_rate": 1},
        "unknown key learning_rate; there is pretraining.learning_rate and training.learning_rate$",
    ),
    "unknown key": ({"tabels": {}}, "yaml: unknown key tabels; did you mean tables\\?$"),
    "unknown key in a section": (
        {"training": {"tokns": 5}},
        "yaml: unknown key training.tokns; did you mean training.tokens\\?$",
    ),
    "a key with its section": (
        {"training.tokens": 5},
        "unknown key training.tokens; a key of a section is written `training: {tokens: ...}`$",
    ),
    "a key near none": (
        {"student": {"xyz": 5}},
        "unknown key student.xyz; the keys of section student are layers, importance_windows$",
    ),
    "a key near none of many": ({"training": {"xyz": 5}}, "README.md lists the keys of section training$"),
    "not a number": ({"training": {"tokens": "many"}}, "training.tokens is 'many', expected a whole number above 0$"),
    "a number as text": (
        {"training": {"tokens": "1e6"}},
        "tokens is '1e6', .*; YAML takes this for text, write 1000000$",
    ),
    "no number": ({"training": {"clip": float("nan")}}, "training.clip is nan, expected a number above 0$"),
    "endless": ({"training": {"clip": float("inf")}}, "training.clip is inf, expected a number above 0$"),
    "a list for one value": (
        {"training": {"tokens": [1, 2]}},
        "tokens is \\[1, 2\\], which takes one value, not a list$",
    ),
    "one value for a list": ({"corpus": {"packages": "numpy"}}, "packages is 'numpy', expected a list, each text$"),
    "a value in a list": (
        {"corpus": {"packages": [7]}},
        "corpus.packages is \\[7\\], .*each value to be text, found 7 in it$",
    ),
    "too few values": ({"training": {"betas": [0.9]}}, "betas is \\[0.9\\], expected a list of 2, each a number at"),
    "true for a number": (
        {"lora": {"rank": True}},
        "lora: rank is true, which YAML makes of yes, .*; expected a number",
    ),
    "a beta of one": (
        {"training": {"betas": [0.9, 1.0]}},
        "each value to be a number at least 0 and below 1, found 1.0",
    ),
    "a gate that is shut": ({"budget": {"gate_logit": -120}}, "gate_logit is -120, expected a number from -20 to 20"),
    "a seed twice": ({"evaluation": {"demonstration_seeds": [0, 0]}}, "demonstration_seeds names a seed twice"),
    "a section that is none": ({"training": 5}, "yaml: training is 5, expected a mapping, `{key: value, ...}`$"),
    "unknown choice": ({"rows": "loose"}, "yaml: rows is 'loose', expected one of packed, document$"),
    "no tokens": ({"training": {"tokens": 0}}, "training.tokens is 0, expected a whole number above 0$"),
    "negative seed": (
        {"training": {"seed": -1}},
        "training.seed is -1, expected a whole number at least 0 and below 2\\^63$",
    ),
    "missing key": (
        {"teacher_ladder": {"A": {"layers": 4}}},
        "teacher_ladder.A.hidden, teacher_ladder.A.ffn, .*kv_heads must be given, since no checkpoint says it$",
    ),
    "no teacher": ({"teacher_ladder": {}}, "teacher_ladder is {}, expected at least 1 entry$"),
    "a name that is a number": (
        {"teacher_ladder": {1: TEACHER}},
        "name teacher_ladder.1 is not text; put it in quotes$",
    ),
    "a task twice": ({"evaluation": {"lm_eval": ["arc_easy", "arc_easy"]}}, "evaluation.lm_eval names a task twice"),
    "a limit of no task": (
        {"evaluation": {"lm_eval_limit": 3}},
        "evaluation.lm_eval_limit has no effect without evaluation.lm_eval",
    ),
    "heads do not divide": (
        {"teacher_ladder": {"A": TEACHER | {"heads": 5}}},
        "teacher_ladder.A: heads 5 must divide hidden 32",
    ),
    "kv heads do not divide": ({"teacher_ladder": {"A": TEACHER | {"kv_heads": 3}}}, "kv_heads 3 must divide heads"),
    "student deeper than the teacher": ({"student": {"layers": 9}}, "student.layers 9 exceeds the 4 layers"),
    "schedule ends before it starts": (
        {"budget": {"schedules": {"short": [0.5, 0.3]}}},
        "short: start 0.5 is after end 0.3",
    ),
    "schedule outside the run": (
        {"budget": {"schedules": {"short": [0.5, 1.3]}}},
        "short is \\[0.5, 1.3\\], .* a number from 0 to 1, found 1.3",
    ),
    "unknown schedule": ({"budget": {"schedule": "slow"}}, "budget.schedule 'slow' is not among"),
    "broken micro-batches": (
        {"training": {"batch_windows": 6, "micro_batch_windows": 4}},
        "6 is not a multiple of.* 4",
    ),
    "a step that GPUs cannot share": (
        {"gpus_per_run": 3, "training": {"batch_windows": 4, "micro_batch_windows": 2}},
        "training.batch_windows 4 is not a multiple of gpus_per_run 3",
    ),
    "slice of everything": (
        {"corpus": {"packages": ["numpy"], "slice_per_mille": 1000}},
        "slice_per_mille is 1000, expected a whole number at least 1 and below 1000",
    ),
    "no packages": ({"corpus": {"packages": []}}, "corpus.packages must name at least one package"),
    "no files": ({"corpus": {"source": "files"}}, "corpus.files must name at least one file"),
    "no probes folder": ({"evaluation": {"probes": "folder"}}, "evaluation.probes_folder must name the folder"),
    "no checkpoint folder": ({"teachers": "folder"}, "teacher_ladder.A.folder must name a checkpoint folder"),
    "no checkpoint name": ({"teachers": "hub"}, "teacher_ladder.A.hub must name a checkpoint"),
    "no pretraining tokens": ({"teachers": "pretrain"}, "teacher_ladder.A.tokens must say how long"),
    "a leg of less than a step": (
        {"teachers": "pretrain", "teacher_ladder": {"A": TEACHER | {"tokens": [4096, 9]}}},
        "teacher_ladder.A.tokens 9 is less than one step of 16384 tokens",
    ),
    "a leg of nothing": (
        {"teacher_ladder": {"A": TEACHER | {"tokens": [4096, 0]}}},
        "teacher_ladder.A.tokens is \\[4096, 0\\], expected each value to be a whole number above 0, found 0 in it$",
    ),
    "no legs": ({"teacher_ladder": {"A": TEACHER | {"tokens": []}}}, "teacher_ladder.A.tokens is \\[\\], expected .*"),
    "legs in words": (
        {"teacher_ladder": {"A": TEACHER | {"tokens": "10M"}}},
        "teacher_ladder.A.tokens is '10M', expected",
    ),
    "legs of truth": ({"teacher_ladder": {"A": TEACHER | {"tokens": True}}}, "tokens is true, which YAML makes of"),
}


@pytest.mark.parametrize(("over", "expected"), BAD.values(), ids=BAD.keys())
def test_bad_values_are_refused_in_one_line(write: Write, over: dict, expected: str) -> None:
    assert re.search(expected, refusal(write(merge(MINIMAL, over)))), refusal(write(merge(MINIMAL, over)))


BAD_ROWS = {
    "unknown key": ({"rnk": 1}, "unknown key rnk; did you mean rank?"),
    "a key of a section": ({"r_max": 8}, "unknown key r_max; there is compression.r_max"),
    "F above 1": ({"budget": 1.2}, "budget is 1.2, expected a number from 0 to 1 or elastic or a list"),
    "F below 0": (
        {"budget": [0.4, -0.1]},
        "budget is [0.4, -0.1], expected each value to be a number from 0 to 1, found -0.1 in it",
    ),
    "a list for one value": (
        {"order": ["mac", "energy"]},
        "order is [mac, energy], which takes one value per row; write one row for each",
    ),
    "no method": ({"method": "lora"}, "method is 'lora', expected one of kd_full, kd_lora, budgeted_lora"),
    "two methods": (
        {"method": ["kd_full"]},
        "method is [kd_full], which takes one value per row; write one row for each",
    ),
    "a choice": (
        {"init": "mixd"},
        "init is 'mixd', expected one of first, middle, last, mixed, importance, scratch or a list",
    ),
    "a teacher as a number": ({"teacher": 1}, "teacher is 1, expected text or a list; put it in quotes"),
    "negative seed": ({"seed": -1}, "seed is -1, expected a whole number at least 0 and below 2^63 or a list"),
    "a negative seed of several": (
        {"seed": [0, -1]},
        "seed is [0, -1], expected each value to be a whole number at least 0 and below 2^63, found -1 in it",
    ),
    "a seed twice": ({"seed": [0, 1, 0]}, "seed is [0, 1, 0], which lists 0 twice"),
    "an empty list": ({"teacher": []}, "teacher is [], expected at least one value, or no teacher"),
}


@pytest.mark.parametrize(("over", "expected"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_is_named_by_table_number_and_text(write: Write, over: dict, expected: str) -> None:
    row = {"method": "budgeted_lora", "budget": 0.4} | over
    path = write(yaml.safe_dump(MINIMAL | {"tables": {"t": [{"method": "kd_full"}, row]}}, sort_keys=False))
    text = ", ".join(f"{key}: {str(value).replace(chr(39), '')}" for key, value in row.items())
    assert refusal(path) == f"{path}: tables.t, row 2 {{{text}}}: {expected}"


def test_a_long_row_is_cut(write: Write) -> None:
    row = {"method": "kd_lora", "seed": list(range(60)), "temperature": -1.0}
    line = refusal(write(MINIMAL | {"tables": {"t": [row]}}))
    assert " ...: temperature is -1.0, expected a number above 0" in line
    assert len(line) < 300


BAD_TABLES = {
    "no rows": ([], "tables.t has no rows, expected at least one"),
    "nothing": (None, "tables.t is null, expected a list of rows"),
    "one row that is no list": ({"method": "kd_full"}, "tables.t is {method: kd_full}, expected a list of rows"),
    "a row that is a word": (["kd_full"], "tables.t, row 1 is 'kd_full', expected a mapping"),
    "a row without a method": ([{"rank": 4}], "tables.t, row 1 {rank: 4}: method is missing, expected one of kd_full,"),
    "a row twice": (
        [{"method": "kd_full"}, {"method": "kd_lora"}, {"method": "kd_full"}],
        "tables.t, row 3 {method: kd_full}: the same as row 1, expected each row once",
    ),
}


@pytest.mark.parametrize(("rows", "expected"), BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_a_table_that_cannot_be_is_refused(write: Write, rows: object, expected: str) -> None:
    assert f"tiny.yaml: {expected}" in refusal(write(MINIMAL | {"tables": {"t": rows}}))


def test_sweeps_are_checked_like_rows(write: Write) -> None:
    assert "yaml: sweeps.s: r_max is [], expected at least" in refusal(
        write(MINIMAL | {"sweeps": {"s": {"r_max": []}}})
    )
    assert "sweeps.s: r_max is [2, 2], which lists 2 twice" in refusal(
        write(MINIMAL | {"sweeps": {"s": {"r_max": [2, 2]}}})
    )
    assert "sweeps.s.r_max is 3, expected a list" in refusal(write(MINIMAL | {"sweeps": {"s": {"r_max": 3}}}))


def test_every_mistake_is_named_once(write: Write) -> None:
    line = refusal(write(MINIMAL | {"rows": "loose", "devise": "cpu", "lora": {"rank": 0}}))
    assert [line.count(word) for word in ("rows is", "devise", "lora.rank is 0")] == [1, 1, 1]


def test_overrides_are_checked_like_the_file(write: Write) -> None:
    assert load_config(write(MINIMAL), {"device": "cpu"}).device == "cpu"
    line = refusal(write(MINIMAL), devices="cpu")
    assert line.endswith("tiny.yaml: unknown key devices; did you mean device? (given in --config)")


def test_a_value_of_an_extended_file_is_sought_there(write: Write) -> None:
    write(MINIMAL | {"training": {"tokens": -1}, "tables": {"t": [{"method": "kd_lora", "rank": 99}]}}, "base")
    child = {"extends": "base", "scale": "child"}
    path = write(child, "child")
    assert refusal(path) == f"{path}: training.tokens is -1, expected a whole number above 0 (given in base.yaml)"
    path = write(child | {"training": {"tokens": 65536, "clip": -1}}, "child")
    assert refusal(path) == f"{path}: training.clip is -1, expected a number above 0"
    path = write(child | {"training": {"tokens": 65536}}, "child")
    with pytest.raises(
        BadInput, match=r"child\.yaml: tables\.t, row 1 .*: rank 99 exceeds .* \(given in base\.yaml\)$"
    ):
        load_graph(path)
    path = write(child | {"training": {"tokens": 65536}, "tables": {"t": [{"method": "kd_lora", "rank": 99}]}}, "child")
    with pytest.raises(BadInput, match=r"child\.yaml: tables\.t, row 1 .*: rank 99 exceeds .*projection$"):
        load_graph(path)


def test_missing_scale_names_the_known_ones(write: Write) -> None:
    path = write(MINIMAL)
    assert "no such scale file; expected one of: tiny" in refusal(path.with_name("huge.yaml"))


@pytest.mark.parametrize(("text", "expected"), [("a: [1", "not YAML"), ("- 1\n", "found list"), ("", "found NoneType")])
def test_a_file_that_is_no_mapping_is_refused(write: Write, text: str, expected: str) -> None:
    assert expected in refusal(write(text))


def test_extends_merges_sections_and_replaces_tables(write: Write) -> None:
    write(MINIMAL | {"tables": {"a": [{"method": "kd_full"}]}, "training": {"tokens": 512, "clip": 2.0}}, "base")
    child = write(
        {"extends": "base", "scale": "child", "training": {"tokens": 1024}, "tables": {"b": [{"method": "kd_full"}]}},
        "child",
    )
    config = load_config(child)
    assert (config.scale, config.training.tokens, config.training.clip) == ("child", 1024, 2.0)
    assert list(config.tables) == ["b"]


def test_null_goes_back_to_the_default(write: Write) -> None:
    write(MINIMAL | {"training": {"clip": 2.0, "tokens": 512}}, "base")
    child = write({"extends": "base", "scale": "child", "training": {"clip": None}}, "child")
    assert load_config(child).training.clip == Config.model_validate(MINIMAL).training.clip
    assert load_config(child).training.tokens == 512
    alone = write(MINIMAL | {"training": {"clip": None, "tokens": 512}})
    assert load_config(alone).training.clip == Config.model_validate(MINIMAL).training.clip


def test_a_scale_needs_the_name_of_its_file(write: Write) -> None:
    write(MINIMAL, "base")
    assert "scale is missing, expected `scale: child`" in refusal(write({"extends": "base"}, "child"))
    for name in ("base", "Child", "", 5):
        assert f"scale is {name!r}, expected child, " in refusal(write({"extends": "base", "scale": name}, "child"))


def test_the_name_of_an_extended_file_counts_for_nothing(write: Write) -> None:
    """A part that scales share needs none, and one copied from a scale may have any."""
    for named in ({}, {"scale": "other"}):
        write({key: value for key, value in MINIMAL.items() if key != "scale"} | named, "part")
        assert load_config(write({"extends": "part", "scale": "child"}, "child")).scale == "child"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("scale: tiny\nrows: packed\nrows: document\n", "tiny.yaml, line 3: key rows is given twice"),
        ("scale: tiny\nlora: {rank: 2,\n  rank: 4}\n", "tiny.yaml, line 3: key rank is given twice"),
        (
            "scale: tiny\nextends: [a, b]\n",
            "tiny.yaml: extends is ['a', 'b'], expected the name of one scale beside it",
        ),
        ("scale: tiny\n1: 2\n", "the name 1 is not text; put it in quotes"),
    ],
)
def test_yaml_that_means_something_else_is_refused(write: Write, text: str, expected: str) -> None:
    assert expected in refusal(write(text))


def test_keys_of_an_anchor_may_be_said_again(write: Write) -> None:
    text = "x: &x {tokens: 512, clip: 2.0}\ntraining: {<<: *x, tokens: 1024}\nscale: tiny\n"
    assert merged_layers(read_layers(write(text)))["training"] == {"tokens": 1024, "clip": 2.0}


def test_extends_ring_is_refused(write: Write) -> None:
    write({"extends": "b", "scale": "a"}, "a")
    path = write({"extends": "a", "scale": "b"}, "b")
    assert "extends itself through b.yaml, a.yaml" in refusal(path)


def test_extends_of_a_missing_scale_is_refused(write: Write) -> None:
    assert "nowhere.yaml: no such scale file" in refusal(write({"extends": "nowhere", "scale": "tiny"}))


@pytest.mark.parametrize("path", SCALES, ids=lambda path: path.stem)
def test_shipped_scales_are_named_after_their_file(path: Path) -> None:
    assert merged_layers(read_layers(path))["scale"] == path.stem
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
    assert not difference, f"run `python tools/config_docs.py --write`\n{difference}"


def leaves(model: type[Strict]) -> list[tuple[str, str]]:
    """Name and description of every key that is not itself a section."""
    keys = []
    for name, field in model.model_fields.items():
        nested = isinstance(field.annotation, type) and issubclass(field.annotation, Strict)
        keys += leaves(field.annotation) if nested else [(f"{model.__name__}.{name}", field.description or "")]
    return keys


@pytest.mark.parametrize(("key", "description"), [*leaves(Config), *leaves(Row)], ids=lambda value: value[:40])
def test_every_key_says_what_it_is_and_where_it_is_from(key: str, description: str) -> None:
    assert re.search(r"\w.* \[(S|D|U|ours)\]$", description), key
