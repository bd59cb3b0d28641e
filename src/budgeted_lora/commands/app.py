"""`budgeted-lora`: what a person asks (plan, cells, report) and, under `stage`, what the workflow's rules call."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from budgeted_lora import __version__
from budgeted_lora.config.scale import load_config
from budgeted_lora.errors import BadInput, ProcessFailed, TrainingDiverged
from budgeted_lora.stages import dispatch as stages
from budgeted_lora.workflow.slots import gpu_slots

if TYPE_CHECKING:
    from budgeted_lora.method.structure import Structure
    from budgeted_lora.planning.costs import ScaleCosts
    from budgeted_lora.workflow.graph import Graph

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(stages.app, name="stage")


def print_version(asked: bool) -> None:
    """Prints the package's version, and the commit where the package lies in a checkout; then ends."""
    if asked:
        from budgeted_lora.provenance import git_state

        git = git_state()
        changed = ", with changes" if git["git_dirty"] else ""
        commit = f" (commit {git['git_commit']}{changed})" if git["git_commit"] else ""
        typer.echo(f"budgeted-lora {__version__}{commit}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Budgeted LoRA: distillation as structured compute allocation."""


ScaleName = Annotated[str, typer.Option("--scale", help="A file of config/, without its ending.")]
ConfigFolder = Annotated[Path, typer.Option("--config-folder", help="Folder of the scale files.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--config", metavar="KEY=VALUE", help="Laid on top, as by snakemake --config; several times."),
]


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
    rank: Annotated[int, typer.Option(min=1, help="Rank of the low-rank paths.")] = 128,
    budget: Annotated[list[float] | None, typer.Option(min=0, max=1, help="F; give it several times.")] = None,
    schedule: Annotated[str, typer.Option(help="none, short or long.")] = "short",
    r_max: Annotated[int, typer.Option(min=1, help="SVD rank of a coefficient of 1.")] = 64,
    drop_threshold: Annotated[float, typer.Option(min=0, max=1)] = 0.05,
    svd_threshold: Annotated[float, typer.Option(min=0, max=1)] = 0.5,
    costs: Annotated[bool, typer.Option("--costs", help="Of a scale: what it costs and nothing else.")] = False,
    device: Annotated[str | None, typer.Option(help="Of a scale: a100-80gb, h100, rtx4090, ..., cpu.")] = None,
    gpus: Annotated[
        int | None,
        typer.Option("--gpus", min=1, help="Of a scale: devices for jobs side by side; gpus_per_run if not given."),
    ] = None,
    utilisation: Annotated[
        float | None, typer.Option(min=0.001, max=1, help="Of a scale: share of the device's peak, if not the table's.")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Of a scale: time a few training steps of each kind on this machine.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="A list, one object a budget; with --costs one object.")
    ] = False,
) -> None:
    """The structure, MACs, speedups and train compute that each budget will have; needs no weights.

    Of a scale also what every cell and the whole will cost before anything runs: tokens, FLOPs, time on a named
    device, memory and disk.
    """
    from budgeted_lora.commands.show_costs import as_json as costs_as_json
    from budgeted_lora.commands.show_costs import render_costs, render_structures, structures_json
    from budgeted_lora.commands.show_structures import render_plan

    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    refuse_ignored(given, of_scale=scale is not None)
    if scale is None:
        made = planned_by_flags(
            layers=layers, hidden=hidden, kv=kv, ffn=ffn, rank=rank, budgets=budget or [0.0, 0.4, 0.8],
            schedule=schedule, r_max=r_max, drop_threshold=drop_threshold, svd_threshold=svd_threshold,
        )  # fmt: skip
        typer.echo(json.dumps([item.as_json() for item in made], indent=2) if as_json else render_plan(made))
        return
    graph = graph_of(scale, config_folder, config)
    if as_json and not costs:
        typer.echo(json.dumps(structures_json(graph), indent=2))
        return
    together = graph.config.gpus_per_run
    gpus = together if gpus is None else gpus
    if gpus < together:
        raise BadInput(f"--gpus {gpus}: each student trains on {together} (gpus_per_run); expected at least {together}")
    counted = costs_of(graph, device=device, utilisation=utilisation, calibrate=calibrate)
    if as_json:
        typer.echo(json.dumps(costs_as_json(counted, gpus=gpus), indent=2))
        return
    typer.echo(("" if costs else render_structures(graph)) + render_costs(counted, gpus=gpus), nl=False)


