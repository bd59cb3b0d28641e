"""Maintainers' tool: compares the results or reports of two runs, without provenance and timings.

python tools/compare_results.py BEFORE AFTER

BEFORE and AFTER are two folders `results/<scale>` or two folders `reports/<scale>`. Prints one line per difference.
Exit status: 0 if nothing differs, 1 if something differs, 2 if a folder is missing or holds no result.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pandas as pd

# Keys and columns that differ between two runs of the same code; they are left out at every depth.
SKIPPED_KEYS = {
    "provenance": "values, digests of inputs, versions, machine, start and duration",
    "content_sha256": "digest of the whole record, with its provenance",
    "made_by": "name of the function that wrote the record",
    "devices": "the machine's processors",
    "peak_memory_bytes": "depends on the allocator and on what else runs",
    "tokens_per_second": "timing",
    "train_seconds": "timing",
    "median_s": "timing",
    "q1_s": "timing",
    "q3_s": "timing",
    "samples_s": "timing",
}
TIMED_RATIO = "speedup"  # in a record that also holds timings: a ratio of two timings; elsewhere a ratio of MACs
TIMED_COLUMNS = ("measured_",)  # in CSV files of a report
TIMED_HEADINGS = ("Measured:", "Train time")  # in tables for people

# Files that are not compared, with the reason.
SKIPPED_FILES = {
    ".snakemake_timestamp": "empty",
    "*.lock": "empty",
    "*.sha256": "digest of the file beside it, which is compared",
    "logs/*": "printed text",
    "benchmarks/*": "timings",
    "state/*": "saved states of unfinished trainings",
    "index.html": "shows provenance and timings; its tables and figures are compared",
    "figures/pareto_measured_speedup.*": "draws timings",
}
PROSE = "*README.md"  # model cards


def files_below(folder: Path) -> dict[str, Path]:
    """Files to compare, by their path below the folder."""
    named = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in named.items() if not skipped(name)}


def skipped(name: str) -> bool:
    return any(fnmatch(name, pattern) or fnmatch(Path(name).name, pattern) for pattern in SKIPPED_FILES)


def compare(before: Path, after: Path, *, prose: bool = True) -> list[str]:
    """One line per difference between two result or report folders; empty if there is none.

    Args:
        prose: also compare model cards and the sentences around a table.
    """
    old, new = files_below(before), files_below(after)
    lines = one_sided("cell", cells(before), cells(after))
    lines += one_sided("file", old, new)
    for name in sorted(old.keys() & new.keys()):
        if prose or not fnmatch(name, PROSE):
            lines += [f"{name}: {line}" for line in compare_file(old[name], new[name], prose=prose)]
    return lines


def cells(folder: Path) -> set[str]:
    return {path.name for path in (folder / "cells").glob("*") if path.is_dir()}


def one_sided(kind: str, old: Iterable[str], new: Iterable[str]) -> list[str]:
    old, new = set(old), set(new)
    return [f"{name}: {kind} only before" for name in sorted(old - new)] + [
        f"{name}: {kind} only after" for name in sorted(new - old)
    ]


def compare_file(old: Path, new: Path, *, prose: bool = True) -> list[str]:
    """One line per difference between two files of the same name."""
    if old.read_bytes() == new.read_bytes():
        return []
    if old.suffix in (".md", ".tex"):
        return compare_texts(table_text(old, prose=prose), table_text(new, prose=prose))
    by_suffix: dict[str, Callable[[Path, Path], list[str]]] = {
        ".json": lambda a, b: compare_json(json.loads(a.read_text()), json.loads(b.read_text())),
        ".safetensors": compare_tensors,
        ".csv": lambda a, b: compare_frames(read_csv(a), read_csv(b)),
        ".parquet": lambda a, b: compare_frames(pd.read_parquet(a), pd.read_parquet(b)),
        ".svg": lambda a, b: compare_texts(a.read_text().splitlines(), b.read_text().splitlines()),
    }
    return by_suffix.get(old.suffix, compare_bytes)(old, new)


def compare_bytes(old: Path, new: Path) -> list[str]:
    first, second = old.read_bytes(), new.read_bytes()
    if len(first) != len(second):
        return [f"{len(first)} bytes before, {len(second)} bytes after"]
    place = next((place for place, pair in enumerate(zip(first, second, strict=True)) if pair[0] != pair[1]), None)
    return [] if place is None else [f"bytes differ from byte {place} of {len(first)} on"]


def compare_texts(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """The first line that differs, and the number of lines."""
    if old == new:
        return []
    pairs = list(zip(old, new, strict=False))
    place = next((place for place, (a, b) in enumerate(pairs) if a != b), len(pairs))
    a, b = (lines[place].strip() if place < len(lines) else "(end)" for lines in (old, new))
    return [f"line {place + 1} of {len(old)} and {len(new)}: {brief(a)} before, {brief(b)} after"]


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
    return [] if same else [f"{path}: {brief(old)} before, {brief(new)} after"]


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
    first, second = tensors(old), tensors(new)
    lines = one_sided("tensor", first, second)
    for name in sorted(first.keys() & second.keys()):
        (about, data), (other_about, other_data) = first[name], second[name]
        if about != other_about:
            lines.append(f"{name}: {about} before, {other_about} after")
        elif data != other_data:
            lines.append(f"{name}: bytes differ")
    return lines or ["same tensors, in another order of bytes"]


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    """Type and shape as text, and bytes, by the tensor's name. The format's metadata count as a tensor."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    content = {"__metadata__": (json.dumps(header.pop("__metadata__", {}), sort_keys=True), b"")}
    for name, about in header.items():
        begin, end = about["data_offsets"]
        content[name] = (f"{about['dtype']} {about['shape']}", data[start + begin : start + end])
    return content


