"""The format of an archive: a compressed tar that begins with a manifest of everything in it.

It is read as a stream, from the first byte to the last, so that nothing in it is trusted before it is verified.
"""

import gzip
import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import zstandard
from pydantic import Field, ValidationError

from budgeted_lora.commands.snakemake_records import of_scale
from budgeted_lora.config.types import Strict
from budgeted_lora.errors import BadInput

ENDINGS = (".tar.zst", ".tar.gz", ".tgz")
MANIFEST, DIGEST, RECORDS = "manifest.json", "manifest.sha256", "metadata.json"
LARGEST_MANIFEST = 256 * 2**20
BLOCK = 2**20
DAMAGE = (tarfile.TarError, zstandard.ZstdError, gzip.BadGzipFile, zlib.error, EOFError, ValueError)


class Entry(Strict):
    """One file of an archive."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)
    mtime_ns: int = Field(ge=0)


class Manifest(Strict):
    """The contents of an archive; `records` is the entry of metadata.json, Snakemake's records by output."""

    format: int = Field(1, ge=1, le=1)
    scale: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")
    package_version: str
    git_commit: str | None = None
    records: Entry
    files: dict[str, Entry]

    @property
    def total_bytes(self) -> int:
        return sum(entry.bytes for entry in self.files.values())


def member(name: str, *, size: int, mtime: int = 0) -> tarfile.TarInfo:
    about = tarfile.TarInfo(name)
    about.size, about.mtime, about.mode = size, mtime, 0o644
    return about


def digest_line(content: bytes) -> bytes:
    return f"{hashlib.sha256(content).hexdigest()}\n".encode()


class Hashing:
    """A reader that digests what passes through it."""

    def __init__(self, source: BinaryIO) -> None:
        self.source, self.sha256 = source, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        block = self.source.read(size)
        self.sha256.update(block)
        return block


class ZstdFrame(io.RawIOBase):
    """One zstd frame, decompressed; unlike zstandard's own reader it refuses a truncated frame."""

    def __init__(self, source: BinaryIO) -> None:
        self.source, self.frame = source, zstandard.ZstdDecompressor().decompressobj()
        self.waiting = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not self.waiting:
            block = self.source.read(2**17)
            if not block and not self.frame.eof:
                raise EOFError("the end is missing")
            if not block:
                return 0
            if not self.frame.eof:
                self.waiting = memoryview(self.frame.decompress(block))
                block = self.frame.unused_data if self.frame.eof else b""
            if block:
                raise ValueError("something follows the end")
        count = min(len(buffer), len(self.waiting))
        buffer[:count], self.waiting = self.waiting[:count], self.waiting[count:]
        return count


@contextmanager
def writing(path: Path, *, name: str) -> Iterator[tarfile.TarFile]:
    """A tar for writing, compressed as the archive's name says."""
    with ExitStack() as stack:
        stream = stack.enter_context(path.open("wb"))
        if name.endswith(".zst"):
            compressor = zstandard.ZstdCompressor(level=6, write_checksum=True)
            stream = stack.enter_context(compressor.stream_writer(stream, closefd=False))
        else:
            stream = stack.enter_context(gzip.GzipFile("", "wb", fileobj=stream, mtime=0))
        yield stack.enter_context(tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT))


@contextmanager
def reading(archive: Path) -> Iterator[tarfile.TarFile]:
    """The tar of an archive that is compressed by zstd or gzip.

    Raises:
        BadInput: the archive is missing, damaged, or of another kind.
    """
    try:
        with archive.open("rb") as file:
            magic = file.read(4)
            file.seek(0)
            if magic == b"\x28\xb5\x2f\xfd":
                stream = io.BufferedReader(ZstdFrame(file), BLOCK)
            elif magic[:2] == b"\x1f\x8b":
                stream = gzip.GzipFile(fileobj=file)
            else:
                raise BadInput(f"{archive}: is neither zstd nor gzip; expected what `budgeted-lora export` writes")
            with stream, tarfile.open(fileobj=stream, mode="r|") as tar:
                yield tar
    except FileNotFoundError as error:
        if Path(error.filename or "") != archive:
            raise
        raise BadInput(f"{archive}: no such file; expected an archive that `budgeted-lora export` wrote") from None
    except DAMAGE as error:
        raise BadInput(f"{archive}: damaged or cut short ({' '.join(str(error).split())[:200]})") from None


def read_manifest(tar: tarfile.TarFile) -> Manifest:
    """The manifest. Raises ValueError if it is damaged, or has a path outside the folders of its scale."""
    head = read_member(tar, MANIFEST, limit=LARGEST_MANIFEST)
    if read_member(tar, DIGEST, limit=BLOCK) != digest_line(head):
        raise ValueError("the manifest does not match its digest")
    try:
        manifest = Manifest.model_validate_json(head)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"manifest: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    for name in manifest.files:
        path = PurePosixPath(name)
        plain = not path.is_absolute() and ".." not in path.parts and str(path) == name and "\0" not in name
        if not plain or not of_scale(name, manifest.scale):
            raise ValueError(f"{name!r} is not a path inside results/{manifest.scale} or reports/{manifest.scale}")
    return manifest


def read_member(tar: tarfile.TarFile, name: str, *, limit: int) -> bytes:
    """The next member, which must have this name."""
    about = tar.next()
    if about is None or about.name != name or not is_plain(about) or about.size > limit:
        raise ValueError(f"expected {name}, found {about.name if about else 'the end'!r}")
    return tar.extractfile(about).read()


def is_plain(about: tarfile.TarInfo) -> bool:
    """Whether a member is a file, and not a link, a folder, a device or a sparse file."""
    return about.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not about.issparse()
