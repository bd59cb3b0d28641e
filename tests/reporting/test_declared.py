"""Every table and figure is made from the files that the workflow declares for it, and from no others."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from fixtures.synthetic_results import MODULES, SPEED, Builder, compression

from budgeted_lora.config.scale import DEFAULT_VARIANT, load_config
from budgeted_lora.config.sections import Report
from budgeted_lora.files import read_json
from budgeted_lora.reporting.contents import Shown, figures_of, tables_of
from budgeted_lora.stages.list_table import list_table
from budgeted_lora.stages.make_figure import make_figure
from budgeted_lora.stages.make_table import make_table
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.report import ReportJobs

ROOT = Path(__file__).resolve().parents[2]
CONFIG = load_config(ROOT / "config" / "mini.yaml")  # it has every table but those of a reader's own
SHOWN = [*tables_of(CONFIG.tables).values(), *figures_of(CONFIG.tables).values()]


@dataclass(frozen=True)
class World:
    """A scale's report jobs and a folder with made-up files of all its results."""

    jobs: ReportJobs
    folder: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Results of every cell and variant of the scale."""
    jobs, folder = ReportJobs(Graph(CONFIG)), tmp_path_factory.mktemp("declared")
    builder = Builder(folder / jobs.graph.results)
    builder.models()
    builder.contamination()
    values = {"zero": 2.0, "svd": 0.5, "activation_svd": 0.1}
    builder.json("students/mixed/statistics.json", {"removals": [{"name": name} | values for name in MODULES]})
    for cell in jobs.graph.cells:
        write_cell(builder, jobs.graph, cell)
    for structure in jobs.graph.timed():
        timed = zip(("modules", "prefill", "decode"), SPEED[0.4], strict=True)
        speed = {kind: {"speedup": value, "speedup_q1": value, "speedup_q3": value} for kind, value in timed}
        builder.json(f"speed/{structure}.json", speed)
    for table in CONFIG.tables:
        out = builder.root / "tables" / f"{table}.csv"
        out.parent.mkdir(exist_ok=True)
        list_table(table=table, config=CONFIG, out=out)
    return World(jobs, folder)


def write_cell(builder: Builder, graph: Graph, cell: str) -> None:
    """Files of one trained student and of each variant that it is compressed as."""
    recipe = graph.recipe_of(cell)
    builder.training(cell, recipe.method, recipe.budget)
    (builder.root / "cells" / cell / "trained.sha256").write_text("made up\n")
    if not recipe.plain:
        count = len(MODULES)
        low_rank = {"order": list(range(count)), "ranks": [16] * count, "scores": [1.0 + i for i in range(count)]}
        low_rank |= {"kept_energy": [0.5] * count, "kept_output_energy": [0.7] * count}
        path = f"cells/{cell}/train.json"
        builder.json(path, read_json(builder.root / path) | {"low_rank": low_rank}, cell=cell)
    for variant in graph.cells[cell].variants:
        folder = f"cells/{cell}/compressed/{variant}"
        builder.perplexity(folder, float(builder.rng.uniform(18, 30)))
        builder.json(f"{folder}/compression.json", compression(recipe.budget, builder.rng), cell=cell)
    builder.icl(f"cells/{cell}/compressed/{DEFAULT_VARIANT}", 0.2)


def copy_declared(world: World, shown: Shown, folder: Path) -> None:
    """Copy what the jobs declare, with what a declared file stands for.

    A digest stands for its folder, and the scores of a reference come after its model.
    """
    for name in [*world.jobs.cells(shown), *world.jobs.inputs(shown)]:
        path = Path(name)
        beside = {"trained.sha256": "trained/adapter.json", "perplexity.json": "model/config.json"}.get(path.name)
        for one in [path, *([path.parent / beside] if beside else [])]:
            source = world.folder / one
            if one == path or source.exists():
                (folder / one).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, folder / one)


def made(world: World, shown: Shown, folder: Path) -> dict[str, bytes]:
    """The files of a table or figure from the results in a folder."""
    results, out = folder / world.jobs.graph.results, folder / "reports"
    lines = [folder / name for name in world.jobs.cells(shown)]
    common = {"results": results, "lines": lines, "out": out, "standing": world.jobs.standing}
    if shown.is_figure:
        make_figure(figure=shown.name, **common)
    else:
        published = ROOT / "config" / "published.csv"
        make_table(table=shown.name, published=published, report=Report(bootstrap=20), **common)
    return {path.name: path.read_bytes() for path in out.rglob(f"{shown.name}.*") if path.suffix != ".pdf"}


@pytest.mark.parametrize("shown", SHOWN, ids=lambda shown: f"{'figure' if shown.is_figure else 'table'}-{shown.name}")
def test_the_declared_files_are_enough(world: World, tmp_path: Path, shown: Shown) -> None:
    copy_declared(world, shown, tmp_path)
    alone = made(world, shown, tmp_path)
    assert len(alone) == (2 if shown.is_figure else 3)
    shutil.rmtree(world.folder / "reports", ignore_errors=True)
    assert alone == made(world, shown, world.folder)
