"""Damage between stages: a flipped bit or a cut in anything that one stage writes and another reads.

Every one is refused in a line that names the file, or set aside and made anew: nothing wrong comes out. The other
faults are injected elsewhere; docs/faults.md lists them all.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from fixtures.checkout import checkout
from fixtures.command_line import (
    ON_CPU,
    Outcome,
    Words,
    cache_words,
    compress_words,
    pretrain_words,
    status_of,
    train_words,
)
from fixtures.kills import stop_run
from fixtures.snakemake_runs import snakemake
from fixtures.training_world import LENGTH, VOCABULARY, World, make_recipe, make_world

from budgeted_lora import provenance
from budgeted_lora.commands import app as cli
from budgeted_lora.data.tokens import write_tokens
from budgeted_lora.errors import BadInput
from budgeted_lora.files import (
    CONTENT,
    canonical_json,
    check_digest,
    read_json,
    sha256_file,
    write_digest,
    write_record,
)
from budgeted_lora.method import loop
from budgeted_lora.reporting.results import FILES, Results, variant_folder
from budgeted_lora.training import cache, pretrain
from budgeted_lora.workflow.runs import VARIABLE, refuse_a_clock_set_back

Run = Callable[..., Outcome]
STEPS = 12


# --- a scale's folder, and the commands that read it


def training(root: Path, out: Path) -> Words:
    return train_words(World(root), out, make_recipe("budgeted_lora", steps=STEPS))


def training_from_cache(root: Path, out: Path) -> Words:
    return train_words(World(root), out, make_recipe("budgeted_lora", steps=STEPS), cache=root / "cache")


def making_a_teacher(root: Path, out: Path) -> Words:
    return pretrain_words(World(root), out, steps=6)


def caching(root: Path, out: Path) -> Words:
    return cache_words(World(root), out, windows=48, batch_windows=5)


def cutting(root: Path, out: Path) -> Words:
    return [
        "stage", "cut_student", "--teacher", root / "teacher", "--options", {"init": "last", "depth": 2}, "--out",
        out / "model", "--record", out / "student.json", "--scale", "tiny",
    ]  # fmt: skip


def measuring(root: Path, out: Path) -> Words:
    values = {"windows": 4, "batch_windows": 2, "sequence_length": LENGTH, "rows": "packed", "rank": 2}
    values |= {"removal_windows": 2}
    return [
        "stage", "measure_statistics", "--options", values, "--student", root / "student", "--tokens",
        root / "train.bin", "--out", out / "statistics", "--record", out / "statistics.json", *ON_CPU,
    ]  # fmt: skip


def compressing(root: Path, out: Path) -> Words:
    return compress_words(World(root), root / "cell" / "trained", out, make_recipe("budgeted_lora", steps=STEPS))


def scoring(root: Path, out: Path) -> Words:
    values = {
        "sequence_length": LENGTH, "rows": "packed", "validation_tokens": 320, "batch_windows": 4,
        "slice_per_mille": 40, "hold_out_words": False, "prompt_space": False,
    }  # fmt: skip
    return [
        "stage", "evaluate", "--evaluation", values, "--model", root / "compressed" / "model", "--student",
        root / "student", "--uncompressed", root / "cell" / "trained", "--tokens", root, "--tokenizer",
        root / "tokenizer", "--out", out / "compressed", "--icl", "false", *ON_CPU,
    ]  # fmt: skip


def tokenizing(root: Path, out: Path) -> Words:
    values = {
        "train_tokens": 100, "validation_tokens": 10, "function_share": 0.0, "slice_per_mille": 40,
        "hold_out_words": False, "prompt_space": False,
    }  # fmt: skip
    return [
        "stage", "tokenize_corpus", "--options", values, "--documents", root / "documents.parquet", "--collected",
        root / "corpus.json", "--tokenizer", root / "tokenizer", "--out", out, "--scale", "tiny",
    ]  # fmt: skip


def training_a_tokenizer(root: Path, out: Path) -> Words:
    values = {
        "vocab_size": 300, "function_share": 0.0, "slice_per_mille": 40, "hold_out_words": False, "prompt_space": False,
    }  # fmt: skip
    return [
        "stage", "train_tokenizer", "--options", values, "--documents", root / "documents.parquet", "--out", out / "t",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def scale(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage's results, made one from the other in one folder."""
    torch.set_num_threads(1)
    root = make_world(tmp_path_factory.mktemp("scale"), documents=200).root
    for name in ("validation", "functions"):
        documents = torch.randint(1, VOCABULARY, (40, 20), generator=torch.Generator().manual_seed(1)).tolist()
        write_tokens(root / f"{name}.bin", iter(documents), vocab_size=VOCABULARY, eos_id=0)
    (root / "documents.parquet").write_text("its bytes matter here, not what they say")
    for name in ("teacher", "student", "tokenizer", "documents.parquet"):
        write_digest(root / name)
    for make in (caching, training_from_cache, making_a_teacher, compressing, scoring):
        assert status_of(make(root, root)) == 0
    return root


