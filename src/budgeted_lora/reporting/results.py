"""Result files as pandas frames. A missing file is an error, or, in a partial report, a name on a list.

A number of a table is a column, and `COLUMNS` says which key of which result file it is. The function that wrote the
file stands in it, under `provenance`, as `made_by`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import nan
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

import pandas as pd
from pydantic import BaseModel

from budgeted_lora.config.anatomy import SIZES, read_anatomy
from budgeted_lora.config.recipe import Recipe
from budgeted_lora.config.scale import DEFAULT_VARIANT, MAIN_CELLS
from budgeted_lora.config.types import Method
from budgeted_lora.errors import BadInput
from budgeted_lora.files import check_listed, read_json
from budgeted_lora.reporting.contents import Shown
from budgeted_lora.reporting.records import (
    of_uncommitted_code,
    read_csv,
    read_numbers,
    read_record,
    refuse_text,
    size_in_name,
)
from budgeted_lora.reporting.standing import Standing

NOTHING = Shown("", "", (), ())  # where no single table or figure is made


class Source(NamedTuple):
    """Where a column comes from: a kind of result file (a name of `FILES`) and a key, with dots for nested ones."""

    file: str
    key: str


# Result files of a cell by kind: {cell} lies in results/<scale>/cells, {variant} in its folder compressed.
FILES = {
    "perplexity": "cells/{cell}/compressed/{variant}/perplexity.json",
    "icl": "cells/{cell}/compressed/{variant}/icl.json",
    "compression": "cells/{cell}/compressed/{variant}/compression.json",
    "train": "cells/{cell}/train.json",
    "speed": "speed/{structure}.json",
    "int8": "cells/{cell}/compressed/{variant}/int8.json",
}
TOTALS = (
    "kept", "svd", "dropped", "avg_rank", "macs", "dense_macs", "speedup_vs_dense", "speedup_vs_lora",
    "param_reduction_pct", "param_reduction_vs_dense_pct",
)  # fmt: skip
SPEEDS = ("modules", "prefill", "decode")
MIDDLE = ("", "_q1", "_q3")  # a ratio of two times: the median, and the ends of its middle half
COLUMNS = {
    "ppl": Source("perplexity", "value"),
    "ppl_se": Source("perplexity", "standard_error"),
    "bits_per_byte": Source("perplexity", "bits_per_byte"),
    "ppl_functions": Source("perplexity", "functions.value"),
    "ppl_uncompressed": Source("perplexity", "uncompressed.value"),
    "slice": Source("perplexity", "conditions.validation_sha256"),
    "icl": Source("icl", "composite"),
    "icl_se": Source("icl", "composite_se"),
    "icl_chance": Source("icl", "chance_composite"),
    "train_seconds": Source("train", "train_seconds"),
    "train_joules": Source("train", "gpu.joules"),
    "gpu_utilisation": Source("train", "gpu.utilisation"),
    "train_compute": Source("train", "train_compute.scheduled"),
    "executed_compute": Source("train", "train_compute.executed"),
    **{name: Source("compression", f"totals.{name}") for name in TOTALS},
    **{f"measured_{part}{end}": Source("speed", f"{part}.speedup{end}") for part in SPEEDS for end in MIDDLE},
    "int8_ppl": Source("int8", "perplexity.value"),
    "int8_ppl_se": Source("int8", "perplexity.standard_error"),
    "plain_bytes": Source("int8", "bytes.plain.model"),
    "int8_bytes": Source("int8", "bytes.int8.model"),
    "plain_projection_bytes": Source("int8", "bytes.plain.projections"),
    "int8_projection_bytes": Source("int8", "bytes.int8.projections"),
    **{f"measured_int8_{part}{end}": Source("int8", f"{part}.speedup{end}") for part in SPEEDS[1:] for end in MIDDLE},
}
MODEL_COLUMNS = (
    "ppl", "ppl_se", "bits_per_byte", "ppl_functions", "ppl_uncompressed", "slice", "icl", "icl_se", "icl_chance",
)  # fmt: skip
SHAPE_COLUMNS = tuple(SIZES)
# Columns of a line in which runs of one recipe agree, whatever their seed.
RECIPE = frozenset(Recipe.model_fields) - {"seed"} | {"tokens"}
LINE_TEXT = (
    "table", "cell", "variant", "truncation", "method", "teacher", "init", "schedule", "controller", "low_rank_init",
    "order", "train_dense", "structure", "elastic_budgets",
)  # fmt: skip
# Of the variant, not of the cell.
VARIANT_COLUMNS = ("variant", "rank_threshold", "svd_threshold", "cut_to", "truncation", "undistilled")
LINE_COLUMNS = (
    "table", "cell", *VARIANT_COLUMNS, "method", "teacher", "init", "budget", "schedule", "controller", "rank", "seed",
    "steps", "tokens", "structure",
)  # fmt: skip


@dataclass(frozen=True)
class Results:
    """One results/<scale> folder.

    Attributes:
        root: the folder.
        lines: one row per table, cell and variant, as `workflow.report.table_lines` lists them.
        shown: the table or figure that is made: its cells and the kinds of files it reads.
        standing: what the scale shares with the paper.
        partial: a missing file is noted in `missing` instead of raising BadInput.
        missing: paths below `root` that were looked for in vain.
        looked_at: whether the code of a result that was read, or of what it was made from, was in no commit; by path.
    """

    root: Path
    lines: pd.DataFrame
    shown: Shown = NOTHING
    standing: Standing = field(default_factory=Standing)
    partial: bool = False
    missing: list[str] = field(default_factory=list)
    looked_at: dict[str, bool] = field(default_factory=dict)

    @classmethod
    def open(
        cls, root: Path | str, *, lines: Sequence[Path] = (), standing: Standing | None = None, partial: bool = False
    ) -> "Results":
        """Read which cells there are.

        Args:
            lines: files of the tables that are shown (results/<scale>/tables/<table>.csv); all tables without any.

        Raises:
            BadInput: a file is missing or lacks a column.
        """
        root = Path(root)
        frames = [read_lines(root, path) for path in lines or [root / "tables.csv"]]
        listed = pd.concat(frames, ignore_index=True)
        return cls(root, listed, standing=standing or Standing(), partial=partial)

    def of(self, shown: Shown) -> "Results":
        """The same results for one table or figure."""
        return replace(self, shown=shown)

    @property
    def scale(self) -> str:
        """Name of the scale: the folder's own name."""
        return self.root.resolve().name

    @property
    def tables(self) -> list[str]:
        """The configured tables whose cells are here, in their order."""
        return list(self.lines["table"].unique())

    @property
    def cells(self) -> pd.DataFrame:
        """One row per cell of any table."""
        return self.listed(*self.tables)

    def json(self, path: str) -> dict[str, Any] | None:
        """A JSON result by its path below `root`; None when it is missing and the report is partial."""
        if not self.exists(path):
            return None
        for one in made_from(path):
            if one not in self.looked_at and self.holds(one):
                self.looked_at[one] = of_uncommitted_code(read_record(self.root / one))
        return read_record(self.root / path)

    def uncommitted(self, paths: Iterable[str] | None = None) -> list[str]:
        """Cells and files, of those read, whose code was in no commit.

        Args:
            paths: only what these results were made from; everything read without them.
        """
        wanted = self.looked_at if paths is None else {one for path in paths for one in made_from(path)}
        found = sorted(path for path in wanted if self.looked_at.get(path))
        return list(dict.fromkeys(path.split("/")[1] if path.startswith("cells/") else path for path in found))

    def holds(self, path: str) -> bool:
        """Whether a file is present, by its path below `root`."""
        return (self.root / path).is_file()

    def exists(self, path: str) -> bool:
        """Whether a result is present; in a partial report a missing one is noted.

        Raises:
            BadInput: it is missing, and the report is not partial.
        """
        if self.holds(path):
            return True
        if not self.partial:
            raise BadInput(f"{self.root / path}: no such result; run its job first, or see `report --partial`")
        if path not in self.missing:
            self.missing.append(path)
        return False

    def of_tables(self, *tables: str) -> pd.DataFrame:
        """Lines of these tables, each cell and variant once; may be empty."""
        mine = self.lines[self.lines["table"].isin(tables)]
        return mine.drop_duplicates(["cell", "variant"]).reset_index(drop=True)

    def listed(self, *tables: str) -> pd.DataFrame:
        """The cells that any of `tables` lists, one row each, without what belongs to a variant; may be empty."""
        mine = self.of_tables(*tables).drop_duplicates("cell").reset_index(drop=True)
        mine["budget"] = mine["budget"].mask(is_elastic(mine))  # it is the variant's
        return mine.drop(columns=["table", *VARIANT_COLUMNS])

    def scores(self, *tables: str) -> pd.DataFrame:
        """One row per cell: its recipe, and the columns that the files `shown.reads` hold of the default variant.

        Args:
            tables: whose cells; those of `shown.cells` without any.

        Raises:
            BadInput: no cell is listed, or a result is missing and the report is not partial.
        """
        tables = tables or self.shown.cells
        return self._scored(self.listed(*tables).assign(variant=DEFAULT_VARIANT), tables)

    def runs(self, *tables: str) -> pd.DataFrame:
        """The same with one row per cell and variant that the tables list."""
        tables = tables or self.shown.cells
        return self._scored(self.of_tables(*tables), tables)

    def _scored(self, listed: pd.DataFrame, tables: tuple[str, ...]) -> pd.DataFrame:
        if listed.empty:
            raise BadInput(f"{self.root / 'tables.csv'}: no cell of {' or '.join(tables)}; expected at least one")
        found = pd.DataFrame([self.columns(line) for line in listed.to_dict("records")], index=listed.index)
        frame = pd.concat([listed, found], axis=1)
        return scored_seeds(frame) if self.partial and "ppl" in frame else frame

    def columns(self, line: dict[str, Any]) -> dict[str, Any]:
        """The columns that the files `shown.reads` hold of one line; NaN where a value is missing.

        A student without a budget has no structure of its own: it is the dense one that others are timed against, so
        its measured speedups are 1; one of another shape is not timed. Only the default variant is scored in context.
        `files` names the files.
        """
        row: dict[str, Any] = {"files": ()}
        for kind in (kind for kind in FILES if kind in self.shown.reads):
            dense = kind == "speed" and not line["structure"]
            made = not dense and (kind != "icl" or line["variant"] == DEFAULT_VARIANT)
            path = FILES[kind].format(**line)
            record = self.json(path) if made else None
            row["files"] += () if record is None else (path,)
            untimed = nan if pd.notna(line.get("student_ffn")) else 1.0
            keys = {name: source.key for name, source in COLUMNS.items() if source.file == kind}
            row |= {name: untimed if dense else value_at(record, key) for name, key in keys.items()}
        return row

    def windows(self, folder: str) -> pd.DataFrame | None:
        """Validation windows of one model: float64 `nll` (sum over the window's scored tokens) and `tokens`."""
        path = self._checked(f"{folder}/perplexity_windows.parquet", record="perplexity.json")
        if path is None:
            return None
        try:
            frame = pd.read_parquet(path)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise BadInput(f"{path}: not a whole Parquet file ({reason}); delete it and evaluate again") from None
        for name in ("nll", "tokens"):
            if name not in frame.columns:
                raise BadInput(f"{path}: no column {name}; expected nll and tokens, one row per window")
        return frame[["nll", "tokens"]].astype("float64")

    def files(self, patterns: Iterable[str]) -> list[Path]:
        """Result files that match any pattern, sorted; those of cells and structures no longer listed are left out."""
        listed = {"cells": set(self.lines["cell"]), "speed": {f"{name}.json" for name in self.lines["structure"]}}
        paths = {path for pattern in patterns for path in self.root.glob(pattern) if path.is_file()}
        parts = {path: path.relative_to(self.root).parts for path in paths}
        return sorted(path for path, (kind, name, *_) in parts.items() if kind not in listed or name in listed[kind])

    def history(self, cell: str) -> pd.DataFrame | None:
        """history.csv of a cell, one row per logged step."""
        path = self._checked(f"cells/{cell}/history.csv", record="train.json")
        return None if path is None else read_numbers(path)

    def retention(self, cell: str) -> pd.DataFrame | None:
        """retention.csv of a cell: index step, one column per module, values in [0, 1]."""
        path = self._checked(f"cells/{cell}/retention.csv", record="train.json")
        return None if path is None else read_numbers(path).set_index("step")

    def gates(self, cell: str) -> dict[str, list[float]] | None:
        """Trained gate values of each module of a cell, in [0, 1]; a module without gates is left out."""
        adapter = self.json(f"cells/{cell}/trained/adapter.json")
        if adapter is None:
            return None
        return {name: entry["gates"] for name, entry in adapter["modules"].items() if entry["gates"]}

    def teachers(self) -> pd.DataFrame:
        """Scores and shapes of the teachers of the main tables, smallest first."""
        return self._models("teachers", "teacher")

    def students(self) -> pd.DataFrame:
        """Scores and shapes of the untrained students that the main tables start from, by name."""
        return self._models("students", "init")

    def _models(self, kind: str, column: str) -> pd.DataFrame:
        known = set(self.listed(*MAIN_CELLS)[column])  # other folders are left over, or belong to ablations
        folders = [path for path in (self.root / kind).glob("*") if path.is_dir() and path.name in known]
        if not folders and not self.partial:
            raise BadInput(f"{self.root / kind}: no model folder; expected one for each of the {kind}")
        rows = []
        for folder in sorted(folders, key=lambda path: (size_in_name(path.name), path.name)):
            paths = {name: f"{kind}/{folder.name}/{name}.json" for name in ("perplexity", "icl")}
            scored = {"perplexity": self.json(paths["perplexity"]), "icl": None}
            if self.holds(paths["icl"]):
                scored["icl"] = self.json(paths["icl"])
            row = {"name": folder.name, "files": tuple(path for path in paths.values() if self.holds(path))}
            row |= shape_columns(folder / "model" / "config.json")
            rows.append(row | {name: value_at(scored[COLUMNS[name].file], COLUMNS[name].key) for name in MODEL_COLUMNS})
        return pd.DataFrame(rows)

    def _checked(self, path: str, *, record: str) -> Path | None:
        """A result compared with the digest that the record beside it holds, where there is one; None if it is missing.

        Raises:
            BadInput: one of the two is damaged.
        """
        if not self.exists(path):
            return None
        beside = (self.root / path).with_name(record)
        about = (read_record(beside) if beside.is_file() else {}).get("provenance")
        check_listed(self.root / path, (about or {}).get("files"))
        return self.root / path