def read_csv(path: Path) -> pd.DataFrame:
    """All values as the text that stands in the file."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def compare_frames(old: pd.DataFrame, new: pd.DataFrame) -> list[str]:
    """One line per column that differs, without timings."""
    kept = [
        frame[[c for c in frame.columns if c not in SKIPPED_KEYS and not c.startswith(TIMED_COLUMNS)]]
        for frame in (old, new)
    ]
    old, new = kept
    lines = one_sided("column", old.columns, new.columns)
    if len(old) != len(new):
        return [*lines, f"{len(old)} rows before, {len(new)} rows after"]
    common = [column for column in old.columns if column in new.columns]
    for column in common:
        if old[column].dtype != new[column].dtype:
            lines.append(f"{column}: {old[column].dtype} before, {new[column].dtype} after")
        elif not old[column].equals(new[column]):
            row = next(place for place in range(len(old)) if not old[column][[place]].equals(new[column][[place]]))
            lines.append(f"{column}, row {row + 1}: {brief(old[column][row])} before, {brief(new[column][row])} after")
    if not lines and list(old.columns) != list(new.columns):
        lines.append("columns in another order")
    return lines


def table_text(path: Path, *, prose: bool) -> list[str]:
    """Lines of a Markdown or LaTeX file, without the timed columns of its tables; sentences only if asked for."""
    rule = "|" if path.suffix == ".md" else "&"
    between = re.compile(rf"(?<!\\){re.escape(rule)}")  # an escaped one belongs to the text
    lines: list[str] = []
    dropped: set[int] | None = None
    for line in path.read_text().splitlines():
        if not between.search(line):
            dropped = None if path.suffix == ".md" else dropped
            lines += [line] if prose else []
            continue
        fields = [field.strip().removesuffix("\\\\").strip() for field in between.split(line)]
        if dropped is None:
            dropped = {place for place, field in enumerate(fields) if field.startswith(TIMED_HEADINGS)}
        lines.append(f" {rule} ".join(field for place, field in enumerate(fields) if place not in dropped))
    return lines


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def brief(value: Any) -> str:
    text = repr(value) if not isinstance(value, str) else value
    return text if len(text) <= 60 else f"{text[:57]}..."


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare two folders of results or reports.")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--ignore-prose", action="store_true", help="compare tables without the sentences around them")
    options = parser.parse_args(arguments)
    for folder in (options.before, options.after):
        if not folder.is_dir() or not files_below(folder):
            print(f"{folder}: expected a folder with results or reports", file=sys.stderr)
            return 2
    lines = compare(options.before, options.after, prose=not options.ignore_prose)
    print("\n".join([*lines, f"{len(lines)} differences in {len(files_below(options.before))} files"]))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
