"""Uploads an exported folder to the Hugging Face Hub."""

import re
from pathlib import Path

from budgeted_lora.errors import BadInput
from budgeted_lora.models.checkpoint import GENERATION, TOKENIZER
from budgeted_lora.models.shards import INDEX
from budgeted_lora.serving.export import CODE

NEEDED = ("config.json", "tokenizer.json", "README.md")
EXPORTED = {*NEEDED, *TOKENIZER, GENERATION, INDEX, f"{CODE}.py"}  # and the weights
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
# What an earlier upload may have left: transformers would read an old model.safetensors before new shards.
EARLIER = [*sorted(EXPORTED - {*NEEDED}), "model.safetensors", "model-*.safetensors"]
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def push_folder(folder: Path, repo: str, *, private: bool = True) -> str:
    """Creates the model repository if it is not there, and uploads the folder in one commit; returns its address.

    The same commit deletes files of an earlier export that this one does not have.

    Args:
        folder: as `export` writes it; whatever else lies in it stays here.
        repo: owner/name.
        private: visibility of a new repository; one that is there keeps its own.

    Raises:
        BadInput: not an exported folder, a malformed name, no login, no right to write, or no network.
    """
    from huggingface_hub import HfApi, constants

    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; expected an exported folder")
    absent = [name for name in NEEDED if not (folder / name).is_file()]
    names = exported_names(folder)
    if absent or not any(map(WEIGHTS.fullmatch, names)):
        raise BadInput(f"{folder}: no {absent[0] if absent else 'model.safetensors'}; expected an exported folder")
    if not NAME.fullmatch(repo):
        raise BadInput(f"{repo!r}: expected OWNER/NAME of a repository on the Hub")
    if constants.HF_HUB_OFFLINE:
        raise BadInput(f"{repo}: HF_HUB_OFFLINE forbids the network; unset it to upload")
    try:
        hub = HfApi()
        hub.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        done = hub.upload_folder(
            folder_path=folder, repo_id=repo, repo_type="model", allow_patterns=names, delete_patterns=EARLIER,
            commit_message="Upload a student exported by budgeted-lora",
        )  # fmt: skip
    except Exception as error:  # the Hub's and the HTTP library's errors have many types
        status = getattr(getattr(error, "response", None), "status_code", None)
        advice = "; log in with `hf auth login`, or check who may write there" if status in (401, 403) else ""
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{repo}: cannot be uploaded ({type(error).__name__}: {reason}){advice}") from None
    return str(done.commit_url)


def exported_names(folder: Path) -> list[str]:
    """Names of the files that `export` writes; none of a folder within, and none with a wildcard."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    return [name for name in names if name in EXPORTED or WEIGHTS.fullmatch(name)]