def read_lines(root: Path, path: Path) -> pd.DataFrame:
    """Lines of one or of all tables.

    Raises:
        BadInput: the file is missing or lacks a column.
    """
    if not path.is_file():
        scale, missing = root.resolve().name, f"{path}: no such file" if root.is_dir() else f"{root}: no such folder"
        raise BadInput(
            f"{missing}; `snakemake --config scale={scale}` makes the results of scale {scale}, and `snakemake {path} "
            f"--config scale={scale}`, in seconds, the list of cells by which `report --partial` tells what is missing"
        )
    empty = {name: [""] for name in ("cut_to", *optional_numbers(Recipe))}
    frame = read_csv(path, dtype=dict.fromkeys(LINE_TEXT, str), keep_default_na=False, na_values=empty)
    absent = [name for name in LINE_COLUMNS if name not in frame.columns]
    if absent:
        raise BadInput(f"{path}: no column {', '.join(absent)}; expected {', '.join(LINE_COLUMNS)}")
    refuse_text(path, frame[[name for name in LINE_COLUMNS if name not in LINE_TEXT]])
    unknown = sorted(set(frame["method"]) - set(get_args(Method)))
    if unknown:
        raise BadInput(f"{path}: method {unknown[0]!r}, expected one of {', '.join(get_args(Method))}")
    return frame


