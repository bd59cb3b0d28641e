"""The report on synthetic result files: numbers, forms, missing files, repeatable bytes."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from fixtures.made_table import made_table
from fixtures.synthetic_results import BYTES_PER_TOKEN, TEACHERS, write_results
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from budgeted_lora.commands.app import main as run_command_line
from budgeted_lora.commands.report import write_report
from budgeted_lora.config.scale import Config
from budgeted_lora.config.sections import Report
from budgeted_lora.errors import BadInput
from budgeted_lora.reporting import contents
from budgeted_lora.reporting.contents import CONTROLS
from budgeted_lora.reporting.figures.pareto import frontier
from budgeted_lora.reporting.figures.style import context, label_points, save, write_figure
from budgeted_lora.reporting.figures.training import budgeted_cells
from budgeted_lora.reporting.page import facts
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.records import size_in_name
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.standing import Standing
from budgeted_lora.reporting.table import Table, escape, latex, markdown
from budgeted_lora.reporting.tables.main import table2_columns
from budgeted_lora.reporting.tables.unknowns import constants
from budgeted_lora.reporting.texts import texts
from budgeted_lora.reporting.uncertainty import Bootstrap, interval, perplexities, resampled_perplexities
from budgeted_lora.stages.make_figure import make_figure
from budgeted_lora.stages.make_index import make_index
from budgeted_lora.stages.make_table import make_table

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "config" / "published.csv"
CLAIMS = ROOT / "config" / "claims.yaml"
FAST = Bootstrap(200)
TABLES = {name: shown for name, shown in contents.TABLES.items() if shown.target == "main" and not shown.asked}
FIGURES = {name: shown for name, shown in contents.FIGURES.items() if shown.target == "main"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report") / "results" / "mini"
    write_results(root)
    return root


@pytest.fixture(scope="module")
def config() -> Config:
    teacher = {"layers": 12, "hidden": 96, "ffn": 384, "heads": 4, "kv_heads": 1}
    values = {"scale": "mini", "corpus": {"packages": ["numpy"]}, "teacher_ladder": {"0.13B": teacher}}
    return Config.model_validate(values | {"report": {"bootstrap": 200}})


@pytest.fixture(scope="module")
def report(results: Path, config: Config) -> Path:
    out = results.parents[1] / "reports" / "mini"
    whole(results, out, config)
    return out


def whole(results: Path, out: Path, config: Config, *, partial: bool = False) -> str:
    """Writes the whole report and returns its page."""
    paths = {"published": PUBLISHED, "claims": CLAIMS, "out": out}
    page = write_report(results, **paths, config=config, standing=Standing(), partial=partial)
    return page.read_text()


def page_of(results: Path, out: Path, config: Config) -> str:
    """Writes the page of what lies in `out` and returns it."""
    make_index(results=results, published=PUBLISHED, config=config, out=out, standing=Standing())
    return (out / "index.html").read_text()


def drawn(name: str, results: Results) -> Figure:
    """A figure of the report."""
    return FIGURES[name].make()(results.of(contents.figures_of(results.tables)[name]))


@pytest.fixture
def copied(results: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(results, tmp_path / "results" / "mini"))


def find(folder: Path, pattern: str) -> Path:
    return next(iter(sorted(folder.glob(pattern))))


# Uncertainty


def test_perplexity_is_the_exponential_of_the_token_mean() -> None:
    nll, tokens = np.array([[2.0, 3.0], [4.0, 6.0]]), np.array([1.0, 4.0])
    assert perplexities(nll, tokens) == pytest.approx([np.exp(1.0), np.exp(2.0)], rel=1e-15)


def test_bootstrap_error_agrees_with_the_delta_method() -> None:
    generator = np.random.default_rng(3)
    tokens = generator.integers(50, 100, 400).astype(float)
    nll = tokens * (3.0 + generator.normal(0, 0.3, 400))
    value = perplexities(nll[None], tokens)[0]
    mean = nll.sum() / tokens.sum()
    delta = value * np.sqrt(((nll - mean * tokens) ** 2).sum() * 400 / 399) / tokens.sum()
    draws = resampled_perplexities(nll[None], tokens, resamples=4000, seed=0)[:, 0]
    assert draws.std(ddof=1) == pytest.approx(delta, rel=0.05)
    assert draws.dtype == np.float64


def test_bootstrap_weights_windows_by_their_tokens() -> None:
    draws = resampled_perplexities(np.array([[1.0, 20.0]]), np.array([1.0, 10.0]), resamples=500, seed=1)
    possible = [np.exp(1.0), np.exp(2.0), np.exp(21 / 11)]
    assert {round(float(v), 9) for v in draws[:, 0]} == {round(v, 9) for v in possible}


def test_pairing_removes_what_windows_have_in_common() -> None:
    generator = np.random.default_rng(0)
    tokens = np.full(300, 100.0)
    hard = generator.normal(0, 0.5, 300)
    nll = tokens * np.stack([3.0 + hard, 3.1 + hard])
    draws = resampled_perplexities(nll, tokens, resamples=500, seed=0)
    assert (draws[:, 1] / draws[:, 0]).std() < 1e-12
    assert draws[:, 0].std() > 0.1


def test_draws_repeat_and_do_not_depend_on_blocks() -> None:
    nll, tokens = np.random.default_rng(1).random((2, 30)), np.ones(30)
    first = resampled_perplexities(nll, tokens, resamples=250, seed=5)
    assert np.array_equal(first, resampled_perplexities(nll, tokens, resamples=250, seed=5))
    assert np.array_equal(first[:120], resampled_perplexities(nll, tokens, resamples=120, seed=5))
    assert not np.array_equal(first, resampled_perplexities(nll, tokens, resamples=250, seed=6))


def test_interval_quantiles_and_whether_it_leaves_zero_out() -> None:
    draws = np.linspace(1.0, 101.0, 101)
    found = interval(51.0, draws, confidence=0.9)
    assert (found.low, found.high) == pytest.approx((6.0, 96.0))
    assert found.clear
    assert not interval(0.0, draws - 50, confidence=0.9).clear


# Tables


def test_table2_has_the_contract_columns_and_the_published_counts(report: Path) -> None:
    table = pd.read_csv(report / "tables" / "table2.csv", dtype={"budget": str}, keep_default_na=False)
    assert list(table.columns) == [
        "method", "budget", "ppl_0.13B", "ppl_0.13B_se", "ppl_0.5B", "ppl_0.5B_se", "ppl_1B", "ppl_1B_se",
        "train_compute", "train_compute_published", "module_speedup", "module_speedup_published",
        "param_reduction_pct", "param_reduction_pct_published",
        "measured_module_speedup", "measured_prefill_speedup", "measured_decode_speedup", "measured_train_time",
        "ppl_0.13B_sd", "ppl_0.13B_seeds", "ppl_0.5B_sd", "ppl_0.5B_seeds", "ppl_1B_sd", "ppl_1B_seeds",
        "bits_per_byte_0.13B", "bits_per_byte_0.5B", "bits_per_byte_1B",
    ]  # fmt: skip
    assert list(zip(table["method"], table["budget"], strict=True)) == [
        ("kd_full", ""), ("kd_lora", ""), ("budgeted_lora", "0.4"), ("budgeted_lora", "0.0")
    ]  # fmt: skip
    assert list(table["train_compute_published"]) == [1.0, 0.91, 0.59, 0.38]
    for name, digits in (("train_compute", 2), ("module_speedup", 2), ("param_reduction_pct", 1)):
        assert list(table[name].round(digits)) == list(table[f"{name}_published"])


def test_a_timing_whose_rounds_lie_far_apart_is_marked(results: Path, copied: Path) -> None:
    def shown(root: Path, name: str) -> tuple[str, str]:
        table = made_table(name, Results.open(root), Published.open(PUBLISHED), FAST)
        return table.shown.to_string(), " ".join(table.notes)

    for name in ("table2", "speed"):
        assert "nsteady" not in "".join(shown(results, name))
    for file in (copied / "speed").glob("*.json"):
        record = json.loads(file.read_text())
        record["prefill"] |= {"speedup": 500.0, "speedup_q1": 2.0, "speedup_q3": 900.0}
        file.write_text(json.dumps(record))
    text, notes = shown(copied, "table2")
    assert "500.00× (unsteady)" in text
    assert "the middle half of the rounds spreads over more than a factor of 1.5" in notes
    assert "(2.00 to 900.00, unsteady)" in shown(copied, "speed")[0]


def test_table2_perplexity_is_that_of_the_result_file(results: Path) -> None:
    opened = Results.open(results)
    table = made_table("table2", opened, Published.open(PUBLISHED), FAST)
    cell = find(results / "cells", "budgeted-lora_1B_mixed_F0.4*")
    scored = json.loads((cell / "compressed" / "default" / "perplexity.json").read_text())
    row = table.frame[table.frame["budget"] == "0.4"].iloc[0]
    assert row["ppl_1B"] == scored["value"]
    assert 0.5 < row["ppl_1B_se"] / scored["standard_error"] < 2.0
    assert table_columns_match(table)


def table_columns_match(table: Table) -> bool:
    return list(table.frame.columns) == [column.name for column in table2_columns(list(TEACHERS)) if column.name]


def test_table2_averages_training_seeds(tmp_path: Path) -> None:
    write_results(tmp_path / "mini", seeds=(0, 1))
    opened = Results.open(tmp_path / "mini")
    table = made_table("table2", opened, Published.open(PUBLISHED), FAST)
    scores = opened.of(TABLES["table2"]).scores().query("method == 'kd_lora' and teacher == '0.5B'")
    assert len(scores) == 2
    assert table.frame.loc[1, "ppl_0.5B"] == pytest.approx(scores["ppl"].mean())


def test_table2_shows_energy_where_gpus_were_measured(tmp_path: Path) -> None:
    """Joules become watt hours; a mean over the teachers. Students of a CPU have no such columns."""
    write_results(tmp_path / "mini")
    for number, path in enumerate(sorted((tmp_path / "mini").glob("cells/kd-full_*/train.json"))):
        measured = {"gpu": {"joules": 3600.0 * (number + 1), "utilisation": 0.5}}
        path.write_text(json.dumps(json.loads(path.read_text()) | measured))
    table = made_table("table2", Results.open(tmp_path / "mini"), Published.open(PUBLISHED), FAST)
    row = table.frame.set_index("method").loc["kd_full"]
    assert (row["measured_train_energy_wh"], row["measured_gpu_busy_pct"]) == (2.0, 50.0)
    assert "| Train energy | GPU busy |" in markdown(table)
    assert any("NVML" in note for note in table.notes)


def test_table2_refuses_to_average_different_students(copied: Path) -> None:
    lines = pd.read_csv(copied / "tables.csv")
    lines.loc[lines["cell"].str.startswith("kd-lora_1B"), "rank"] = 8
    lines.to_csv(copied / "tables.csv", index=False)
    with pytest.raises(BadInput, match="KD LoRA lists cells with several values of rank"):
        made_table("table2", Results.open(copied), Published.open(PUBLISHED), FAST)


def test_differences_are_paired_and_signed(results: Path) -> None:
    table = made_table("table2_differences", Results.open(results), Published.open(PUBLISHED), FAST)
    assert len(table.frame) == 3 * 6
    row = table.frame.query("teacher == '0.13B' and method == 'kd_lora' and against == 'kd_full'").iloc[0]
    main = made_table("table2", Results.open(results), Published.open(PUBLISHED), FAST).frame
    assert row["difference"] == pytest.approx(main.loc[1, "ppl_0.13B"] - main.loc[0, "ppl_0.13B"], rel=1e-9)
    assert row["low"] < row["difference"] < row["high"]
    assert bool(row["clear"])
    assert row["difference_se"] < 0.5 * main.loc[1, "ppl_0.13B_se"]


def test_models_scored_on_other_windows_are_refused(copied: Path) -> None:
    path = find(copied / "cells", "kd-lora_0.13B*/compressed/default/perplexity.json")
    scored = json.loads(path.read_text())
    scored["conditions"]["validation_sha256"] = "cd" * 32
    path.write_text(json.dumps(scored))
    with pytest.raises(BadInput, match="other validation windows"):
        made_table("table2", Results.open(copied), Published.open(PUBLISHED), FAST)


def test_table8_shows_the_structure_and_the_swapped_row(report: Path) -> None:
    table = pd.read_csv(report / "tables" / "table8.csv").set_index("budget")
    assert list(table.loc[0.8, ["kept", "svd", "dropped"]]) == [17, 1, 24]
    assert list(table.loc[0.8, ["kept_published", "svd_published", "dropped_published"]]) == [24, 1, 17]
    assert list(table.loc[0.4, ["kept", "svd", "dropped"]]) == [9, 0, 33]
    assert table["kept_published"].isna().to_dict() == {0.8: False, 0.6: True, 0.4: False, 0.2: True, 0.0: False}
    assert "swapped" in (report / "tables" / "table8.md").read_text()


def test_table9_has_every_probe_and_no_invented_published_value(report: Path) -> None:
    table = pd.read_csv(report / "tables" / "table9.csv")
    assert table.groupby(["method", "teacher"]).size().min() >= 19
    assert table["probe"].nunique() == 19
    assert table["published"].isna().all()
    assert "not known" in (report / "tables" / "table9.md").read_text()


def test_published_perplexities_stand_alone_at_mini(report: Path) -> None:
    for path in report.glob("tables/*.csv"):
        if path.stem != "published_perplexities":
            assert not [c for c in pd.read_csv(path).columns if c.startswith("ppl") and c.endswith("published")]
    assert "other corpus, other vocabulary" in (report / "tables" / "published_perplexities.md").read_text()
    published = pd.read_csv(report / "tables" / "published_perplexities.csv")
    assert len(published) == len(pd.read_csv(PUBLISHED).query("metric == 'ppl'"))


def test_at_paper_scale_table1_shows_both(tmp_path: Path) -> None:
    write_results(tmp_path / "paper")
    paper = Results.open(tmp_path / "paper", standing=Standing(models=True))
    table = made_table("table1", paper, Published.open(PUBLISHED), FAST)
    assert list(table.frame["ppl_published"]) == [21.8, 16.0, 14.1]


def test_figure2_values_hold_only_the_composites_the_paper_prints(report: Path) -> None:
    table = pd.read_csv(report / "tables" / "figure2_values.csv")
    assert sorted(table["published_pct"].dropna()) == [2.7, 5.0, 5.6]
    assert set(table[table["published_pct"].notna()]["teacher"]) == {"1B"}


def test_reference_rows(report: Path) -> None:
    table = pd.read_csv(report / "tables" / "reference.csv")
    # A scored scratch student lies there too, but no cell of a main table starts from it.
    assert list(table["row"]) == ["0.13B itself", "untrained student, mixed"]
    for path in ("reference", "table1"):
        scored = pd.read_csv(report / "tables" / f"{path}.csv")
        expected = np.log2(scored["ppl"]) / BYTES_PER_TOKEN
        np.testing.assert_allclose(scored["bits_per_byte"], expected, rtol=1e-6)
        assert "Bits per byte" in (report / "tables" / f"{path}.md").read_text()


def test_published_csv_is_the_reference() -> None:
    published = Published.open(PUBLISHED)
    assert published.value("Table 2", "ppl", "budgeted_lora", teacher="1B", setting="F=0.4") == 26.58
    assert np.isnan(published.value("Table 2", "ppl", "budgeted_lora", teacher="1B", setting="F=0.6"))


# Forms


def sample(cell: str) -> Table:
    frame = pd.DataFrame({"a_b": [1.5], "name": [cell]})
    return Table("t", "A & B", frame, frame.astype(str), ["10 % of #1"])


def test_latex_is_escaped_and_has_booktabs_rules() -> None:
    text = latex(sample("50 % & under_score ± 3×"))
    assert r"50 \% \& under\_score $\pm$ 3$\times$ \\" in text
    assert r"a\_b & name \\" in text
    assert [rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\caption{A \& B}")] == [True] * 4


@given(st.text(alphabet=st.characters(codec="ascii", exclude_categories=["Cc"])))
@settings(deadline=None, max_examples=50)
def test_latex_escape_leaves_no_special_character_bare(text: str) -> None:
    bare = escape(text)
    for command in (r"\textbackslash{}", r"\textasciitilde{}", r"\textasciicircum{}"):
        bare = bare.replace(command, "")
    assert not re.search(r"(?<!\\)[&%$#_{}]", bare)
    assert not re.search(r"[~^]", bare)


def test_markdown_escapes_pipes() -> None:
    assert "| 1.5 | a\\|b |" in markdown(sample("a|b"))


def test_every_table_comes_in_three_forms(report: Path) -> None:
    for name in TABLES.keys() - {CONTROLS}:  # which these results lack
        for ending in ("csv", "md", "tex"):
            text = (report / "tables" / f"{name}.{ending}").read_text()
            assert text.strip()
            assert "nan" not in re.findall(r"[a-z]+", text.lower())


# Figures


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20))
@settings(deadline=None, max_examples=60)
def test_frontier_keeps_exactly_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    cost, loss = (np.array(values, dtype=float) for values in zip(*points, strict=True))
    kept = {points[i] for i in frontier(cost, loss)}
    beaten = {p for p in points if any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
    assert kept == set(points) - beaten


def test_labels_cover_neither_each_other_nor_points() -> None:
    with context():
        figure, axes = plt.subplots(figsize=(6, 5))
        points = [(1.0, y, f"student {i} of many", "k") for i, y in enumerate(np.linspace(20, 22, 8))]
        axes.scatter([p[0] for p in points], [p[1] for p in points])
        axes.set_xlim(0.5, 2)
        boxes = [note.get_window_extent() for note in label_points(axes, points)]
        frame = axes.get_window_extent()
        centres = axes.transData.transform([p[:2] for p in points])
        plt.close(figure)
    assert not any(Bbox.intersection(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert not any(box.contains(*centre) for box in boxes for centre in centres)
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


def test_figures_are_there_in_three_forms(report: Path) -> None:
    for name in FIGURES:
        assert (report / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert b"<svg" in (report / "figures" / f"{name}.svg").read_bytes()[:2000]
        assert (report / "figures" / f"{name}.pdf").read_bytes()[:4] == b"%PDF"


def test_a_figure_has_the_same_bytes_each_time_and_no_date(results: Path, report: Path, tmp_path: Path) -> None:
    for name in ("figure2", "pareto_train_compute"):
        for path in write_figure(FIGURES[name].among(["table2"]), Results.open(results), tmp_path):
            assert path.read_bytes() == (report / "figures" / path.name).read_bytes()
            assert b"Date" not in path.read_bytes()


def test_figure2_draws_band_teacher_line_and_chance(results: Path) -> None:
    with context():
        figure = drawn("figure2", Results.open(results))
        labels = [line.get_label() for line in figure.axes[0].get_lines()]
        bands = len(figure.axes[0].collections)
        plt.close(figure)
    assert labels == ["KD Full", "KD LoRA", "Budgeted LoRA, F=0.4", "Budgeted LoRA, F=0.0", "0.13B itself", "chance"]
    assert bands == 4


def test_retention_shows_all_modules_of_every_budget(results: Path) -> None:
    opened = Results.open(results)
    assert [float(row.budget) for row in budgeted_cells(opened).itertuples()] == [0.8, 0.6, 0.4, 0.2, 0.0]
    with context():
        figure = drawn("retention", opened)
        heat = [mesh for axes in figure.axes[:5] for mesh in axes.collections]
        shapes = {mesh.get_array().shape for mesh in heat}
        plt.close(figure)
    assert len(heat) == 5
    assert shapes == {(42, 30)}


def test_save_closes_the_layout_before_writing(tmp_path: Path) -> None:
    with context():
        figure, _ = plt.subplots(figsize=(2, 2))
        paths = save(figure, tmp_path, "empty")
        plt.close(figure)
    assert [path.suffix for path in paths] == [".png", ".svg", ".pdf"]


# The page


def test_page_is_self_contained_and_its_links_lead_somewhere(report: Path) -> None:
    page = (report / "index.html").read_text()
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page)
    outside = [a for a in addresses if re.match(r"(https?:)?//", a)]
    local = [a for a in addresses if not a.startswith(("data:", "#"))]
    assert not outside
    assert page.count("data:image/svg+xml;base64,") == len(FIGURES)
    assert len(local) > 50
    assert [a for a in local if not (report / a).is_file()] == []
    anchors = {a[1:] for a in addresses if a.startswith("#")}
    assert anchors <= set(re.findall(r'id="([^"]+)"', page))
    assert any(a.startswith("../../results/mini/cells/") for a in local)


def test_page_says_what_it_must(report: Path) -> None:
    page = (report / "index.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    for words in (
        "Made-up CPU", "tokens of training text", "say about the paper, and what not?", "swapped", "published",
        "other corpus, other vocabulary", "training.train_embeddings_head_norms", 'name="viewport"', "19.67 ± ",
    ):  # fmt: skip
        assert words in page
    assert "Mixed versions" not in page
    assert page.index('id="table2"') < page.index('id="claims-section"')


def test_mixed_versions_are_flagged(copied: Path, tmp_path: Path, config: Config) -> None:
    path = find(copied / "cells", "kd-full_1B*/train.json")
    result = json.loads(path.read_text())
    result["provenance"] |= {"git_commit": "f" * 40, "git_dirty": True}
    result["provenance"]["libraries"]["torch"] = "2.12.0"
    path.write_text(json.dumps(result))
    page = page_of(copied, tmp_path / "out", config)
    assert "Mixed versions" in page
    assert "ffffffffffff with uncommitted changes" in page
    assert facts.versions(Results.open(copied))["mixed"] == ["commit", "libraries"]


def test_results_of_cells_that_are_no_longer_listed_are_not_counted(copied: Path) -> None:
    before = facts.versions(Results.open(copied)), facts.time_sentence(Results.open(copied))
    for folder in ("cells/left-over", "speed"):
        (copied / folder).mkdir(exist_ok=True)
    provenance = {"git_commit": "0" * 40, "started_at": "2020-01-01T00:00:00+00:00", "seconds": 1e6}
    for name in ("cells/left-over/train.json", "speed/left-over.json"):
        (copied / name).write_text(json.dumps({"provenance": provenance}))
    assert (facts.versions(Results.open(copied)), facts.time_sentence(Results.open(copied))) == before


def test_constants_are_those_tagged_unknown_or_derived(config: Config) -> None:
    rows = {row["key"]: row for row in constants(config)}
    assert rows["budget.smoothing"]["value"] == "0.9"
    assert rows["training.temperature"]["tag"] == "D"
    assert "training.weight_decay" not in rows
    assert "[" not in rows["compression.r_max"]["meaning"]


def test_text_from_files_is_escaped(copied: Path, tmp_path: Path, config: Config) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "claims.csv").write_text("claim,status\n<script>alert(1)</script>,not run\n")
    page = page_of(copied, out, config)
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page


# Missing results


def test_a_missing_result_is_refused_by_name(copied: Path, tmp_path: Path) -> None:
    path = find(copied / "cells", "kd-lora_0.5B*/compressed/default/perplexity.json")
    path.unlink()
    with pytest.raises(BadInput, match=r"kd-lora_0\.5B.*perplexity\.json: no such result"):
        make_table(
            table="table2", results=copied, lines=[copied / "tables.csv"], published=PUBLISHED, out=tmp_path,
            standing=Standing(), report=Report(bootstrap=20),
        )  # fmt: skip
    assert not (tmp_path / "tables").exists()


def test_partial_tables_show_what_is_there(copied: Path) -> None:
    shutil.rmtree(find(copied / "cells", "budgeted-lora_1B_mixed_F0_*") / "compressed")
    opened = Results.open(copied, partial=True)
    table = made_table("table2", opened, Published.open(PUBLISHED), FAST)
    assert np.isnan(table.frame.loc[3, "ppl_1B"])
    assert table.frame.loc[3, "ppl_0.5B"] > 1
    assert table.shown.loc[3, "PPL 1B"] == "–"
    assert any("budgeted-lora_1B_mixed_F0_" in path for path in opened.missing)
    differences = made_table("table2_differences", opened, Published.open(PUBLISHED), FAST)
    assert len(differences.frame) == 6 + 6 + 3


def test_partial_report_of_an_empty_run_names_everything(results: Path, tmp_path: Path, config: Config) -> None:
    empty = tmp_path / "results" / "mini"
    empty.mkdir(parents=True)
    shutil.copy(results / "tables.csv", empty)
    out = tmp_path / "reports" / "mini" / "partial"
    page = whole(empty, out, config, partial=True)
    assert "Partial report" in page
    leftover = out / "figures" / "figure2.svg"
    leftover.parent.mkdir(exist_ok=True)
    leftover.write_text("<svg>of an earlier call</svg>")
    assert "of an earlier call" not in whole(empty, out, config, partial=True)
    for cell in pd.read_csv(empty / "tables.csv")["cell"]:
        assert f"cells/{cell}/" in page


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [("tables.csv", None, "no such file"), ("tables.csv", "cell,method\nx,kd_full\n", "no column table")],
)
def test_bad_cell_lists_are_refused(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=message):
        Results.open(tmp_path)


def test_unknown_names_are_refused(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"results": results, "lines": [results / "tables.csv"], "out": tmp_path, "standing": Standing()}
    with pytest.raises(BadInput, match=r"table 'table77' is unknown; .* table1, table2"):
        make_table(table="table77", published=PUBLISHED, report=Report(), **options)
    with pytest.raises(BadInput, match=r"figure 'x' is unknown; .* figure2, pareto_train_compute"):
        make_figure(figure="x", **options)
    words = ["stage", "make_figure", "--figure", "x", "--results", results, "--lines", results / "tables.csv"]
    monkeypatch.setattr(sys, "argv", ["budgeted-lora", *map(str, words), "--options", '{"standing": {}}', "--out", "o"])
    with pytest.raises(SystemExit) as ended:
        run_command_line()
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "'x'" in line


@pytest.mark.parametrize(("name", "size"), [("0.13B", 0.13), ("125m", 0.125), ("1B", 1.0), ("small", float("inf"))])
def test_teachers_are_sorted_by_the_size_in_their_name(name: str, size: float) -> None:
    assert size_in_name(name) == pytest.approx(size)


def test_reporting_needs_no_torch() -> None:
    code = (
        "import sys, budgeted_lora.commands.report; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_caption_belongs_to_a_rule_and_every_figure_has_one_on_the_page() -> None:
    rules = "".join(path.read_text() for path in [ROOT / "Snakefile", *(ROOT / "workflow" / "rules").glob("*.smk")])
    captions = {path.stem for path in (ROOT / "workflow" / "report").glob("*.rst")}
    assert captions == set(re.findall(r"report/(\w+)\.rst", rules))
    assert set(contents.FIGURES) == set(texts()["figures"])


def test_the_page_counts_the_students_that_are_trained(results: Path, tmp_path: Path) -> None:
    opened = Results.open(Path(shutil.copytree(results, tmp_path / "mini")))
    listed = len(opened.cells)
    assert facts.students_sentence(opened).startswith(f"{listed}, ")
    (opened.root / "cells" / opened.cells["cell"].iloc[0] / "train.json").unlink()
    assert facts.students_sentence(opened).startswith(f"{listed - 1} of the {listed} that the configuration lists, ")
