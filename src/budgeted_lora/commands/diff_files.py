"""What differs between the files of two results or reports, without provenance and timings, a line per difference."""

import filecmp
import json
import math
import mmap
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pandas as pd

from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json

# Keys and columns that differ between two runs of the same code; they are left out at every depth.
SKIPPED_KEYS = {
    "provenance": "values, digests of inputs, versions, machine, start and duration",
    "content_sha256": "digest of the whole record, with its provenance",
    "made_by": "name of the function that wrote the record",
    "devices": "the machine's processors",
    "versions": "of optional packages, compared as code and machine",
    "gpu": "utilisation, memory and energy of the machine's GPUs",
    "peak_memory_bytes": "depends on the allocator and on what else runs",
    "tokens_per_second": "timing",
    "train_seconds": "timing",
    "median_s": "timing",
    "q1_s": "timing",
    "q3_s": "timing",
    "samples_s": "timing",
}
BLOCK = 2**20
TIMED_RATIO = "speedup"  # in a record that also holds timings: a ratio of two timings; elsewhere a ratio of MACs
TIMED_COLUMNS = ("measured_",)  # in CSV files of a report
TIMED_HEADINGS = ("Measured:", "Train time", "Train energy", "GPU busy")  # in tables for people

# Files that are not compared, with the reason.
SKIPPED_FILES = {
    ".snakemake_timestamp": "empty",
    "*.lock": "which processes are at work",
    ".*.tmp": "files that a job is writing",
    "tensorboard/*": "curves of history.csv, which is compared",
    "*.sha256": "digest of the file beside it, which is compared",
    "logs/*": "printed text",
    "benchmarks/*": "timings",
    "state/*": "saved states of unfinished trainings",
    "code/*": "digests of the code, compared as such",
    ".outside.json": "dates of files from outside",
    ".options/*": "options of jobs, recorded in results",
    "index.html": "shows provenance and timings; its tables and figures are compared",
    "figures/pareto_measured_speedup.*": "draws timings",
}


def files_below(folder: Path) -> dict[str, Path]:
    """Files to compare, by their path below the folder."""
    named = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in named.items() if not skipped(name)}


def skipped(name: str) -> bool:
    return any(fnmatch(name, pattern) or fnmatch(Path(name).name, pattern) for pattern in SKIPPED_FILES)


def one_sided(kind: str, old: Iterable[str], new: Iterable[str]) -> list[str]:
    old, new = set(old), set(new)
    return [f"{name}: {kind} only in A" for name in sorted(old - new)] + [
        f"{name}: {kind} only in B" for name in sorted(new - old)
    ]


def compare_file(old: Path, new: Path) -> list[str]:
    """One line per difference between two files of the same name.

    Raises:
        BadInput: one of them is damaged.
    """
    if filecmp.cmp(old, new, shallow=False):
        return []
    if old.suffix in (".md", ".tex"):
        return compare_texts(table_text(old), table_text(new))
    by_suffix: dict[str, Callable[[Path, Path], list[str]]] = {
        ".json": lambda a, b: compare_json(read_json(a, kind=object), read_json(b, kind=object)),
        ".safetensors": compare_tensors,
        ".csv": lambda a, b: compare_frames(read_csv(a), read_csv(b)),
        ".parquet": lambda a, b: compare_frames(read_parquet(a), read_parquet(b)),
        ".svg": lambda a, b: compare_texts(a.read_text().splitlines(), b.read_text().splitlines()),
    }
    return by_suffix.get(old.suffix, compare_bytes)(old, new)


def compare_bytes(old: Path, new: Path) -> list[str]:
    """Sizes if they differ, else the first byte that differs; files may be larger than memory."""
    sizes = [path.stat().st_size for path in (old, new)]
    if sizes[0] != sizes[1]:
        return [f"{sizes[0]} bytes in A, {sizes[1]} bytes in B"]
    place = 0
    with old.open("rb") as first, new.open("rb") as second:
        while (block := first.read(BLOCK)) == (other := second.read(BLOCK)) and block:
            place += len(block)
    place += next((at for at, pair in enumerate(zip(block, other, strict=True)) if pair[0] != pair[1]), 0)
    return [f"bytes differ from byte {place} of {sizes[0]} on"]


