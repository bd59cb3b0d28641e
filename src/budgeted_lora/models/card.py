"""The model card of a compressed student."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from budgeted_lora.config.recipe import Recipe

NAMES = {"kd_full": "KD Full", "kd_lora": "KD LoRA", "budgeted_lora": "Budgeted LoRA"}


def budget_fact(recipe: Recipe, budget: float | None) -> str:
    """The budget of a compressed student in words; empty without one. `budget` is what an elastic one was cut to."""
    if recipe.elastic:
        return f"F = {budget:g}, cut from one training for every budget"
    if recipe.budget is None:
        return ""
    return f"F = {recipe.budget:g}, schedule {recipe.schedule}, {recipe.controller} controller"


def model_card(*, cell: str, scale: str, recipe: Recipe, totals: Mapping[str, Any], budget: float | None = None) -> str:
    """The README.md of a compressed model: Markdown with the Hub's front matter; `budget` as of `budget_fact`."""
    facts = {
        "Teacher": recipe.teacher,
        "Student": f"{recipe.student_layers} layers, initialised {recipe.init}",
        "Loss": f"T = {recipe.temperature:g}, KL weight {recipe.kd_weight:g}",
        "Training": f"{recipe.tokens:,} tokens in {recipe.steps:,} steps, seed {recipe.seed}",
    }
    if recipe.rank is not None:
        facts["LoRA"] = f"rank {recipe.rank}, alpha {recipe.alpha:g}"
    if fact := budget_fact(recipe, budget):
        facts["Budget"] = fact
    facts |= {
        "Projections": f"{totals['kept']} dense, {totals['svd']} SVD and low rank, {totals['dropped']} low rank only",
        "MACs a token": f"{totals['macs']:,} of {totals['dense_macs']:,} dense ({totals['speedup_vs_dense']:.2f}x)",
        "Smaller than the dense projections by": f"{totals['param_reduction_vs_dense_pct']:.1f} %",
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    template = files("budgeted_lora").joinpath("assets/model_card.md").read_text(encoding="utf-8")
    return template.format(cell=cell, method=NAMES[recipe.method], scale=scale, rows=rows)
