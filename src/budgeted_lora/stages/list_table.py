"""Stage list_table: the lines of one configured table, in a file of their own.

So an edit of one table's rows changes its own file alone, and what shows other tables is not made again.
"""

import csv
import io
from pathlib import Path

from budgeted_lora.files import write_text


def list_table(*, table: str, tables: Path, out: Path, digest: str = "") -> None:
    """Write the lines of a table.

    Args:
        table: name of the configured table. tables: tables.csv.
        digest: of the lines; Snakemake runs this job again when it changes.
    """
    with tables.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        lines = [line for line in reader if line["table"] == table]
    text = io.StringIO()
    writer = csv.DictWriter(text, reader.fieldnames or [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(out, text.getvalue())
