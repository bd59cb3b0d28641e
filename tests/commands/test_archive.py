"""Export and import: nothing reruns where an archive was imported, and a damaged or hostile one changes nothing."""

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from fixtures.checkout import checkout
from fixtures.snakemake_runs import count_all_as_done, pending
from hypothesis import given, settings
from hypothesis import strategies as st

from budgeted_lora.commands import archive_format
from budgeted_lora.commands import snakemake_records as metadata
from budgeted_lora.commands.archive import export_archive, exported_records, import_archive
from budgeted_lora.commands.archive_format import DIGEST, MANIFEST, RECORDS, Entry, Manifest, digest_line
from budgeted_lora.errors import BadInput
from budgeted_lora.files import canonical_json, write_text

# --- with Snakemake


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which Snakemake has noted every job of the smallest scale as done, see test_workflow."""
    folder = checkout(tmp_path_factory.mktemp("done"))
    count_all_as_done(folder)
    return folder


def test_nothing_reruns_in_a_fresh_clone(
    done: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path_factory.mktemp("archive") / "smoke.tar.zst"
    monkeypatch.chdir(done)
    packed = export_archive(archive, scale="smoke")
    assert packed.records > 100
    assert packed.notes == ()
    clone = checkout(tmp_path_factory.mktemp("clone"))
    now = time.time() + 5
    for path in (path for path in clone.rglob("*") if path.is_file()):
        os.utime(path, (now, now))  # as git leaves them: newer than the results
    monkeypatch.chdir(clone)
    import_archive(archive)
    assert not (clone / "results/smoke/cache").exists()
    assert pending(clone) == {}
    shutil.rmtree(clone / ".snakemake" / "metadata")  # which is what it rests on
    assert pending(clone)


def test_names_of_records_are_snakemakes(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(done)
    records = metadata.kept(metadata.RECORDS, "smoke")
    assert "results/smoke/cells.csv" in records
    longest = os.pathconf(".", "PC_NAME_MAX")
    for output, path in records.items():
        assert metadata.encoded(output, longest=longest) == path.relative_to(".snakemake/metadata")


@given(st.text(min_size=1, max_size=200), st.integers(9, 300))
@settings(deadline=None, max_examples=60)
def test_a_records_name_gives_the_output_again(output: str, longest: int) -> None:
    name = metadata.encoded(output, longest=longest)
    assert all(len(part) <= longest for part in name.parts)
    assert metadata.decoded(name) == output


# --- without


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a few results and one record; the working folder of the test."""
    folder = tmp_path / "source"
    for name in ("results/tiny/cells/c/train.json", "results/tiny/cells/c/trained/w", "reports/tiny/index.html"):
        write_text(folder / name, name * 50)
    (folder / "results/tiny/cells/c/trained/.snakemake_timestamp").touch()
    for left_out in ("state/s/lock", "cache/A/hidden.bin", "cells/c/.train.json.x.tmp", "run.lock"):
        write_text(folder / "results/tiny" / left_out, "x")
    write_text(folder / "results/other/cells.csv", "x")
    os.utime(folder / "results/tiny/cells/c/train.json", ns=(10**18, 1234567890123456789))
    monkeypatch.chdir(folder)
    metadata.put({name: '{"rule": "train_cell"}' for name in ("results/tiny/cells/c/train.json", "results/other/x")})
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """An empty checkout."""
    write_text(tmp_path / "target" / "Snakefile", "")
    return tmp_path / "target"


