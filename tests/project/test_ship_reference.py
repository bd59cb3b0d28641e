"""Tool for maintainers: what a run shows becomes small files, with one line per scored student."""

from pathlib import Path

import pandas as pd
import pytest
from fixtures.synthetic_results import write_results

from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json, write_text
from budgeted_lora.reporting.results import Results
from tools.ship_reference import scored_students, ship


def test_scored_students_have_recipe_and_scores(tmp_path: Path) -> None:
    write_results(tmp_path / "results" / "mini")
    results = Results.open(tmp_path / "results" / "mini", partial=True)
    frame = scored_students(results)
    assert set(frame["cell"]) == set(results.cells["cell"])
    first = frame.iloc[0]
    compressed = results.root / "cells" / first["cell"] / "compressed" / first["variant"]
    assert first["ppl"] == read_json(compressed / "perplexity.json")["value"]
    assert first["icl"] == read_json(compressed / "icl.json")["composite"]
    (compressed / "perplexity.json").unlink()
    assert len(scored_students(results)) == len(frame) - 1


def test_what_is_shipped_replaces_what_was(tmp_path: Path) -> None:
    write_results(tmp_path / "results" / "mini")
    with pytest.raises(BadInput, match="no tables"):
        ship("mini", root=tmp_path)
    report, out = tmp_path / "reports" / "mini", tmp_path / "docs" / "reference" / "mini"
    for path, text in {
        report / "tables" / "table2.csv": "a\n1\n", report / "claims_all.csv": "all\n", report / "claims.csv": "main\n",
        out / "old.csv": "gone\n", out / "README.md": "stays\n",
    }.items():  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    assert ship("mini", root=tmp_path) == out
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "cells.csv", "claims.csv", "table2.csv"]
    assert (out / "claims.csv").read_text() == "main\n"
    assert pd.read_csv(out / "cells.csv")["ppl"].notna().all()
