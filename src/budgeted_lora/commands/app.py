"""`budgeted-lora`: the commands of a person (plan, cells, report ...) and, under `stage`, those of the rules."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from budgeted_lora import __version__, provenance
from budgeted_lora.commands import show_costs, show_status, show_watch
from budgeted_lora.commands.archive import import_archive
from budgeted_lora.commands.compress import compressing
from budgeted_lora.commands.options import ConfigFolder, Overrides, ScaleName, graph_of
from budgeted_lora.commands.plan import costs_of, energy_of, refuse_ignored, structures_of_shape
from budgeted_lora.commands.prune import leftovers, remove
from budgeted_lora.commands.show_structures import render_plan
from budgeted_lora.commands.status import Inspector, cell_named
from budgeted_lora.commands.students import students
from budgeted_lora.commands.text import size
from budgeted_lora.commands.watch import Watcher, last_run
from budgeted_lora.config.scale import load_config
from budgeted_lora.errors import BadInput, ProcessFailed, TrainingDiverged
from budgeted_lora.method.cost import ModelShape
from budgeted_lora.planning.doctor import examine
from budgeted_lora.planning.findings import troubles
from budgeted_lora.planning.start import known_targets
from budgeted_lora.stages.dispatch import run_stage
from budgeted_lora.workflow.graph import load_graph
from budgeted_lora.workflow.runs import resume_run
from budgeted_lora.workflow.targets import limited

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(compressing)
app.add_typer(students)

WRONG_WORDS: Any = typer.BadParameter.__base__  # click's UsageError; newer versions of typer carry click inside


def print_version(requested: bool) -> None:
    """Print the package's version, and its commit if it is in a checkout; then end."""
    if requested:
        git = provenance.git_state()
        changed = ", with changes" if git["git_dirty"] else ""
        commit = f" (commit {git['git_commit']}{changed})" if git["git_commit"] else ""
        typer.echo(f"budgeted-lora {__version__}{commit}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Budgeted LoRA: distillation as structured compute allocation."""


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
)
def stage(context: typer.Context) -> None:
    """Run one stage of the workflow, as its rules do."""
    run_stage(context.args)


@app.command()
def plan(
    context: typer.Context,
    scale: Annotated[str | None, typer.Option(help="Take shape, ranks and budgets from this scale.")] = None,
    config_folder: ConfigFolder = Path("config"),
    config: Overrides = None,
    layers: Annotated[int, typer.Option(min=1, help="Student layers.")] = 6,
    hidden: Annotated[int, typer.Option(min=1, help="Hidden size.")] = 768,
    kv: Annotated[int, typer.Option(min=1, help="Width of the key and value projections.")] = 192,
    ffn: Annotated[int, typer.Option(min=1, help="Feed-forward size.")] = 3072,
    attention: Annotated[int | None, typer.Option(min=1, help="Heads x their size. [the hidden size]")] = None,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the low-rank paths.")] = 128,
    budget: Annotated[list[float] | None, typer.Option(min=0, max=1, help="Dense fraction F; repeatable.")] = None,
    schedule: Annotated[str, typer.Option(help="none, short or long.")] = "short",
    r_max: Annotated[int, typer.Option(min=1, help="SVD rank for a retention of 1.")] = 64,
    rank_multiple: Annotated[int, typer.Option(min=1, help="What SVD ranks are rounded to.")] = 1,
    drop_threshold: Annotated[float, typer.Option(min=0, max=1, help="A lower retention becomes 0.")] = 0.05,
    svd_threshold: Annotated[float, typer.Option(min=0, max=1, help="A lower retention means SVD.")] = 0.5,
    costs: Annotated[bool, typer.Option("--costs", help="With --scale: only what it costs.")] = False,
    device: Annotated[str | None, typer.Option(help="With --scale: a100-80gb, h100, rtx4090, ..., cpu.")] = None,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, help="With --scale: devices for jobs side by side. [gpus_per_run]")
    ] = None,
    utilisation: Annotated[
        float | None, typer.Option(min=0.001, max=1, help="With --scale: share of the device's peak. [device table]")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="With --scale: time a few training steps of each kind on this machine.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a list with one object per budget; with --costs one object.")
    ] = False,
) -> None:
    """Print the structure, MACs, speedups and train compute of each budget; needs no weights.

    With --scale, also print what every cell and the whole scale will cost: tokens, FLOPs, time on a named device,
    memory and disk.
    """
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    refuse_ignored(given, scale=scale is not None)
    if scale is None:
        shape = ModelShape(layers=layers, hidden=hidden, kv=kv, ffn=ffn, attention=attention or 0)
        structures = structures_of_shape(
            shape, budgets=budget or [0.0, 0.4, 0.8], rank=rank, schedule=schedule, r_max=r_max,
            rank_multiple=rank_multiple, drop_threshold=drop_threshold, svd_threshold=svd_threshold,
        )  # fmt: skip
        if as_json:
            print_json([item.as_json() for item in structures])
        else:
            typer.echo(render_plan(structures))
        return
    graph = graph_of(scale, config_folder, config)
    if as_json and not costs:
        print_json(show_costs.structures_json(graph))
        return
    per_run = graph.config.gpus_per_run
    gpus = per_run if gpus is None else gpus
    if gpus < per_run:
        raise BadInput(f"--gpus {gpus}: each student trains on {per_run} (gpus_per_run); expected at least {per_run}")
    counted = costs_of(graph, device=device, utilisation=utilisation, calibrate=calibrate)
    if as_json:
        print_json(show_costs.as_json(counted, gpus=gpus, energy=energy_of(counted)))
        return
    structures_text = "" if costs else show_costs.render_structures(graph)
    typer.echo(structures_text + show_costs.render_costs(counted, gpus=gpus, energy=energy_of(counted)), nl=False)


