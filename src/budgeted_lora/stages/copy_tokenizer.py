"""Stage copy_tokenizer: copy the tokenizer that all models share from a checkpoint."""

from pathlib import Path

from budgeted_lora.files import atomic_folder, check_digest, write_digest
from budgeted_lora.models import checkpoint


def copy_tokenizer(*, out: Path, source: Path | None = None) -> None:
    """Copies the tokenizer of a checkpoint folder, or of the package. Raises BadInput if it is damaged or missing."""
    source = source or checkpoint.shipped_tokenizer()
    check_digest(source)
    with atomic_folder(out) as folder:
        checkpoint.copy_tokenizer(source, folder)
    write_digest(out)
