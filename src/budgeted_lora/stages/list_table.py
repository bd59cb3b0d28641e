"""Stage list_table: the lines of one configured table, in a file of their own.

So an edit of one table's rows changes its own file alone, and what shows other tables is not made again.
"""

from pathlib import Path

import pandas as pd

from budgeted_lora.config.scale import Config
from budgeted_lora.files import write_with
from budgeted_lora.workflow.graph import Graph
from budgeted_lora.workflow.report import table_lines


def list_table(*, table: str, config: Config, out: Path) -> None:
    """Write the lines of a configured table, one per cell and variant."""
    frame = pd.DataFrame(table_lines(Graph(config), table))
    write_with(out, lambda path: frame.to_csv(path, index=False))
