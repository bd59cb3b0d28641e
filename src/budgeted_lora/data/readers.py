"""Reads documents from the configured source: docstrings of installed packages, local files or a Hub dataset."""

import ast
import codecs
import glob
import importlib.metadata
import importlib.util
import json
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from hashlib import md5
from importlib.machinery import ModuleSpec
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from budgeted_lora.config.corpus import Corpus
from budgeted_lora.errors import BadInput

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
ENDINGS = (".jsonl.zst", ".jsonl", ".parquet", ".txt")  # of files that can be read
LONGEST_WINDOW = 2**31  # bytes that a Zstandard frame may refer back: the most that `zstd --long=31` writes
LISTED = 20  # names of fields in one message
BATCH_ROWS = 256  # rows of a Parquet file in memory at a time


def read_documents(corpus: Corpus, *, processes: int = 1) -> Iterator[str]:
    """The texts of a corpus, in an order that depends only on the corpus.

    Raises:
        BadInput: a package is not installed, a file is missing or unreadable, a dataset cannot be reached.
    """
    if corpus.source == "docstrings":
        return iter(read_docstrings(corpus.packages, processes=processes))
    if corpus.source == "files":
        return read_files(corpus.files, text_field=corpus.text_field)
    return read_hub(corpus)


def local_files(corpus: Corpus) -> list[str]:
    """Files from outside that documents are read from: those of `files`, or of a local folder in the Hub's form."""
    if corpus.source == "hub":
        folder = Path(corpus.hub.name)
        parts = {path: path.relative_to(folder).parts for path in folder.rglob("*")} if folder.is_dir() else {}
        seen = [path for path, names in parts.items() if not any(name.startswith(".") for name in names)]
        return sorted(str(path) for path in seen if path.is_file())
    patterns = corpus.files if corpus.source == "files" else []
    return sorted({path for pattern in patterns for path in matching_files(pattern)})


def matching_files(pattern: str) -> list[str]:
    """Files that a name or glob of `corpus.files` stands for, sorted.

    A name that exists is no glob, whatever characters it has. A folder stands for its files of a known ending: Spark
    and others write one in place of a file, with marks (`_SUCCESS`) and checksums (`.part-0.crc`) beside the parts.
    """
    paths = [pattern] if Path(pattern).exists() else glob.glob(pattern, recursive=True)
    files: list[str] = []
    for path in map(Path, paths):
        if path.is_dir():
            files += [str(file) for file in path.rglob("*") if file.is_file() and _is_part(file.relative_to(path))]
        elif str(path) == pattern or path.name.endswith(ENDINGS) or not path.name.startswith("_"):
            files.append(str(path))
    return sorted(set(files))


def _is_part(path: Path) -> bool:
    """Whether a file of a folder, by its path there, is one of documents."""
    return path.name.endswith(ENDINGS) and not any(name.startswith((".", "_")) for name in path.parts)


def read_docstrings(packages: Iterable[str], *, processes: int = 1) -> list[str]:
    """Docstrings of every module, class and function of installed packages, without their test folders.

    The source is parsed, never imported. Sorting by MD5 shuffles the texts in a way that every machine repeats.
    """
    paths = [path for name in packages for path in _sources(name)]
    with ProcessPoolExecutor(processes) as pool:
        texts = [text for group in pool.map(_docstrings, paths, chunksize=32) for text in group]
    return sorted(texts, key=lambda text: md5(text.encode(errors="replace"), usedforsecurity=False).digest())


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Version of the distribution of each package's name, or of another one that provides it; installed ones only."""
    versions, others = {}, []
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            others.append(name)
    providers = importlib.metadata.packages_distributions() if others else {}  # looks into every distribution
    found = versions | {name: importlib.metadata.version(providers[name][0]) for name in others if name in providers}
    return {name: found[name] for name in packages if name in found}


def find_package(name: str) -> ModuleSpec | None:
    """Where an installed package or module is; None if there is none.

    Raises:
        BadInput: the name is none, or a package that it lies in fails when it is imported.
    """
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
    except Exception as error:  # whatever the code of the package above raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise BadInput(f"corpus.packages: {name!r} cannot be looked up ({reason}); correct or remove it") from None


def _sources(package: str) -> list[Path]:
    spec = find_package(package)
    if spec is None or not spec.submodule_search_locations:
        raise BadInput(f"corpus.packages: {package!r} is not an installed package; install it or remove it")
    root, tests = Path(spec.submodule_search_locations[0]), {"tests", "test", "testing"}
    return [path for path in sorted(root.rglob("*.py")) if not tests & set(path.relative_to(root).parts)]


def _docstrings(path: Path) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about invalid escapes in the packages' sources
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError):
            return []  # packages ship templates and deliberately broken samples as .py files
    return [text for node in ast.walk(tree) if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node))]


def read_files(patterns: Iterable[str], *, text_field: str) -> Iterator[str]:
    """Texts of local files in sorted path order, see `read_file`.

    Raises:
        BadInput: a pattern matches nothing, or from `read_file`.
    """
    for pattern in patterns:
        paths = matching_files(pattern)
        if not paths:
            raise BadInput(f"corpus.files: {pattern!r} matches no file")
        for path in paths:
            yield from read_file(Path(path), text_field=text_field)