@app.command()
def doctor(
    scale: ScaleName = "mini",
    config_folder: ConfigFolder = Path("config"),
    config: Overrides = None,
    target: Annotated[list[str] | None, typer.Option(help="Target to run, as for snakemake: main. [all]")] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Jobs will run on a cluster: check its tools.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list with one object per finding.")] = False,
) -> None:
    """Check whether this machine can run a scale: each line is ok, short or missing, with what to do.

    Exit status 0 if it can, 2 if it cannot.
    """
    graph = graph_of(scale, config_folder, config)
    findings = examine(limited(graph, known_targets(graph, target or ())), slurm=slurm)
    if as_json:
        print_json([asdict(item) for item in findings])
    else:
        typer.echo(show_costs.render_findings(findings, scale=scale))
    if troubles(findings):
        raise typer.Exit(2)


@app.command()
def report(
    scale: ScaleName = "mini",
    config_folder: ConfigFolder = Path("config"),
    config: Overrides = None,
    partial: Annotated[bool, typer.Option("--partial", help="Show finished results, name missing ones.")] = False,
) -> None:
    """Write the report of a scale from its finished results."""
    from budgeted_lora.commands.report import write_report  # imports pandas
    from budgeted_lora.workflow.report import ReportJobs

    graph = graph_of(scale, config_folder, config)
    page = write_report(
        Path(graph.results),
        published=config_folder / "published.csv",
        claims=config_folder / "claims.yaml",
        out=Path(graph.reports) / ("partial" if partial else ""),
        config=graph.config,
        standing=ReportJobs(graph).standing,
        partial=partial,
    )
    typer.echo(page)


@app.command()
def resume(
    scale: ScaleName = "mini",
    config_folder: ConfigFolder = Path("config"),
    wait: Annotated[bool, typer.Option(help="Wait for jobs of the killed run that still work, or refuse.")] = True,
) -> None:
    """Continue a killed run: when no job works any more, unlock the folder and run its command again."""
    config = load_config(config_folder / f"{scale}.yaml")
    arguments = resume_run(Path("results") / config.scale, wait=wait)
    print("snakemake", *arguments, file=sys.stderr, flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "snakemake", *arguments])


@app.command()
def cells(
    scale: ScaleName = "mini",
    config_folder: ConfigFolder = Path("config"),
    config: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list with one object per cell.")] = False,
) -> None:
    """List every cell with its tables and what differs from the defaults: done, missing (and which part) or stale.

    Stale: the values or input digests that its results record are not those of today's configuration and files. Code is
    not compared; Snakemake does that.
    """
    statuses = Inspector(graph_of(scale, config_folder, config)).cells()
    if as_json:
        print_json([item.as_json() for item in statuses])
    else:
        typer.echo(show_status.render_cells(statuses))


@app.command()
def watch(
    scale: ScaleName = "mini",
    config_folder: ConfigFolder = Path("config"),
    config: Overrides = None,
    target: Annotated[list[str] | None, typer.Option(help="Target of the run. [those of the last run, or all]")] = None,
    once: Annotated[bool, typer.Option("--once", help="Print once; so does an output that is no terminal.")] = False,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object, once.")] = False,
) -> None:
    """Show how far a run is: jobs done, the step, speed and loss of each training, and the time left for all.

    Only reads, also while Snakemake is at work. Values and targets are those of the last run unless others are given.
    Ends when all is done, or with Ctrl-C.
    """
    given = graph_of(scale, config_folder, config)
    run = last_run(given.results)
    graph = given if config else load_graph(config_folder / f"{scale}.yaml", run.get("config"))
    watcher = Watcher(limited(graph, known_targets(graph, target or ()) or run.get("targets") or ()), run)
    if as_json:
        print_json(asdict(watcher.look()))
    elif once or not sys.stdout.isatty():
        typer.echo(show_watch.render_view(watcher.look()))
    else:
        show_watch.follow(watcher, every=every)


