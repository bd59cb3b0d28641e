"""Tells when a file from outside the workflow is another one than before: corpus files, checkpoints, probe files.

Snakemake looks into an input only if its date is newer than the results. A file that was replaced by an older one
(`mv`, `cp -p`) would go unseen. So rules that read such files have their identity among their parameters: name, size
and SHA-256. A file is digested once, and again only when its size, one of its dates or its inode changes.
"""

import json
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json, sha256_file, short_hash, write_json
from budgeted_lora.workflow.runs import age

MEMORY = ".outside.json"  # in results/<scale>; hidden, since it is worth nothing on another machine
SETTLED = 2.0  # seconds: a file that was written within them may change again without another date
WORTH_A_LINE = 2_000_000_000  # bytes, some seconds


class Outside:
    """Digests of files from outside, remembered beside the results of a scale."""

    def __init__(self, results: Path | str) -> None:
        self._memory = Path(results) / MEMORY
        self._known: dict[str, tuple[list[int], str]] | None = None

    def identity(self, paths: Iterable[Path | str]) -> str:
        """What tells these files from others, whatever their folder; one that is missing is left out."""
        found = [path for path in map(Path, paths) if path.is_file()]
        return short_hash([[path.name, path.stat().st_size, self.digest(path)] for path in found], digits=16)

    def digest(self, path: Path | str) -> str:
        """SHA-256 of a file."""
        path, stamp = Path(path).absolute(), _stamp(path)
        before, digest = self._remembered().get(str(path), ([], ""))
        if before != stamp:
            digest = sha256_file(path)
            if _stamp(path) == stamp and age(max(stamp[1:3]) / 1e9) > SETTLED:
                self._remembered()[str(path)] = (stamp, digest)
        return digest

    def learn(self, paths: Iterable[Path | str]) -> None:
        """Digests what is not known of these files and remembers it on disk, where that can be written."""
        known = self._remembered()
        present = [path for path in map(Path, paths) if path.is_file()]
        new = [path for path in present if known.get(str(path.absolute()), ([],))[0] != _stamp(path)]
        if not new:
            return
        size = sum(path.stat().st_size for path in new)
        if size > WORTH_A_LINE:
            print(f"budgeted-lora: reading {size / 1e9:.1f} GB from outside once, to see changes", file=sys.stderr)
        before = json.dumps(known)
        for path in new:
            self.digest(path)
        if json.dumps(known) != before:
            with suppress(OSError):
                write_json(self._memory, known)

    def _remembered(self) -> dict[str, tuple[list[int], str]]:
        if self._known is None:
            try:
                found = read_json(self._memory)
                self._known = {path: (stamp, str(digest)) for path, (stamp, digest) in found.items()}
            except (BadInput, OSError, AttributeError, TypeError, ValueError):
                self._known = {}  # none yet, or damaged: every file is digested again
        return self._known


def _stamp(path: Path | str) -> list[int]:
    about = Path(path).stat()
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]
