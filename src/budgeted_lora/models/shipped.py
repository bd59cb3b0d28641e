"""The teachers and the tokenizer that come with the package."""

from importlib.resources import files
from pathlib import Path

from budgeted_lora.errors import BadInput


def shipped_folder(name: str) -> Path:
    """Folder of a teacher that comes with the package.

    Raises:
        BadInput: there is none of that name.
    """
    root = Path(str(files("budgeted_lora").joinpath("assets/teachers")))
    if not (root / name / "card.json").is_file():
        found = sorted(path.parent.name for path in root.glob("*/card.json"))
        raise BadInput(
            f"teacher {name!r} does not ship with the package; it has {', '.join(found) or 'none'} "
            "(or use teachers: pretrain)"
        )
    return root / name


def shipped_tokenizer() -> Path:
    """Folder of the tokenizer that the shipped teachers share."""
    return Path(str(files("budgeted_lora").joinpath("assets/tokenizer")))