@app.command()
def why(
    cell: Annotated[str, typer.Argument(help="Name of a cell, or an unambiguous beginning of one.")],
    scale: ScaleName = "mini",
    config_folder: ConfigFolder = Path("config"),
    config: Overrides = None,
) -> None:
    """Explain one cell: its recipe beside the defaults, tables, stages, what has changed since, and its folders."""
    graph = graph_of(scale, config_folder, config)
    typer.echo(show_status.render_why(graph, Inspector(graph).cell(cell_named(graph, cell))))


@app.command()
def diff(
    a: Annotated[
        Path, typer.Argument(metavar="A", help="results/<scale>, a cell (its folder or its name), a model, an export.")
    ],
    b: Annotated[Path, typer.Argument(metavar="B", help="What it is compared with, of the same kind.")],
    ignore_provenance: Annotated[
        bool, typer.Option("--ignore-provenance", help="Code, versions and machine may differ.")
    ] = False,
    all_files: Annotated[bool, typer.Option("--files", help="Name every file that differs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object.")] = False,
) -> None:
    """Compare two results: settings, code and machine, metrics with their noise, structure, files.

    Two scales, two cells or models, two reports, two exported models, or archives of scales. Perplexities on the same
    windows are compared in pairs; noise is that of the validation text, not that of training seeds. Times of day and
    timings are not compared. Exit status 0 if nothing differs, 1 if something does.
    """
    from budgeted_lora.commands.diff import Comparison, opened  # imports pandas
    from budgeted_lora.commands.show_diff import render_diff

    with opened(a) as one, opened(b) as other:
        found = Comparison.of(one, other, ignore_provenance=ignore_provenance)
        if as_json:
            print_json(found.as_json())
        else:
            typer.echo(render_diff(found, all_files=all_files))
    if not found.equal:
        raise typer.Exit(1)


@app.command()
def prune(
    scale: ScaleName = "mini",
    config_folder: ConfigFolder = Path("config"),
    config: Overrides = None,
    cache: Annotated[bool, typer.Option("--cache", help="Also the teachers' caches that are in use.")] = False,
    state: Annotated[bool, typer.Option("--state", help="Also training states of interrupted runs.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
) -> None:
    """Remove what no cell of the configuration uses, after listing it with sizes and asking.

    Give the --config values that runs were started with; what only they use counts as unused otherwise. The training
    state of a living run always stays.
    """
    graph = graph_of(scale, config_folder, config)
    unused = leftovers(graph, cache=cache, state=state)
    if not unused:
        typer.echo(f"{graph.results}: nothing to remove")
        return
    typer.echo(show_status.render_leftovers(unused))
    if not yes and not (sys.stdin.isatty() and typer.confirm("Remove all of this?")):
        typer.echo("nothing was removed" + ("" if sys.stdin.isatty() else "; --yes removes without asking"))
        return
    typer.echo(f"{size(remove(graph, unused))} removed")


@app.command("import")
def import_results(
    archive: Annotated[Path, typer.Argument(help="A file that `budgeted-lora export` wrote.")],
    force: Annotated[bool, typer.Option("--force", help="Replace results that differ from the archive's.")] = False,
) -> None:
    """Put an exported scale into this checkout after every byte is verified; nothing then runs again.

    Results that are not in the archive stay. Run it in the root of the checkout.
    """
    done = import_archive(archive, force=force)
    typer.echo(f"results/{done.scale}: {done.files} files, {size(done.bytes)}; `budgeted-lora cells` checks them")


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def refused_words(error: Any) -> int:
    """Says in one line what is wrong with a command line; shows the help if it is empty. Returns the exit status."""
    if "NoArgs" in type(error).__name__:
        print(error.format_message())
    else:
        words = error.ctx.command_path if error.ctx else "budgeted-lora"
        message = " ".join(error.format_message().split()).rstrip(".")
        print(f"budgeted-lora: {message}; see `{words} --help`", file=sys.stderr)
    return 2


def main() -> None:
    """Entry point: bad input ends in one line and exit status 2, any other refusal in one line and status 1.

    Errors of the system, such as a full disk or a read-only folder, count among the latter; the line names the file.
    """
    try:
        sys.exit(app(prog_name="budgeted-lora", standalone_mode=False))
    except WRONG_WORDS as error:
        sys.exit(refused_words(error))
    except typer.Abort:  # a question that was answered by Ctrl-C
        sys.exit(1)
    except (BadInput, TrainingDiverged, ProcessFailed) as error:
        print(f"budgeted-lora: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, BadInput) else 1)
    except OSError as error:
        print(f"budgeted-lora: {error.strerror or error}: {error.filename or ''}".rstrip(": "), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":  # as rules call it
    main()
