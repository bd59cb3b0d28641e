"""Files that appear whole or not at all, and the digests that tell them apart."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from budgeted_lora.errors import BadInput

SNAKEMAKE_MARK = ".snakemake_timestamp"
TRIES, PAUSE = 5, 0.1  # seconds between tries; whoever asks whether a lock is held, holds it for a moment
WITHOUT_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}
KINDS = {
    dict: "an object", list: "a list", str: "text", int: "a number", float: "a number", bool: "true or false",
    type(None): "null",
}  # fmt: skip
CONTENT = "content_sha256"  # the key under which a JSON record holds the digest of its other entries


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a file's bytes, or of a folder's (relative name, digest) list in sorted order.

    Snakemake's time stamp in a folder does not count: it says when, not what, and a copy of the folder may lack it.
    """
    path = Path(path)
    if path.is_dir():
        return hashlib.sha256("".join(_lines(path)).encode()).hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _lines(folder: Path) -> list[str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != SNAKEMAKE_MARK]
    return [f"{path.relative_to(folder)} {sha256_file(path)}\n" for path in files]


def write_digest(path: Path) -> None:
    """Writes `<path>.sha256`: the small file that later stages name as their input.

    Its first line is `sha256_file(path)`; those of a folder's files follow, so that damage can be traced to one.
    """
    lines = _lines(path) if path.is_dir() else []
    digest = hashlib.sha256("".join(lines).encode()).hexdigest() if path.is_dir() else sha256_file(path)
    write_text(_beside(path), "".join([f"{digest}\n", *lines]))


def check_digest(path: Path | str) -> None:
    """Compares a file or folder with the digest that `write_digest` left beside it, if there is one.

    Reads every byte: about a second for 1 to 2 GB on a core with SHA instructions, four times that without. So a job
    calls it once per input, before the work.

    Raises:
        BadInput: they differ; it names the file of a folder.
    """
    path = Path(path)
    beside = _beside(path)
    if not path.exists() or not beside.is_file():
        return
    digest, *lines = beside.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) or [""]
    if digest.strip() == sha256_file(path):
        return
    named = sorted(set(_lines(path)) ^ set(lines)) if path.is_dir() and lines else []
    damaged = path / named[0].rpartition(" ")[0] if named else path
    raise BadInput(f"{damaged}: its SHA-256 differs from the one in {beside}; delete {path} and rerun")


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def check_listed(path: Path, digests: Any) -> None:
    """Compares a file with its digest in the record beside it, if the record has one.

    Raises:
        BadInput: they differ.
    """
    expected = digests.get(path.name) if isinstance(digests, dict) else None
    if expected is not None and sha256_file(path) != expected:
        raise BadInput(f"{path}: its SHA-256 differs from the one in the record beside it; delete it and rerun")


def canonical_json(value: Any) -> str:
    """One line of JSON with sorted keys: the form that is hashed and passed between processes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def short_hash(value: Any, *, digits: int = 8) -> str:
    """First hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:digits]


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Makes a system error name `path`, unless it is about another file.

    A failed write or fsync names no file, one of `atomic_path` a temporary one, and libraries in Rust (safetensors)
    raise errors of their own kind.

    Raises:
        OSError: with number, reason and file.
    """
    path = Path(path)
    try:
        yield
    except OSError as error:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        if error.errno is None or (names and not any(f"{os.sep}.{path.name}." in f"{os.sep}{name}" for name in names)):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path in the same folder; on success it is fsynced and renamed to `path`."""
    path = Path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        finally:
            with suppress(OSError):  # on a file system that has become read-only the first error is the one to report
                temporary.unlink(missing_ok=True)


def _umask() -> int:
    """Permissions that new files lack here; `tempfile` gives its own only to their owner."""
    umask = os.umask(0)
    os.umask(umask)
    return umask


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; on success its files are fsynced and it replaces `path`."""
    path = Path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        temporary.chmod(0o777 & ~_umask())
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    with file.open("rb") as stream:
                        os.fsync(stream.fileno())
            _swap(temporary, path)
            _beside(path).unlink(missing_ok=True)  # the digest of the folder that is gone
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _swap(new: Path, path: Path) -> None:
    """Moves a folder to `path`; one that is there goes out of the way first, so that a kill never leaves half of it."""
    old = new.with_name(f"{new.name}.tmp")
    if path.is_dir():
        path.replace(old)
    try:
        new.replace(path)
    except OSError:
        if old.exists():
            old.replace(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path | str, text: str) -> None:
    """Writes UTF-8 text whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Writes readable JSON whole or not at all; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, sort_keys=False, allow_nan=False) + "\n")


