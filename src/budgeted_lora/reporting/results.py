"""Result files as pandas frames; a missing file is an error, or, in a partial report, a name on a list."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from budgeted_lora.config.scale import MAIN_CELLS
from budgeted_lora.errors import BadInput
from budgeted_lora.files import check_listed, read_json
from budgeted_lora.reporting.standing import Standing, standing_of

CELL_COLUMNS = (
    "cell",
    "tables",
    "method",
    "teacher",
    "init",
    "budget",
    "schedule",
    "controller",
    "rank",
    "seed",
    "steps",
    "tokens",
    "structure",
)
# Columns of numbers that are empty where a method has no use for them.
OPTIONAL_NUMBERS = (
    "budget", "rank", "alpha", "student_ffn", "schedule_start", "schedule_end", "smoothing", "drop_threshold",
    "gate_logit", "gate_lr_multiplier", "rank_step", "statistics_windows",
)  # fmt: skip
TOTALS = (
    "kept", "svd", "dropped", "avg_rank", "macs", "dense_macs", "speedup_vs_dense", "speedup_vs_lora",
    "param_reduction_pct", "param_reduction_vs_dense_pct",
)  # fmt: skip
ICL_COLUMNS = {"": "composite", "_se": "composite_se", "_chance": "chance_composite"}
SHAPE_COLUMNS = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "ffn": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
}
SPEEDS = ("modules", "prefill", "decode")
PARTS = ("perplexity", "train", "structure", "speed")


@dataclass(frozen=True)
class Results:
    """One results/<scale> folder.

    Attributes:
        root: the folder.
        cells: cells.csv, one row a cell, in its order.
        settings: name of the compression settings whose scores are read.
        partial: a missing file is noted in `missing` instead of raising BadInput.
        missing: paths below `root` that were asked for and are not there.
    """

    root: Path
    cells: pd.DataFrame
    settings: str = "default"
    partial: bool = False
    missing: list[str] = field(default_factory=list)

    @classmethod
    def open(
        cls, root: Path | str, *, settings: str = "default", partial: bool = False, rows: dict[str, Any] | None = None
    ) -> "Results":
        """Reads cells.csv.

        Args:
            rows: the lines to show instead: `columns`, `common` values of all, and `rows` with what differs.

        Raises:
            BadInput: it is missing or lacks a column.
        """
        root = Path(root)
        path = root / "cells.csv"
        if rows is None and not path.is_file():
            raise BadInput(no_results(root, path))
        kept_as_text = {
            name: str for name in ("cell", "tables", "method", "teacher", "init", "schedule", "controller", "structure")
        }
        kept_as_text |= dict.fromkeys(("settings", "asked"), str)
        empty = {name: [""] for name in OPTIONAL_NUMBERS}
        source = path if rows is None else StringIO(as_csv(rows))
        cells = pd.read_csv(source, dtype=kept_as_text, keep_default_na=False, na_values=empty)
        absent = [name for name in CELL_COLUMNS if name not in cells.columns]
        if absent:
            raise BadInput(f"{path}: no column {', '.join(absent)}; expected {', '.join(CELL_COLUMNS)}")
        return cls(root, cells, settings, partial)

    @property
    def scale(self) -> str:
        """Name of the scale: the folder's own name."""
        return self.root.resolve().name

    @property
    def standing(self) -> Standing:
        """What the scale shares with the paper, and so what may stand beside its numbers."""
        return standing_of(self.root, self.cells)

    def json(self, path: str) -> dict[str, Any] | None:
        """A JSON result by its path below `root`; None when it is missing and the report is partial."""
        if not self.exists(path):
            return None
        return read_json(self.root / path)

    def exists(self, path: str) -> bool:
        """Whether a result is there.

        Raises:
            BadInput: it is not, and the report is not partial.
        """
        if (self.root / path).is_file():
            return True
        if not self.partial:
            raise BadInput(f"{self.root / path}: no such result; run its job first, or ask for a partial report")
        if path not in self.missing:
            self.missing.append(path)
        return False

    def compressed(self, cell: str) -> str:
        """Path below `root` of a cell's compressed model and its scores."""
        return f"cells/{cell}/compressed/{self.settings}"

    def listed(self, *tables: str) -> pd.DataFrame:
        """The cells that any of `tables` lists, in the order of cells.csv; may be empty."""
        wanted = set(tables)
        return self.cells[[bool(wanted & set(names.split())) for names in self.cells["tables"]]].reset_index(drop=True)

    def settings_asked(self, cell: Any, *tables: str) -> list[str]:
        """Compression settings under which any of `tables` wants a cell (a row of `cells`); `default` without a word.

        The column `asked` of cells.csv holds `<table>:<settings>,<settings>` for each table, spaces between.
        """
        asked = dict(entry.split(":", 1) for entry in getattr(cell, "asked", "").split())
        names = [name for table in tables for name in asked.get(table, "").split(",") if name]
        return list(dict.fromkeys(names)) or [self.settings]

    def scores(self, *tables: str, parts: Collection[str] = PARTS) -> pd.DataFrame:
        """One row a listed cell: the columns of cells.csv and those of `score`; empty where a result is missing.

        Args:
            parts: which results are read, of PARTS; a table asks for no file it does not show.

        Raises:
            BadInput: no cell is listed, or a result is missing and the report is not partial.
        """
        listed = self.listed(*tables)
        if listed.empty:
            raise BadInput(f"{self.root / 'cells.csv'}: no cell of {' or '.join(tables)}; expected at least one")
        rows = [self.score(cell, parts=parts) for cell in listed.itertuples()]
        return pd.concat([listed, pd.DataFrame(rows, index=listed.index)], axis=1)

    def score(self, cell: Any, *, parts: Collection[str] = PARTS) -> dict[str, Any]:
        """Perplexity, cost, compressed structure and measured speed of one cell (a row of `cells`)."""
        folder = self.compressed(cell.cell)
        row: dict[str, Any] = {}
        if "perplexity" in parts:
            row |= perplexity_columns(self.json(f"{folder}/perplexity.json"))
        if "train" in parts:
            train = self.json(f"cells/{cell.cell}/train.json") or {}
            row |= {name: train.get(name) for name in ("train_seconds", "tokens_per_second")}
            compute = train.get("train_compute") or {}
            row |= {"train_compute": compute.get("scheduled"), "executed_compute": compute.get("executed")}
        if "structure" in parts:
            totals = (self.json(f"{folder}/compression.json") or {}).get("totals", {})
            row |= {name: totals.get(name) for name in TOTALS}
        if "speed" in parts:
            speed = self.speed(cell.structure) if cell.structure else {}
            for part in SPEEDS:
                # A student without a budget is the dense student that the others are timed against.
                row[f"measured_{part}"] = speed.get(part, {}).get("speedup") if cell.structure else 1.0
        return {name: float("nan") if value is None else value for name, value in row.items()}

    def speed(self, structure: str) -> dict[str, Any]:
        """Timings of one compressed structure; empty when they are missing and the report is partial."""
        return self.json(f"speed/{structure}.json") or {}

    def windows(self, folder: str) -> pd.DataFrame | None:
        """Validation windows of one model: float64 `nll` (sum over the window's scored tokens) and `tokens`."""
        path = f"{folder}/perplexity_windows.parquet"
        if not self.exists(path):
            return None
        self._check(path, record="perplexity.json")
        try:
            frame = pd.read_parquet(self.root / path)
        except (OSError, ValueError) as error:  # Arrow's own kinds are among them
            reason = " ".join(str(error).split())[:200]
            raise BadInput(f"{self.root / path}: not a whole Parquet file ({reason}); evaluate it anew") from None
        for name in ("nll", "tokens"):
            if name not in frame.columns:
                raise BadInput(f"{self.root / path}: no column {name}; expected nll and tokens, one row a window")
        return frame[["nll", "tokens"]].astype("float64")

    def files(self, patterns: Iterable[str]) -> list[Path]:
        """Result files that match any pattern, sorted; those of cells and structures no longer listed are left out."""
        listed = {"cells": set(self.cells["cell"]), "speed": {f"{name}.json" for name in self.cells["structure"]}}
        found = {path for pattern in patterns for path in self.root.glob(pattern) if path.is_file()}
        parts = {path: path.relative_to(self.root).parts for path in found}
        return sorted(path for path, (kind, name, *_) in parts.items() if kind not in listed or name in listed[kind])

    def history(self, cell: str) -> pd.DataFrame | None:
        """history.csv of a cell, one row a logged step."""
        return self._csv(f"cells/{cell}/history.csv")

    def retention(self, cell: str) -> pd.DataFrame | None:
        """retention.csv of a cell: index step, one column a module, values d in [0, 1]."""
        frame = self._csv(f"cells/{cell}/retention.csv")
        return None if frame is None else frame.set_index("step")

    def gates(self, cell: str) -> dict[str, list[float]] | None:
        """Trained gate values of each module of a cell, in [0, 1]; a module without gates is left out."""
        adapter = self.json(f"cells/{cell}/trained/adapter.json")
        if adapter is None:
            return None
        return {name: entry["gates"] for name, entry in adapter["modules"].items() if entry["gates"]}

    def rank_threshold(self, cell: str) -> float | None:
        """tau_rank that a cell was compressed with; None where the record does not say."""
        record = self.json(f"{self.compressed(cell)}/compression.json") or {}
        return record.get("provenance", {}).get("values", {}).get("settings", {}).get("rank_threshold")

    def teachers(self) -> pd.DataFrame:
        """Scores and shapes of the teachers, smallest first."""
        frame = self._models("teachers")
        if frame.empty:
            return frame
        order = frame["name"].map(size_in_name).sort_values(kind="stable").index
        return frame.loc[order].reset_index(drop=True)

    def students(self) -> pd.DataFrame:
        """Scores and shapes of the untrained students, by name."""
        return self._models("students")

    def _models(self, kind: str) -> pd.DataFrame:
        main = self.cells[[bool(MAIN_CELLS & set(tables.split())) for tables in self.cells["tables"]]]
        known = set(main["teacher" if kind == "teachers" else "init"])  # others are left over, or ablations' own
        folders = sorted(p for p in (self.root / kind).glob("*") if p.is_dir() and p.name in known)
        if not folders and not self.partial:
            raise BadInput(f"{self.root / kind}: no model folder; expected one for each of the {kind}")
        rows = []
        for folder in folders:
            row = {"name": folder.name} | shape_columns(folder / "model" / "config.json")
            row |= perplexity_columns(self.json(f"{kind}/{folder.name}/perplexity.json"))
            icl = read_json(folder / "icl.json") if (folder / "icl.json").is_file() else {}
            row |= {f"icl{end}": icl.get(key) for end, key in ICL_COLUMNS.items()}
            rows.append({name: float("nan") if value is None else value for name, value in row.items()})
        return pd.DataFrame(rows)

    def _csv(self, path: str) -> pd.DataFrame | None:
        if not self.exists(path):
            return None
        self._check(path, record="train.json")
        return pd.read_csv(self.root / path)

    def _check(self, path: str, *, record: str) -> None:
        """Compares a result with the digest that the record beside it holds, where there is one.

        Raises:
            BadInput: one of the two is damaged.
        """
        beside = (self.root / path).with_name(record)
        about = read_json(beside) if beside.is_file() else {}
        check_listed(self.root / path, about.get("provenance", {}).get("files"))


