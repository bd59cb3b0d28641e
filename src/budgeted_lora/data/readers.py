"""Documents from where the configuration says: docstrings of installed packages, local files, a Hub dataset."""

import ast
import glob
import importlib.metadata
import importlib.util
import json
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from hashlib import md5
from pathlib import Path
from typing import Any, BinaryIO

from budgeted_lora.config.corpus import Corpus
from budgeted_lora.errors import BadInput

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def read_documents(corpus: Corpus, *, processes: int = 1) -> Iterator[str]:
    """The texts of a corpus, in an order that depends on nothing but the corpus.

    Raises:
        BadInput: a package is not installed, a file is missing or unreadable, a dataset cannot be reached.
    """
    if corpus.source == "docstrings":
        return iter(read_docstrings(corpus.packages, processes=processes))
    if corpus.source == "files":
        return read_files(corpus.files, text_field=corpus.text_field)
    return read_hub(corpus)


def read_docstrings(packages: Iterable[str], *, processes: int = 1) -> list[str]:
    """Docstrings of every module, class and function of installed packages, sorted by MD5.

    The source is parsed, never imported. Test folders are skipped. The order is a shuffle that every machine repeats.
    """
    paths = [path for name in packages for path in _sources(name)]
    with ProcessPoolExecutor(processes) as pool:
        found = pool.map(_docstrings, paths, chunksize=32)
        texts = [text for group in found for text in group]
    return sorted(texts, key=lambda text: md5(text.encode(errors="replace"), usedforsecurity=False).digest())


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Version of the distribution that provides each package."""
    providers = importlib.metadata.packages_distributions()
    return {name: importlib.metadata.version(providers[name][0]) for name in packages if name in providers}


def _sources(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise BadInput(f"corpus.packages: {package!r} is not an installed package; install it or take it off the list")
    root = Path(spec.submodule_search_locations[0])
    return [
        path
        for path in sorted(root.rglob("*.py"))
        if not {"tests", "test", "testing"} & set(path.relative_to(root).parts)
    ]


def _docstrings(path: Path) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's source are not our news
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError):
            return []  # templates and deliberately broken samples are shipped as .py too
    return [text for node in ast.walk(tree) if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node))]


def read_files(patterns: Iterable[str], *, text_field: str) -> Iterator[str]:
    """Texts of local .txt (one document a file), .jsonl, .jsonl.zst and .parquet files, in sorted path order.

    Raises:
        BadInput: a pattern matches nothing, a file has another ending, or a record has no such field.
    """
    for pattern in patterns:
        paths = sorted(glob.glob(pattern, recursive=True))
        if not paths:
            raise BadInput(f"corpus.files: {pattern!r} matches no file")
        for path in paths:
            yield from _read_file(Path(path), text_field)


def _read_file(path: Path, text_field: str) -> Iterator[str]:
    name = path.name
    if name.endswith(".txt"):
        try:
            yield path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise BadInput(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    elif name.endswith((".jsonl", ".jsonl.zst")):
        with path.open("rb") as stream:
            lines = _split_lines(_decompressed(stream, path)) if name.endswith(".zst") else stream
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _field(line, f"{path}, line {number}", text_field)
    elif name.endswith(".parquet"):
        yield from _parquet(path, text_field)
    else:
        raise BadInput(f"{path}: unknown ending; expected .txt, .jsonl, .jsonl.zst or .parquet")


def _decompressed(stream: BinaryIO, path: Path) -> Iterator[bytes]:
    """Blocks of a Zstandard file of one frame or several; a file that ends inside a frame is refused."""
    import zstandard

    frame = None
    while block := stream.read(1 << 16):
        while block:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                yield frame.decompress(block)
            except zstandard.ZstdError as error:
                raise BadInput(f"{path}: not whole Zstandard data ({error})") from None
            block, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise BadInput(f"{path}: truncated, it ends inside a Zstandard frame")


def _split_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
    yield rest


def _field(line: bytes, where: str, text_field: str) -> str:
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        raise BadInput(f"{where}: not UTF-8 text ({error.reason} at byte {error.start} of the line)") from None
    except json.JSONDecodeError as error:
        raise BadInput(f"{where}: not JSON ({error.msg}); a truncated file?") from None
    return _text(record, where, text_field)


def _text(record: Any, where: str, text_field: str) -> str:
    """The text of a record.

    Raises:
        BadInput: it has no such field, or the field holds something else.
    """
    if not isinstance(record, dict) or text_field not in record:
        found = f"it has {', '.join(record)}" if isinstance(record, dict) else f"it is no record but {record!r:.40}"
        raise BadInput(f"{where}: no field {text_field!r} (corpus.text_field); {found}")
    value = record[text_field]
    if not isinstance(value, str):
        raise BadInput(f"{where}: field {text_field!r} (corpus.text_field) holds {type(value).__name__}, expected text")
    return value


def _parquet(path: Path, text_field: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        if text_field not in file.schema_arrow.names:
            columns = ", ".join(file.schema_arrow.names)
            raise BadInput(f"{path}: no column {text_field!r} (corpus.text_field); it has {columns}")
        number = 0
        for batch in file.iter_batches(columns=[text_field]):
            for record in batch.to_pylist():
                number += 1
                yield _text(record, f"{path}, row {number}", text_field)
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{path}: not a whole Parquet file ({str(error).splitlines()[0]})") from None


def read_hub(corpus: Corpus) -> Iterator[str]:
    """Texts of a Hub dataset (or a local folder in the same form), streamed at a pinned revision.

    Raises:
        BadInput: no revision is pinned for a dataset on the Hub, or it cannot be reached.
    """
    import datasets

    hub = corpus.hub
    if hub.revision is None and not Path(hub.name).exists():
        raise BadInput(f"corpus.hub.revision must pin a commit of {hub.name}")
    try:
        rows: Any = datasets.load_dataset(hub.name, revision=hub.revision, split=hub.split, streaming=True)
        for number, row in enumerate(rows, start=1):
            yield _text(row, f"{hub.name}, row {number}", corpus.text_field)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise BadInput(
            f"corpus.hub: cannot read {hub.name} at {hub.revision}: {' '.join(str(error).split())[:300]}"
        ) from None