def write_record(path: Path | str, value: dict[str, Any]) -> None:
    """Writes a JSON object with a digest of its content, which `read_json` compares."""
    value = {key: entry for key, entry in value.items() if key != CONTENT}
    write_json(path, value | {CONTENT: _content_digest(json.loads(json.dumps(value, allow_nan=False)))})


def _content_digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def read_json(path: Path | str, *, expected: str = "JSON written by an earlier stage", kind: type = dict) -> Any:
    """Reads JSON.

    Args:
        kind: of the outermost value, an object unless said otherwise; `object` takes any.

    Raises:
        BadInput: the file is missing, is not JSON, is JSON of another kind, or does not match its own digest.
    """
    value = _read_json(path, expected)
    if not isinstance(value, kind):
        raise BadInput(f"{path}: holds {KINDS[type(value)]}; expected {expected}")
    if isinstance(value, dict) and CONTENT in value:
        rest = {key: entry for key, entry in value.items() if key != CONTENT}
        try:
            whole = _content_digest(rest) == value[CONTENT]
        except ValueError:  # NaN, which no record holds
            whole = False
        if not whole:
            raise BadInput(f"{path}: does not match its own {CONTENT}; damaged or edited, expected {expected}")
    return value


def _read_json(path: Path | str, expected: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; expected {expected}") from None
    except RecursionError:
        raise BadInput(f"{path}: not JSON (nested too deeply); expected {expected}") from None
    except ValueError as error:  # also numbers of thousands of digits
        raise BadInput(f"{path}: not JSON ({error}); expected {expected}") from None


def write_with(path: Path | str, writer: Callable[[Path], Any]) -> None:
    """Calls `writer(temporary)` and moves what it wrote to `path`."""
    with atomic_path(path) as temporary:
        writer(temporary)


def lock(handle: int, *, shared: bool = False, wait: bool = False) -> bool:
    """Locks an open file or folder with flock, or converts the lock this descriptor already holds.

    The kernel releases the lock when the last copy of the descriptor is closed, so also when its process is killed.

    Args:
        handle: a file descriptor; `os.open` gives one that children do not inherit.
        shared: whether other processes may share the lock.
        wait: whether to block until the lock is free.

    Returns:
        Whether the lock is held now; False only without `wait`, if another process holds it.

    Raises:
        BadInput: the file system has no locks, as some network file systems are mounted.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(handle, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        raise BadInput(
            f"{_name_of(handle)}: cannot be locked ({error.strerror}); expected a file system with flock, which keeps "
            "two runs apart: mount it with locks, or put the folder on another one"
        ) from None
    return True


def lock_alone(handle: int) -> bool:
    """Locks an open file for this process alone; False only if another one keeps it for longer than `is_locked` does.

    Raises:
        BadInput: as `lock`.
    """
    for _ in range(TRIES - 1):
        if lock(handle):
            return True
        time.sleep(PAUSE)
    return lock(handle)


def _name_of(handle: int) -> str:
    """The file of a descriptor, as far as the system tells."""
    try:
        return os.readlink(f"/proc/self/fd/{handle}")
    except OSError:
        return "a lock file"


@contextmanager
def locked(path: Path | str) -> Iterator[None]:
    """Holds the lock of an existing file or folder for the body; waits while another process holds it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        lock(handle, wait=True)
        yield
    finally:
        os.close(handle)


def is_locked(path: Path | str) -> bool:
    """Whether a process holds the exclusive lock of a file; False if there is no such file.

    The system tells only whoever asks for the lock, so it is held here, shared, for a moment (see `lock_alone`).
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        return not lock(handle, shared=True)
    finally:
        os.close(handle)