def no_results(root: Path, path: Path) -> str:
    """What is missing where there is no list of cells, and how it is made."""
    scale = root.resolve().name
    missing = f"{path}: no such file" if root.is_dir() else f"{root}: no such folder"
    return (
        f"{missing}; `snakemake --config scale={scale}` makes the results of scale {scale}, and `snakemake {path} "
        f"--config scale={scale}`, in seconds, the list of cells by which `report --partial` tells what is missing"
    )


def as_csv(listed: dict[str, Any]) -> str:
    """Lines of cells.csv that were given as `columns`, `common` and `rows`."""
    rows = [listed["common"] | row for row in listed["rows"]]
    return pd.DataFrame(rows, columns=listed["columns"]).to_csv(index=False)


def shape_columns(path: Path) -> dict[str, Any]:
    """Shape and parameter count of a model, from its config.json (untied embeddings, no biases); empty without one."""
    if not path.is_file():
        return {}
    config = read_json(path)
    shape = {ours: int(config[theirs]) for ours, theirs in SHAPE_COLUMNS.items()}
    hidden, kv = shape["hidden"], shape["hidden"] // shape["heads"] * shape["kv_heads"]
    layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * shape["ffn"] + 2 * hidden
    return shape | {"parameters": shape["layers"] * layer + hidden + 2 * int(config["vocab_size"]) * hidden}


