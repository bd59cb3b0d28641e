"""Stage list_table: the cells of one configured table, in a file of their own."""

from pathlib import Path
from typing import Any

import pandas as pd

from budgeted_lora.files import write_with


def list_table(*, lines: list[dict[str, Any]], out: Path) -> None:
    """Write the lines of a table as CSV.

    Args:
        lines: one per cell and variant, from `workflow.report.table_lines`.
    """
    write_with(out, lambda temporary: pd.DataFrame(lines).to_csv(temporary, index=False))
