"""The structures of a scale's budgets: planned ones, each once, and those that follow from a student's weights.

If `order` or `ranks` of a row are not the paper's, the student's weights decide which dense paths go and how large the
low-rank paths are. Its structure is then read from the record of its compression, as soon as there is one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from budgeted_lora.beyond.elastic import scheduled_fraction
from budgeted_lora.config.recipe import Recipe
from budgeted_lora.config.scale import DEFAULT_VARIANT
from budgeted_lora.errors import BadInput
from budgeted_lora.files import canonical_json, read_json
from budgeted_lora.method.cost import projections, train_compute
from budgeted_lora.method.schedule import BudgetRule, trained_share
from budgeted_lora.method.structure import PlannedModule, Structure, totals
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.recipes import recipe_shape


@dataclass(frozen=True)
class OwnStructure:
    """A structure that follows from a student's weights; it is None until `record`, that of its compression, is there.

    An elastic student has one for each variant that it is compressed as, and so for each budget.
    """

    cell: str
    variant: str
    record: Path
    structure: Structure | None


def planned_structures(graph: Graph) -> list[tuple[Structure, list[str]]]:
    """Each planned structure once, with the controllers that lead to it, by ascending budget."""
    groups: dict[str, tuple[Structure, list[str]]] = {}
    cells = {graph.structure_of(cell): cell for cell in graph.planned}
    for name, structure in graph.structures().items():
        controller = str(graph.recipe_of(cells[name]).controller)
        _, controllers = groups.setdefault(canonical_json(structure.as_json()), (structure, []))
        if controller not in controllers:
            controllers.append(controller)
    return sorted(groups.values(), key=lambda item: (item[0].rule.budget, item[0].rank))


def own_structures(graph: Graph) -> Iterator[OwnStructure]:
    """Those of cells whose removal order or ranks are not the paper's. Raises BadInput if a record is damaged."""
    for cell in graph.cells:
        recipe = graph.recipe_of(cell)
        if recipe.method == "budgeted_lora" and cell not in graph.planned:
            for variant in graph.cells[cell].variants if recipe.elastic else (DEFAULT_VARIANT,):
                record = Path(graph.of_cells([cell], f"compressed/{variant}/compression.json")[0])
                rule = _rule(recipe, graph.variants[variant].budget)
                found = _read(graph, recipe, rule, record) if record.is_file() else None
                yield OwnStructure(cell, variant, record, found)


def _rule(recipe: Recipe, budget: float | None) -> BudgetRule:
    """The rule of a student; without a schedule if it is elastic and cut to a budget."""
    if budget is None:
        return BudgetRule.of(recipe)
    return BudgetRule(budget=budget, start=0.0, end=0.0, drop_threshold=recipe.drop_threshold)


def _read(graph: Graph, recipe: Recipe, rule: BudgetRule, record: Path) -> Structure:
    shape = recipe_shape(graph.config, recipe)
    known = {projection.name: projection for projection in projections(shape)}
    try:
        modules = tuple(
            PlannedModule(known[m["name"]], m["d"], m["decision"], m["lora_rank"], m["svd_rank"], m["macs"])
            for m in read_json(record, expected="the record of a compression")["modules"]
        )
    except (KeyError, TypeError) as error:
        raise BadInput(f"{record}: not the record of a compression ({error!r}); delete it and rerun") from None
    decisions, macs = [module.decision for module in modules], [module.macs for module in modules]
    return Structure(
        shape=shape,
        rank=recipe.rank,
        rule=rule,
        schedule=recipe.schedule,
        modules=modules,
        totals=totals(shape, rank=recipe.rank, decisions=decisions, macs=macs),
        train_compute=train_compute(
            shape, method=recipe.method, rank=recipe.rank, rho=scheduled_fraction(recipe), trained=trained_share(recipe)
        ),
    )