@pytest.fixture
def copy(scale: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(scale, tmp_path / "scale"))


def flip(path: Path, *, at: float = 0.9) -> None:
    """Flips one bit at a share of a file; after nine tenths are weights, not a header."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 4
    path.write_bytes(data)


def cut(path: Path) -> None:
    """Leaves half of a file."""
    os.truncate(path, path.stat().st_size // 2)


# --- what a stage reads

READERS: dict[Callable[[Path, Path], Words], tuple[str, ...]] = {
    training_a_tokenizer: ("documents.parquet",),
    tokenizing: ("documents.parquet", "tokenizer/tokenizer.json"),
    training: (
        "train.bin", "train.idx", "train.json", "student/model.safetensors", "student/config.json",
        "teacher/model.safetensors",
    ),
    training_from_cache: ("teacher/model.safetensors", "cache/hidden.bin", "cache/cache.json"),
    making_a_teacher: ("train.bin", "train.idx", "train.json", "tokenizer/tokenizer.json"),
    caching: ("train.bin", "train.idx", "teacher/model.safetensors"),
    cutting: ("teacher/model.safetensors",),
    measuring: ("train.bin", "student/model.safetensors"),
    compressing: (
        "cell/trained/model.safetensors", "cell/trained/adapter.json", "student/model.safetensors", "train.bin",
        "tokenizer/tokenizer.json",
    ),
    scoring: (
        "compressed/model/model.safetensors", "compressed/model/config.json", "cell/trained/model.safetensors",
        "validation.bin", "validation.idx", "functions.bin",
    ),
}  # fmt: skip
CASES = [(reader, name) for reader, names in READERS.items() for name in names]
IDS = [f"{reader.__name__}-{name}" for reader, name in CASES]


@pytest.mark.parametrize("damage", [flip, cut])
@pytest.mark.parametrize(("reader", "name"), CASES, ids=IDS)
def test_damage_is_refused_by_name(
    run: Run, copy: Path, tmp_path: Path, reader: Callable[[Path, Path], Words], name: str,
    damage: Callable[[Path], None],
) -> None:  # fmt: skip
    damage(copy / name)
    line = run(reader(copy, tmp_path / "out")).refusal()
    named = (copy / name, (copy / name).parent) if damage is cut else (copy / name,)  # a library tells of the folder
    assert line.startswith(tuple(f"{path}: " for path in named)), line
    made = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not made


def test_the_digest_of_a_folder_names_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("a b.json", "c"):
        (folder / name).write_text(name)
    check_digest(folder)  # none beside it: nothing to compare with
    write_digest(folder)
    assert (tmp_path / "model.sha256").read_text().splitlines()[0] == sha256_file(folder)
    (folder / ".snakemake_timestamp").touch()
    check_digest(folder)
    for name, change in {
        "a b.json": lambda path: path.write_text("other"),
        "c": lambda path: path.unlink(),
        "d": lambda path: path.write_text("new"),
    }.items():
        before = {path: path.read_text() for path in folder.iterdir()}
        change(folder / name)
        with pytest.raises(BadInput, match=rf"^{folder / name}: its SHA-256 differs from the one in {folder}.sha256"):
            check_digest(folder)
        shutil.rmtree(folder)
        folder.mkdir()
        for path, text in before.items():
            path.write_text(text)
        check_digest(folder)


# --- results


def test_every_flipped_bit_of_a_result_is_refused_or_harmless(scale: Path, tmp_path: Path) -> None:
    """Harmless is a flip in white space, or in the name of the digest, which leaves all else as it was."""
    path, record = tmp_path / "perplexity.json", read_json(scale / "compressed" / "perplexity.json")
    whole = (scale / "compressed" / "perplexity.json").read_bytes()
    refused = 0
    for bit in range(0, 8 * len(whole), 7):  # every bit of a byte in turn
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        value, line = refused_or_read(path)
        refused += value is None
        assert (
            line.startswith(f"{path}: ")
            if value is None
            else [value[key] for key in record if key != CONTENT] == [record[key] for key in record if key != CONTENT]
        )
    assert refused > len(whole)


def refused_or_read(path: Path) -> tuple[dict | None, str]:
    """A JSON file's content, or none and the refusal."""
    try:
        return read_json(path), ""
    except BadInput as error:
        return None, str(error)


def test_every_cut_of_a_result_is_refused(scale: Path, tmp_path: Path) -> None:
    path, whole = tmp_path / "train.json", (scale / "cell" / "train.json").read_bytes()
    for size in range(0, len(whole) - 2, 17):
        path.write_bytes(whole[:size])
        with pytest.raises(BadInput, match=rf"^{path}: not JSON"):
            read_json(path)