def perplexity_columns(perplexity: dict[str, Any] | None) -> dict[str, Any]:
    """The columns that perplexity.json gives a row; None where it is missing."""
    scored = perplexity or {}
    return {
        "ppl": scored.get("value"),
        "ppl_se": scored.get("standard_error"),
        "ppl_functions": (scored.get("functions") or {}).get("value"),
        "ppl_uncompressed": (scored.get("uncompressed") or {}).get("value"),
        "slice": (scored.get("conditions") or {}).get("validation_sha256"),
    }


def size_in_name(name: str) -> float:
    """Parameters a teacher's name speaks of, in billions: 0.13B -> 0.13, 125m -> 0.125; infinity without one."""
    digits, unit = name[:-1], name[-1:].lower()
    try:
        return float(digits) * {"b": 1.0, "m": 1e-3}[unit]
    except (KeyError, ValueError):
        return float("inf")


def probe_frame(icl: dict[str, Any]) -> pd.DataFrame:
    """Per-probe scores of one icl.json: index probe, columns accuracy, se, n, chance_constant, chance_word, ceiling."""
    return pd.DataFrame.from_dict(icl["probes"], orient="index").reindex(
        columns=["accuracy", "se", "n", "chance_constant", "chance_word", "ceiling"]
    )


def provenance_of(path: Path) -> dict[str, Any]:
    """The provenance a JSON result carries, empty if it has none."""
    return read_json(path).get("provenance") or {}