def read_file(path: Path, *, text_field: str) -> Iterator[str]:
    """Texts of a .txt (one document), .jsonl, .jsonl.zst or .parquet file in its order, a few hundred at a time.

    Raises:
        BadInput: unknown ending, damaged file, or a record without text; names the file and the line or row.
    """
    try:
        if path.name.endswith(".txt"):
            yield path.read_text(encoding="utf-8-sig")
        elif path.name.endswith((".jsonl", ".jsonl.zst")):
            yield from _read_lines(path, text_field)
        elif path.name.endswith(".parquet"):
            yield from _read_parquet(path, text_field)
        else:
            raise BadInput(f"{path}: unknown ending; expected .txt, .jsonl, .jsonl.zst or .parquet")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error})") from None


def _read_lines(path: Path, text_field: str) -> Iterator[str]:
    with path.open("rb") as stream:
        lines = _split_lines(_decompressed(stream, path)) if path.name.endswith(".zst") else stream
        for number, line in enumerate(lines, start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                place = f"{path}, line {number}"
                yield _text(_parsed(line, place), place, text_field)


def _decompressed(stream: BinaryIO, path: Path) -> Iterator[bytes]:
    import zstandard

    frame = None
    while block := stream.read(1 << 16):
        while block:
            frame = frame or zstandard.ZstdDecompressor(max_window_size=LONGEST_WINDOW).decompressobj()
            try:
                yield frame.decompress(block)
            except zstandard.ZstdError as error:
                raise BadInput(f"{path}: not whole Zstandard data ({error})") from None
            block, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise BadInput(f"{path}: truncated inside a Zstandard frame")


def _split_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
    yield rest


def _parsed(line: bytes, place: str) -> Any:
    try:
        return json.loads(line.decode("utf-8", "surrogatepass"))
    except UnicodeDecodeError as error:
        raise BadInput(f"{place}: not UTF-8 text ({error.reason} at byte {error.start} of the line)") from None
    except json.JSONDecodeError as error:
        raise BadInput(f"{place}: not JSON ({error.msg}); is the file truncated?") from None
    except RecursionError:
        raise BadInput(f"{place}: not JSON (nested too deeply)") from None
    except ValueError:
        raise BadInput(f"{place}: not JSON that can be read (a number of thousands of digits)") from None


def _text(record: Any, place: str, text_field: str) -> str:
    if not isinstance(record, dict) or text_field not in record:
        content = f"has {_names(record)}" if isinstance(record, dict) else f"is {record!r:.40}, not a record"
        raise BadInput(f"{place}: no field {text_field!r} (corpus.text_field); it {content}")
    value = record[text_field]
    if not isinstance(value, str):
        what = "is empty" if value is None else f"holds {type(value).__name__}"
        raise BadInput(f"{place}: field {text_field!r} (corpus.text_field) {what}, expected text")
    return value


def _names(names: Iterable[str]) -> str:
    """Names of fields on one line, the first few."""
    first = [name if name.isprintable() else repr(name) for name in islice(names, LISTED + 1)]
    return ", ".join(first if len(first) <= LISTED else [*first[:LISTED], "..."])


def _read_parquet(path: Path, text_field: str) -> Iterator[str]:
    """Texts of one column, `BATCH_ROWS` rows at a time, whatever the size of the file's row groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    done = 0
    try:
        with pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if text_field not in columns:
                raise BadInput(f"{path}: no column {text_field!r} (corpus.text_field); it has {_names(columns)}")
            for batch in file.iter_batches(BATCH_ROWS, columns=[text_field]):
                for record in batch.to_pylist():
                    done += 1
                    yield _text(record, f"{path}, row {done}", text_field)
            if done != file.metadata.num_rows:
                raise BadInput(f"{path}: {done} rows, expected {file.metadata.num_rows}; truncated or damaged")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}, after row {done}: not UTF-8 text ({error.reason})") from None
    except (pa.ArrowException, OSError) as error:
        place = f", after row {done}" if done else ""
        raise BadInput(f"{path}{place}: not a whole Parquet file ({str(error).splitlines()[0]})") from None


def read_hub(corpus: Corpus) -> Iterator[str]:
    """Texts of a Hub dataset, or of a local folder of the same form, streamed at a pinned revision.

    Raises:
        BadInput: no revision is pinned for a dataset on the Hub, or it cannot be read.
    """
    import datasets

    hub = corpus.hub
    if hub.revision is None and not Path(hub.name).exists():
        raise BadInput(f"corpus.hub.revision must pin a commit of {hub.name}")
    try:
        rows: Any = datasets.load_dataset(hub.name, hub.config, revision=hub.revision, split=hub.split, streaming=True)
        for number, row in enumerate(rows, start=1):
            yield _text(row, f"{hub.name}, row {number}", corpus.text_field)
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # the library raises exceptions of many kinds, and those of the formats it reads
        reason = " ".join(str(error).split())[:300]
        remedy = "; name one in corpus.hub.config" if hub.config is None and "onfig name is missing" in reason else ""
        reason = reason.partition(" Example of usage")[0]
        raise BadInput(f"corpus.hub: cannot read {hub.name} at {hub.revision}: {reason}{remedy}") from None
