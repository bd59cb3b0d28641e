"""A full disk and read-only results: one line that names file and reason, status 1, and a rerun that goes on."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from fixtures.command_line import Outcome, Words, cache_words, compress_words, pretrain_words, status_of, train_words
from fixtures.training_world import World, make_recipe, make_world
from safetensors import SafetensorError

from budgeted_lora.files import atomic_folder, naming, sha256_file, write_text
from budgeted_lora.method import loop
from budgeted_lora.training import cache, pretrain, state

FULL = "No space left on device"
REASONS = {errno.ENOSPC: FULL, errno.EROFS: "Read-only file system", errno.EACCES: "Permission denied"}
STEPS = 12
Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    return make_world(tmp_path_factory.mktemp("world"), documents=200)


def training(world: World, out: Path, method: str = "kd_full") -> Words:
    return train_words(world, out, make_recipe(method, steps=STEPS))


def making_a_teacher(world: World, out: Path) -> Words:
    return pretrain_words(world, out, steps=6)


def caching_a_teacher(world: World, out: Path) -> Words:
    return cache_words(world, out, windows=80)


def compressing(world: World, trained: Path, out: Path) -> Words:
    return compress_words(world, trained, out, make_recipe("kd_full", steps=STEPS))


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of every stage's results, made without trouble."""
    out = tmp_path_factory.mktemp("whole")
    commands = training(world, out), making_a_teacher(world, out), caching_a_teacher(world, out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain.pretrain, "__kwdefaults__", pretrain.pretrain.__kwdefaults__ | {"checkpoint_every": 2})
        for words in (*commands, compressing(world, out / "cell" / "trained", out)):
            assert status_of(words) == 0
    return out


@pytest.fixture(autouse=True)
def _often_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    keywords = pretrain.pretrain.__kwdefaults__ | {"checkpoint_every": 2}
    monkeypatch.setattr(pretrain.pretrain, "__kwdefaults__", keywords)


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith(".") or path.name.endswith(".tmp")]


