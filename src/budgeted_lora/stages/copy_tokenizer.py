"""Stage copy_tokenizer: copy the tokenizer that all models share from a checkpoint."""

from pathlib import Path

from budgeted_lora.files import atomic_folder, check_digest, write_digest
from budgeted_lora.models import checkpoint


def copy_tokenizer(*, out: Path, source: Path | None = None) -> None:
    """Copies the tokenizer files of a checkpoint folder, or those that ship with the package if `source` is None.

    Raises:
        BadInput: the folder is damaged or has no tokenizer.json.
    """
    source = source or checkpoint.shipped_tokenizer()
    check_digest(source)
    with atomic_folder(out) as folder:
        checkpoint.copy_tokenizer(source, folder)
    write_digest(out)
