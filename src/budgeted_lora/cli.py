"""`budgeted-lora`: what a person asks (plan, cells, report) and, under `stage`, what the workflow's rules call."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from budgeted_lora import stages
from budgeted_lora.config import load_config
from budgeted_lora.errors import BadInput, RankFailed, TrainingDiverged

if TYPE_CHECKING:
    from budgeted_lora.graph import Graph

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Budgeted LoRA: distillation as structured compute allocation.",
)
app.add_typer(stages.app, name="stage")

ScaleName = Annotated[str, typer.Option("--scale", help="A file of config/, without its ending.")]
ConfigFolder = Annotated[Path, typer.Option("--config-folder", help="Folder of the scale files.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--config", metavar="KEY=VALUE", help="Laid on top, as by snakemake --config; several times."),
]


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


@app.command()
def cells(
    scale: ScaleName = "mini",
    config_folder: ConfigFolder = Path("config"),
    config: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a cell.")] = False,
) -> None:
    """List every cell with its tables: done, missing (and which part) or stale.

    Stale: results are there, but the values or input digests they record are not those of today's configuration and
    files. Code is not compared; Snakemake does that.
    """
    from budgeted_lora.render import render_cells
    from budgeted_lora.status import Inspector

    found = Inspector(graph_of(scale, config_folder, config)).cells()
    typer.echo(json.dumps([item.as_json() for item in found], indent=2) if as_json else render_cells(found))


@app.command()
def why(
    cell: Annotated[str, typer.Argument(help="Name of a cell, or an unambiguous beginning of one.")],
    scale: ScaleName = "mini",
    config_folder: ConfigFolder = Path("config"),
    config: Overrides = None,
) -> None:
    """Explain one cell: recipe beside the defaults, tables, stages, what changed since, where its files are."""
    from budgeted_lora.render import render_why
    from budgeted_lora.status import Inspector, the_cell

    graph = graph_of(scale, config_folder, config)
    typer.echo(render_why(graph, Inspector(graph).cell(the_cell(graph, cell))))


@app.command()
def prune(
    scale: ScaleName = "mini",
    config_folder: ConfigFolder = Path("config"),
    config: Overrides = None,
    cache: Annotated[bool, typer.Option("--cache", help="The teachers' caches too that are in use.")] = False,
    state: Annotated[bool, typer.Option("--state", help="Training states too of runs that were cut short.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
) -> None:
    """Remove what no cell of the configuration uses, after showing it with sizes and asking.

    Give the --config values that runs were started with: what only they use counts as unused without them.
    A training state whose run is alive stays, whatever is asked.
    """
    from budgeted_lora.prune import leftovers, remove
    from budgeted_lora.render import render_leftovers, size

    graph = graph_of(scale, config_folder, config)
    found = leftovers(graph, cache=cache, state=state)
    if not found:
        typer.echo(f"{graph.results}: nothing to remove")
        return
    typer.echo(render_leftovers(found))
    if not yes and not (sys.stdin.isatty() and typer.confirm("Remove all of this?")):
        typer.echo("nothing was removed" + ("" if sys.stdin.isatty() else "; --yes removes without asking"))
        return
    typer.echo(f"{size(remove(graph, found))} removed")


@app.command("export")
def export_results(
    archive: Annotated[Path, typer.Argument(help="File to write; ends in .tar.zst or .tar.gz.")],
    scale: Annotated[str, typer.Option("--scale", help="Name of the scale.")] = "mini",
    with_cache: Annotated[bool, typer.Option("--with-cache", help="The teachers' cached hidden states too.")] = False,
) -> None:
    """Pack results and reports of a scale, with Snakemake's records of them, into one file for another checkout.

    Training states and, without --with-cache, the teachers' caches are left out.
    """
    from budgeted_lora.archive import export_archive
    from budgeted_lora.render import size

    done = export_archive(archive, scale=scale, with_cache=with_cache)
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    typer.echo(f"{archive}: {done.files} files, {size(done.bytes)}, of scale {scale}")


@app.command("import")
def import_results(
    archive: Annotated[Path, typer.Argument(help="A file that `budgeted-lora export` wrote.")],
    force: Annotated[bool, typer.Option("--force", help="Replace results that differ from the archive's.")] = False,
) -> None:
    """Put an exported scale into this checkout, once every byte of it is verified; nothing is then run again.

    Results that are here and not in the archive stay. Run it in the root of the checkout.
    """
    from budgeted_lora.archive import import_archive
    from budgeted_lora.render import size

    done = import_archive(archive, force=force)
    typer.echo(f"results/{done.scale}: {done.files} files, {size(done.bytes)}; `budgeted-lora cells` checks them")


def graph_of(scale: str, config_folder: Path, config: list[str] | None) -> "Graph":
    """The jobs of a scale, with values laid on top as by `snakemake --config`.

    Raises:
        BadInput: a value is not KEY=VALUE, or the configuration cannot be used.
    """
    import yaml

    from budgeted_lora.graph import Graph

    values = {}
    for word in config or []:
        key, equals, text = word.partition("=")
        if not equals:
            raise BadInput(f"--config {word!r}: expected KEY=VALUE")
        try:
            values[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise BadInput(f"--config {word!r}: its value is not YAML") from None
    return Graph(load_config(config_folder / f"{scale}.yaml", values))


def main() -> None:
    """Entry point: bad input is one line and exit status 2, anything else that stops a stage is 1.

    That includes what the machine refuses, such as a full disk or a read-only folder: the line names file and reason.
    """
    try:
        app()
    except BadInput as error:
        print(f"budgeted-lora: {error}", file=sys.stderr)
        sys.exit(2)
    except (TrainingDiverged, RankFailed) as error:
        print(f"budgeted-lora: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"budgeted-lora: {error.strerror or error}: {error.filename or ''}".rstrip(": "), file=sys.stderr)
        sys.exit(1)
