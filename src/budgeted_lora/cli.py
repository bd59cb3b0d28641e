"""`budgeted-lora`: what a person asks (plan, cells, report) and, under `stage`, what the workflow's rules call."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from budgeted_lora import stages
from budgeted_lora.config import load_config
from budgeted_lora.errors import BadInput, TrainingDiverged

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Budgeted LoRA: distillation as structured compute allocation.",
)
app.add_typer(stages.app, name="stage")

ScaleName = Annotated[str, typer.Option("--scale", help="A file of config/, without its ending.")]
ConfigFolder = Annotated[Path, typer.Option("--config-folder", help="Folder of the scale files.")]


@app.command()
def plan(
    scale: Annotated[str | None, typer.Option(help="Take shape, ranks and budgets from this scale.")] = None,
    config_folder: ConfigFolder = Path("config"),
    layers: Annotated[int, typer.Option(min=1, help="Student layers.")] = 6,
    hidden: Annotated[int, typer.Option(min=1, help="Hidden size.")] = 768,
    kv: Annotated[int, typer.Option(min=1, help="Width of the key and value projections.")] = 192,
    ffn: Annotated[int, typer.Option(min=1, help="Feed-forward size.")] = 3072,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the low-rank paths.")] = 128,
    budget: Annotated[list[float] | None, typer.Option(min=0, max=1, help="F; give it several times.")] = None,
    schedule: Annotated[str, typer.Option(help="none, short or long.")] = "short",
    r_max: Annotated[int, typer.Option(min=1, help="SVD rank of a coefficient of 1.")] = 64,
    drop_threshold: Annotated[float, typer.Option(min=0, max=1)] = 0.05,
    svd_threshold: Annotated[float, typer.Option(min=0, max=1)] = 0.5,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a budget.")] = False,
) -> None:
    """The structure, MACs, speedups and train compute that each budget will have; needs no weights."""
    from budgeted_lora.budget.cost import ModelShape
    from budgeted_lora.budget.plan import structure
    from budgeted_lora.budget.report import render_plan
    from budgeted_lora.graph import Graph

    schedules = {"none": (0.0, 0.0), "short": (0.1, 0.3), "long": (0.1, 0.9)}
    if scale is not None:
        graph = Graph(load_config(config_folder / f"{scale}.yaml"))
        made = list(graph.structures().values())
    else:
        if schedule not in schedules:
            raise BadInput(f"--schedule {schedule!r}: expected one of {', '.join(schedules)}")
        if rank > min(hidden, kv, ffn):
            raise BadInput(f"--rank {rank} exceeds {min(hidden, kv, ffn)}, the smallest dimension of a projection")
        start, end = schedules[schedule]
        made = [
            structure(
                ModelShape(layers=layers, hidden=hidden, kv=kv, ffn=ffn),
                rank=rank,
                budget=fraction,
                start=start,
                end=end,
                smoothing=0.9,
                drop_threshold=drop_threshold,
                controller="greedy",
                r_max=r_max,
                svd_threshold=svd_threshold,
                schedule=schedule,
            )
            for fraction in budget or [0.0, 0.4, 0.8]
        ]
    typer.echo(json.dumps([item.as_json() for item in made], indent=2) if as_json else render_plan(made))


@app.command()
def report(
    scale: ScaleName = "mini",
    config_folder: ConfigFolder = Path("config"),
    partial: Annotated[bool, typer.Option("--partial", help="Show what is there and name what is missing.")] = False,
) -> None:
    """Write the report of a scale from the results that are there."""
    from budgeted_lora.reporting.build import build_report

    config = load_config(config_folder / f"{scale}.yaml")
    out = Path("reports") / config.scale / ("partial" if partial else "")
    page = build_report(
        results=Path("results") / config.scale,
        published=config_folder / "published.csv",
        out=out,
        config=config,
        bootstrap=config.report.bootstrap,
        confidence=config.report.confidence,
        partial=partial,
        claims=config_folder / "claims.yaml",
    )
    typer.echo(page)


@app.command()
def resume(
    scale: ScaleName = "mini",
    config_folder: ConfigFolder = Path("config"),
    wait: Annotated[bool, typer.Option(help="Wait for jobs that the killed run left, or refuse.")] = True,
) -> None:
    """Go on with a run that was killed: once nobody is at work, unlock the folder and run the same command again."""
    from budgeted_lora.runs import resume_run

    config = load_config(config_folder / f"{scale}.yaml")
    arguments = resume_run(Path("results") / config.scale, wait=wait)
    print("snakemake", *arguments, file=sys.stderr, flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "snakemake", *arguments])


def main() -> None:
    """Entry point: bad input is one line and exit status 2, anything else that stops a stage is 1.

    That includes what the machine refuses, such as a full disk or a read-only folder: the line names file and reason.
    """
    try:
        app()
    except BadInput as error:
        print(f"budgeted-lora: {error}", file=sys.stderr)
        sys.exit(2)
    except TrainingDiverged as error:
        print(f"budgeted-lora: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"budgeted-lora: {error.strerror or error}: {error.filename or ''}".rstrip(": "), file=sys.stderr)
        sys.exit(1)