def counted(monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> list[int]:
    """Grows by one with every call of a function of a module."""
    real, calls = getattr(module, name), []
    monkeypatch.setattr(module, name, lambda *a, **k: calls.append(1) or real(*a, **k))
    return calls


def same_cell(out: Path, whole: Path) -> None:
    for name in ("trained/model.safetensors", "trained/adapter.json", "trained.sha256", "retention.csv"):
        assert (out / "cell" / name).read_bytes() == (whole / "cell" / name).read_bytes(), name
    assert not any((out / "state").iterdir())
    assert not leftovers(out)


# --- injected


def no_rename(patch: pytest.MonkeyPatch, name: str, *, code: int, after: int = 0) -> None:
    """Renaming to a file of this name fails, after so many times."""
    real, calls = os.replace, []

    def replace(source: Path, target: Path, **keywords: object) -> None:
        if Path(target).name == name:
            calls.append(1)
            if len(calls) > after:
                raise OSError(code, os.strerror(code), str(source), None, str(target))
        real(source, target, **keywords)

    patch.setattr(os, "replace", replace)


def no_fsync(patch: pytest.MonkeyPatch, part: str, *, after: int = 0) -> None:
    """fsync of a file with this in its path finds the disk full, after so many times; like the kernel, unnamed."""
    real, calls = os.fsync, []

    def fsync(handle: int) -> None:
        if part in os.readlink(f"/proc/self/fd/{handle}"):
            calls.append(1)
            if len(calls) > after:
                raise OSError(errno.ENOSPC, FULL)
        real(handle)

    patch.setattr(os, "fsync", fsync)


def no_safetensors(patch: pytest.MonkeyPatch, module: object, name: str, *, after: int = 0) -> None:
    """The library finds the disk full half-way through a file, after so many; it has an error of its own for that."""
    real, calls = getattr(module, name), []

    def save(tensors: object, path: Path, **keywords: object) -> None:
        calls.append(1)
        if len(calls) <= after:
            return real(tensors, path, **keywords)
        Path(path).write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    patch.setattr(module, name, save)


FAILURES = {
    "state, write": (lambda patch: no_safetensors(patch, state, "save_file", after=1), "state.safetensors", 4),
    "state, fsync": (lambda patch: no_fsync(patch, "state.safetensors", after=1), "state.safetensors", 4),
    "state, rename": (
        lambda patch: no_rename(patch, "state.safetensors", code=errno.ENOSPC, after=2), "state.safetensors", 8,
    ),
    "history": (lambda patch: no_fsync(patch, "/history.csv", after=4), "history.csv", 4),
    "retention": (lambda patch: no_fsync(patch, "/retention.csv", after=5), "retention.csv", 8),
}  # fmt: skip


@pytest.mark.parametrize(("fail", "file", "kept"), FAILURES.values(), ids=FAILURES.keys())
def test_training_goes_on_from_the_state_before(
    run: Run, world: World, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    fail: Callable[[pytest.MonkeyPatch], None], file: str, kept: int,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        fail(patch)
        line = run(training(world, tmp_path)).refusal(status=1)
    [folder] = (tmp_path / "state").iterdir()
    assert line == f"{FULL}: {folder / file}"
    assert not leftovers(tmp_path)
    steps = counted(monkeypatch, loop, "accumulate_gradients")
    assert run(training(world, tmp_path)).status == 0
    assert len(steps) == STEPS - kept
    same_cell(tmp_path, whole)


@pytest.mark.parametrize("code", REASONS)
@pytest.mark.parametrize("file", ["trained/model.safetensors", "trained/adapter.json", "history.csv", "retention.csv",
                                  "train.json", "trained.sha256"])  # fmt: skip
def test_results_of_training_that_cannot_be_written(
    run: Run, world: World, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, code: int
) -> None:
    """The last state waits until every result is in place, so nothing is trained twice."""
    with monkeypatch.context() as patch:
        no_rename(patch, Path(file).name, code=code)
        line = run(training(world, tmp_path)).refusal(status=1)
    assert line == f"{REASONS[code]}: {tmp_path / 'cell' / file}"
    assert not leftovers(tmp_path)
    assert not (tmp_path / "cell" / file).exists()
    steps = counted(monkeypatch, loop, "accumulate_gradients")
    assert run(training(world, tmp_path)).status == 0
    assert not steps
    same_cell(tmp_path, whole)


@pytest.mark.parametrize("file", ["state.safetensors", "model", "history.csv", "teacher.json", "model.sha256"])
def test_a_teacher(
    run: Run, world: World, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    words = making_a_teacher(world, tmp_path)
    with monkeypatch.context() as patch:
        if file == "model":
            no_fsync(patch, "/model.safetensors")
        else:
            no_rename(patch, file, code=errno.ENOSPC, after=file == "state.safetensors")
        line = run(words).refusal(status=1)
    [folder] = (tmp_path / "state").iterdir()
    assert line == f"{FULL}: {(folder if file == 'state.safetensors' else tmp_path) / file}"
    assert not leftovers(tmp_path)
    steps = counted(monkeypatch, pretrain, "next_token_loss")
    assert run(words).status == 0
    assert len(steps) == (4 if file == "state.safetensors" else 0)
    for name in ("model/model.safetensors", "model.sha256", "history.csv"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name
    assert not any((tmp_path / "state").iterdir())


@pytest.mark.parametrize("file", ["model", "compression.json", "model.sha256"])
def test_a_compressed_model(
    run: Run, world: World, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    words = compressing(world, whole / "cell" / "trained", tmp_path)
    with monkeypatch.context() as patch:
        if file == "model":
            no_fsync(patch, "/model.safetensors")
        else:
            no_rename(patch, file, code=errno.ENOSPC)
        line = run(words).refusal(status=1)
    assert line == f"{FULL}: {tmp_path / 'compressed' / file}"
    assert not leftovers(tmp_path)
    assert not (tmp_path / "compressed" / file).exists()
    assert run(words).status == 0
    assert sha256_file(tmp_path / "compressed" / "model") == sha256_file(whole / "compressed" / "model")


def test_what_a_library_says_is_told_in_the_systems_words(tmp_path: Path) -> None:
    for error in (
        SafetensorError("Error while serializing: I/O error: Permission denied (os error 13)"),
        OSError(errno.EACCES, "[Errno 13] Error opening file. Detail: permission"),
        OSError(errno.EACCES, "denied", str(tmp_path / ".file.x1.tmp")),
    ):
        with pytest.raises(PermissionError) as info, naming(tmp_path / "file"):
            raise error
        assert (info.value.strerror, info.value.filename) == ("Permission denied", str(tmp_path / "file"))
    with pytest.raises(FileNotFoundError) as info, naming(tmp_path / "file"):
        (tmp_path / "input").read_text()
    assert info.value.filename == str(tmp_path / "input")  # another file's trouble stays its own
    with pytest.raises(ValueError, match="other"), naming(tmp_path / "file"):
        raise ValueError("other")


# --- a real file system


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with a megabyte of room, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, *, free: int) -> Path:
    """Takes all of the disk but so many bytes."""
    room = os.statvfs(disk)
    filler = disk / "filler"
    filler.write_bytes(bytes(max(0, room.f_bavail * room.f_frsize - free)))
    return filler


@pytest.mark.parametrize("pages", [0, 1, 3, 6, 20, 40])
def test_a_disk_that_fills_up_on_training(run: Run, world: World, whole: Path, small_disk: Path, pages: int) -> None:
    """From no room for the lock's process id to room for all but the last results."""
    filler = fill(small_disk, free=4096 * pages)
    line = run(training(world, small_disk)).refusal(status=1)
    assert line.startswith(f"{FULL}: {small_disk}/")
    filler.unlink()
    assert not leftovers(small_disk)
    assert run(training(world, small_disk)).status == 0
    same_cell(small_disk, whole)


def test_a_disk_that_fills_up_on_caching(
    run: Run, world: World, whole: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filler = fill(small_disk, free=4096 * 12)
    line = run(caching_a_teacher(world, small_disk)).refusal(status=1)
    [folder] = (small_disk / "state").iterdir()
    assert line == f"{FULL}: {folder / 'hidden.bin'}"
    filler.unlink()
    passes = counted(monkeypatch, cache, "final_hidden")
    assert run(caching_a_teacher(world, small_disk)).status == 0
    assert 0 < len(passes) < 40
    assert sha256_file(small_disk / "cache" / "hidden.bin") == sha256_file(whole / "cache" / "hidden.bin")
    assert not leftovers(small_disk)


@pytest.mark.parametrize("pages", [1, 3, 8])
def test_a_disk_that_fills_up_on_compression(run: Run, world: World, whole: Path, small_disk: Path, pages: int) -> None:
    words = compressing(world, whole / "cell" / "trained", small_disk)
    filler = fill(small_disk, free=4096 * pages)
    line = run(words).refusal(status=1)
    assert line.startswith(f"{FULL}: {small_disk}/compressed/")
    filler.unlink()
    assert not leftovers(small_disk)
    assert run(words).status == 0
    assert sha256_file(small_disk / "compressed" / "model") == sha256_file(whole / "compressed" / "model")


def test_results_that_become_read_only(
    run: Run, world: World, whole: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        no_fsync(patch, "/history.csv", after=4)
        assert run(training(world, small_disk)).status == 1
    before = sha256_file(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    commands = training(world, small_disk), making_a_teacher(world, small_disk), caching_a_teacher(world, small_disk)
    for words in (*commands, compressing(world, whole / "cell" / "trained", small_disk)):
        line = run(words).refusal(status=1)
        assert line.startswith(f"Read-only file system: {small_disk}/")
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert sha256_file(small_disk) == before
    steps = counted(monkeypatch, loop, "accumulate_gradients")
    assert run(training(world, small_disk)).status == 0
    assert len(steps) == STEPS - 4
    same_cell(small_disk, whole)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_may_not_be_written(run: Run, world: World, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir(mode=0o500)
    line = run(training(world, tmp_path / "results")).refusal(status=1)
    assert line.startswith(f"Permission denied: {tmp_path}/results/")


def test_text_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "file", "old")
    with monkeypatch.context() as patch:
        no_fsync(patch, "/.file.")
        with pytest.raises(OSError, match=FULL) as info:
            write_text(tmp_path / "file", "new")
    assert info.value.filename == str(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "old"
    assert not leftovers(tmp_path)


def test_a_folder_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("old", "new"):
        with atomic_folder(tmp_path / "model") as folder:
            (folder / text).write_text(text)
    assert [file.name for file in (tmp_path / "model").iterdir()] == ["new"]
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if Path(target).name == "model" and (Path(source) / "newest").exists():
            raise OSError(errno.EROFS, REASONS[errno.EROFS])
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="Read-only"), atomic_folder(tmp_path / "model") as folder:
        (folder / "newest").write_text("newest")
    assert [file.name for file in (tmp_path / "model").iterdir()] == ["new"]
    assert not leftovers(tmp_path)
