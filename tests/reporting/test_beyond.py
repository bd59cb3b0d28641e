"""The table and figure of other rules than the paper's, on made-up results."""

import json
import re
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from fixtures.made_table import made_table
from fixtures.synthetic_ablations import add_cell
from fixtures.synthetic_results import MODULES, write_results

from budgeted_lora.errors import BadInput
from budgeted_lora.reporting.contents import BEYOND, FIGURES
from budgeted_lora.reporting.figures.beyond import beyond_figure
from budgeted_lora.reporting.figures.beyond_why import beyond_why, marked, students
from budgeted_lora.reporting.figures.style import context, write_figure
from budgeted_lora.reporting.page.beyond import findings as numbers_of
from budgeted_lora.reporting.page.render import fill
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.table import Table
from budgeted_lora.reporting.tables.beyond import PAPER, beyond_lines
from budgeted_lora.reporting.uncertainty import Bootstrap

ROOT = Path(__file__).resolve().parents[2]
SVD, OUTPUTS = {"low_rank_init": "svd"}, {"low_rank_init": "activation_svd", "order": "activation"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The paper's rule at F = 0.4 and 0, two others, one with two seeds, one with four times the tokens."""
    root = tmp_path_factory.mktemp("beyond") / "results" / "mini"
    builder = write_results(root)
    budgeted = {"method": "budgeted_lora"}
    for budget, ppl in ((0.4, 100.0), (0.0, 70.0)):
        add_cell(builder, f"paper_{budget}", BEYOND, ppl, budget=budget, **budgeted)
        add_cell(builder, f"paper4_{budget}", BEYOND, 0.6 * ppl, budget=budget, tokens=4 * 153600, **budgeted)
        add_cell(builder, f"svd_{budget}", BEYOND, 0.6 * ppl, budget=budget, **SVD, **budgeted)
    add_cell(builder, "energy", BEYOND, 32.5, budget=0.4, low_rank_init="activation_svd", order="energy", **budgeted)
    for seed, ppl in enumerate((30.0, 32.0)):
        add_cell(builder, "outputs", BEYOND, ppl, budget=0.4, seed=seed, **OUTPUTS, **budgeted)
    cut = {"macsF0.4_undistilled-True": 500.0, "macsF0.4_by-outputs_undistilled-True": 200.0}
    for name, truncation in zip(cut, ("weights", "outputs"), strict=True):
        builder.variants[name] = {"cut_to": 0.4, "truncation": truncation, "undistilled": True}
    add_cell(builder, "full", BEYOND, 25.0, settings={"default": 25.0} | cut)
    for tokens, ppl in ((153600, 28.0), (4 * 153600, 21.0)):
        add_cell(builder, f"lora_{tokens}", BEYOND, ppl, method="kd_lora", tokens=tokens)
    for cell in ("paper_0.4_s0", "outputs_s0", "outputs_s1"):
        builder.icl(f"cells/{cell}-5e6f7a8b/compressed/default", 0.05)
    decide(root, "cells/energy_s0-5e6f7a8b/train.json", slope=-1.0, outputs=False)
    decide(root, "cells/outputs_s0-5e6f7a8b/train.json")
    removals = [
        {"name": name, "zero": 2.0 - 0.01 * i, "svd": 0.5, "activation_svd": 0.1} for i, name in enumerate(MODULES)
    ]
    (root / "students" / "mixed" / "statistics.json").write_text(json.dumps({"removals": removals}))
    builder.write_cells()
    return Results.open(root, partial=True)


def decide(root: Path, path: str, *, slope: float = 1.0, outputs: bool = True) -> None:
    """Adds what a training job records of starts and orders: energies that fall from layer to layer, and scores."""
    record = json.loads((root / path).read_text())
    kept = np.linspace(0.6, 0.2, len(MODULES)).tolist()
    scores = [1.0 + slope * 0.1 / np.prod(shape) for shape in MODULES.values()]  # as the loss of a removal per MAC
    record["low_rank"] = {
        "order": list(range(len(MODULES))), "ranks": [16] * len(MODULES), "scores": scores, "kept_energy": kept,
        "kept_output_energy": [1.0 - 0.1 * value for value in kept] if outputs else None,
    }  # fmt: skip
    (root / path).write_text(json.dumps(record))


@pytest.fixture(scope="module")
def table(results: Results) -> Table:
    return made_table(BEYOND, results, Published.open(ROOT / "config" / "published.csv"), Bootstrap(100))


def findings(results: Results, numbers: pd.DataFrame) -> list[str]:
    """The sentences of the page, without markup."""
    beyond = numbers_of(results, numbers)
    text = fill("beyond.html.j2", beyond=beyond).replace("\N{NO-BREAK SPACE}", " ") if beyond else ""
    return [" ".join(unescape(item).split()) for item in re.findall(r"<li>(.*?)</li>", text, re.DOTALL)]


def test_rules_have_names_and_their_own_lines(results: Results) -> None:
    frame = beyond_lines(results)
    found = frame.groupby("rule").size().to_dict()
    assert found == {
        PAPER: 4,
        "SVD of W": 2,
        "SVD of outputs + order by outputs": 1,
        "SVD of outputs + order by energy": 1,
        "KD Full": 1,
        "KD LoRA": 2,
        "no distillation, SVD by weights": 1,
        "no distillation, SVD by outputs": 1,
    }


def test_students_of_another_shape_cost_what_they_cost_of_the_scales(tmp_path: Path) -> None:
    builder = write_results(tmp_path / "mini")
    shape = {"student_layers": 6, "student_ffn": 232}
    add_cell(builder, "full", BEYOND, 25.0)
    narrow = add_cell(builder, "narrow", BEYOND, 26.0, method="budgeted_lora", budget=0.744, **SVD, **shape)
    dense = add_cell(builder, "dense", BEYOND, 27.0, student_layers=4, student_ffn=320)
    full = 42 * 1000
    for row, own, left in ((narrow, full // 2, full // 4), (dense, full // 4, full // 4)):
        totals = {"macs": left, "dense_macs": own, "speedup_vs_dense": own / left, "kept": 1, "svd": 0, "dropped": 1}
        path = f"cells/{row['cell']}/compressed/default/compression.json"
        builder.json(path, {"modules": [], "totals": totals}, cell=row["cell"])
        cost = {"scheduled": 0.9, "executed": 0.8}
        builder.json(f"cells/{row['cell']}/train.json", {"train_compute": cost}, cell=row["cell"])
    path = next(tmp_path.glob("mini/cells/full*/compressed/default/compression.json"))
    builder.json(str(path.relative_to(tmp_path / "mini")), {"modules": [], "totals": {"dense_macs": full}}, cell="full")
    builder.write_cells()
    frame = beyond_lines(Results.open(tmp_path / "mini", partial=True)).set_index("rule")
    assert set(frame.index) == {"KD Full", "SVD of W + 6 layers, FFN 232", "KD Full, 4 layers, FFN 320"}
    for rule, cost in (("SVD of W + 6 layers, FFN 232", 0.4), ("KD Full, 4 layers, FFN 320", 0.2)):
        assert frame.loc[rule, "speedup_vs_dense"] == pytest.approx(4.0)
        assert frame.loc[rule, "executed_compute"] == pytest.approx(cost)
        assert np.isnan(frame.loc[rule, "measured_modules"])


def test_a_figure_waits_for_its_first_result(results: Results, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(results.root, tmp_path / "mini"))
    for path in copied.glob("cells/*/compressed/*/perplexity.json"):
        if not path.parents[2].name.startswith("full"):
            path.unlink()
    opened = Results.open(copied, partial=True)
    assert len(write_figure(FIGURES[BEYOND], opened, tmp_path)) == 3
    for path in copied.glob("cells/*/compressed/*/perplexity.json"):
        path.unlink()
    with pytest.raises(BadInput, match="beyond: none of its results is there yet"):
        write_figure(FIGURES[BEYOND], opened, tmp_path)


def test_differences_are_to_the_papers_rule_of_the_same_budget_and_length(table: Table) -> None:
    frame = table.frame.set_index(["rule", "budget", "tokens"]).sort_index()
    assert frame.loc[("SVD of W", 0.4, 153600), "to_paper"] == pytest.approx(-40, abs=3)
    assert frame.loc[("SVD of W", 0.0, 153600), "to_paper"] == pytest.approx(-28, abs=3)
    assert frame.loc[(PAPER, slice(None), slice(None)), "to_paper"].isna().all()
    of_seeds = frame.loc[("SVD of outputs + order by outputs", 0.4, 153600)]
    assert of_seeds["seeds"] == 2
    assert of_seeds["ppl"] == pytest.approx(31.0, rel=0.02)
    assert frame.loc["no distillation, SVD by outputs", "to_paper"].isna().all()


def test_the_figure_has_a_line_a_rule_and_says_what_is_dashed(results: Results, tmp_path: Path) -> None:
    with context():
        figure = beyond_figure(results)
        axes = figure.axes[0]
        labels = axes.get_legend_handles_labels()[1]
        plt.close(figure)
    assert labels[:4] == [PAPER, "SVD of W", "SVD of outputs + order by energy", "SVD of outputs + order by outputs"]
    assert {"KD Full", "KD LoRA"} <= set(labels)
    assert labels[-1] == "dashed: 4 times the tokens"
    written = write_figure(FIGURES[BEYOND], results, tmp_path)
    assert {path.suffix for path in written} == {".png", ".svg", ".pdf"}


def test_findings_name_the_lowest_rule_of_each_budget_and_what_more_tokens_do(results: Results, table: Table) -> None:
    found = findings(results, table.frame)
    first, last = (next(text for text in found if text.startswith(f"F = {f}, 153,600 tokens: ")) for f in (0.4, 0.0))
    assert "SVD of outputs + order by outputs is lowest of 4 rules, 31." in first
    assert "(2 seeds), against 100.1 (one seed) of the paper's (paired: -6" in first
    assert "Next: SVD of outputs + order by energy, 32." in first
    assert "SVD of W is lowest of 2 rules, 4" in last
    assert "Next" not in last
    assert any("in context" in text and "both below guessing 15.0 %" in text for text in found)
    assert any(text.startswith("KD LoRA, without any budget: 28") and "21" in text for text in found)
    (cut,) = [
        text
        for text in found
        if text.startswith("Without distillation, every projection cut to the share of MACs that F = 0.4 leaves: ")
    ]
    assert "by outputs and 5" in cut
    assert any("holds 40 % of the energy" in text and "96 % of that of its outputs" in text for text in found)
    assert any("0.500 nats with the SVD of W" in text and "the dearest is 0." in text for text in found)
    assert found[-1].startswith("Not tested")
    assert findings(results, table.frame[table.frame["method"] == "kd_full"]) == []


def test_findings_say_it_when_nothing_beats_the_paper(results: Results, table: Table) -> None:
    papers = table.frame[table.frame["rule"] == PAPER]
    assert any("no rule that was tried is below the paper's" in text for text in findings(results, papers))


def test_ratios_of_longer_runs_are_those_of_the_table(results: Results, table: Table) -> None:
    extra = table.frame[(table.frame["rule"] == "SVD of W") & (table.frame["budget"] == 0.4)].assign(tokens=4 * 153600)
    longer = pd.concat([table.frame, extra.assign(ppl_first_seed=50.0)])
    paper = table.frame[(table.frame["rule"] == PAPER) & (table.frame["budget"] == 0.4)]
    paper = paper.set_index("tokens")["ppl_first_seed"]
    (text,) = [text for text in findings(results, longer) if "with 4 times the tokens, first seed" in text]
    before = paper[153600] / extra["ppl_first_seed"].iloc[0]
    assert text.endswith(f"was {before:.2f} and is then {paper[4 * 153600] / 50.0:.2f}.")


def test_the_reasons_are_drawn_with_what_stays_dense(results: Results) -> None:
    with context():
        figure = beyond_why(results)
        titles = [axes.get_title(loc="left") for axes in figure.axes]
        plt.close(figure)
    assert titles[0] == "Training loss at F = 0.4; grey: dense paths fade"
    assert {"Output energy outside rank r", "Loss rise without it (nats)"} <= set(titles)


def test_orders_are_held_against_the_loss_of_removals(results: Results, table: Table) -> None:
    """Scores of the outputs' order rise with the measured loss per MAC, those of the energy's fall."""
    (text,) = [text for text in findings(results, table.frame) if text.startswith("How each order agrees")]
    assert "-1.00 by energy, 1.00 by outputs" in text
    assert "-1.00 by MACs, the paper's" in text


def test_marks_are_those_of_the_order_with_the_lowest_loss(results: Results) -> None:
    """Not those of whichever ordered rule is listed first."""
    listed = students(results)
    found = marked(results, listed)
    ordered = listed[listed["order"] != "mac"].drop_duplicates("rule").set_index("rule")["cell"]
    losses = {rule: results.history(cell)["loss"].tail(5).mean() for rule, cell in ordered.items()}
    assert len(losses) == 2
    assert found == [PAPER, min(losses, key=lambda rule: losses[rule])]


def test_compression_that_costs_much_is_said(results: Results, table: Table) -> None:
    spoiled = table.frame.copy()
    papers = spoiled["rule"] == PAPER
    spoiled.loc[papers, "ppl_uncompressed"] = spoiled.loc[papers, "ppl"] / 2
    assert any("Much of that is compression: before it" in text for text in findings(results, spoiled))
    assert not any("Much of that is compression" in text for text in findings(results, table.frame))


def test_students_that_differ_in_more_than_the_rule_are_not_the_papers(results: Results) -> None:
    lines = results.lines.assign(learning_rate=0.005)
    lines.loc[lines["cell"].str.startswith("paper_0.4"), "learning_rate"] = 0.01
    rules = beyond_lines(replace(results, lines=lines)).groupby("budget")["rule"].apply(list)
    assert "paper's rule, learning rate 0.01" in rules[0.4]
    assert PAPER in rules[0.4]  # the one of four times the tokens
    assert not any("learning" in rule for rule in rules[0.0])


def test_notes_say_what_differs(table: Table) -> None:
    assert any("paired by window" in note for note in table.notes)
    assert isinstance(table.shown, pd.DataFrame)
    assert "To the paper's rule" in table.shown
