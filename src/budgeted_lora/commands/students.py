"""The commands that take a student out: export, generate, push. The first also packs a scale's results."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from budgeted_lora.commands.archive import export_archive
from budgeted_lora.commands.archive_format import ENDINGS
from budgeted_lora.commands.options import ConfigFolder, Overrides, graph_of
from budgeted_lora.commands.status import cell_named
from budgeted_lora.commands.text import size
from budgeted_lora.config.scale import DEFAULT_VARIANT
from budgeted_lora.errors import BadInput
from budgeted_lora.files import atomic_folder

students = typer.Typer()


@students.command("export")
def export(
    context: typer.Context,
    what: Annotated[
        str, typer.Argument(metavar="CELL|FOLDER|ARCHIVE", help="A cell, a model folder, or a new .tar.zst or .tar.gz.")
    ],
    to: Annotated[Path | None, typer.Option("--to", help="With a cell or folder: new folder to write.")] = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="Multiply factors out: the stock architecture, at the dense model's cost.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="Of the weights: bfloat16, float16 or float32.")] = "bfloat16",
    variant: Annotated[str, typer.Option(help="With a cell: which of its compressions.")] = DEFAULT_VARIANT,
    license: Annotated[str | None, typer.Option(help="Of the teacher, for the card. [what its card says]")] = None,
    scale: Annotated[str, typer.Option("--scale", help="Name of the scale.")] = "mini",
    config_folder: ConfigFolder = Path("config"),
    config: Overrides = None,
    with_cache: Annotated[
        bool, typer.Option("--with-cache", help="With an archive: also the teachers' cached hidden states.")
    ] = False,
) -> None:
    """Write a student as a folder that transformers and servers load without this package.

    With the name of an archive instead, pack results and reports of a scale, with Snakemake's records of them, into one
    file for another checkout; training states and, without --with-cache, the teachers' caches are left out.
    """
    given = options_given(context)
    if what.endswith(ENDINGS):
        refuse(given - {"what", "scale", "with_cache"}, f"{what} is an archive; it packs a scale and")
        done = export_archive(Path(what), scale=scale, with_cache=with_cache)
        for note in done.notes:
            print(f"note: {note}", file=sys.stderr)
        typer.echo(f"{what}: {done.files} files, {size(done.bytes)}, of scale {scale}")
        return
    refuse(given & {"with_cache"}, f"{what} is no archive (.tar.zst, .tar.gz); exporting a student")
    if to is None:
        raise BadInput(f"export {what}: where to? name a new folder with --to, or an archive that ends in .tar.zst")
    source = Path(what)
    if not source.is_dir():
        graph = graph_of(scale, config_folder, config)
        cell = cell_named(graph, what)
        if graph.recipe_of(cell).elastic and variant not in graph.cells[cell].variants:
            known = " or ".join(graph.cells[cell].variants)
            raise BadInput(f"{cell} was trained for every budget; expected one that it is cut to: --variant {known}")
        source = Path(graph.results) / "cells" / cell / "compressed" / variant / "model"
        if not source.is_dir():
            made = source.with_name("compression.json")
            raise BadInput(f"{source}: no such folder; `snakemake {made} --config scale={scale}` makes it")
    typer.echo(export_folder(source, to, dtype=dtype, dense=dense, license=license))


@students.command()
def generate(
    folder: Annotated[Path, typer.Argument(help="A model folder, or the folder of a teacher, student or cell.")],
    prompt: Annotated[str, typer.Argument(help="Text to continue.")],
    tokens: Annotated[int, typer.Option(min=1, help="Most new tokens.")] = 64,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt through the chat template.")] = False,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the most likely token; above, samples.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.001, max=1, help="Sample from tokens of this probability.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Print how a teacher, a student or an exported folder continues a prompt; greedy unless a temperature is given.

    Runs no code from the folder.
    """
    from budgeted_lora.serving import generate as serving  # imports torch and transformers

    sampling = serving.Sampling(temperature=temperature, top_p=top_p, seed=seed)
    typer.echo(serving.generate(folder, prompt, tokens=tokens, chat=chat, sampling=sampling, device=device))


@students.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A folder that `budgeted-lora export` wrote.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the Hub; made if it is not there.")],
    public: Annotated[bool, typer.Option("--public", help="A new repository can be seen by everyone.")] = False,
) -> None:
    """Upload an exported folder to a model repository of the Hugging Face Hub; a new one is private.

    Needs a login (`hf auth login`, or HF_TOKEN). No other command sends anything.
    """
    from budgeted_lora.serving.push import push_folder

    typer.echo(push_folder(folder, repo, private=not public))


def options_given(context: typer.Context) -> set[str]:
    """Parameters that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def refuse(names: set[str], what: str) -> None:
    """Raises BadInput if options were given that `what` does not use."""
    if names:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(names))
        raise BadInput(f"{what} does not use {options}")


def export_folder(source: Path, to: Path, *, dtype: str, dense: bool, license: str | None) -> str:
    """Writes an exported folder with its card, whole or not at all; returns what to tell.

    Raises:
        BadInput: `to` is there and not empty, or whatever exporting refuses.
    """
    from budgeted_lora.serving.card import known_of, write_card
    from budgeted_lora.serving.export import export_model

    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise BadInput(f"{to}: is there already; name a new folder")
    known = known_of(source, name=to.name, license=license)
    with atomic_folder(to) as folder:
        exported = export_model(source, folder, dtype=dtype, dense=dense)
        write_card(folder, exported, known)
    bytes_ = size(sum(path.stat().st_size for path in to.iterdir()))
    kind = "modeling_budgeted.py, loaded with trust_remote_code=True" if exported.remote_code else "transformers' own"
    expanded = f", factors of {len(exported.ranks)} projections multiplied out: dense cost" if exported.dense else ""
    return f"{to}: {exported.parameters:,} weights in {dtype}, {bytes_}; {exported.family}, class: {kind}{expanded}"
