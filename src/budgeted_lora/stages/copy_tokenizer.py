"""Stage copy_tokenizer: copy the tokenizer that all models share from a checkpoint."""

import shutil
from pathlib import Path

from budgeted_lora.errors import BadInput
from budgeted_lora.files import atomic_folder, check_digest, write_digest
from budgeted_lora.models.checkpoint import TOKENIZER, shipped_tokenizer


def copy_tokenizer(*, out: Path, source: Path | None = None) -> None:
    """Copies the tokenizer files of a checkpoint folder, or those that ship with the package if `source` is None.

    Raises:
        BadInput: the folder is damaged or has no tokenizer.json.
    """
    source = source or shipped_tokenizer()
    check_digest(source)
    if not (source / "tokenizer.json").is_file():
        raise BadInput(f"{source}: no tokenizer.json; expected a fast tokenizer beside the checkpoint")
    with atomic_folder(out) as folder:
        for name in TOKENIZER:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
    write_digest(out)
