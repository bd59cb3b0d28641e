"""Snakemake's own records: one JSON file per output; without a record Snakemake trusts whatever file it finds.

Snakemake 9, with its default file backend, keeps the record of an output in `.snakemake/metadata`. The record's name is
the output's path in URL-safe base64, cut into folders if it is longer than a file name may be. The path is relative to
the working folder, as in the rule, so records can be moved to another checkout. `incomplete` holds a marker of the same
name for each output of a job that runs or was killed; `locks` holds the files of a Snakemake that is at work.
"""

import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from pathlib import Path

from budgeted_lora.errors import BadInput
from budgeted_lora.files import write_text

HOME = Path(".snakemake")
RECORDS, MARKERS = "metadata", "incomplete"


def roots(scale: str) -> tuple[str, str]:
    """The folders of a scale, as its rules name them."""
    return f"results/{scale}", f"reports/{scale}"


def of_scale(output: str, scale: str) -> bool:
    """Whether a path is in one of the scale's folders."""
    return any(output.startswith(f"{root}/") for root in roots(scale))


def encoded(output: str, *, longest: int) -> Path:
    """Name of an output's record, relative to the folder of records; file names have at most `longest` characters."""
    name = urlsafe_b64encode(output.encode()).decode()
    pieces = [name[start : start + longest - 1] for start in range(0, len(name), longest - 1)]
    return Path(*(f"@{piece}" for piece in pieces[:-1]), pieces[-1])


def decoded(record: Path) -> str | None:
    """The output of a record with this relative name; None for a file that is not a record."""
    name = "".join(part.removeprefix("@") for part in record.parts)
    try:
        return urlsafe_b64decode(name).decode()
    except ValueError:
        return None


def kept(kind: str, scale: str) -> dict[str, Path]:
    """Files of one kind, records or markers, by their output; only outputs of the scale."""
    folder, files = HOME / kind, {}
    for path in sorted(folder.rglob("*")):
        output = decoded(path.relative_to(folder)) if path.is_file() else None
        if output is not None and of_scale(output, scale):
            files[output] = path
    return files


def put(records: dict[str, str]) -> None:
    """Write records, given as text by output, and remove the markers of these outputs."""
    HOME.mkdir(exist_ok=True)
    longest = os.pathconf(HOME, "PC_NAME_MAX")
    for output, text in records.items():
        write_text(HOME / RECORDS / encoded(output, longest=longest), text)
        (HOME / MARKERS / encoded(output, longest=longest)).unlink(missing_ok=True)
    # Without this folder Snakemake mistakes the records for those of an old version, and converts them.
    (HOME / MARKERS).mkdir(exist_ok=True)


def refuse_at_work(scale: str) -> None:
    """Raises BadInput if a Snakemake holds a lock on files of the scale; a killed one leaves its lock behind."""
    locks = (HOME / "locks").glob("*.lock")
    if any(of_scale(line.strip(), scale) for lock in locks for line in lock.read_text().splitlines()):
        unlock = f"if it was killed and none runs: snakemake --unlock --config scale={scale}"
        raise BadInput(f"results/{scale}: Snakemake is at work here; wait for it ({unlock})")
