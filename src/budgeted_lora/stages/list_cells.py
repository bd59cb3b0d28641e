"""Stage list_cells: every cell of the scale, once for people and once for the report."""

from pathlib import Path

import pandas as pd

from budgeted_lora.config.scale import Config
from budgeted_lora.files import write_with
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.report import cell_rows, table_lines


def list_cells(*, config: Config, out: Path, tables: Path) -> None:
    """Write cells.csv (`out`), one line per cell, and tables.csv (`tables`), one line per table, cell and variant."""
    graph = Graph(config)
    lines = [line for table in config.tables for line in table_lines(graph, table)]
    for path, rows in ((out, cell_rows(graph)), (tables, lines)):
        frame = pd.DataFrame(rows)
        write_with(path, lambda temporary, frame=frame: frame.to_csv(temporary, index=False))