def scored_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Without runs that have no perplexity where another seed has one: a mean is of the seeds that are there."""
    same, there = [name for name in frame if name in RECIPE or name == "variant"], frame["ppl"].notna()
    some = there.groupby([frame[name] for name in same], dropna=False).transform("any")
    return frame[there | ~some].reset_index(drop=True)


def is_elastic(lines: pd.DataFrame) -> pd.Series:
    """Of each line whether its student was trained for several budgets; lists of earlier versions know none."""
    return lines.get("elastic_budgets", pd.Series("", lines.index)).fillna("").ne("")


def optional_numbers(model: type[BaseModel]) -> list[str]:
    """Fields of a model that hold one number, true or false, or nothing."""
    parts = {name: get_args(field.annotation) for name, field in model.model_fields.items()}
    parts = {name: union for name, union in parts.items() if not any(get_origin(part) is tuple for part in union)}
    plain = {name: {(get_args(part) or [part])[0] for part in union} for name, union in parts.items()}
    return [name for name, kinds in plain.items() if type(None) in kinds and kinds & {int, float, bool}]


def made_from(path: str) -> list[str]:
    """A JSON result and the records of the stages before it in the folder of its cell or model, below the results."""
    kind, name, *_ = [*path.split("/"), ""]
    before = {
        "cells": [f"cells/{name}/train.json", f"{path.rpartition('/')[0]}/compression.json"],
        "teachers": [f"teachers/{name}/teacher.json"],
        "students": [f"students/{name}/student.json"],
    }
    return [path, *before.get(kind, [])]


def variant_folder(cell: str, variant: str) -> str:
    """Path below the results of a compressed model and its scores."""
    return f"cells/{cell}/compressed/{variant}"


def value_at(record: dict[str, Any] | None, key: str) -> Any:
    """A value of a JSON result by its key, dots between nested ones; NaN where it is missing."""
    value: Any = record
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return nan if value is None else value


def shape_columns(path: Path) -> dict[str, Any]:
    """Shape and parameter count of a model, from its config.json; empty without one."""
    if not path.is_file():
        return {}
    anatomy = read_anatomy(read_json(path), where=path)
    return {name: getattr(anatomy, name) for name in SHAPE_COLUMNS} | {"parameters": anatomy.parameters}
