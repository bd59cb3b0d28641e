"""Stage fetch_teacher: bring a shipped, local or Hub checkpoint into the results."""

import re
import shutil
from pathlib import Path
from typing import Any

from budgeted_lora.config.anatomy import read_anatomy, refuse_other_sizes
from budgeted_lora.config.sections import Teacher
from budgeted_lora.config.types import Positive
from budgeted_lora.errors import BadInput
from budgeted_lora.files import atomic_folder, check_digest, read_json, sha256_file, write_digest
from budgeted_lora.models import checkpoint
from budgeted_lora.models.checkpoint import GENERATION, TOKENIZER
from budgeted_lora.models.shards import INDEX, WEIGHTS, weight_files
from budgeted_lora.provenance import Clock, write_result

CONFIG = "config.json"
DOWNLOADED = (CONFIG, GENERATION, WEIGHTS, INDEX, "model-*.safetensors")
COMMIT = re.compile(r"[0-9a-f]{40}")


def check_card(folder: Path, *, spec: Teacher, slice_per_mille: int, hold_out_words: bool) -> dict[str, Any]:
    """The card of a shipped teacher. Raises BadInput if weights, shape or slice do not fit the configuration."""
    card = read_json(folder / "card.json", expected="the card of a shipped teacher")
    if sha256_file(folder / "model.safetensors") != card["sha256"]:
        raise BadInput(f"{folder}/model.safetensors: checksum mismatch with card.json; reinstall the package")
    name = card["stands_for"]
    if spec.shape != card["shape"]:
        raise BadInput(f"teacher_ladder.{name} is {spec.shape}, but the shipped teacher is {card['shape']}")
    trained = card["held_out"]
    if slice_per_mille > trained["slice_per_mille"]:
        raise BadInput(
            f"corpus.slice_per_mille is {slice_per_mille}, but only {trained['slice_per_mille']} per mille were held "
            f"out from the shipped teacher {name}; a wider slice may contain its training text"
        )
    if hold_out_words and not trained["hold_out_words"]:
        raise BadInput(
            "corpus.hold_out_words is on, but the shipped teachers have seen these words; use teachers: pretrain"
        )
    return card


def checkpoint_files(source: Path) -> list[Path]:
    """Files of a checkpoint that are copied, with generation settings. Raises BadInput if it has no safetensors."""
    weights = weight_files(source)
    others = [CONFIG, GENERATION, *([] if weights[0].name == WEIGHTS else [INDEX]), *TOKENIZER]
    return [*weights, *(source / name for name in others if (source / name).is_file())]


def copy_checkpoint(source: Path, out: Path) -> None:
    """Copies the files of a checkpoint that are used. Raises BadInput if it has no safetensors."""
    with atomic_folder(out) as folder:
        for path in checkpoint_files(source):
            shutil.copyfile(path, folder / path.name)


def download(name: str, spec: Teacher) -> Path:
    """Downloads a Hub checkpoint at its pinned commit, config.json first; returns the folder.

    Raises:
        BadInput: that cannot be, or config.json says that the checkpoint cannot be used.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if not COMMIT.fullmatch(spec.revision or ""):
        raise BadInput(
            f"teacher {spec.hub}: revision is {spec.revision!r}; expected the 40 hex digits of a commit, since a "
            "branch or tag can move"
        )
    try:
        about = read_json(Path(snapshot_download(spec.hub, revision=spec.revision, allow_patterns=[CONFIG])) / CONFIG)
        refuse_other_sizes(read_anatomy(about, where=spec.hub), spec.given_sizes, where=spec.hub, name=name)
        return Path(snapshot_download(spec.hub, revision=spec.revision, allow_patterns=[*DOWNLOADED, *TOKENIZER]))
    except BadInput:
        raise
    except GatedRepoError:
        raise BadInput(f"{spec.hub}: gated; ask its owners for access and log in with `hf auth login`") from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise BadInput(
            f"{spec.hub} at {spec.revision}: not on the Hub under that name and commit (a private one needs "
            "`hf auth login`)"
        ) from None
    except Exception as error:  # no network, a malformed name, ...: the HTTP library has exception types of its own
        if constants.HF_HUB_OFFLINE:
            raise BadInput(
                f"{spec.hub} at {spec.revision}: not in the Hub's cache, and HF_HUB_OFFLINE forbids the network; unset "
                f"it, or run with a network: hf download {spec.hub} --revision {spec.revision}"
            ) from None
        raise BadInput(f"{spec.hub}: cannot be downloaded ({' '.join(str(error).split())[:200]})") from None


def fetch_teacher(
    *,
    name: str,
    source: str,
    spec: Teacher,
    slice_per_mille: int,
    hold_out_words: bool,
    out: Path,
    record: Path,
    scale: str,
    first: Path | None = None,
    context: Positive | None = None,
) -> None:
    """Checks a shipped, local or downloaded checkpoint against the configuration and copies it to `out`.

    Args:
        first: folder of the first teacher, whose vocabulary this one must share; None for the first teacher.
        context: tokens that it will read at once; not compared when None.

    Raises:
        BadInput: see `check_card`, `copy_checkpoint`, `download` and the checks of `models.checkpoint`.
    """
    clock, card, digests = Clock(), None, None
    if source == "shipped":
        folder = checkpoint.shipped_folder(name)
        card = check_card(folder, spec=spec, slice_per_mille=slice_per_mille, hold_out_words=hold_out_words)
    elif source == "hub":
        folder = download(name, spec)
        digests = checkpoint.check_downloads(folder) or None
    else:
        folder = Path(str(spec.folder))
        if not folder.is_dir():
            raise BadInput(f"{folder}: no such checkpoint folder")
    about = checkpoint.check_checkpoint(folder, name=name, spec=spec, context=context, contents=True)
    if first is not None:
        check_digest(first)
        checkpoint.check_same_vocabulary(folder, first)
    copy_checkpoint(folder, out)
    values = {"name": name, "source": source, **spec.model_dump()}
    payload = {"stands_for": name, "source": source, **about, "card": card, "hub_digests": digests}
    payload["sha256"] = sha256_file(out)
    read = checkpoint_files(folder) if source == "folder" else []  # others come with the package or a pinned commit
    write_result(record, payload, scale=scale, cell=None, values=values, inputs=[out, *read], clock=clock)
    write_digest(out)
