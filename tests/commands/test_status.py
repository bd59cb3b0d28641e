"""What `cells`, `why` and `prune` say of results that the stages themselves wrote: done, missing, stale, unused."""

import fcntl
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fixtures.tiny_scale import SCALE, TINY, write_scale
from fixtures.training_world import VOCABULARY, make_world, write_tokenizer

from budgeted_lora.commands import app as cli
from budgeted_lora.commands.status import CellStatus, Inspector, changes
from budgeted_lora.config.sections import EvaluationOptions
from budgeted_lora.data.tokens import write_tokens
from budgeted_lora.files import is_locked, read_json, write_record, write_text
from budgeted_lora.stages.compress_cell import compress_cell
from budgeted_lora.stages.cut_student import cut_student
from budgeted_lora.stages.evaluate import evaluate
from budgeted_lora.stages.train_cell import train_cell
from budgeted_lora.training.state import LOCK, locked_folder
from budgeted_lora.workflow import options
from budgeted_lora.workflow.graph import Graph


def configured(folder: Path, **over: object) -> Graph:
    """The scale with some sections replaced, key by key."""
    return write_scale(folder, SCALE, over)


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which the stages made the first of two cells, from made-up tokens and a made-up teacher."""
    folder = tmp_path_factory.mktemp("computed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        compute(folder)
    return folder


def compute(folder: Path) -> None:
    graph, data, teacher = configured(folder), TINY / "data", TINY / "teachers/A/model"
    data.mkdir(parents=True)
    make_world(folder)
    shutil.move("teacher", teacher.parent.parent / "new")
    teacher.parent.mkdir()
    shutil.move(teacher.parent.parent / "new", teacher)
    for name in ("train", "validation", "functions"):
        documents = torch.randint(1, VOCABULARY, (40, 20), generator=torch.Generator().manual_seed(1)).tolist()
        write_tokens(data / f"{name}.bin", iter(documents), vocab_size=VOCABULARY, eos_id=0)
    write_tokenizer(data / "tokenizer")
    cell = next(iter(graph.cells))
    student = TINY / "students" / graph.student_of(cell) / "model"
    cut_student(
        **options.student(graph, graph.student_of(cell)),
        teacher=teacher, out=student, record=student.parent / "student.json", scale="tiny",
    )  # fmt: skip
    place, recipe, threads = TINY / "cells" / cell, graph.recipe_of(cell), graph.config.threads
    train_cell(
        recipe=recipe, cell=cell, scale="tiny", student=student, teacher=teacher, tokens=data / "train.bin",
        cache=None, out=place, state=TINY / "state", device="cpu", threads=threads.training, log_every=2,
        checkpoint_every=100,
    )  # fmt: skip
    out = place / "compressed/default"
    compress_cell(
        recipe=recipe, cell=cell, scale="tiny", student=student, trained=place / "trained",
        tokens=data / "validation.bin", tokenizer=data / "tokenizer", variant=graph.config.compression,
        out=out, threads=threads.evaluation,
    )  # fmt: skip
    evaluate(
        model=out / "model", student=student, uncompressed=place / "trained", tokens=data, tokenizer=data / "tokenizer",
        out=out, evaluation=EvaluationOptions(**options.evaluation(graph)), scale="tiny", cell=cell, device="cpu",
        threads=threads.evaluation, icl=False,
    )  # fmt: skip


@pytest.fixture
def here(computed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working folder."""
    shutil.copytree(computed, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def statuses(folder: Path, **over: object) -> list[CellStatus]:
    return Inspector(configured(folder, **over)).cells()


def first(folder: Path) -> Path:
    return TINY / "cells" / next(iter(configured(folder).cells))


# --- status


def test_what_the_stages_wrote_is_done_and_the_rest_missing(here: Path) -> None:
    made, other = statuses(here)
    assert (made.state, made.detail, made.running) == ("done", (), False)
    assert {status.stage.name: status.state for status in made.stages if status.stage.own} == {
        "train": "done", "compress": "done", "score": "done",
    }  # fmt: skip
    assert (other.state, other.detail) == ("missing", ())


def test_the_mark_that_snakemake_lays_in_a_folder_changes_nothing(here: Path) -> None:
    for folder in (first(here) / "trained", first(here) / "compressed/default/model", TINY / "teachers/A/model"):
        (folder / ".snakemake_timestamp").touch()
    assert statuses(here)[0].state == "done"


@pytest.mark.parametrize("name", ["history.csv", "trained.sha256", "compressed/default/perplexity_windows.parquet"])
def test_a_part_that_is_missing_is_named(here: Path, name: str) -> None:
    (first(here) / name).unlink()
    [made, _] = statuses(here)
    assert made.state == "missing"
    assert Path(name).name in made.detail[0]


def test_a_cell_that_is_trained_only(here: Path) -> None:
    shutil.rmtree(first(here) / "compressed")
    [made, _] = statuses(here)
    assert made.state == "missing"
    assert made.detail == ("has train; lacks compress (no files yet), score (no files yet)",)


@pytest.mark.parametrize(
    ("over", "stage", "line"),
    [
        ({"evaluation": {"batch_windows": 3}}, "score", "perplexity.json: batch_windows: 16 -> 3"),
        ({"compression": {"r_max": 5}}, "compress", "compression.json: settings.r_max: 64 -> 5"),
        ({"threads": {"training": 2}}, "train", "train.json: threads: 1 -> 2"),
    ],
    ids=["evaluation", "compression", "threads"],
)
def test_another_value_is_stale_from_its_stage_on(here: Path, over: dict, stage: str, line: str) -> None:
    [made, _] = statuses(here, **over)
    assert made.state == "stale"
    assert f"{stage}: {line}" in made.detail
    names = ["train", "compress", "score"]
    states = {status.stage.name: status.state for status in made.stages if status.stage.own}
    behind = names.index(stage)
    assert [states[name] for name in names] == ["done"] * behind + ["stale"] * (3 - behind)


def test_other_bytes_of_an_input_are_stale(here: Path) -> None:
    file = TINY / "data/validation.bin"
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    [made, _] = statuses(here)
    assert made.state == "stale"
    assert any(line.startswith(f"compress: compression.json: {file} was ") for line in made.detail)
    assert any(line.startswith(f"score: perplexity.json: {file} was ") for line in made.detail)
    assert not any(line.startswith("train") for line in made.detail)


def test_an_input_that_is_gone_is_a_note(here: Path) -> None:
    shutil.rmtree(TINY / "teachers")
    [made, _] = statuses(here)
    assert made.state == "done"
    [train] = [status for status in made.stages if status.stage.name == "train"]
    assert train.notes == ("train.json: results/tiny/teachers/A/model is gone and was not compared",)


@pytest.mark.parametrize("text", ["{}", "[1]", '{"provenance": {"values": 3, "inputs": {}}}'])
def test_a_record_that_says_nothing_is_stale(here: Path, text: str) -> None:
    (first(here) / "train.json").write_text(text)
    [made, _] = statuses(here)
    assert made.state == "stale"
    assert "train: train.json records nothing about itself" in made.detail


def test_mixed_library_versions_are_mentioned_and_not_stale(here: Path) -> None:
    record = read_json(first(here) / "train.json")
    record["provenance"]["libraries"]["numpy"] = "0.1"
    write_record(first(here) / "train.json", record)
    [made, _] = statuses(here)
    assert made.state == "done"
    assert made.detail[0].startswith("mixed versions of numpy (0.1, ")


def test_changes_key_by_key() -> None:
    old, new = {"a": 1, "b": {"c": 2, "d": None}, "e": 1}, {"a": 1, "b": {"c": 3, "d": None}, "f": [1]}
    assert changes(old, new, whole=True) == ["b.c: 2 -> 3", "e: 1 -> absent", "f: absent -> [1]"]
    assert changes(old, new, whole=False) == ["b.c: 2 -> 3"]
    assert changes({"a": 1.0, "b": None}, {"a": 1, "c": None}, whole=True) == []


def test_a_held_state_is_a_run(here: Path) -> None:
    state = TINY / "state" / f"{first(here).name}-0123"
    assert not is_locked(state / LOCK)
    with locked_folder(state):
        assert is_locked(state / LOCK)
        assert statuses(here)[0].running
    assert not statuses(here)[0].running


# --- the commands


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in this process: status, output, errors."""

    def go(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["budgeted-lora", *map(str, words)])
        capsys.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        return (status, *capsys.readouterr())

    return go


Run = Callable[..., tuple[int, str, str]]


def test_cells_lists_and_counts(here: Path, run: Run) -> None:
    made, other = configured(here).cells
    status, out, err = run("cells", "--scale", "tiny")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert [line.split() for line in lines[1:3]] == [[made, "done", "table6"], [other, "missing", "table6"]]
    assert lines[3:] == ["2 cells: 1 done, 1 missing"]
    _, out, _ = run("cells", "--scale", "tiny", "--config", "evaluation={batch_windows: 3}")
    assert out.splitlines()[-1] == "2 cells: 1 missing, 1 stale"
    assert "batch_windows: 16 -> 3" in out


def test_cells_as_json(here: Path, run: Run) -> None:
    status, out, _ = run("cells", "--scale", "tiny", "--json")
    listed = json.loads(out)
    assert status == 0
    assert [(item["status"], item["tables"]) for item in listed] == [("done", ["table6"]), ("missing", ["table6"])]
    assert listed[0]["stages"]["train"] == {"status": "done", "reasons": [], "notes": []}
    assert listed[0]["libraries"]["torch"]
    assert [item["differs"] for item in listed] == [{}, {"seed": 1}]


def test_cells_that_differ_in_one_constant_can_be_told_apart(here: Path, run: Run) -> None:
    more = ({}, {"betas": [0.8, 0.9]}, {"learning_rate": 0.5, "seed": 2})
    configured(here, tables={"table6": [{"method": "kd_lora", **values} for values in more]})
    _, out, _ = run("cells", "--scale", "tiny")
    assert [" ".join(line.split()[3:]) for line in out.splitlines()[:4]] == [
        "differs in", "", "betas=[0.8, 0.9]", "learning_rate=0.5",
    ]  # fmt: skip


def test_why_says_what_differs_and_what_changed(here: Path, run: Run) -> None:
    _, other = configured(here).cells
    status, out, _ = run("why", other[:-2], "--scale", "tiny")
    assert status == 0
    assert "  * seed" in out
    assert out.count("  * ") == 1
    assert "(default 0)" in out
    made = first(here).name
    configured(here, compression={"r_max": 5})
    _, out, _ = run("why", made, "--scale", "tiny")
    assert f"compress: stale  results/tiny/cells/{made}/compressed/default/" in out
    assert "    compression.json: settings.r_max: 64 -> 5" in out
    assert "score: stale" in out


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("kd-lora_A", "'kd-lora_A' begins the names of 2 cells: kd-lora_A_mixed_s0-"),
        ("kd-lora_B_mixed_s1", "no cell of scale tiny begins with 'kd-lora_B_mixed_s1'; near: kd-lora_A_mixed_s1-"),
    ],
)
def test_why_of_no_cell_is_one_line(here: Path, run: Run, word: str, expected: str) -> None:
    configured(here)
    status, out, err = run("why", word, "--scale", "tiny")
    assert (status, out) == (2, "")
    assert err.startswith(f"budgeted-lora: {expected}")
    assert err.count("\n") == 1


def test_a_value_that_is_no_assignment(here: Path, run: Run) -> None:
    status, _, err = run("cells", "--scale", "tiny", "--config", "rows")
    assert (status, err) == (2, "budgeted-lora: --config 'rows': expected KEY=VALUE\n")


# --- prune


def littered(folder: Path) -> set[str]:
    """Puts what no configuration uses among the results; its paths."""
    made = first(folder)
    names = {
        "cells/kd-full_A_mixed_s0-00000000/train.json", "teachers/B/model/config.json", "students/last/student.json",
        "speed/F0_r2_greedy-0000.json", "cache/A_9/hidden.bin",
    }  # fmt: skip
    for name in (*names, f"cells/{made.name}/compressed/gate0.3/compression.json"):
        write_text(TINY / name, "x")
    write_text(TINY / "logs/train_cell/kd-full_A_mixed_s0-00000000.log", "said")
    return {str(TINY / Path(*Path(name).parts[:2])) for name in names} | {str(made / "compressed/gate0.3")}


def test_prune_removes_what_is_unused_and_nothing_else(here: Path, run: Run) -> None:
    before = {path for path in TINY.rglob("*") if path.is_file()}
    paths = littered(here)
    status, out, _ = run("prune", "--scale", "tiny")
    assert status == 0
    assert {line.split()[2] for line in out.splitlines()[:6]} == paths
    assert out.splitlines()[-1] == "nothing was removed; --yes removes without asking"
    assert all(Path(path).exists() for path in paths)
    status, out, _ = run("prune", "--scale", "tiny", "--yes")
    assert (status, out.splitlines()[-1]) == (0, "10 B removed")
    assert {path for path in TINY.rglob("*") if path.is_file()} == before
    assert run("prune", "--scale", "tiny")[1] == "results/tiny: nothing to remove\n"


def test_prune_takes_caches_in_use_only_when_asked(here: Path, run: Run) -> None:
    cached = {"training": {"teacher_cache": "hidden"}}
    name = configured(here, **cached).cache_of(first(here).name).name
    configured(here, **cached)
    write_text(TINY / "cache" / name / "cache.json", "{}")
    assert run("prune", "--scale", "tiny")[1] == "results/tiny: nothing to remove\n"
    run("prune", "--scale", "tiny", "--cache", "--yes")
    assert not (TINY / "cache" / name).exists()
    assert statuses(here)[0].state == "done"


def test_prune_leaves_a_held_state(here: Path, run: Run) -> None:
    configured(here)
    for name in ("dead", "living"):
        write_text(TINY / "state" / name / "state.safetensors", "x")
        write_text(TINY / "state" / name / LOCK, "")
    assert run("prune", "--scale", "tiny", "--yes")[1] == "results/tiny: nothing to remove\n"
    with (TINY / "state/living" / LOCK).open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        _, out, _ = run("prune", "--scale", "tiny", "--state", "--yes")
        assert "living" not in out
    assert [path.name for path in (TINY / "state").iterdir()] == ["living"]


def test_prune_waits_for_snakemake(here: Path, run: Run) -> None:
    paths = littered(here)
    write_text(Path(".snakemake/locks/0.output.lock"), "results/other/x\nresults/tiny/cells.csv\n")
    status, _, err = run("prune", "--scale", "tiny", "--yes")
    assert status == 2
    assert err.startswith("budgeted-lora: results/tiny: Snakemake is at work here")
    assert all(Path(path).exists() for path in paths)


def test_prune_follows_no_link(here: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "kept").write_text("x")
    configured(here)
    (TINY / "teachers/old").symlink_to(elsewhere)
    assert run("prune", "--scale", "tiny", "--yes")[0] == 0
    assert not (TINY / "teachers/old").is_symlink()
    assert (elsewhere / "kept").exists()
