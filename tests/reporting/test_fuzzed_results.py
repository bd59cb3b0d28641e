"""Result files that are damaged, empty or of another version: tables, figures, verdicts and the page, or one line."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fixtures.fuzzing import damaged, fuzz, mutated, used_or_refused
from fixtures.synthetic_results import write_results
from hypothesis import strategies as st

from budgeted_lora.config.scale import load_config
from budgeted_lora.reporting import contents
from budgeted_lora.reporting.claims.table import judge_all
from budgeted_lora.reporting.page.render import render
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.table import latex, markdown
from budgeted_lora.reporting.uncertainty import Bootstrap

ROOT = Path(__file__).resolve().parents[2]
CLAIMS = ROOT / "config" / "claims.yaml"
PRINTED = Published.open(ROOT / "config" / "published.csv")
MINI = load_config(ROOT / "config" / "mini.yaml", {"report": {"bootstrap": 20}})
FEW = Bootstrap(20)
TABLES = ("table1", "table2", "table2_differences", "table8", "table9", "figure2_values", "speed", "contamination")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report") / "results" / "mini"
    write_results(root)
    return root


def first_of_each(root: Path, pattern: str) -> list[Path]:
    """One file of each kind of name and place."""
    kinds = {}
    for path in sorted(root.rglob(pattern)):
        kinds.setdefault((path.relative_to(root).parts[0], path.name if "speed" not in path.parts else "speed"), path)
    return list(kinds.values())


def table(name: str) -> Callable[[Results], None]:
    def make(results: Results) -> None:
        shown = contents.tables_of(results.tables)[name]
        made = shown.make()(results.of(shown), PRINTED, FEW)
        markdown(made), latex(made)

    return make


def claims(results: Results) -> None:
    judge_all(replace(results, partial=True, missing=[]), claims=CLAIMS, published=PRINTED, config=MINI)


def page(results: Results) -> None:
    render(results, tables=[], figures=[], out=results.root / "nothing", config=MINI, skipped=[], absent=[])


SLOW = {"claims": 1}  # examples of those that take long
USES = {name: table(name) for name in TABLES} | {"claims": claims, "page": page}


def restored(path: Path, data: bytes, check: Callable[[], Any]) -> None:
    """Calls `check` while a file has other bytes."""
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        used_or_refused(check)
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("use", USES)
def test_odd_records(root: Path, use: str) -> None:
    choices = [
        st.tuples(st.just(path), mutated(json.loads(path.read_text()))) for path in first_of_each(root, "*.json")
    ]

    def check(chosen: tuple[Path, Any]) -> None:
        path, value = chosen
        restored(path, json.dumps(value).encode(), lambda: USES[use](Results.open(root)))

    fuzz(check, chosen=st.one_of(choices), examples=SLOW.get(use, 2))


@pytest.mark.parametrize("use", ["table2", "claims", "page"])
def test_damaged_files(root: Path, use: str) -> None:
    files = [path for ending in ("*.json", "*.csv", "*.parquet") for path in first_of_each(root, ending)]
    choices = [st.tuples(st.just(path), damaged(path.read_bytes())) for path in files]

    def check(chosen: tuple[Path, bytes]) -> None:
        restored(*chosen, lambda: USES[use](Results.open(root)))

    fuzz(check, chosen=st.one_of(choices), examples=SLOW.get(use, 2))
