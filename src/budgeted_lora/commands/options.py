"""Options that several commands share, and the jobs that they name."""

from pathlib import Path
from typing import Annotated

import typer
import yaml

from budgeted_lora.errors import BadInput
from budgeted_lora.workflow.graph import Graph, load_graph

ScaleName = Annotated[str, typer.Option("--scale", help="Name of a scale file in config/, without its ending.")]
ConfigFolder = Annotated[Path, typer.Option("--config-folder", help="Folder of the scale files.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--config", metavar="KEY=VALUE", help="Replace a key, as by snakemake --config; repeatable."),
]


def graph_of(scale: str, config_folder: Path, config: list[str] | None) -> Graph:
    """The jobs of a scale, with keys replaced as by `snakemake --config`."""
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
