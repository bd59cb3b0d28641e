"""Token files: what is written is read back, windows are cut as designed, damage is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from budgeted_lora.data.tokens import TokenFile, Windows, write_tokens
from budgeted_lora.errors import BadInput

EOS = 0
documents_of = st.lists(st.lists(st.integers(1, 99), max_size=9), max_size=12)
COMMON = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(folder: Path, documents: list[list[int]], *, vocab_size: int = 100) -> TokenFile:
    write_tokens(folder / "x.bin", iter(documents), vocab_size=vocab_size, eos_id=EOS)
    return TokenFile.open(folder / "x.bin")


@COMMON
@given(documents=documents_of)
def test_documents_come_back(tmp_path: Path, documents: list[list[int]]) -> None:
    file = write(tmp_path, documents)
    assert len(file.offsets) == len(documents) + 1
    pairs = zip(file.offsets[:-1], file.offsets[1:], strict=True)
    assert [file.tokens[a:b].tolist() for a, b in pairs] == [[*ids, EOS] for ids in documents]
    file.check_digest()


@COMMON
@given(documents=documents_of, length=st.integers(1, 8))
def test_packed_windows_are_the_stream_cut(tmp_path: Path, documents: list[list[int]], length: int) -> None:
    file = write(tmp_path, documents)
    stream = [token for ids in documents for token in [*ids, EOS]]
    windows = Windows(file, length, "packed")
    assert windows.count == len(stream) // length
    ids, mask = windows.read(np.arange(windows.count))
    assert ids.reshape(-1).tolist() == stream[: windows.count * length]
    assert mask.all()
    assert ids.dtype == np.int64


@COMMON
@given(documents=documents_of, length=st.integers(1, 8))
def test_document_windows_are_one_document_each(tmp_path: Path, documents: list[list[int]], length: int) -> None:
    file = write(tmp_path, documents)
    windows = Windows(file, length, "document")
    assert windows.count == len(documents)
    ids, mask = windows.read(np.arange(len(documents)))
    for row, valid, document in zip(ids, mask, documents, strict=True):
        whole = [*document, EOS][:length]
        assert valid.tolist() == [True] * len(whole) + [False] * (length - len(whole))
        assert row[valid].tolist() == whole
        assert (row[~valid] == EOS).all()


@COMMON
@given(documents=documents_of, length=st.integers(1, 8), skipped=st.integers(0, 20))
@pytest.mark.parametrize("packing", ["packed", "document"])
def test_skipped_windows_are_left_out_at_the_start(
    tmp_path: Path, packing: str, documents: list[list[int]], length: int, skipped: int
) -> None:
    file = write(tmp_path, documents)
    whole, rest = Windows(file, length, packing), Windows(file, length, packing, skipped=skipped)
    assert rest.count == max(0, whole.count - skipped)
    ids, mask = whole.read(np.arange(whole.count))
    rest_ids, rest_mask = rest.read(np.arange(rest.count))
    assert rest_ids.tolist() == ids[skipped:].tolist()
    assert rest_mask.tolist() == mask[skipped:].tolist()


def test_windows_come_in_the_order_asked_for(tmp_path: Path) -> None:
    file = write(tmp_path, [[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    ids, _ = Windows(file, 4, "packed").read(np.array([2, 0, 2]))
    assert ids.tolist() == [[7, 8, 9, 0], [1, 2, 3, 0], [7, 8, 9, 0]]


@pytest.mark.parametrize(("vocab_size", "dtype", "token"), [(65_536, "uint16", 65_535), (65_537, "uint32", 65_536)])
def test_integer_width_follows_the_vocabulary(tmp_path: Path, vocab_size: int, dtype: str, token: int) -> None:
    file = write(tmp_path, [[token, 1]], vocab_size=vocab_size)
    assert json.loads((tmp_path / "x.json").read_text())["dtype"] == dtype
    width = int(dtype.removeprefix("uint")) // 8
    assert (tmp_path / "x.bin").read_bytes() == b"".join(t.to_bytes(width, "little") for t in (token, 1, EOS))
    assert (tmp_path / "x.idx").read_bytes() == b"".join(t.to_bytes(8, "little") for t in (0, 3))
    assert file.tokens.tolist() == [token, 1, EOS]


def test_empty_file(tmp_path: Path) -> None:
    file = write(tmp_path, [])
    assert (len(file.tokens), Windows(file, 4, "packed").count, Windows(file, 4, "document").count) == (0, 0, 0)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
@pytest.mark.parametrize("change", [-2, -1, 1])
def test_truncated_or_lengthened_file_is_refused(tmp_path: Path, suffix: str, change: int) -> None:
    write(tmp_path, [[1, 2, 3], [4]])
    path = tmp_path / f"x{suffix}"
    whole = path.read_bytes()
    path.write_bytes(whole[:change] if change < 0 else whole + bytes(change))
    with pytest.raises(BadInput, match=rf"x\{suffix}: {len(whole) + change} bytes, expected {len(whole)}; truncated"):
        TokenFile.open(tmp_path / "x.bin")


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".json"])
def test_missing_file_is_refused(tmp_path: Path, suffix: str) -> None:
    write(tmp_path, [[1]])
    (tmp_path / f"x{suffix}").unlink()
    with pytest.raises(BadInput, match=rf"x\{suffix}: no such file"):
        TokenFile.open(tmp_path / "x.bin")


@pytest.mark.parametrize("text", ["{}", "[]", '{"dtype": "uint16", "tokens": 2}', '{"dtype": "words", "tokens": 2}'])
def test_a_record_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    write(tmp_path, [[1]])
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(BadInput, match=r"x\.json: .*the record of a token file"):
        TokenFile.open(tmp_path / "x.bin")


def test_changed_bytes_are_seen_by_the_digest(tmp_path: Path) -> None:
    file = write(tmp_path, [[1, 2, 3], [4]])
    for name in ("x.bin", "x.idx"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(bytes([*whole[:-9], whole[-9] ^ 1, *whole[-8:]]))
        with pytest.raises(BadInput, match=rf"{name}: checksum mismatch"):
            TokenFile.open(tmp_path / "x.bin")
        TokenFile.open(tmp_path / "x.bin", verify=False)
        (tmp_path / name).write_bytes(whole)
        file.check_digest()


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> object:
        yield [1, 2]
        raise RuntimeError("the source failed")

    with pytest.raises(RuntimeError, match="the source failed"):
        write_tokens(tmp_path / "x.bin", broken(), vocab_size=100, eos_id=EOS)
    assert list(tmp_path.iterdir()) == []
