"""What the file system and the machine bring along: permissions, locks it has not, settings of the user."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from budgeted_lora import files
from budgeted_lora.errors import BadInput
from budgeted_lora.files import atomic_folder, is_locked, lock, locked, write_text
from budgeted_lora.training.state import LOCK, locked_folder


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077], indirect=True)
def test_folders_and_files_follow_the_umask(tmp_path: Path, umask: int) -> None:
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "a").write_text("a")
    write_text(tmp_path / "file", "a")
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / "run.lock").touch()
    with pytest.raises(BadInput, match=r"run\.lock: cannot be locked .* expected a file system with flock"):
        is_locked(tmp_path / "run.lock")
    with pytest.raises(BadInput, match="expected a file system with flock"), locked(tmp_path):
        pass


def test_a_job_takes_its_lock_although_someone_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / LOCK).touch()
    asking = os.open(tmp_path / LOCK, os.O_RDONLY)
    assert lock(asking, shared=True)  # as `is_locked` does
    waited = []

    def pause(seconds: float) -> None:
        if not waited:
            os.close(asking)
        waited.append(seconds)

    monkeypatch.setattr(files.time, "sleep", pause)
    with locked_folder(tmp_path):
        assert waited == [files.PAUSE]
        assert is_locked(tmp_path / LOCK)
        with pytest.raises(BadInput, match=rf"process {os.getpid()} is using this folder"), locked_folder(tmp_path):
            pass
    assert len(waited) == files.TRIES


def test_other_errors_of_a_lock_are_as_they_were(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        lock(10_000)


DRAW = """
from pathlib import Path
import matplotlib.pyplot as plt
from budgeted_lora.reporting.figures.style import context, save
with context():
    figure, axes = plt.subplots(figsize=(3, 2))
    axes.plot([0, 1], [1, 2], label="a")
    axes.legend()
    save(figure, Path("."), "figure")
"""
RC = "lines.linestyle: :\nfont.size: 30\naxes.grid: True\naxes.facecolor: red\nbackend: TkAgg\naxes.titlecolor: blue\n"


def test_figures_do_not_follow_a_matplotlibrc(tmp_path: Path) -> None:
    for name, text in (("plain", None), ("own", RC)):
        (tmp_path / name).mkdir()
        if text:
            (tmp_path / name / "matplotlibrc").write_text(text)
        own = os.environ | {"MPLCONFIGDIR": str(tmp_path / "cache")}
        done = subprocess.run(
            [sys.executable, "-c", DRAW], cwd=tmp_path / name, env=own, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    for ending in ("svg", "png"):
        assert (tmp_path / "own" / f"figure.{ending}").read_bytes() == (
            tmp_path / "plain" / f"figure.{ending}"
        ).read_bytes()