SHAPE_FLAGS = (
    "layers", "hidden", "kv", "ffn", "rank", "budget", "schedule", "r_max", "drop_threshold", "svd_threshold"
)  # fmt: skip
SCALE_FLAGS = ("config_folder", "config", "costs", "device", "gpus", "utilisation", "calibrate")


def refuse_ignored(given: set[str], *, of_scale: bool) -> None:
    """Refuses flags of `plan` that would have no effect.

    Raises:
        BadInput: a shape is given beside a scale, a scale's flag without one, or flags of which one wins.
    """
    flags = [f"--{name.replace('_', '-')}" for name in (SHAPE_FLAGS if of_scale else SCALE_FLAGS) if name in given]
    if flags and of_scale:
        raise BadInput(
            f"{', '.join(flags)} beside --scale, whose file says that; expected a shape without --scale, or "
            "--config KEY=VALUE"
        )
    if flags:
        raise BadInput(f"{', '.join(flags)} without --scale: expected a scale whose costs are asked for")
    if {"as_json"} & given and not {"costs"} & given:
        asked = [f"--{name}" for name in ("device", "gpus", "utilisation", "calibrate") if name in given]
        if asked:
            raise BadInput(f"{', '.join(asked)} with --json: a list of structures has no costs; expected --costs too")
    for one, other in (("calibrate", "device"), ("calibrate", "utilisation")):
        if {one, other} <= given:
            raise BadInput(f"--{other} with --{one}: expected one of them, assumed figures or measured ones")


def planned_by_flags(
    *,
    layers: int,
    hidden: int,
    kv: int,
    ffn: int,
    budgets: list[float],
    schedule: str,
    rank: int,
    drop_threshold: float,
    **thresholds: Any,
) -> "list[Structure]":
    """The structures of a shape that belongs to no scale.

    Raises:
        BadInput: an unknown schedule, or a rank above a projection's dimension.
    """
    from budgeted_lora.method.cost import ModelShape
    from budgeted_lora.method.schedule import BudgetRule
    from budgeted_lora.method.structure import structure

    schedules = {"none": (0.0, 0.0), "short": (0.1, 0.3), "long": (0.1, 0.9)}
    if schedule not in schedules:
        raise BadInput(f"--schedule {schedule!r}: expected one of {', '.join(schedules)}")
    if rank > min(hidden, kv, ffn):
        raise BadInput(f"--rank {rank} exceeds {min(hidden, kv, ffn)}, the smallest dimension of a projection")
    start, end = schedules[schedule]
    shape = ModelShape(layers=layers, hidden=hidden, kv=kv, ffn=ffn)
    rules = [BudgetRule(budget=budget, start=start, end=end, drop_threshold=drop_threshold) for budget in budgets]
    return [structure(shape, rule, rank=rank, schedule=schedule, **thresholds) for rule in rules]


def costs_of(graph: "Graph", *, device: str | None, utilisation: float | None, calibrate: bool) -> "ScaleCosts":
    """The costs of a scale on a named device, or by steps timed here."""
    from budgeted_lora.planning.costs import ScaleCosts
    from budgeted_lora.planning.devices import matching, named_device
    from budgeted_lora.planning.machine import gpus

    if not calibrate:
        return ScaleCosts(graph, named_device(device, graph.config, utilisation=utilisation))
    with gpu_slots(1, device=graph.config.device) as held:
        found = {gpu.id: gpu for gpu in gpus()}
        here = matching(found[held[0]].name) if held else named_device("cpu", graph.config)
        from budgeted_lora.planning.measure import calibrate as run

        assumed = ScaleCosts(graph, here)
        measured, skipped = run(assumed, threads=graph.config.threads.training)
    for line in skipped:
        print(f"note: {line}; the device table's rate is used", file=sys.stderr)
    return ScaleCosts(graph, here, measured=measured)


