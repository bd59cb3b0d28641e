"""Documents from where the configuration says: docstrings of installed packages, local files, a Hub dataset."""

import ast
import glob
import importlib.metadata
import importlib.util
import io
import json
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from hashlib import md5
from pathlib import Path
from typing import Any

from budgeted_lora.config import Corpus
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
    return sorted(texts, key=lambda text: md5(text.encode(), usedforsecurity=False).digest())


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Version of the distribution that provides each package."""
    providers = importlib.metadata.packages_distributions()
    return {name: importlib.metadata.version(providers[name][0]) for name in packages if name in providers}


def _sources(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise BadInput(f"corpus.packages: {package!r} is not an installed package; install it or take it off the list")
    root = Path(spec.submodule_search_locations[0])
    return [path for path in sorted(root.rglob("*.py")) if not {"tests", "test", "testing"} & set(path.relative_to(root).parts)]


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
    try:
        if name.endswith(".txt"):
            yield path.read_text(encoding="utf-8")
        elif name.endswith(".jsonl"):
            with path.open("rb") as stream:
                yield from _json_lines(stream, path, text_field)
        elif name.endswith(".jsonl.zst"):
            import zstandard

            with path.open("rb") as stream, zstandard.ZstdDecompressor().stream_reader(stream) as reader:
                yield from _json_lines(io.BufferedReader(reader), path, text_field)
        elif name.endswith(".parquet"):
            yield from _parquet(path, text_field)
        else:
            raise BadInput(f"{path}: unknown ending; expected .txt, .jsonl, .jsonl.zst or .parquet")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def _json_lines(stream: Iterable[bytes], path: Path, text_field: str) -> Iterator[str]:
    zstd_errors: tuple[type[Exception], ...] = (EOFError,)
    if path.suffix == ".zst":
        import zstandard

        zstd_errors = (EOFError, zstandard.ZstdError)
    lines, number = iter(stream), 0
    while True:
        try:
            line = next(lines)
        except StopIteration:
            return
        except zstd_errors as error:
            raise BadInput(f"{path}: truncated or damaged after line {number} ({error})") from None
        number += 1
        if line.strip():
            yield _field(line, path, number, text_field)


def _field(line: bytes, path: Path, number: int, text_field: str) -> str:
    try:
        return str(json.loads(line)[text_field])
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}, line {number}: not JSON ({error.msg}); a truncated file?") from None
    except (KeyError, TypeError):
        raise BadInput(f"{path}, line {number}: no field {text_field!r} (corpus.text_field)") from None


def _parquet(path: Path, text_field: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise BadInput(f"{path}: not a whole Parquet file ({str(error).splitlines()[0]})") from None
    if text_field not in file.schema_arrow.names:
        raise BadInput(f"{path}: no column {text_field!r} (corpus.text_field); it has {', '.join(file.schema_arrow.names)}")
    for batch in file.iter_batches(columns=[text_field]):
        yield from batch.column(0).to_pylist()


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
            if corpus.text_field not in row:
                raise BadInput(f"{hub.name}, row {number}: no field {corpus.text_field!r}; it has {', '.join(row)}")
            yield row[corpus.text_field]
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise BadInput(f"corpus.hub: cannot read {hub.name} at {hub.revision}: {' '.join(str(error).split())[:300]}") from None
