"""Tables 1, 8 and 9, the reference rows, the published perplexities, and the list of all tables (method.md 8)."""

from collections.abc import Callable
from functools import partial

from budgeted_lora.reporting.grouping import (
    Settings,
)
from budgeted_lora.reporting.published import Published
from budgeted_lora.reporting.results import Results
from budgeted_lora.reporting.table import (
    Table,
)
from budgeted_lora.reporting.tables.ablations import (
    any_table,
    lora_construction,
    table3,
    table4,
    table5,
    table6,
    table7,
)
from budgeted_lora.reporting.tables.beyond import BEYOND, beyond
from budgeted_lora.reporting.tables.controls import controls
from budgeted_lora.reporting.tables.in_context import figure2_values, table9
from budgeted_lora.reporting.tables.main import published_perplexities, reference, table1, table2, table2_differences
from budgeted_lora.reporting.tables.sensitivity import SENSITIVITY, sensitivity
from budgeted_lora.reporting.tables.structure import speed, table8, thresholds

CONTROLS = "controls"
Maker = Callable[[Results, Published, Settings], Table]
TABLES: dict[str, Maker] = {
    "table1": table1,
    "table2": table2,
    "table2_differences": table2_differences,
    "table8": table8,
    "table9": table9,
    "figure2_values": figure2_values,
    "speed": speed,
    "reference": reference,
    "published_perplexities": published_perplexities,
    CONTROLS: controls,
}
# Those of rows that only a configuration with ablations lists.
ABLATIONS: dict[str, Maker] = {
    "table3": table3,
    "table4": table4,
    "table5": table5,
    "table6": table6,
    "lora_construction": lora_construction,
    "table7": table7,
    "thresholds": thresholds,
    SENSITIVITY: sensitivity,
    BEYOND: beyond,
}
NO_TABLES = frozenset({"pareto", "figure2"})  # rows that only figures show


def tables_of(results: Results) -> dict[str, Maker]:
    """How every table is made that the cells of a folder allow, main ones first.

    A table that only the configuration knows is one line a recipe.
    """
    asked = list(dict.fromkeys(name for names in results.cells["tables"] for name in names.split()))
    found = {name: make for name, make in TABLES.items() if name != CONTROLS or name in asked}
    found |= {name: make for name, make in ABLATIONS.items() if name in asked}
    own = [name for name in asked if name not in found and name not in NO_TABLES]
    return found | {name: partial(any_table, name) for name in own}
