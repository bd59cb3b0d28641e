"""README.md's numbers are put there by a tool, from a run's own tables."""

from pathlib import Path

import pytest

from budgeted_lora.errors import BadInput
from budgeted_lora.reporting.texts import texts
from tools.readme import columns, costs, read_pages, refresh, replaced

ROOT = Path(__file__).resolve().parents[2]
BENCHMARK = "s\th:m:s\tmax_rss\n{}\t0:00:10\t{}\n"


def test_costs_are_summed_by_rule(tmp_path: Path) -> None:
    (tmp_path / "train_cell").mkdir()
    (tmp_path / "train_cell" / "a.tsv").write_text(BENCHMARK.format(10.5, 1500))
    (tmp_path / "train_cell" / "b.tsv").write_text(BENCHMARK.format(4.0, "-"))
    (tmp_path / "collect_corpus.tsv").write_text(BENCHMARK.format(7.2, 200))
    (tmp_path / "list_cells.tsv").write_text(BENCHMARK.format(1.0, 1))
    _, _, *lines = costs(tmp_path).splitlines()
    known = ["| documents and split | 1 | 7 | 0.2 GB |", "| training | 2 | 14 | 1.5 GB |"]
    assert lines == [*known, "| all else | 1 | 1 | 0.0 GB |"]


def test_columns_are_chosen_by_their_heads() -> None:
    table = "Text.\n\n| Method | PPL A | Note |\n|---|---:|---|\n| KD Full | 3.1 | x |\n"
    assert columns(table, ("Method", "PPL")) == "| Method | PPL A |\n| --- | ---: |\n| KD Full | 3.1 |"
    assert columns(table) == "| Method | PPL A | Note |\n|---|---:|---|\n| KD Full | 3.1 | x |"


def test_the_readme_has_the_markers_and_keeps_the_rest(tmp_path: Path) -> None:
    for name in ("table1", "table2", "reference"):
        (tmp_path / "tables").mkdir(exist_ok=True)
        (tmp_path / "tables" / f"{name}.md").write_text(f"| Method | {name} |\n|---|---|\n| a | b |\n")
    pages = read_pages(ROOT)
    made = refresh(pages, results=tmp_path, reports=tmp_path)
    assert "| Method | table1 |" in made["docs/results.md"]
    assert "| Method |\n" in made["README.md"]  # of the columns shown, the made-up table has this one alone
    assert all(made[name].splitlines()[:5] == page.splitlines()[:5] for name, page in pages.items())
    assert refresh(made, results=tmp_path, reports=tmp_path) == made


def test_results_of_uncommitted_code_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    note = "\n- Other.\n- " + texts()["notes"]["uncommitted"].format(dirty=2, named="kd-full_1B, kd-lora_1B") + "\n"
    for name in ("table1", "table2", "reference"):
        text = f"| Method | {name} |\n|---|---|\n| a | b |\n" + (note if name == "table2" else "")
        (tmp_path / "tables" / f"{name}.md").write_text(text)
    with pytest.raises(BadInput, match=r"table2: Uncommitted code made results of 2 .*kd-full_1B"):
        refresh(read_pages(ROOT), results=tmp_path, reports=tmp_path)


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(BadInput, match="expected one pair of markers <!-- begin costs -->"):
        replaced("no markers", "costs", "x")
