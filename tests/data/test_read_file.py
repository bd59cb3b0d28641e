"""Files of one shard: a few rows at a time, and every damage named."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from fixtures.shard_files import TEXTS, hub_folder, zst_files

from budgeted_lora.data.readers import BATCH_ROWS, read_file
from budgeted_lora.errors import BadInput


def refusal(work: Callable[[], object]) -> str:
    with pytest.raises(BadInput) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def read(path: Path, field: str = "text") -> Callable[[], object]:
    return lambda: list(read_file(path, text_field=field))


def test_parquet_reads_a_few_rows_at_a_time_and_names_the_row(tmp_path: Path) -> None:
    path, texts = tmp_path / "a.parquet", [f"text {i}" for i in range(2 * BATCH_ROWS + 10)]
    pq.write_table(pa.table({"text": texts}), path)
    assert read(path)() == texts
    pq.write_table(pa.table({"text": [*texts[: BATCH_ROWS + 4], None]}), path)
    line = refusal(read(path))
    assert f"a.parquet, row {BATCH_ROWS + 5}: field 'text' (corpus.text_field) is empty, expected text" in line
    assert "no column 'body' (corpus.text_field); it has text" in refusal(read(path, "body"))
    pq.write_table(pa.table({"text": [1, 2]}), path)
    assert "a.parquet, row 1: field 'text' (corpus.text_field) holds int, expected text" in refusal(read(path))


def test_parquet_of_bytes_that_are_no_text(tmp_path: Path) -> None:
    data = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], "<i4")), pa.py_buffer(b"\xff\xfe")]
    )
    pq.write_table(pa.table({"text": data}), tmp_path / "a.parquet")
    assert "a.parquet" in (said := refusal(read(tmp_path / "a.parquet")))
    assert "not UTF-8 text" in said


@pytest.mark.parametrize("cut", [1, 100, 2000])
def test_truncated_parquet(tmp_path: Path, cut: int) -> None:
    path = next(hub_folder(tmp_path, TEXTS[:1]).glob("data/*"))
    path.write_bytes(path.read_bytes()[:-cut])
    assert ".parquet: not a whole Parquet file" in refusal(read(path))


def test_overwritten_pages_of_parquet(tmp_path: Path) -> None:
    path = next(hub_folder(tmp_path, TEXTS[:1]).glob("data/*"))
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + bytes(400) + whole[404:])
    assert "not a whole Parquet file" in refusal(read(path))


def test_damaged_lines_and_wrong_files(tmp_path: Path) -> None:
    path = next(zst_files(tmp_path / "pile", TEXTS[:1]).iterdir())
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert "00.jsonl.zst: truncated" in refusal(read(path))
    path.write_bytes(b"plain")
    assert "00.jsonl.zst: not whole Zstandard data" in refusal(read(path))
    path.write_bytes(zstandard.compress(b'{"text": "fine"}\n{"text": "cut'))
    assert "00.jsonl.zst, line 2: not JSON" in refusal(read(path))
    path.write_bytes(zstandard.compress(b'{"text": "fine"}\n{"body": "x"}\n'))
    assert "00.jsonl.zst, line 2: no field 'text'" in refusal(read(path))
    path.write_bytes(zstandard.compress(b"[" * 200_000))
    assert "00.jsonl.zst" in refusal(read(path))
    (tmp_path / "a.csv").write_text("text\n")
    assert "a.csv: unknown ending" in refusal(read(tmp_path / "a.csv"))
