"""Scale files and rows with anything in them: a graph of jobs, or one line."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.fuzzing import ODD, damaged, fuzz, mutated, used_or_refused
from fixtures.scales import ROOT, TINY
from hypothesis import strategies as st

from budgeted_lora.config.files import merged_layers, read_layers
from budgeted_lora.config.rows import Row, Sweep
from budgeted_lora.config.scale import load_config
from budgeted_lora.workflow.cells import cells
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.report import ReportJobs, cell_rows

SWEEPS = {"sweeps": {"thresholds": {"svd_threshold": [0.3, 0.5], "rank_threshold": [0.4, 0.5]}}}
EXAMPLES = 25


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tiny.yaml"


def planned(path: Path, overrides: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """What Snakemake asks of a scale before the first job."""
    graph = Graph(load_config(path, overrides))
    jobs = ReportJobs(graph)
    jobs.page_inputs()
    return cell_rows(graph)


def whole_smoke() -> dict[str, Any]:
    """The smallest scale in one mapping, with all that it extends."""
    return merged_layers(read_layers(ROOT / "config" / "smoke.yaml")) | SWEEPS | {"scale": "tiny"}


def test_good_ones_are_planned(path: Path) -> None:
    path.write_text(yaml.safe_dump(whole_smoke()))
    assert planned(path)


@pytest.mark.parametrize("scale", ["tiny", "smoke"])
def test_values(path: Path, scale: str) -> None:
    def check(values: Any) -> None:
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        used_or_refused(lambda: planned(path))

    fuzz(check, values=mutated(TINY | SWEEPS if scale == "tiny" else whole_smoke()), examples=EXAMPLES)


def test_text(path: Path) -> None:
    def check(data: bytes) -> None:
        path.write_bytes(data)
        used_or_refused(lambda: planned(path))

    fuzz(check, data=damaged(yaml.safe_dump(TINY | SWEEPS).encode()), examples=EXAMPLES)


def test_overrides(path: Path) -> None:
    path.write_text(yaml.safe_dump(TINY))

    def check(values: Any) -> None:
        used_or_refused(lambda: planned(path, values))

    overrides = mutated({"training": {"tokens": 640}, "tables": {"table2": []}})
    mappings = overrides.filter(lambda values: isinstance(values, dict))  # as every --config makes one
    fuzz(check, values=mappings, examples=EXAMPLES)


# --- rows

LIKELY = {
    "method": st.sampled_from(["kd_full", "kd_lora", "budgeted_lora"]),
    "teacher": st.sampled_from(["A", "B", ["A", "B"]]),
    "compression": st.just("thresholds"),
    "schedule": st.sampled_from(["short", "long", "none"]),
}
NUMBERS = st.integers(0, 40) | st.floats(0, 1) | st.sampled_from([64 * 1000, 64 * 10**6, 2**62, 2**63])
VALUES = ODD | NUMBERS | st.lists(NUMBERS, max_size=3) | st.sampled_from(["greedy", "uniform", "scratch", "mixed"])


def rows(model: type[Row] | type[Sweep]) -> st.SearchStrategy[dict[str, Any]]:
    """Mappings with keys of a model, values of any kind among likely ones."""
    keys = {name: LIKELY.get(name, VALUES) | VALUES for name in model.model_fields}
    method = {"method": LIKELY["method"]} if "method" in keys else {}
    return st.fixed_dictionaries(method, optional={name: keys[name] for name in keys if name not in method})


def listed(path: Path, **changed: Any) -> None:
    path.write_text(yaml.safe_dump(TINY | SWEEPS | changed), encoding="utf-8")
    used_or_refused(lambda: cells(load_config(path)))


def test_rows(path: Path) -> None:
    def check(table: list[dict[str, Any]]) -> None:
        listed(path, tables={"table2": table})

    few = st.lists(rows(Row), min_size=1, max_size=2)
    fuzz(check, table=few, examples=EXAMPLES)


def test_rows_with_one_odd_value(path: Path) -> None:
    good = {"method": "budgeted_lora", "budget": 0.4, "teacher": "A", "compression": "thresholds", "seed": 1}

    def check(row: dict[str, Any]) -> None:
        listed(path, tables={"table2": [row]})

    fuzz(check, row=mutated(good, odd=VALUES), examples=EXAMPLES)


def test_sweeps(path: Path) -> None:
    row = {"method": "budgeted_lora", "budget": 0.4, "compression": "thresholds"}

    def check(sweep: dict[str, Any]) -> None:
        listed(path, sweeps={"thresholds": sweep}, tables={"thresholds": [row]})

    fuzz(check, sweep=rows(Sweep), examples=EXAMPLES)