def compare_texts(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """The first line that differs, and the number of lines."""
    if old == new:
        return []
    pairs = list(zip(old, new, strict=False))
    place = next((place for place, (a, b) in enumerate(pairs) if a != b), len(pairs))
    a, b = (lines[place].strip() if place < len(lines) else "(end)" for lines in (old, new))
    return [f"line {place + 1} of {len(old)} and {len(new)}: {brief(a)} in A, {brief(b)} in B"]


def compare_json(old: Any, new: Any, path: str = "") -> list[str]:
    """One line per key that differs, without `SKIPPED_KEYS` and ratios of timings."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        old, new = without_timings(old), without_timings(new)
        lines = [f"{join(path, name)}" for name in one_sided("key", old, new)]
        for key in sorted(old.keys() & new.keys()):
            lines += compare_json(old[key], new[key], join(path, key))
        return lines
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            line
            for place, (a, b) in enumerate(zip(old, new, strict=True))
            for line in compare_json(a, b, f"{path}[{place}]")
        ]
    same = type(old) is type(new) and (old == new or (isinstance(old, float) and math.isnan(old) and math.isnan(new)))
    return [] if same else [f"{path}: {brief(old)} in A, {brief(new)} in B"]


def without_timings(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without skipped keys, and without speedups if it also holds the timings they are made of."""
    timed = any(isinstance(value, Mapping) and "median_s" in value for value in record.values())
    return {
        key: value
        for key, value in record.items()
        if key not in SKIPPED_KEYS and not (timed and key.startswith(TIMED_RATIO))
    }


def compare_tensors(old: Path, new: Path) -> list[str]:
    """One line per tensor that differs in type, shape or bytes, and one if the metadata differ."""
    with old.open("rb") as first, new.open("rb") as second:
        before, after = tensors(old, first.fileno()), tensors(new, second.fileno())
    lines = one_sided("tensor", before, after)
    for name in sorted(before.keys() & after.keys()):
        (about, data), (other_about, other_data) = before[name], after[name]
        if about != other_about:
            lines.append(f"{name}: {about} in A, {other_about} in B")
        elif data != other_data:
            lines.append(f"{name}: bytes differ")
    return lines or ["same tensors, in another order of bytes"]


def tensors(path: Path, handle: int) -> dict[str, tuple[str, memoryview]]:
    """Type and shape as text, and bytes, by the tensor's name. The format's metadata count as a tensor.

    Raises:
        BadInput: the file is not safetensors.
    """
    try:
        data = memoryview(mmap.mmap(handle, 0, access=mmap.ACCESS_READ))
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(bytes(data[8:start]))
        content = {"__metadata__": (json.dumps(header.pop("__metadata__", {}), sort_keys=True), data[:0])}
        for name, about in header.items():
            begin, end = about["data_offsets"]
            content[name] = (f"{about['dtype']} {about['shape']}", data[start + begin : start + end])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: not safetensors ({error})") from None
    return content


def read_csv(path: Path) -> pd.DataFrame:
    """All values as the text that stands in the file. Raises BadInput if it is not a table."""
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise BadInput(f"{path}: not CSV ({' '.join(str(error).split())[:200]})") from None


def read_parquet(path: Path) -> pd.DataFrame:
    """Raises BadInput if the file is damaged."""
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: not a whole Parquet file ({' '.join(str(error).split())[:200]})") from None


def compare_frames(old: pd.DataFrame, new: pd.DataFrame) -> list[str]:
    """One line per column that differs, without timings."""
    kept = [
        frame[[c for c in frame.columns if c not in SKIPPED_KEYS and not c.startswith(TIMED_COLUMNS)]]
        for frame in (old, new)
    ]
    old, new = kept
    lines = one_sided("column", old.columns, new.columns)
    if len(old) != len(new):
        return [*lines, f"{len(old)} rows in A, {len(new)} rows in B"]
    common = [column for column in old.columns if column in new.columns]
    for column in common:
        if old[column].dtype != new[column].dtype:
            lines.append(f"{column}: {old[column].dtype} in A, {new[column].dtype} in B")
        elif not old[column].equals(new[column]):
            row = next(place for place in range(len(old)) if not old[column][[place]].equals(new[column][[place]]))
            lines.append(f"{column}, row {row + 1}: {brief(old[column][row])} in A, {brief(new[column][row])} in B")
    if not lines and list(old.columns) != list(new.columns):
        lines.append("columns in another order")
    return lines


def table_text(path: Path) -> list[str]:
    """Lines of a Markdown or LaTeX file, without the timed columns of its tables."""
    rule = "|" if path.suffix == ".md" else "&"
    between = re.compile(rf"(?<!\\){re.escape(rule)}")  # an escaped one belongs to the text
    lines: list[str] = []
    dropped: set[int] | None = None
    for line in path.read_text().splitlines():
        if not between.search(line):
            dropped = None if path.suffix == ".md" else dropped
            lines.append(line)
            continue
        fields = [field.strip().removesuffix("\\\\").strip() for field in between.split(line)]
        if dropped is None:
            dropped = {place for place, field in enumerate(fields) if field.startswith(TIMED_HEADINGS)}
        lines.append(f" {rule} ".join(field for place, field in enumerate(fields) if place not in dropped))
    return lines


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def brief(value: Any) -> str:
    """A value, also one of numpy, as short text."""
    text = repr(getattr(value, "item", lambda: value)()) if not isinstance(value, str) else value
    return text if len(text) <= 60 else f"{text[:57]}..."
