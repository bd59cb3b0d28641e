"""Stage copy_tokenizer: the tokenizer that all models share, taken from a checkpoint."""

from pathlib import Path

from budgeted_lora.errors import BadInput
from budgeted_lora.files import atomic_folder, check_digest, write_digest
from budgeted_lora.models.checkpoint import shipped_tokenizer


def copy_tokenizer(*, out: Path, source: Path | None = None) -> None:
    """Copies the tokenizer files of a checkpoint folder, or those that ship with the package.

    Raises:
        BadInput: the folder has no tokenizer.json, or is damaged.
    """
    source = source or shipped_tokenizer()
    check_digest(source)
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model")
    if not (Path(source) / "tokenizer.json").is_file():
        raise BadInput(f"{source}: no tokenizer.json; expected a fast tokenizer beside the checkpoint")
    with atomic_folder(out) as folder:
        for name in names:
            if (Path(source) / name).is_file():
                (folder / name).write_bytes((Path(source) / name).read_bytes())
    write_digest(out)
