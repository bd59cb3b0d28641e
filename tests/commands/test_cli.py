"""What a person sees: 0 done, 2 and one line for bad input, 1 for anything else; and `plan --json` to the digit."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from fixtures.command_line import ON_CPU, Outcome
from fixtures.training_world import LENGTH, VOCABULARY, World, make_recipe, make_world

from budgeted_lora import __version__
from budgeted_lora.files import read_json, write_json
from budgeted_lora.method.loop import StatesDiffer

ROOT = Path(__file__).resolve().parents[2]
TEACHER = {"layers": 4, "hidden": 32, "ffn": 64, "heads": 4, "kv_heads": 1}
SCALE = {
    "scale": "tiny", "sequence_length": 64, "corpus": {"packages": ["numpy"]}, "student": {"layers": 2},
    "teacher_ladder": {"A": TEACHER}, "lora": {"rank": 4, "alpha": 8},
    "training": {"tokens": 64 * 4 * 100, "batch_windows": 4, "micro_batch_windows": 4},
    "tables": {"table2": [{"method": "budgeted_lora", "budget": [0.4, 0.0]}]},
}  # fmt: skip
Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


# --- configurations


CUT = {"t": [{"method": "kd_full", "compression": "cut"}]}
BAD_SCALES = {
    "unknown key": ({"learning_rate": 1}, "unknown key learning_rate"),
    "unknown key inside": ({"training": {"tokns": 5}}, "unknown key training.tokns"),
    "F above 1": (
        {"tables": {"t": [{"method": "budgeted_lora", "budget": 1.01}]}},
        "budget is 1.01, expected a number from 0 to 1 or",
    ),
    "F below 0": (
        {"tables": {"t": [{"method": "budgeted_lora", "budget": -0.01}]}},
        "budget is -0.01, expected a number from 0 to 1",
    ),
    "rank above the dimension": ({"lora": {"rank": 9, "alpha": 18}}, "rank 9 exceeds 8, the smallest dimension"),
    "too few steps": (
        {"training": {"tokens": 64 * 4 * 20, "batch_windows": 4, "micro_batch_windows": 4}},
        "tiny.yaml: tables.table2, row 1 {method: budgeted_lora, budget: [0.4, 0.0]}: 20 steps are too few for "
        "schedule 'short' to reach the structure of F = 0.4; it needs ",
    ),
    "outputs of distilled students": (
        {"sweeps": {"cut": {"macs_of_budget": [0.4], "truncation": ["weights", "outputs"]}}, "tables": CUT},
        "sweeps.cut: truncation: outputs needs undistilled: true; expected both macs_of_budget and ",
    ),
    "outputs of whole students": (
        {"sweeps": {"cut": {"truncation": ["outputs"], "undistilled": [True]}}, "tables": CUT},
        "sweeps.cut: truncation: outputs needs macs_of_budget; expected both",
    ),
    "outputs by default": ({"compression": {"truncation": "outputs"}}, "truncation: outputs needs macs_of_budget"),
    "undistilled by default": ({"compression": {"undistilled": True}}, "compression.undistilled is true: no trained"),
    "truncated LoRA": (
        {"sweeps": {"cut": {"macs_of_budget": [0.4]}}, "tables": {"t": [{"method": "kd_lora", "compression": "cut"}]}},
        "kd_lora does not use sweeps.cut.macs_of_budget; remove it, or use kd_full",
    ),
    "truncated LoRA by default": (
        {"compression": {"macs_of_budget": 0.4}},
        "budgeted_lora does not use compression.macs_of_budget; remove it",
    ),
    "undistilled LoRA": (
        {"sweeps": {"cut": {"undistilled": [True]}}, "tables": {"t": [{"method": "kd_lora", "compression": "cut"}]}},
        "kd_lora does not use sweeps.cut.undistilled",
    ),
    "a row of a wrong type": (
        {"tables": {"t": [{"method": "kd_lora", "rank": 4, "alpha": [1, 2]}]}},
        "tiny.yaml: tables.t, row 1 {alpha: [1, 2], method: kd_lora, rank: 4}: alpha is [1, 2], which takes one "
        "value per row; write one row for each",
    ),
    "not YAML": ("a: [1", "tiny.yaml, line 1: not YAML"),
    "two mistakes": ({"rows": "loose", "devise": "cpu"}, "unknown key devise"),
}


@pytest.mark.parametrize(("over", "expected"), BAD_SCALES.values(), ids=BAD_SCALES.keys())
def test_a_bad_scale_is_one_line(run: Run, tmp_path: Path, over: dict | str, expected: str) -> None:
    (tmp_path / "tiny.yaml").write_text(over if isinstance(over, str) else yaml.safe_dump(SCALE | over))
    line = run("plan", "--scale", "tiny", "--config-folder", tmp_path).refusal()
    assert expected in line


def test_settings_that_fit_their_rows_are_taken(run: Run, tmp_path: Path) -> None:
    sweeps = {"cut": {"macs_of_budget": [0.4], "truncation": ["weights", "outputs"], "undistilled": [True]}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SCALE | {"sweeps": sweeps, "tables": CUT}))
    assert run("plan", "--scale", "tiny", "--config-folder", tmp_path, "--json").status == 0


def test_an_unknown_scale_names_the_known_ones(run: Run, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SCALE))
    assert run("plan", "--scale", "tiny", "--config-folder", tmp_path, "--json").status == 0
    line = run("plan", "--scale", "huge", "--config-folder", tmp_path).refusal()
    assert line == f"{tmp_path}/huge.yaml: no such scale file; expected one of: tiny"
    assert "no such scale file" in run("report", "--scale", "huge", "--config-folder", tmp_path).refusal()


def test_a_bad_shape_on_the_command_line(run: Run) -> None:
    assert run("plan", "--rank", "193").refusal() == "--rank 193 exceeds 192, the smallest dimension of a projection"
    assert "--schedule 'slow': expected one of none, short, long" in run("plan", "--schedule", "slow").refusal()


@pytest.mark.parametrize(
    "arguments", [["--budget", "1.5"], ["--budget", "-0.1"], ["--budget", "much"], ["--layers", "0"], ["--depth", "3"]]
)
def test_a_bad_option_is_status_2(run: Run, arguments: list[str]) -> None:
    outcome = run("plan", *arguments)
    assert (outcome.status, outcome.out) == (2, "")
    assert arguments[0] in outcome.err
    assert "Traceback" not in outcome.err


# --- inputs of stages


def train(run: Run, world: World, out: Path, **changed: object) -> Outcome:
    paths = {"student": world.student, "teacher": world.teacher, "tokens": world.tokens} | changed
    recipe = paths.pop("recipe", make_recipe("kd_lora").model_dump(mode="json"))
    options = [word for name, path in paths.items() for word in (f"--{name}", path)]
    return run(
        "stage", "train_cell", "--recipe", recipe, "--cell", "c", *options, "--out", out / "cell",
        "--state", out / "state", "--log-every", 4, "--checkpoint-every", 100, *ON_CPU,
    )  # fmt: skip


def cache(run: Run, teacher: Path, tokens: Path, out: Path, *, length: int = LENGTH) -> Outcome:
    return run(
        "stage", "cache_teacher", "--teacher", teacher, "--tokens", tokens, "--windows", 4, "--sequence-length", length,
        "--rows", "packed", "--batch-windows", 2, "--precision", "float32", "--out", out / "cache",
        "--state", out / "state", *ON_CPU,
    )  # fmt: skip


def copied(world: World, folder: Path) -> Path:
    for suffix in (".bin", ".idx", ".json"):
        (folder / f"train{suffix}").write_bytes(world.tokens.with_suffix(suffix).read_bytes())
    return folder / "train.bin"


def test_a_good_run_is_status_0(run: Run, world: World, tmp_path: Path) -> None:
    assert train(run, world, tmp_path).status == 0
    assert (tmp_path / "cell" / "trained.sha256").is_file()


def test_missing_tokens(run: Run, world: World, tmp_path: Path) -> None:
    line = train(run, world, tmp_path, tokens=tmp_path / "none.bin").refusal()
    assert line.startswith(f"{tmp_path}/none.json: no such file")
    tokens = copied(world, tmp_path)
    tokens.unlink()
    line = train(run, world, tmp_path, tokens=tokens).refusal()
    assert line.startswith(f"{tokens}: no such file; expected ")


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_truncated_tokens(run: Run, world: World, tmp_path: Path, suffix: str) -> None:
    tokens = copied(world, tmp_path)
    damaged = tokens.with_suffix(suffix)
    damaged.write_bytes(damaged.read_bytes()[:-2])
    line = train(run, world, tmp_path, tokens=tokens).refusal()
    assert line.startswith(f"{damaged}: ")
    assert "truncated or damaged" in line
    line = cache(run, world.teacher, tokens, tmp_path).refusal()
    assert "truncated or damaged" in line


def test_tokens_shorter_than_a_window(run: Run, world: World, tmp_path: Path) -> None:
    recipe = make_recipe("kd_lora", sequence_length=4096).model_dump(mode="json")
    expected = f"{world.tokens}: holds no window of 4096 tokens; expected at least one"
    assert train(run, world, tmp_path, recipe=recipe).refusal() == expected
    assert cache(run, world.teacher, world.tokens, tmp_path, length=4096).refusal() == expected


@pytest.mark.parametrize("who", ["teacher", "student"])
@pytest.mark.parametrize("other_size", [VOCABULARY - 3, VOCABULARY + 3])
def test_another_vocabulary(run: Run, world: World, tmp_path: Path, who: str, other_size: int) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in getattr(world, who).iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    write_json(other / "config.json", read_json(other / "config.json") | {"vocab_size": other_size})
    line = train(run, world, tmp_path, **{who: other}).refusal()
    assert line.startswith(f"{other}: vocabulary of {other_size}, but ")
    assert f"has {VOCABULARY}" in line


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_a_missing_model(run: Run, world: World, tmp_path: Path, who: str) -> None:
    line = train(run, world, tmp_path, **{who: tmp_path / "gone"}).refusal()
    assert line == f"{tmp_path}/gone/config.json: no such file; expected a model folder"


def test_a_truncated_model(run: Run, world: World, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in world.student.iterdir():
        (other / file.name).write_bytes(file.read_bytes()[: 3000 if file.suffix == ".safetensors" else None])
    assert f"{other}: cannot be loaded (" in train(run, world, tmp_path, student=other).refusal()


def test_a_student_of_other_weights(run: Run, world: World, tmp_path: Path) -> None:
    """transformers fills what is missing with random numbers and prints a table about it; neither must happen."""
    other = tmp_path / "other"
    other.mkdir()
    for file in world.student.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    write_json(other / "config.json", read_json(other / "config.json") | {"num_hidden_layers": 3})
    line = train(run, world, tmp_path, student=other).refusal()
    assert line.startswith(f"{other}: 9 weights missing for the model that config.json describes (model.layers.2.")


def test_a_missing_teacher(run: Run, tmp_path: Path) -> None:
    where = ["--out", tmp_path / "model", "--record", tmp_path / "record.json", "--scale", "tiny"]
    rule = {"slice_per_mille": 40, "hold_out_words": False}
    fetch = ["stage", "fetch_teacher", "--name", "9B", "--options", rule, *where]
    assert run(*fetch, "--source", "shipped", "--spec", TEACHER).refusal().startswith("teacher '9B' does not ship with")
    gone = TEACHER | {"folder": str(tmp_path / "gone")}
    line = run(*fetch, "--source", "folder", "--spec", gone).refusal()
    assert line == f"{tmp_path}/gone: no such checkpoint folder"
    line = run(*fetch, "--source", "hub", "--spec", TEACHER | {"hub": "owner/name"}).refusal()
    assert "revision is None; expected the 40 hex digits of a commit" in line
    line = run(
        "stage", "cut_student", "--teacher", tmp_path / "gone", "--options", '{"init": "mixed", "depth": 1}', *where
    ).refusal()
    assert line.startswith(f"{tmp_path}/gone/config.json: no such file")


def test_an_empty_slice(run: Run, tmp_path: Path) -> None:
    (tmp_path / "documents.jsonl").write_text('{"text": "Lone document."}\n')
    corpus = {"source": "files", "files": [str(tmp_path / "*.jsonl")], "min_characters": 1, "slice_per_mille": 1}
    collect = ["--out", tmp_path / "d.parquet", "--record", tmp_path / "r.json", "--scale", "tiny"]
    line = run("stage", "collect_corpus", "--corpus", corpus, *collect).refusal()
    assert line.startswith("corpus: 1 documents read, 0 in a slice of 1 per mille; expected at least one document")
    assert not (tmp_path / "d.parquet").exists()
    line = run("stage", "collect_corpus", "--corpus", corpus | {"files": [str(tmp_path / "*.txt")]}, *collect).refusal()
    assert "*.txt" in line


@pytest.mark.parametrize("values", ["{", '{"method": "kd_lora"}', '{"method": "kd_lora", "shape": 1}', "[]"])
def test_values_that_are_none(run: Run, world: World, tmp_path: Path, values: str) -> None:
    assert train(run, world, tmp_path, recipe=values).refusal().startswith("--recipe: ")


def test_a_second_run_of_a_cell_is_refused(
    run: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from budgeted_lora.stages import train_cell as stage

    statuses = []

    def nested(*_: object, **__: object) -> SimpleNamespace:
        statuses.append(train(run, world, tmp_path))
        raise OSError(28, "No space left on device", "state")

    monkeypatch.setattr(stage, "train", nested)
    outer = train(run, world, tmp_path)
    assert "is using this folder; wait for it" in statuses[0].refusal()
    assert (outer.status, outer.err) == (1, "budgeted-lora: No space left on device: state\n")


def test_states_that_differ_are_refused_with_their_folder(
    run: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def restored(*_: object, **__: object) -> None:
        raise StatesDiffer("the processes read saved states of steps [4, 8]; expected one step, run again")

    monkeypatch.setattr("budgeted_lora.stages.train_cell.train", restored)
    line = train(run, world, tmp_path).refusal()
    assert line.startswith(f"{tmp_path}/state/c-")
    assert "saved states of steps [4, 8]" in line


# --- anything else


def test_a_diverged_training_is_status_1_and_one_line(run: Run, world: World, tmp_path: Path) -> None:
    recipe = make_recipe("kd_full", learning_rate=1e30, warmup_fraction=0.0).model_dump(mode="json")
    outcome = train(run, world, tmp_path, recipe=recipe)
    assert outcome.status == 1
    last = outcome.err.splitlines()[-1]
    assert last.startswith("budgeted-lora: ")
    assert "step" in last
    assert "Traceback" not in outcome.err


def test_a_file_in_the_way_is_status_1_and_one_line(run: Run, world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place = ["--out", tmp_path / "file" / "model", "--record", tmp_path / "r.json", "--scale", "tiny"]
    outcome = run(
        "stage", "cut_student", "--teacher", world.teacher, "--options", '{"init": "mixed", "depth": 1}', *place
    )
    assert outcome.status == 1
    assert outcome.err.splitlines()[-1].startswith("budgeted-lora: ")
    assert "Traceback" not in outcome.err


def test_the_installed_command_ends_like_that_too(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("budgeted-lora")), "plan", "--scale", "huge"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    scales = ", ".join(sorted(path.stem for path in (ROOT / "config").glob("*.yaml") if path.stem != "claims"))
    assert done.stderr == f"budgeted-lora: config/huge.yaml: no such scale file; expected one of: {scales}\n"


def test_the_version_and_where_it_comes_from(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        f" (commit {'a' * 40})": {"git_commit": "a" * 40, "git_dirty": False},
        f" (commit {'a' * 40}, with changes)": {"git_commit": "a" * 40, "git_dirty": True},
        "": {"git_commit": None, "git_dirty": None},
    }
    for words, state in said.items():
        monkeypatch.setattr("budgeted_lora.provenance.git_state", lambda state=state: state)
        assert run("--version") == Outcome(0, f"budgeted-lora {__version__}{words}\n", "")


# --- plan


KEYS = [
    "budget", "schedule", "kept", "svd", "dropped", "macs", "dense_macs", "speedup_vs_dense", "speedup_vs_lora",
    "param_reduction_pct", "train_compute", "modules",
]  # fmt: skip
PAPER = {  # method.md, section 6
    0.0: (0, 0, 42, 12_681_216, 4.05, 5.05, 80.2, 0.3805),
    0.4: (9, 0, 33, 29_491_200, 1.74, 2.17, 53.9, 0.5938),
    0.8: (17, 1, 24, 44_433_408 + 3840 * 26, 1.15, 1.44, 30.4, None),
}


def planned(run: Run, *arguments: object) -> list[dict]:
    outcome = run("plan", "--json", *arguments)
    assert (outcome.status, outcome.err) == (0, "")
    return json.loads(outcome.out)


def test_plan_of_the_papers_shape(run: Run) -> None:
    made = planned(
        run, "--layers", 6, "--hidden", 768, "--kv", 192, "--ffn", 3072, "--rank", 128, "--schedule", "short",
        "--budget", 0.0, "--budget", 0.4, "--budget", 0.8,
    )  # fmt: skip
    assert [item["budget"] for item in made] == list(PAPER)
    for item, (kept, svd, dropped, macs, dense, lora, reduction, compute) in zip(made, PAPER.values(), strict=True):
        assert list(item) == KEYS
        assert item["schedule"] == "short"
        assert (item["kept"], item["svd"], item["dropped"]) == (kept, svd, dropped)
        assert (item["macs"], item["dense_macs"]) == (macs, 51_314_688)
        assert item["speedup_vs_dense"] == pytest.approx(dense, abs=0.005)
        assert item["speedup_vs_lora"] == pytest.approx(lora, abs=0.005)
        assert item["param_reduction_pct"] == pytest.approx(reduction, abs=0.05)
        assert compute is None or item["train_compute"] == pytest.approx(compute, abs=5e-5)


def test_plan_of_every_module(run: Run) -> None:
    [item] = planned(run, "--budget", 0.8)
    assert len(item["modules"]) == 42
    assert all(list(module) == ["name", "d", "decision", "rank", "svd_rank", "macs"] for module in item["modules"])
    counts = {
        decision: [m["decision"] for m in item["modules"]].count(decision) for decision in ("keep", "svd", "drop")
    }
    assert (counts["keep"], counts["svd"], counts["drop"]) == (item["kept"], item["svd"], item["dropped"])
    assert sum(module["macs"] for module in item["modules"]) == item["macs"]
    [part] = [module for module in item["modules"] if module["decision"] == "svd"]
    assert (part["name"], part["d"], part["svd_rank"]) == ("model.layers.0.mlp.gate_proj", 0.4, 26)
    [item] = planned(run, "--budget", 0.4)
    [part] = [module for module in item["modules"] if module["d"] not in (0.0, 1.0)]
    assert (part["name"], part["d"], part["decision"]) == ("model.layers.3.mlp.gate_proj", 0.7, "keep")


def test_plan_flags(run: Run) -> None:
    default = planned(run)
    assert [item["budget"] for item in default] == [0.0, 0.4, 0.8]
    assert planned(run, "--budget", 0.8, "--r-max", 100)[0]["modules"][4]["svd_rank"] == 40
    assert planned(run, "--budget", 0.8, "--rank-multiple", 16)[0]["modules"][4]["svd_rank"] == 32
    assert planned(run, "--budget", 0.4, "--svd-threshold", 0.8)[0]["svd"] == 1
    assert planned(run, "--budget", 0.8, "--drop-threshold", 0.45)[0]["svd"] == 0
    computes = [planned(run, "--budget", 0, "--schedule", name)[0] for name in ("none", "short", "long")]
    assert [item["schedule"] for item in computes] == ["none", "short", "long"]
    assert [item["train_compute"] for item in computes] == pytest.approx([0.2471, 0.3805, 0.5805], abs=5e-5)
    assert "dense+LoRA" in run("plan").out


@pytest.mark.parametrize("scale", ["mini", "paper"])
def test_plan_of_a_shipped_scale_is_the_papers(
    run: Run, scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mini is the paper's student at one eighth of its width: another size, the same ratios and counts."""
    monkeypatch.chdir(tmp_path)  # where no student of an order of its own was compressed yet
    made = planned(run, "--scale", scale, "--config-folder", ROOT / "config")
    assert all(list(item) == KEYS for item in made)
    assert {item["schedule"] for item in made} == {"short"}
    greedy = {item["budget"]: item for item in made if item["kept"] + item["svd"] + item["dropped"] == 42}
    of_the_paper = [item for item in made if item["budget"] in PAPER]
    assert len(of_the_paper) >= len(PAPER)
    for budget, (kept, svd, dropped, _, dense, lora, reduction, compute) in PAPER.items():
        item = greedy[budget]
        assert (item["kept"], item["svd"], item["dropped"]) == (kept, svd, dropped)
        assert item["speedup_vs_dense"] == pytest.approx(dense, abs=0.005)
        assert item["speedup_vs_lora"] == pytest.approx(lora, abs=0.005)
        assert item["param_reduction_pct"] == pytest.approx(reduction, abs=0.05)
        assert compute is None or item["train_compute"] == pytest.approx(compute, abs=5e-5)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["compress", "--fast"], "No such option: --fast; see `budgeted-lora compress --help`"),
        (["compress"], "Missing argument 'model'; see `budgeted-lora compress --help`"),
        (["compres"], "No such command 'compres'"),
        (["cells", "--scale"], "Option '--scale' requires an argument"),
        (["plan", "--utilisation", "much"], "Invalid value for '--utilisation': "),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(run: Run, words: list[str], line: str) -> None:
    assert run(words).refusal().startswith(line)


def test_without_words_the_help_is_shown(run: Run) -> None:
    outcome = run()
    assert (outcome.status, outcome.err) == (2, "")
    assert "compress" in outcome.out
