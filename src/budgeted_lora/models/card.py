"""The files of a model folder beside the weights: the model card and the tokenizer."""

import shutil
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from budgeted_lora.config.recipe import Recipe
from budgeted_lora.errors import BadInput

NAMES = {"kd_full": "KD Full", "kd_lora": "KD LoRA", "budgeted_lora": "Budgeted LoRA"}


def model_card(*, cell: str, scale: str, recipe: Recipe, totals: Mapping[str, Any]) -> str:
    """The README.md of a compressed model: Markdown with the Hub's front matter."""
    facts = {
        "Teacher": recipe.teacher,
        "Student": f"{recipe.student_layers} layers, initialised {recipe.init}",
        "Loss": f"T = {recipe.temperature:g}, KL weight {recipe.kd_weight:g}",
        "Training": f"{recipe.tokens:,} tokens in {recipe.steps:,} steps, seed {recipe.seed}",
    }
    if recipe.rank is not None:
        facts["LoRA"] = f"rank {recipe.rank}, alpha {recipe.alpha:g}"
    if recipe.budget is not None:
        facts["Budget"] = f"F = {recipe.budget:g}, schedule {recipe.schedule}, {recipe.controller} controller"
    facts |= {
        "Projections": f"{totals['kept']} dense, {totals['svd']} SVD and low rank, {totals['dropped']} low rank only",
        "MACs a token": f"{totals['macs']:,} of {totals['dense_macs']:,} dense ({totals['speedup_vs_dense']:.2f}x)",
        "Smaller than the dense projections by": f"{totals['param_reduction_vs_dense_pct']:.1f} %",
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    template = files("budgeted_lora").joinpath("assets/model_card.md").read_text(encoding="utf-8")
    return template.format(cell=cell, method=NAMES[recipe.method], scale=scale, rows=rows)


def copy_tokenizer(source: Path | str, folder: Path) -> None:
    """Copies the files of a tokenizer folder into a model folder.

    Raises:
        BadInput: there is no tokenizer.json.
    """
    source = Path(source)
    if not (source / "tokenizer.json").is_file():
        raise BadInput(f"{source}: no tokenizer.json; expected a tokenizer folder")
    for file in sorted(source.iterdir()):
        if file.suffix in {".json", ".model", ".txt"} and file.name not in {"config.json", "generation_config.json"}:
            shutil.copyfile(file, folder / file.name)
