"""The texts of one shard, a few hundred documents in memory at a time."""

import glob
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from budgeted_lora.data.readers import read_files
from budgeted_lora.errors import BadInput

ROWS = 256


def read_shard(path: Path, *, text_field: str) -> Iterator[str]:
    """Texts of a .parquet, .jsonl, .jsonl.zst or .txt file, in its order.

    Raises:
        BadInput: the file is not whole, or a record holds no text; it names file and row or line.
    """
    return read_parquet(path, text_field) if path.name.endswith(".parquet") else _read_lines(path, text_field)


def _read_lines(path: Path, text_field: str) -> Iterator[str]:
    try:
        yield from read_files([glob.escape(str(path))], text_field=text_field)
    except (OSError, RecursionError) as error:
        raise BadInput(f"{path}: cannot be read ({' '.join(str(error).split())})") from None


def read_parquet(path: Path, text_field: str) -> Iterator[str]:
    """Texts of one column, `ROWS` rows at a time, whatever the size of the file's row groups."""
    done = 0
    try:
        with pq.ParquetFile(path) as file:
            fields = file.schema_arrow
            if text_field not in fields.names:
                raise BadInput(
                    f"{path}: no column {text_field!r} (corpus.text_field); it has {', '.join(fields.names)}"
                )
            kind = fields.field(text_field).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise BadInput(f"{path}: column {text_field!r} (corpus.text_field) holds {kind}, expected text")
            for batch in file.iter_batches(ROWS, columns=[text_field]):
                texts = batch.column(0).to_pylist()
                if None in texts:
                    raise BadInput(
                        f"{path}, row {done + texts.index(None) + 1}: {text_field!r} is empty, expected text"
                    )
                yield from texts
                done += len(texts)
            if done != file.metadata.num_rows:
                raise BadInput(f"{path}: {done} rows, expected {file.metadata.num_rows}; truncated or damaged")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}, after row {done}: not UTF-8 text ({error.reason})") from None
    except (pa.ArrowException, OSError) as error:
        where = f", after row {done}" if done else ""
        raise BadInput(f"{path}{where}: not a whole Parquet file ({str(error).splitlines()[0]})") from None
