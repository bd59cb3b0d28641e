"""Export and import of a scale: its results, reports and Snakemake's records of them as one file.

The archive is a tar: `manifest.json` (every file with size, SHA-256 and modification time), `manifest.sha256`,
`metadata.json` (Snakemake's records by output), then the files. Import unpacks into a hidden folder, verifies every
byte, then moves the files into place, and writes the records last. So a damaged archive changes nothing, and a killed
import can be repeated. Modification times are kept to the nanosecond because Snakemake compares them. The digests of
the code come along; they stay as they are where the clone's code is the same.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import budgeted_lora
from budgeted_lora.commands import archive_format as form
from budgeted_lora.commands import snakemake_records as snakemake
from budgeted_lora.commands.archive_format import Entry, Hashing, Manifest
from budgeted_lora.commands.text import size
from budgeted_lora.errors import BadInput
from budgeted_lora.files import atomic_path, canonical_json, locked, sha256_file
from budgeted_lora.provenance import git_state

TIMESTAMP = ".snakemake_timestamp"  # in a folder that is an output: its date is the folder's to Snakemake
IN_A_CHECKOUT = ("src/", "config/", "workflow/")  # inputs of the workflow that are in git
LOCKS = ("run.lock", "jobs.lock")  # of a run of the workflow, in results/<scale>


@dataclass(frozen=True)
class Summary:
    """What an export or import moved, and notes for the person who asked."""

    scale: str
    files: int
    bytes: int
    records: int
    notes: tuple[str, ...] = ()


# --- export


def export_archive(archive: Path, *, scale: str, with_cache: bool = False) -> Summary:
    """Write results and reports of a scale, and Snakemake's records of them, into one file.

    Args:
        archive: ends in .tar.zst or .tar.gz; an existing file is replaced.
        with_cache: include the teachers' cached hidden states, which are large and can be computed again.

    Raises:
        BadInput: there are no results, Snakemake is at work on them, a file is a link or changed meanwhile, or the
            archive's name has another ending or is inside the folders that it is to hold.
    """
    if not archive.name.endswith(form.ENDINGS):
        raise BadInput(f"{archive}: expected a name that ends in .tar.zst or .tar.gz")
    if any(archive.resolve().is_relative_to(Path(root).resolve()) for root in snakemake.roots(scale)):
        raise BadInput(f"{archive}: is inside what it would hold; name a place outside {snakemake.roots(scale)[0]}")
    snakemake.refuse_at_work(scale)
    unfinished = snakemake.kept(snakemake.MARKERS, scale)
    files = [path for path in exported_files(scale, with_cache=with_cache) if not within(path, unfinished)]
    if all(path.parent == Path(snakemake.roots(scale)[0], "code") for path in files):  # what a dry run leaves
        raise BadInput(f"results/{scale}: holds nothing to export")
    texts = exported_records(scale, unfinished)
    records = canonical_json(texts).encode()
    manifest = Manifest(
        scale=scale,
        package_version=budgeted_lora.__version__,
        git_commit=git_state()["git_commit"],
        records=Entry(sha256=hashlib.sha256(records).hexdigest(), bytes=len(records), mtime_ns=0),
        files={str(path): entry_of(path) for path in files},
    )
    with atomic_path(archive) as temporary:
        write_archive(temporary, manifest, records, name=archive.name)
    return Summary(scale, len(files), manifest.total_bytes, len(texts), export_notes(texts, unfinished))


def exported_files(scale: str, *, with_cache: bool) -> list[Path]:
    """Files to export, sorted; without training states and without leftovers of interrupted writes."""
    results = Path(snakemake.roots(scale)[0])
    left_out = {results / "state", *(results / name for name in LOCKS)}
    left_out |= set() if with_cache else {results / "cache"}
    files = []
    for root in snakemake.roots(scale):
        for folder, folders, names in os.walk(root):
            place = Path(folder)
            folders[:] = [name for name in folders if not name.startswith(".") and place / name not in left_out]
            links = [place / name for name in (*folders, *names) if (place / name).is_symlink()]
            if links:
                raise BadInput(f"{links[0]}: is a link; an archive holds plain files only")
            visible = [name for name in names if name == TIMESTAMP or not name.startswith(".")]
            files += [place / name for name in visible if place / name not in left_out]
    return sorted(files)


def exported_records(scale: str, unfinished: dict[str, Path]) -> dict[str, str]:
    """Snakemake's records of finished outputs that exist, by output.

    The records of caches and shards are exported even if these were removed after use. Without such a record Snakemake
    would compare the dates of a cache's inputs with those of the students, and train all of them again in a clone,
    where the sources are newer.
    """
    records = snakemake.kept(snakemake.RECORDS, scale)
    removable = tuple(f"results/{scale}/{folder}/" for folder in ("cache", "data/shards"))
    wanted = [name for name in records if Path(name).exists() or name.startswith(removable)]
    return {name: records[name].read_text() for name in wanted if name not in unfinished}


def within(path: Path, outputs: dict[str, Path]) -> bool:
    """Whether a path is one of these outputs, or is in an output that is a folder."""
    return any(str(place) in outputs for place in (path, *path.parents))


def entry_of(path: Path) -> Entry:
    about = path.stat()
    return Entry(sha256=sha256_file(path), bytes=about.st_size, mtime_ns=about.st_mtime_ns)


def export_notes(records: dict[str, str], unfinished: dict[str, Path]) -> tuple[str, ...]:
    """Notes on an export for the person who asked."""
    notes = []
    if unfinished:
        notes.append(f"left out {len(unfinished)} outputs of interrupted jobs, e.g. {min(unfinished)}")
    if not records:
        notes.append("Snakemake has no records of these results; a checkout that imports them trusts them as they are")
    read = {path for text in records.values() for path in json.loads(text).get("input") or []}
    outside = {path for path in read if path.startswith("/")}
    beside = {path for path in read - outside if not path.startswith(("results/", "reports/", *IN_A_CHECKOUT))}
    again = "or what was made from them is made again"
    if outside:
        where = f"{len(outside)} inputs have absolute paths, e.g. {min(outside)}"
        notes.append(f"{where}; they must be equal elsewhere, {again} (`make setup` installs with relative paths)")
    if beside:
        notes.append(f"{len(beside)} inputs are in no archive and no clone, e.g. {min(beside)}; copy them too, {again}")
    return tuple(notes)


def write_archive(path: Path, manifest: Manifest, records: bytes, *, name: str) -> None:
    """Write the archive called `name` to `path`. Raises BadInput if a file changed since the manifest was made."""
    head = canonical_json(manifest.model_dump(mode="json")).encode()
    with form.writing(path, name=name) as tar:
        for first, content in ((form.MANIFEST, head), (form.DIGEST, form.digest_line(head)), (form.RECORDS, records)):
            tar.addfile(form.member(first, size=len(content)), io.BytesIO(content))
        for file, entry in manifest.files.items():
            with Path(file).open("rb") as source:
                reader = Hashing(source)
                try:
                    tar.addfile(form.member(file, size=entry.bytes, mtime=entry.mtime_ns // 10**9), reader)
                except OSError as error:
                    if error.errno is not None:
                        raise
                    reader.sha256.update(b"shorter than it was")  # tarfile's way of saying so
            if reader.sha256.hexdigest() != entry.sha256:
                raise BadInput(f"{file}: changed while it was exported; is a run at work?")


# --- import


def import_archive(archive: Path, *, force: bool = False) -> Summary:
    """Put the files of an archive into this checkout, after every byte is verified.

    Files that are here and not in the archive stay, except in a folder that is one output.

    Args:
        force: replace files that differ.

    Raises:
        BadInput: this is no checkout; the archive is missing or damaged, holds a link or a path outside its scale, or
            differs from results here; or Snakemake is at work on the scale. Nothing is changed then.
    """
    if not Path("Snakefile").is_file():
        raise BadInput("import: no Snakefile in this folder; expected the root of a checkout")
    with ExitStack() as stack:
        tar = stack.enter_context(form.reading(archive))
        manifest = form.read_manifest(tar)
        snakemake.refuse_at_work(manifest.scale)
        free = shutil.disk_usage(".").free
        if manifest.total_bytes > free:
            raise BadInput(f"{archive}: needs {size(manifest.total_bytes)}, but only {size(free)} are free here")
        staged = {root: stack.enter_context(staging(Path(root), manifest.scale)) for root in ("results", "reports")}
        records = unpack(tar, manifest, staged)
        differing = differences(manifest)
        if differing and not force:
            raise BadInput(
                f"{archive}: {len(differing)} files here differ from those in it, e.g. {differing[0]}; "
                "--force replaces them"
            )
        place(manifest, staged)
    snakemake.put(records)
    return Summary(manifest.scale, len(manifest.files), manifest.total_bytes, len(records))


@contextmanager
def unpacked(archive: Path) -> Iterator[Path]:
    """The results in an archive, in a temporary folder, after every byte is verified.

    Raises:
        BadInput: the archive is damaged, or of another kind.
    """
    with tempfile.TemporaryDirectory() as folder:
        with form.reading(archive) as tar:
            manifest = form.read_manifest(tar)
            unpack(tar, manifest, {root: Path(folder, root) for root in ("results", "reports")})
        yield Path(folder, "results", manifest.scale)


@contextmanager
def staging(root: Path, scale: str) -> Iterator[Path]:
    """A hidden folder in `root`, from which files are moved by renaming; removed at the end, like an empty `root`."""
    made = not root.exists()
    root.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=root, prefix=f".import-{scale}-"))
    try:
        with locked(folder):  # so that a run that begins does not take it for that of a killed import
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if made and not any(root.iterdir()):
            root.rmdir()


def unpack(tar: tarfile.TarFile, manifest: Manifest, staged: dict[str, Path]) -> dict[str, str]:
    """Unpack every file beside its place and verify its digest; return Snakemake's records.

    Raises:
        ValueError: a member is missing, or not in the manifest, or differs from it.
    """
    text = form.read_member(tar, form.RECORDS, limit=max(manifest.records.bytes, 0))
    if hashlib.sha256(text).hexdigest() != manifest.records.sha256:
        raise ValueError(f"{form.RECORDS} does not match its digest in the manifest")
    waiting = dict(manifest.files)
    for about in iter(tar.next, None):
        entry = waiting.pop(about.name, None)
        if entry is None or not form.is_plain(about) or about.size != entry.bytes:
            raise ValueError(f"{about.name!r} is not a file as the manifest names it")
        target = beside(about.name, staged)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as out:
            reader = Hashing(tar.extractfile(about))
            shutil.copyfileobj(reader, out, form.BLOCK)
            out.flush()
            os.fsync(out.fileno())
        if reader.sha256.hexdigest() != entry.sha256:
            raise ValueError(f"{about.name} does not match its digest in the manifest")
        os.utime(target, ns=(entry.mtime_ns, entry.mtime_ns))
    if waiting:
        raise ValueError(f"{len(waiting)} files are missing, e.g. {min(waiting)}")
    while tar.fileobj.read(form.BLOCK):  # the end of the stream has the checksum of the whole
        pass
    records = json.loads(text)
    strange = [name for name, record in records.items() if not snakemake.of_scale(name, manifest.scale)]
    if strange or not all(isinstance(record, str) for record in records.values()):
        raise ValueError(f"{form.RECORDS} is not of scale {manifest.scale}")
    return records


def beside(name: str, staged: dict[str, Path]) -> Path:
    root, _, rest = name.partition("/")
    return staged[root] / rest


def whole_folders(manifest: Manifest) -> set[str]:
    """Folders that are one output each."""
    return {str(PurePosixPath(name).parent) for name in manifest.files if PurePosixPath(name).name == TIMESTAMP}


def differences(manifest: Manifest) -> list[str]:
    """Files here that importing would change or remove, sorted."""
    differing = []
    for name, entry in manifest.files.items():
        path = Path(name)
        if os.path.lexists(path) and not (
            path.is_file() and path.stat().st_size == entry.bytes and sha256_file(path) == entry.sha256
        ):
            differing.append(name)
    for folder in whole_folders(manifest):
        differing += [str(p) for p in Path(folder).rglob("*") if p.is_file() and str(p) not in manifest.files]
    return sorted(differing)


def place(manifest: Manifest, staged: dict[str, Path]) -> None:
    """Move the verified files to their places."""
    for folder in sorted(whole_folders(manifest)):
        if Path(folder).is_symlink() or Path(folder).is_file():
            Path(folder).unlink()
        elif Path(folder).exists():
            shutil.rmtree(folder)
    for name in manifest.files:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        beside(name, staged).replace(name)
