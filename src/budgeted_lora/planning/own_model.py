"""A reader's model: a checkpoint in a folder, or one of the Hub at the commit that its name means today."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from budgeted_lora.config.anatomy import Anatomy, read_anatomy
from budgeted_lora.config.sections import Teacher
from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json
from budgeted_lora.models.checkpoint import check_checkpoint

REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(.+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class OwnModel:
    """Where a model is and what it is made of.

    Attributes:
        place: what its entry in `teacher_ladder` says of that: `folder`, or `hub` and `revision`.
        family: its model_type.
        limit: largest number of positions.
        tokenizer: its tokenizer.json, if that is here.
    """

    name: str
    source: Literal["folder", "hub"]
    place: dict[str, str]
    family: str
    anatomy: Anatomy
    limit: int
    tokenizer: Path | None

    def described(self) -> str:
        """A sentence for a person."""
        anatomy, (_, place) = self.anatomy, next(iter(self.place.items()))
        millions = f"{anatomy.parameters / 1e6:,.1f} M weights"
        return f"{place}: {self.family}, {anatomy.layers} layers of {anatomy.hidden}, {millions}"


def open_model(text: str) -> OwnModel:
    """What MODEL names on the command line. Raises BadInput if it is no checkpoint that can be compressed."""
    folder = Path(text).expanduser()
    if folder.is_dir():
        return _of_folder(folder)
    matched = REPOSITORY.fullmatch(text)
    if matched is None or text.startswith((".", "~")):
        raise BadInput(f"MODEL {text!r}: no such folder, and not a name of the Hub; expected a folder or OWNER/NAME")
    return _of_hub(matched[1], matched[2])


def name_of(text: str) -> str:
    """A scale's name from that of a folder or repository."""
    name = re.sub(r"[^a-z0-9.]+", "-", Path(text).name.lower()).strip("-.")
    return name or "model"


def _of_folder(folder: Path) -> OwnModel:
    name = name_of(str(folder.resolve()))
    if not (folder / "config.json").is_file():
        raise BadInput(f"MODEL {folder}: no config.json; expected a checkpoint folder")
    about = read_json(folder / "config.json", expected="the configuration of a checkpoint")
    anatomy = read_anatomy(about, where=folder)
    check_checkpoint(folder, name=name, spec=Teacher(folder=str(folder)))
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise BadInput(f"MODEL {folder}: no tokenizer.json; expected a fast tokenizer beside the weights")
    limit = int(about.get("max_position_embeddings") or 1024)
    place = {"folder": str(folder)}
    return OwnModel(name, "folder", place, about["model_type"], anatomy, limit, tokenizer)


def _of_hub(repository: str, revision: str | None) -> OwnModel:
    """A model of the Hub, of which only the configuration is downloaded here."""
    from huggingface_hub import HfApi, hf_hub_download

    asked = f"{repository}@{revision}" if revision else repository
    try:
        pinned = revision
        if revision is None or not COMMIT.fullmatch(revision):
            pinned = HfApi().model_info(repository, revision=revision).sha
        file = hf_hub_download(repository, "config.json", revision=pinned)
    except Exception as error:  # no network, no such name, a closed repository: the library has types of its own
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise BadInput(
            f"MODEL {asked}: no such folder here, and the Hub's config.json cannot be read ({reason}); expected a "
            "folder, or OWNER/NAME where there is a network"
        ) from None
    about = read_json(Path(file), expected="the configuration of a checkpoint")
    anatomy = read_anatomy(about, where=asked)
    limit = int(about.get("max_position_embeddings") or 1024)
    place = {"hub": repository, "revision": str(pinned)}
    return OwnModel(name_of(repository), "hub", place, about["model_type"], anatomy, limit, None)
