"""Two runs of the same code compare as equal; any other change is named and ends with status 1."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from fixtures.command_line import Outcome
from safetensors.torch import load_file, save_file

from budgeted_lora.commands.diff import Comparison, opened

RECORD = {
    "value": 12.5,
    "windows": [1, 2],
    "tokens_per_second": 100.0,
    "prefill": {"dense": {"median_s": 1.0}, "compressed": {"median_s": 2.0}, "speedup": 0.5},
    "totals": {"speedup_vs_dense": 1.87},
    "provenance": {"started_at": "1", "seconds": 2.0},
}
TABLE = """**Table 2**

| Method | PPL | Measured: prefill | Train time |
| --- | ---: | ---: | ---: |
| KD Full | 230.75 | {} | {} |

- {}
"""
LATEX = "\\toprule\nA \\& B & Measured: prefill \\\\\n1 & {} \\\\\n\\bottomrule\n{}\n"


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A small result folder."""
    root = tmp_path / "before"
    cell = root / "cells" / "kd-full-1234"
    (cell / "trained").mkdir(parents=True)
    (root / "tables").mkdir()
    (root / "logs").mkdir()
    (cell / "train.json").write_text(json.dumps(RECORD))
    (cell / "history.csv").write_text("step,loss,tokens_per_second\n5,1.25,900\n10,nan,901\n")
    save_file({"a": torch.arange(4.0), "b": torch.ones(2)}, cell / "trained" / "model.safetensors")
    (cell / "trained" / "README.md").write_text("A student.\n")
    (cell / "trained.sha256").write_text("1\n")
    (root / "hidden.bin").write_bytes(bytes(8))
    pd.DataFrame({"loss": [1.0, float("nan")], "word": ["a", "b"]}).to_parquet(root / "windows.parquet")
    (root / "tables" / "table2.md").write_text(TABLE.format("0.5x", "4 s", "A note."))
    (root / "tables" / "table2.tex").write_text(LATEX.format("0.5", "A note."))
    (root / "logs" / "train.log").write_text("10:00\n")
    return root


@pytest.fixture
def after(before: Path) -> Path:
    return Path(shutil.copytree(before, before.with_name("after")))


def record(folder: Path, **changes: object) -> None:
    path = folder / "cells" / "kd-full-1234" / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def compare(a: Path, b: Path) -> list[str]:
    """A line per difference between the files of two folders."""
    with opened(a) as one, opened(b) as other:
        return [f"{name}: {line}" for name, lines in Comparison.of(one, other).files.items() for line in lines]


def test_an_exact_copy_is_equal(run: Callable[..., Outcome], before: Path, after: Path) -> None:
    done = run("diff", before, after)
    assert (done.status, done.out) == (0, "no difference in 1 records, 8 files\n")


def test_provenance_and_timings_are_left_out(before: Path, after: Path) -> None:
    prefill = {"dense": {"median_s": 3.0}, "compressed": {"median_s": 3.0}, "speedup": 1.0}
    record(after, provenance={"git_commit": "b"}, tokens_per_second=1.0, prefill=prefill)
    cell = after / "cells" / "kd-full-1234"
    (cell / "history.csv").write_text("step,loss,tokens_per_second\n5,1.25,800\n10,nan,801\n")
    (cell / "trained.sha256").write_text("2\n")
    (after / "tables" / "table2.md").write_text(TABLE.format("0.7x", "5 s", "A note."))
    (after / "tables" / "table2.tex").write_text(LATEX.format("0.7", "A note."))
    (after / "logs" / "train.log").write_text("11:00\n")
    assert compare(before, after) == []


def change_tensor(root: Path) -> None:
    path = root / "cells" / "kd-full-1234" / "trained" / "model.safetensors"
    save_file(load_file(path) | {"b": torch.tensor([1.0, 1.0000001])}, path)


def cast_tensor(root: Path) -> None:
    path = root / "cells" / "kd-full-1234" / "trained" / "model.safetensors"
    save_file(load_file(path) | {"b": torch.ones(2, dtype=torch.float16)}, path)


def write_parquet(root: Path) -> None:
    pd.DataFrame({"loss": [1.0, float("nan")], "word": ["a", "c"]}).to_parquet(root / "windows.parquet")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "value": (lambda root: record(root, value=12.6), "train.json: value: 12.5 in A, 12.6 in B"),
    "type": (lambda root: record(root, windows=[1, 2.0]), "train.json: windows[1]: 2 in A, 2.0 in B"),
    "key": (lambda root: record(root, extra=1), "train.json: extra: key only in B"),
    "MAC ratio": (lambda root: record(root, totals={"speedup_vs_dense": 2.0}), "totals.speedup_vs_dense: 1.87"),
    "tensor": (change_tensor, "model.safetensors: b: bytes differ"),
    "tensor's type": (cast_tensor, "model.safetensors: b: F32 [2] in A, F16 [2] in B"),
    "bytes": (lambda root: (root / "hidden.bin").write_bytes(b"1234567" + bytes(1)), "hidden.bin: bytes differ"),
    "parquet": (write_parquet, "windows.parquet: word, row 2: b in A, c in B"),
    "csv": (
        lambda root: (root / "cells" / "kd-full-1234" / "history.csv").write_text("step,loss\n5,1.25\n10,1.0\n"),
        "history.csv: loss, row 2: nan in A, 1.0 in B",
    ),
    "file": (lambda root: (root / "hidden.bin").unlink(), "hidden.bin: only in A"),
    "note": (
        lambda root: (root / "tables" / "table2.md").write_text(TABLE.format("0.5x", "4 s", "A remark.")),
        "table2.md: line 7 of 7 and 7: - A note. in A, - A remark. in B",
    ),
    "cell of a table": (
        lambda root: (root / "tables" / "table2.tex").write_text(LATEX.format("0.5", "A note.").replace("1 &", "2 &")),
        "table2.tex: line 3",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_any_other_change_is_named(before: Path, after: Path, name: str) -> None:
    change, expected = CHANGES[name]
    change(after)
    assert any(expected in line for line in compare(before, after))