@app.command()
def doctor(
    scale: ScaleName = "mini",
    config_folder: ConfigFolder = Path("config"),
    config: Overrides = None,
    target: Annotated[list[str] | None, typer.Option(help="What shall run, as given to snakemake: main. [all]")] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Jobs will run on a cluster: look at its tools.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line of the list.")] = False,
) -> None:
    """Say whether this machine can run a scale: each line ok, short or missing, with what to do.

    Exit status 0 if it can, 2 if it cannot.
    """
    from budgeted_lora.commands.show_costs import render_findings
    from budgeted_lora.planning.doctor import examine
    from budgeted_lora.planning.findings import troubles
    from budgeted_lora.workflow.targets import limited

    found = examine(limited(graph_of(scale, config_folder, config), target or ()), slurm=slurm)
    typer.echo(
        json.dumps([item.as_json() for item in found], indent=2) if as_json else render_findings(found, scale=scale)
    )
    if troubles(found):
        raise typer.Exit(2)


@app.command()
def report(
    scale: ScaleName = "mini",
    config_folder: ConfigFolder = Path("config"),
    partial: Annotated[bool, typer.Option("--partial", help="Show what is there and name what is missing.")] = False,
) -> None:
    """Write the report of a scale from the results that are there."""
    from budgeted_lora.stages.report import build_report

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
    from budgeted_lora.workflow.runs import resume_run

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
    """List every cell with its tables and what differs from the defaults: done, missing (and which part) or stale.

    Stale: results are there, but the values or input digests they record are not those of today's configuration and
    files. Code is not compared; Snakemake does that.
    """
    from budgeted_lora.commands.show_status import render_cells
    from budgeted_lora.commands.status import Inspector

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
    from budgeted_lora.commands.show_status import render_why
    from budgeted_lora.commands.status import Inspector, cell_named

    graph = graph_of(scale, config_folder, config)
    typer.echo(render_why(graph, Inspector(graph).cell(cell_named(graph, cell))))


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
    from budgeted_lora.commands.prune import leftovers, remove
    from budgeted_lora.commands.show_status import render_leftovers
    from budgeted_lora.commands.text import size

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
    from budgeted_lora.commands.archive import export_archive
    from budgeted_lora.commands.text import size

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
    from budgeted_lora.commands.archive import import_archive
    from budgeted_lora.commands.text import size

    done = import_archive(archive, force=force)
    typer.echo(f"results/{done.scale}: {done.files} files, {size(done.bytes)}; `budgeted-lora cells` checks them")


def graph_of(scale: str, config_folder: Path, config: list[str] | None) -> "Graph":
    """The jobs of a scale, with values laid on top as by `snakemake --config`.

    Raises:
        BadInput: a value is not KEY=VALUE, or the configuration cannot be used.
    """
    import yaml

    from budgeted_lora.workflow.graph import load_graph

    values = {}
    for word in config or []:
        key, equals, text = word.partition("=")
        if not equals:
            raise BadInput(f"--config {word!r}: expected KEY=VALUE")
        if key == "scale":
            raise BadInput(f"--config {word}: this command takes the scale as --scale {text}")
        try:
            values[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise BadInput(f"--config {word!r}: its value is not YAML") from None
    return load_graph(config_folder / f"{scale}.yaml", values)


def main() -> None:
    """Entry point: bad input is one line and exit status 2, anything else that stops a stage is 1.

    That includes what the machine refuses, such as a full disk or a read-only folder: the line names file and reason.
    """
    try:
        app()
    except BadInput as error:
        print(f"budgeted-lora: {error}", file=sys.stderr)
        sys.exit(2)
    except (TrainingDiverged, ProcessFailed) as error:
        print(f"budgeted-lora: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"budgeted-lora: {error.strerror or error}: {error.filename or ''}".rstrip(": "), file=sys.stderr)
        sys.exit(1)