def test_a_record_may_hold_what_json_changes(tmp_path: Path) -> None:
    write_record(tmp_path / "x.json", {"numbers": {10: 1e-7, 9: 0.1 + 0.2}, "pair": (1, None), "text": "ü\ud800"})
    assert read_json(tmp_path / "x.json")["pair"] == [1, None]
    write_record(tmp_path / "y.json", read_json(tmp_path / "x.json"))
    assert (tmp_path / "x.json").read_bytes() == (tmp_path / "y.json").read_bytes()
    (tmp_path / "x.json").write_text('{"value": NaN, "content_sha256": "0"}')
    with pytest.raises(BadInput, match="does not match its own content_sha256"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("damage", [flip, cut])
@pytest.mark.parametrize("name", ["history.csv", "retention.csv", "perplexity_windows.parquet", "perplexity.json"])
def test_a_report_refuses_damaged_results(
    scale: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "cells" / "c"
    shutil.copytree(scale / "cell", folder)
    shutil.copytree(scale / "compressed", folder / "compressed" / "default")
    results = Results(tmp_path, pd.DataFrame())
    read = {
        "history.csv": lambda: results.history("c"),
        "retention.csv": lambda: results.retention("c"),
        "perplexity_windows.parquet": lambda: results.windows(variant_folder("c", "default")),
        "perplexity.json": lambda: results.json(FILES["perplexity"].format(cell="c", variant="default")),
    }[name]
    assert len(read())
    path = next(folder.rglob(name))
    damage(path)
    with pytest.raises(BadInput, match=rf"^{path}: "):
        read()


# --- states


def killed_in(module: object, name: str, words: Words, *, after: int) -> None:
    """Runs a command until the `after`-th call of a function of a module, and stops in the next."""
    text = [canonical_json(word) if isinstance(word, dict) else str(word) for word in words]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["budgeted-lora", *text])
        stop_run(patch, module, name, cli.main, after=after)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Callable[[object, str], list[int]]:
    """Grows by one with every call of a function of a module."""

    def count(module: object, name: str) -> list[int]:
        real, calls = getattr(module, name), []
        monkeypatch.setattr(module, name, lambda *a, **k: calls.append(1) or real(*a, **k))
        return calls

    return count


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_header(path: Path) -> None:
    flip(path, at=0.02)


STATES = [("state.safetensors", damage) for damage in (flip, flip_header, cut, empty)]
STATES += [("history.csv", cut), ("history.csv", flip), ("retention.csv", Path.unlink)]


@pytest.mark.parametrize(("name", "damage"), STATES, ids=[f"{name}-{how.__name__}" for name, how in STATES])
def test_a_damaged_state_is_set_aside(
    run: Run, scale: Path, tmp_path: Path, steps: Callable, name: str, damage: Callable[[Path], None]
) -> None:
    words = training_from_cache(scale, tmp_path)
    killed_in(loop, "accumulate_gradients", words, after=9)
    [folder] = (tmp_path / "state").iterdir()
    damage(folder / name)
    counted = steps(loop, "accumulate_gradients")
    outcome = run(words)
    assert outcome.status == 0, outcome.err
    [line] = [line for line in outcome.err.splitlines() if line.startswith("budgeted-lora: ")]
    assert line.startswith(f"budgeted-lora: {folder / name}: ")
    assert line.endswith("; set aside as state.safetensors.damaged, this run starts over")
    assert len(counted) == STEPS
    assert sha256_file(tmp_path / "cell" / "trained") == sha256_file(scale / "cell" / "trained")
    for table in ("history.csv", "retention.csv"):
        frames = [pd.read_csv(root / "cell" / table) for root in (scale, tmp_path)]
        pd.testing.assert_frame_equal(*(frame.drop(columns="tokens_per_second", errors="ignore") for frame in frames))
    assert not any((tmp_path / "state").iterdir())


def test_a_teachers_damaged_state_is_set_aside(
    run: Run, scale: Path, tmp_path: Path, steps: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    keywords = pretrain.pretrain.__kwdefaults__ | {"checkpoint_every": 2}
    monkeypatch.setattr(pretrain.pretrain, "__kwdefaults__", keywords)
    words = making_a_teacher(scale, tmp_path)
    killed_in(pretrain, "next_token_loss", words, after=5)
    [file] = (tmp_path / "state").glob("*/state.safetensors")
    flip(file)
    counted = steps(pretrain, "next_token_loss")
    outcome = run(words)
    assert outcome.status == 0, outcome.err
    assert f"budgeted-lora: {file}: its content does not match the digest it was saved with; set aside" in outcome.err
    assert len(counted) == 6
    assert sha256_file(tmp_path / "model") == sha256_file(scale / "model")


def zero_pages(path: Path) -> None:
    """What a power failure may leave of a file that was not synced: its length, and nothing in it."""
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("name", "damage", "kept"),
    [
        ("hidden.bin", lambda path: flip(path, at=0.6), 3), ("hidden.bin", cut, 3), ("hidden.bin", zero_pages, 0),
        ("batches.sha256", lambda path: flip(path, at=0.5), 3), ("batches.sha256", cut, 3),
        ("batches.sha256", Path.unlink, 0),
    ],
)  # fmt: skip
def test_a_cache_goes_on_from_its_last_whole_batch(
    run: Run, scale: Path, tmp_path: Path, steps: Callable, name: str, damage: Callable[[Path], None], kept: int
) -> None:
    words = caching(scale, tmp_path)  # 48 windows: nine batches of five, and one of three
    killed_in(cache, "final_hidden", words, after=6)
    [folder] = (tmp_path / "state").iterdir()
    damage(folder / name)
    counted = steps(cache, "final_hidden")
    assert run(words).status == 0
    assert len(counted) == 10 - kept
    for file in ("hidden.bin", "cache.json"):
        assert (tmp_path / "cache" / file).read_bytes() == (scale / "cache" / file).read_bytes()


def test_a_whole_cache_without_its_name_is_not_computed_again(
    run: Run, scale: Path, tmp_path: Path, steps: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = caching(scale, tmp_path)
    killed_in(cache, "write_record", words, after=0)
    counted = steps(cache, "final_hidden")
    assert run(words).status == 0
    assert not counted
    assert (tmp_path / "cache" / "cache.json").read_bytes() == (scale / "cache" / "cache.json").read_bytes()


# --- the clock


@pytest.fixture
def _clock_that_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of day falls by an hour with every look at it."""
    import datetime
    import time

    now = [time.time()]

    def earlier() -> float:
        now[0] -= 3600
        return now[0]

    class Backwards(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return datetime.datetime.fromtimestamp(earlier(), tz)

    monkeypatch.setattr(time, "time", earlier)
    monkeypatch.setattr(provenance, "datetime", Backwards)


@pytest.mark.usefixtures("_clock_that_goes_back")
def test_a_clock_that_goes_back_changes_no_result(run: Run, scale: Path, tmp_path: Path) -> None:
    words = training_from_cache(scale, tmp_path)
    killed_in(loop, "accumulate_gradients", words, after=9)
    assert run(words).status == 0
    about = read_json(tmp_path / "cell" / "train.json")
    assert about["provenance"]["seconds"] > 0
    assert about["train_seconds"] > 0
    assert about["tokens_per_second"] > 0
    assert (pd.read_csv(tmp_path / "cell" / "history.csv")["tokens_per_second"] > 0).all()
    assert sha256_file(tmp_path / "cell" / "trained") == sha256_file(scale / "cell" / "trained")


@pytest.mark.parametrize("name", ["run.lock", "jobs.lock", "benchmarks/train_cell/c.tsv"])
def test_no_run_begins_while_the_clock_is_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    refuse_a_clock_set_back(tmp_path / "none")
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    refuse_a_clock_set_back(tmp_path)
    ahead = path.stat().st_mtime + 3600
    os.utime(path, (ahead, ahead))
    with pytest.raises(BadInput, match=rf"^{tmp_path}: its last job ended 3[56]\d\d s in the future") as refused:
        refuse_a_clock_set_back(tmp_path)
    with monkeypatch.context() as patch:
        patch.setenv(VARIABLE, f"x {tmp_path}")
        refuse_a_clock_set_back(tmp_path)  # in a job, perhaps on another machine
    subprocess.run(str(refused.value).partition("run: ")[2], shell=True, check=True)
    refuse_a_clock_set_back(tmp_path)


def test_the_workflow_asks_the_clock_first(tmp_path: Path) -> None:
    (checkout(tmp_path) / "results" / "smoke").mkdir(parents=True)
    lock = tmp_path / "results" / "smoke" / "run.lock"
    lock.touch()
    os.utime(lock, (lock.stat().st_mtime + 3600,) * 2)
    planned = snakemake(tmp_path, "--dry-run", "all", "--config", "scale=smoke")
    assert planned.returncode == 2
    assert planned.stderr.splitlines()[-1].startswith("budgeted-lora: results/smoke: its last job ended ")


def test_no_duration_is_told_by_the_time_of_day() -> None:
    """The one place that asks for it compares dates of files; another notes when a stage began."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in Path(provenance.__file__).parent.rglob("*.py")}
    assert [name for name, text in texts.items() if "time.time(" in text] == ["runs.py"]
    assert [name for name, text in texts.items() if "datetime.now(" in text] == ["provenance.py"]