@pytest.fixture(params=[".tar.zst", ".tar.gz"])
def packed(request: pytest.FixtureRequest, source: Path, tmp_path: Path) -> Path:
    archive = tmp_path / f"tiny{request.param}"
    export_archive(archive, scale="tiny")
    return archive


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_goes_in_comes_out(packed: Path, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(target)
    summary = import_archive(packed)
    assert (summary.scale, summary.files, summary.records) == ("tiny", 4, 1)
    files = tree(target)
    assert {name for name in files if not name.startswith(".snakemake")} == {
        "Snakefile", "reports/tiny/index.html", "results/tiny/cells/c/train.json", "results/tiny/cells/c/trained/w",
        "results/tiny/cells/c/trained/.snakemake_timestamp",
    }  # fmt: skip
    assert metadata.kept(metadata.RECORDS, "tiny").keys() == {"results/tiny/cells/c/train.json"}
    for name in files:
        if name.startswith("re"):
            assert files[name] == (source / name).read_bytes()
            assert (target / name).stat().st_mtime_ns == (source / name).stat().st_mtime_ns
    import_archive(packed)  # the same again is no difference
    assert tree(target) == files


def test_the_cache_comes_along_when_asked(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_archive(target.parent / "a.tgz", scale="tiny", with_cache=True)
    monkeypatch.chdir(target)
    import_archive(target.parent / "a.tgz")
    assert Path("results/tiny/cache/A/hidden.bin").is_file()


def test_the_same_results_give_the_same_bytes(packed: Path, source: Path) -> None:
    before = packed.read_bytes()
    export_archive(packed, scale="tiny")
    assert packed.read_bytes() == before


def refused(archive: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The line an import refuses with; nothing may have changed."""
    before, there = tree(target), sorted(target.iterdir())
    monkeypatch.chdir(target)
    with pytest.raises(BadInput) as error:
        import_archive(archive)
    assert tree(target) == before
    assert sorted(target.iterdir()) == there
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_truncation_is_refused(packed: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = packed.read_bytes()
    for length in {0, 1, 3, *range(4, len(whole), max(1, len(whole) // 40)), len(whole) - 4, len(whole) - 1}:
        packed.write_bytes(whole[:length])
        assert refused(packed, target, monkeypatch).startswith(f"{packed}: ")


def test_every_flipped_bit_is_refused_or_harmless(packed: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bits mean nothing: a date, a larger window, what fills up a byte, a second way to write one match. Which
    ones depends on the compressor; with them the same files come out. Anything else is refused."""
    before, whole = tree(target), packed.read_bytes()
    monkeypatch.chdir(target)
    import_archive(packed)
    expected = tree(target)
    places = {*range(12, len(whole), max(1, len(whole) // 60)), *range(12), *range(len(whole) - 8, len(whole))}
    refusals = 0
    for place in places:
        for folder in ("results", "reports", ".snakemake"):
            shutil.rmtree(folder, ignore_errors=True)
        packed.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        error = ""
        try:
            import_archive(packed)
        except BadInput as refusal:
            error = str(refusal)
        assert tree(target) == (before if error else expected), place
        assert not error or error.startswith(f"{packed}: "), place
        refusals += bool(error)
    assert refusals > 0.8 * len(places)


def test_bytes_after_the_end_are_refused(packed: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed.write_bytes(packed.read_bytes() + b"more")
    assert "damaged or cut short" in refused(packed, target, monkeypatch)


def test_no_archive_and_no_checkout(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(target.parent / "none.tar.gz", target, monkeypatch).endswith("that `budgeted-lora export` wrote")
    (target.parent / "a.tar.gz").write_text("no archive at all")
    assert "is neither zstd nor gzip" in refused(target.parent / "a.tar.gz", target, monkeypatch)
    (target / "Snakefile").unlink()
    assert "no Snakefile in this folder" in refused(target.parent / "a.tar.gz", target, monkeypatch)


# --- made to harm


def entry(data: bytes) -> Entry:
    return Entry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), mtime_ns=0)


def crafted(path: Path, names: dict[str, bytes], *, scale: str = "tiny", change: Callable | None = None) -> Path:
    """An archive whose manifest and digests are right, whatever its names are; `change` edits each file's member."""
    records = b"{}"
    manifest = Manifest.model_construct(
        format=1, scale=scale, package_version="0", git_commit=None, records=entry(records),
        files={name: entry(data) for name, data in names.items()},
    )  # fmt: skip
    head = canonical_json(manifest.model_dump(mode="json")).encode()
    with gzip.open(path, "wb") as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
        for name, data in {MANIFEST: head, DIGEST: digest_line(head), RECORDS: records, **names}.items():
            member = archive_format.member(name, size=len(data))
            if change is not None and name in names:
                change(member)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    "name",
    ["/etc/evil", "../evil", "results/tiny/../../evil", "results/other/x", "results/tiny", "results/tiny//x",
     "results/tiny/./x", "Snakefile", ".snakemake/metadata/x"],
)  # fmt: skip
def test_a_path_outside_its_scale_is_refused(tmp_path: Path, target: Path, monkeypatch, name: str) -> None:
    line = refused(crafted(tmp_path / "a.tar.gz", {name: b"x"}), target, monkeypatch)
    assert f"{name!r} is not a path inside results/tiny or reports/tiny" in line
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("scale", ["..", "a/b", ""])
def test_a_scale_that_is_a_path_is_refused(tmp_path: Path, target: Path, monkeypatch, scale: str) -> None:
    crafted(tmp_path / "a.tar.gz", {f"results/{scale}/x": b"x"}, scale=scale)
    assert "manifest: scale" in refused(tmp_path / "a.tar.gz", target, monkeypatch)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_what_is_no_plain_file_is_refused(tmp_path: Path, target: Path, monkeypatch, kind: bytes) -> None:
    def link(member: tarfile.TarInfo) -> None:
        member.type, member.linkname, member.size = kind, "/etc/passwd", 0

    crafted(tmp_path / "a.tar.gz", {"results/tiny/x": b""}, change=link)
    assert "'results/tiny/x' is not a file as the manifest names it" in refused(
        tmp_path / "a.tar.gz", target, monkeypatch
    )


def test_a_member_that_the_manifest_does_not_name(tmp_path: Path, target: Path, monkeypatch) -> None:
    def rename(member: tarfile.TarInfo) -> None:
        member.name = "results/tiny/y"

    crafted(tmp_path / "a.tar.gz", {"results/tiny/x": b"x"}, change=rename)
    assert "'results/tiny/y' is not a file as" in refused(tmp_path / "a.tar.gz", target, monkeypatch)


# --- results that are there


def test_other_results_are_kept_unless_forced(packed: Path, target: Path, monkeypatch) -> None:
    mine = {"results/tiny/cells/c/train.json": "mine", "results/tiny/cells/d/train.json": "d", "reports/tiny/x": "x"}
    for name, text in mine.items():
        write_text(target / name, text)
    line = refused(packed, target, monkeypatch)
    assert "1 files here differ from those in it, e.g. results/tiny/cells/c/train.json; --force replaces them" in line
    import_archive(packed, force=True)
    assert (target / "results/tiny/cells/c/train.json").read_text().startswith("results/")
    assert (target / "results/tiny/cells/d/train.json").read_text() == "d"
    assert (target / "reports/tiny/x").read_text() == "x"


def test_a_folder_that_is_one_output_is_replaced_whole(packed: Path, target: Path, monkeypatch) -> None:
    write_text(target / "results/tiny/cells/c/trained/more", "x")
    assert "e.g. results/tiny/cells/c/trained/more" in refused(packed, target, monkeypatch)
    import_archive(packed, force=True)
    names = sorted(path.name for path in (target / "results/tiny/cells/c/trained").iterdir())
    assert names == [".snakemake_timestamp", "w"]


def test_a_marker_of_a_job_cut_short_goes(packed: Path, target: Path, monkeypatch) -> None:
    monkeypatch.chdir(target)
    output = "results/tiny/cells/c/train.json"
    marker = Path(".snakemake/incomplete") / metadata.encoded(output, longest=255)
    write_text(marker, "{}")
    import_archive(packed)
    assert not marker.exists()


def lock(folder: Path) -> None:
    """As a Snakemake that is at work leaves it."""
    write_text(folder / ".snakemake/locks/0.output.lock", "results/tiny/cells.csv\n")


def test_neither_way_while_snakemake_is_at_work(packed: Path, source: Path, target: Path, monkeypatch) -> None:
    lock(target)
    assert refused(packed, target, monkeypatch).startswith("results/tiny: Snakemake is at work here")
    lock(source)
    monkeypatch.chdir(source)
    with pytest.raises(BadInput, match="Snakemake is at work here"):
        export_archive(packed, scale="tiny")
    export_archive(packed, scale="other")


# --- exports that are refused, or say something


@pytest.mark.parametrize(
    ("archive", "scale", "expected"),
    [
        ("a.zip", "tiny", "a.zip: expected a name that ends in .tar.zst or .tar.gz"),
        ("a.tar.gz", "none", "results/none: holds nothing to export"),
        ("results/tiny/a.tar.gz", "tiny", "is inside what it would hold"),
    ],
)
def test_an_export_that_cannot_be(source: Path, archive: str, scale: str, expected: str) -> None:
    before = tree(source)
    with pytest.raises(BadInput, match=expected):
        export_archive(Path(archive), scale=scale)
    assert tree(source) == before


def test_a_link_is_not_exported(source: Path) -> None:
    Path("results/tiny/cells/link").symlink_to("c")
    with pytest.raises(BadInput, match="results/tiny/cells/link: is a link; an archive holds plain files only"):
        export_archive(Path("a.tar.gz"), scale="tiny")


def test_an_output_of_a_job_cut_short_is_left_out_and_named(source: Path) -> None:
    trained = "results/tiny/cells/c/trained"
    write_text(Path(".snakemake/incomplete") / metadata.encoded(trained, longest=255), "{}")
    summary = export_archive(Path("a.tar.gz"), scale="tiny")
    assert summary.files == 2
    assert summary.notes == (f"left out 1 outputs of interrupted jobs, e.g. {trained}",)


def test_absolute_inputs_are_named(source: Path) -> None:
    metadata.put({"reports/tiny/index.html": json.dumps({"input": ["/opt/x.py", "src/y", "results/z"]})})
    [note] = export_archive(Path("a.tar.gz"), scale="tiny").notes
    assert note.startswith("1 inputs have absolute paths, e.g. /opt/x.py")


def test_inputs_that_a_clone_lacks_are_named(source: Path) -> None:
    metadata.put(
        {"reports/tiny/index.html": json.dumps({"input": ["pile/01.jsonl.zst", "config/z", "results/tiny/c"]})}
    )
    [note] = export_archive(Path("a.tar.gz"), scale="tiny").notes
    assert note.startswith("1 inputs are in no archive and no clone, e.g. pile/01.jsonl.zst; ")


def test_records_of_what_may_be_removed_come_along_without_it(source: Path) -> None:
    """As Snakemake knows from them that a cache or a shard that is gone need not be made again."""
    gone = {f"results/tiny/{name}" for name in ("cache/A_9/hidden.bin", "data/shards/00001/train.bin")}
    metadata.put({name: "{}" for name in (*gone, "results/tiny/cells/removed/train.json")})
    there = {"results/tiny/cells/c/train.json"}
    assert exported_records("tiny", {}).keys() == gone | there
    assert exported_records("tiny", {max(gone): Path("marker")}).keys() == {min(gone)} | there


def test_a_file_that_changes_meanwhile(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changing = Path("reports/tiny/index.html")
    writing = archive_format.writing

    def later(*arguments, **named):
        changing.write_text("other")
        return writing(*arguments, **named)

    monkeypatch.setattr("budgeted_lora.commands.archive_format.writing", later)
    with pytest.raises(BadInput, match=r"index\.html: changed while it was exported"):
        export_archive(Path("a.tar.gz"), scale="tiny")
    assert not Path("a.tar.gz").exists()


def test_zstd_frames_carry_a_checksum(packed: Path) -> None:
    if packed.name.endswith(".zst"):
        assert zstandard.get_frame_parameters(packed.read_bytes()[:18]).has_checksum
