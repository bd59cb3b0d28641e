"""Scores that a variant of the same student has already: equal compressed models are scored once.

The variants of a student lie in folders beside each other, and several thresholds may leave the same weights. A record
of scores names, for each model it scored, a digest of all that the scores depend on. A later variant with the same
digest takes them over, and its record says from which variant.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json, sha256_file, short_hash
from budgeted_lora.provenance import device_in_use, library_versions
from budgeted_lora.workflow.code import code_digest

RECORD, WINDOWS = "perplexity.json", "perplexity_windows.parquet"


class Twins:
    """Looks for models scored in the same way in the folders beside `out`.

    Attributes:
        scored: for each part of the record that was asked for, its key and the folder it is taken from, if any.
    """

    def __init__(self, out: Path, conditions: Mapping[str, Any]) -> None:
        """`conditions` are all that scores depend on besides model, sources, libraries and device."""
        self.out, self.conditions = out, conditions
        self.scored: dict[str, dict[str, str | None]] = {}

    def twin(self, part: str, folders: Iterable[Path]) -> Path | None:
        """The record whose `part` is the score of an equal model; None without one.

        Args:
            folders: of the model. Only weights and JSON files count, not a model card.
        """
        files = [file for folder in folders for kind in ("*.safetensors", "*.json") for file in folder.glob(kind)]
        weights = sorted([file.name, sha256_file(file)] for file in files)
        made_by = [code_digest("evaluate"), library_versions(), device_in_use()]
        key = short_hash([weights, dict(self.conditions), made_by], digits=64)
        found = next(
            (path for path in sorted(self.out.parent.glob(f"*/{RECORD}")) if self._same(path, part, key)), None
        )
        self.scored[part] = {"key": key, "taken_from": found and found.parent.name}
        return found

    def _same(self, path: Path, part: str, key: str) -> bool:
        """Whether a record of another folder has this key and its table is whole; what is damaged is not taken over."""
        if path.parent.resolve() == self.out.resolve():
            return False
        try:
            about = read_json(path)["provenance"]
            same = about["scored"][part]["key"] == key
            return same and sha256_file(path.with_name(WINDOWS)) == about["files"][WINDOWS]
        except (BadInput, OSError, KeyError, TypeError):
            return False
