"""The networks of teachers that are brought in, from the config.json of their checkpoints."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from budgeted_lora.config.anatomy import SIZES, Anatomy, read_anatomy, refuse_other_sizes, sizes_given
from budgeted_lora.errors import BadInput

BROUGHT = ("folder", "hub")  # values of `teachers`
CONFIG = "config.json"


def brought_anatomies(values: Mapping[str, Any]) -> dict[str, Anatomy]:
    """The network of every teacher whose checkpoint is here; one of the Hub is asked for its config.json if needed.

    Args:
        values: of a scale file, not yet checked; what is malformed is left out.

    Raises:
        BadInput: a checkpoint cannot be used, disagrees with the sizes given, or neither of the two says them.
    """
    kind, anatomies = values.get("teachers"), {}
    for name, entry in _entries(values) if kind in BROUGHT else ():
        place = entry.get(kind)
        if not isinstance(place, str):
            continue
        given = sizes_given(entry)
        complete = given.keys() >= SIZES.keys()
        if kind == "folder":
            file = Path(place) / CONFIG
            if not file.is_file() and not complete:
                raise BadInput(f"teacher_ladder.{name}.folder is {place!r}, expected a checkpoint: it has no {CONFIG}")
        else:
            file = _of_hub(place, entry.get("revision"), name=name, needed=not complete)
        if file is not None and file.is_file():
            anatomies[name] = read_anatomy(_read(file), where=file)
            refuse_other_sizes(anatomies[name], given, where=file, name=name)
    return anatomies


def with_sizes(values: Mapping[str, Any], anatomies: Mapping[str, Anatomy]) -> dict[str, Any]:
    """The values with the sizes that checkpoints say filled in."""
    filled = dict(values)
    if anatomies:
        filled["teacher_ladder"] = dict(values["teacher_ladder"])
    for name, anatomy in anatomies.items():
        filled["teacher_ladder"][name] = values["teacher_ladder"][name] | anatomy.entry
    return filled


def _entries(values: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    ladder = values.get("teacher_ladder")
    for name, entry in ladder.items() if isinstance(ladder, Mapping) else ():
        if isinstance(entry, Mapping):
            yield name, entry


def _read(file: Path) -> dict[str, Any]:
    try:
        about = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise BadInput(f"{file}: not JSON, expected the configuration of a checkpoint")
    return about


def _of_hub(repository: str, revision: Any, *, name: str, needed: bool) -> Path | None:
    """config.json of a pinned commit in the Hub's cache; downloaded only where it is needed.

    Raises:
        BadInput: it is needed, and cannot be had.
    """
    if not isinstance(revision, str):
        if needed:
            raise BadInput(
                f"teacher_ladder.{name}.revision must be a commit's 40 hex digits, since its sizes are read there"
            )
        return None
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    about = {"repo_id": repository, "filename": CONFIG, "revision": revision}
    try:
        cached = try_to_load_from_cache(**about)
        if isinstance(cached, str):
            return Path(cached)
        return Path(hf_hub_download(**about)) if needed else None
    except HFValidationError:
        reason = "not a name of the Hub"
    except Exception as error:  # no network, a closed repository, a wrong commit: the library has types of its own
        reason = " ".join(str(error).split())[:120]
    if not needed:
        return None
    raise BadInput(
        f"teacher_ladder.{name}: {CONFIG} of {repository} at {revision} cannot be read ({reason}); run `hf download "
        f"{repository} {CONFIG} --revision {revision}` where there is a network, or give {', '.join(SIZES)}"
    )
