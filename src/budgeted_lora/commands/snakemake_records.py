"""What Snakemake noted about each output: a JSON record a file, without which it trusts whatever lies there.

Snakemake 9 (its default, the file backend) keeps the record of an output in `.snakemake/metadata`, in a file named by
the output's path in URL-safe base64, cut into folders where that is longer than a file name may be. The path is as the
rule gives it, relative to the working folder; so records can be moved to another checkout. `incomplete` holds, named
alike, a marker for each output of a job that runs or was killed; `locks` the files of a Snakemake that is at work.
"""

import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from pathlib import Path

from budgeted_lora.files import write_text

HOME = Path(".snakemake")
RECORDS, MARKERS = "metadata", "incomplete"


def roots(scale: str) -> tuple[str, str]:
    """Where everything of a scale lies, by the paths that its rules give."""
    return f"results/{scale}", f"reports/{scale}"


def of_scale(output: str, scale: str) -> bool:
    """Whether a path lies under one of the scale's roots."""
    return any(output.startswith(f"{root}/") for root in roots(scale))


def encoded(output: str, *, longest: int) -> Path:
    """Name of an output's record, relative to the folder of records; `longest` characters make a file name."""
    name = urlsafe_b64encode(output.encode()).decode()
    pieces = [name[start : start + longest - 1] for start in range(0, len(name), longest - 1)]
    return Path(*(f"@{piece}" for piece in pieces[:-1]), pieces[-1])


def decoded(record: Path) -> str | None:
    """The output that a record of this relative name is about; None for a file that is no record."""
    name = "".join(part.removeprefix("@") for part in record.parts)
    try:
        return urlsafe_b64decode(name).decode()
    except ValueError:
        return None


def kept(kind: str, scale: str) -> dict[str, Path]:
    """Files of one kind (records or markers) by the output of the scale that they are about."""
    folder, found = HOME / kind, {}
    for path in sorted(folder.rglob("*")):
        output = decoded(path.relative_to(folder)) if path.is_file() else None
        if output is not None and of_scale(output, scale):
            found[output] = path
    return found


def put(records: dict[str, str]) -> None:
    """Writes records, text by output, and takes away the markers of the same outputs."""
    HOME.mkdir(exist_ok=True)
    longest = os.pathconf(HOME, "PC_NAME_MAX")
    for output, text in records.items():
        write_text(HOME / RECORDS / encoded(output, longest=longest), text)
        (HOME / MARKERS / encoded(output, longest=longest)).unlink(missing_ok=True)
    # Without this folder Snakemake takes the records for those of an old version, and converts them.
    (HOME / MARKERS).mkdir(exist_ok=True)


def at_work(scale: str) -> bool:
    """Whether a Snakemake holds a lock on files of the scale; one that was killed leaves its lock behind."""
    locks = (HOME / "locks").glob("*.lock")
    return any(of_scale(line.strip(), scale) for lock in locks for line in lock.read_text().splitlines())


def busy(scale: str) -> str:
    """What to tell a person when `at_work`."""
    return (
        f"results/{scale}: Snakemake is at work here; wait for it "
        "(if it was killed and none runs: snakemake --unlock --config scale=" + scale + ")"
    )
