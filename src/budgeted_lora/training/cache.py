"""Where the teacher's final hidden states come from: read from a file made once, or computed beside the student.

The hidden states after the final norm are what the output layer sees, so hidden @ head^T are the teacher's logits
exactly, at hidden/vocabulary of their size. A cache is indexed by window number: every cell and seed reads the same.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from budgeted_lora.data.tokens import TokenFile
from budgeted_lora.errors import BadInput
from budgeted_lora.files import atomic_folder, naming, read_json, sha256_file, short_hash, write_json
from budgeted_lora.state import code_digest, discard, locked_folder

STORED = {torch.float32: np.dtype("<i4"), torch.bfloat16: np.dtype("<i2"), torch.float16: np.dtype("<i2")}
HEAD = "lm_head.weight"


class TeacherSource(Protocol):
    """What the training loop asks of a teacher."""

    head: Tensor  # [V, H'], in the teacher's dtype

    def hidden(self, windows: np.ndarray, ids: Tensor) -> Tensor:
        """Final hidden states [B, L, H'] of windows given by number and by their tokens [B, L]."""
        ...


class OnlineTeacher:
    """Runs the teacher beside the student, without gradients, in the dtype of its weights."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval().requires_grad_(False)
        self.head = model.lm_head.weight

    def hidden(self, windows: np.ndarray, ids: Tensor) -> Tensor:
        return final_hidden(self.model, ids)


@dataclass(frozen=True)
class HiddenCache:
    """Reads cached hidden states; a memory map, so only the pages of a batch are touched."""

    folder: Path
    head: Tensor
    dtype: torch.dtype
    stored: np.ndarray  # integers of the same width, [windows, L, H']

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        teacher: Path,
        tokens: TokenFile,
        windows: int,
        sequence_length: int,
        rows: str,
        device: torch.device,
    ) -> "HiddenCache":
        """Opens a cache for training from `teacher` on the first `windows` windows of `tokens`.

        Raises:
            BadInput: the cache was made from another teacher or token file, is too short, or has been cut.
        """
        about = read_json(folder / "cache.json", expected="the record of a teacher cache")
        for key, found in {"teacher": weights_digest(teacher), "tokens": tokens.sha256}.items():
            if about[key] != found:
                raise BadInput(
                    f"{folder}: made from {key} {about[key][:12]}, but this run has {found[:12]}; make it anew"
                )
        if (about["shape"][1], about["rows"]) != (sequence_length, rows):
            made = f"{about['rows']} windows of {about['shape'][1]} tokens"
            raise BadInput(f"{folder}: made for {made}, expected {rows} windows of {sequence_length}; make it anew")
        if about["shape"][0] < windows:
            raise BadInput(f"{folder}: holds {about['shape'][0]} windows, expected at least {windows}; make it anew")
        dtype = getattr(torch, about["dtype"])
        file, expected = folder / "hidden.bin", int(np.prod(about["shape"])) * dtype.itemsize
        size = file.stat().st_size if file.exists() else 0
        if size != expected:
            raise BadInput(f"{file}: {size} bytes, expected {expected}; truncated or damaged, make it anew")
        stored = np.memmap(file, dtype=STORED[dtype], mode="r", shape=tuple(about["shape"]))
        return cls(folder, read_head(teacher).to(device, dtype), dtype, stored)

    def hidden(self, windows: np.ndarray, ids: Tensor) -> Tensor:
        return torch.from_numpy(self.stored[windows]).view(self.dtype).to(ids.device)


def final_hidden(model: Any, ids: Tensor) -> Tensor:
    """Input of the output layer, [B, L, H]: the decoder alone, no key/value cache, no gradients.

    Rows are causal and padded on the right only, so padding never reaches a valid position and needs no mask.
    """
    with torch.no_grad(), torch.autocast(ids.device.type, enabled=False):
        return model.model(input_ids=ids, use_cache=False).last_hidden_state


def cache_hidden(
    model: Any,
    tokens: TokenFile,
    *,
    windows: int,
    sequence_length: int,
    rows: str,
    batch_windows: int,
    teacher: Path,
    out: Path,
    state: Path,
    device: torch.device,
) -> dict[str, Any]:
    """Writes `out/hidden.bin` and `out/cache.json`, whole or not at all.

    A run that was killed goes on after the last whole batch: the unfinished file waits in a folder under `state`,
    keyed by all that determines its bytes, code and thread count too.

    Args:
        windows: how many of the first windows of `tokens`; cut to those it has.
        batch_windows: windows in one forward pass.
        teacher: the folder `model` was loaded from, for its digest.

    Returns:
        what cache.json holds: shape, dtype, sha256, and the digests of teacher and tokens.

    Raises:
        BadInput: the token file holds no window.
    """
    windows = min(windows, tokens.len_windows(sequence_length, rows))
    if not windows:
        raise BadInput(f"{tokens.path}: holds no window of {sequence_length} tokens; expected at least one")
    dtype, hidden = model.lm_head.weight.dtype, model.config.hidden_size
    about = {
        "shape": [windows, sequence_length, hidden],
        "dtype": str(dtype).removeprefix("torch."),
        "rows": rows,
        "batch_windows": batch_windows,
        "teacher": weights_digest(teacher),
        "tokens": tokens.sha256,
    }
    window_bytes = sequence_length * hidden * dtype.itemsize
    model = model.eval().to(device)
    computed_by = [code_digest("cache"), torch.__version__, str(device), torch.get_num_threads()]
    with locked_folder(state / f"cache-{short_hash([about, computed_by], digits=12)}") as folder:
        partial = folder / "hidden.bin"
        with naming(partial), partial.open("ab") as stream:
            whole = stream.tell() // window_bytes
            done = whole if whole == windows else whole // batch_windows * batch_windows
            stream.truncate(done * window_bytes)
            for start in tqdm(range(done, windows, batch_windows), desc="teacher cache", unit="batch", mininterval=10):
                indices = np.arange(start, min(start + batch_windows, windows))
                ids, _ = tokens.windows(indices, sequence_length=sequence_length, rows=rows)
                states = final_hidden(model, torch.from_numpy(ids).to(device))
                integers = torch.int32 if dtype.itemsize == 4 else torch.int16  # numpy has no bfloat16
                stream.write(states.cpu().contiguous().view(integers).numpy().astype(STORED[dtype]).tobytes())
            stream.flush()
            os.fsync(stream.fileno())
        about["sha256"] = sha256_file(partial)
        with atomic_folder(out) as temporary:
            _link(partial, temporary / "hidden.bin")
            write_json(temporary / "cache.json", about)
        discard(folder)
    return about


def _link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system has no such thing: it stays where it was until all
    of the result is in place."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def weights_digest(folder: Path) -> str:
    """SHA-256 over the safetensors files and the configuration of a checkpoint folder.

    Raises:
        BadInput: there are none.
    """
    files = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("config.json"))
    if len(files) < 2:
        raise BadInput(f"{folder}: expected config.json and *.safetensors of a teacher")
    return short_hash([[file.name, sha256_file(file)] for file in files], digits=64)


def read_head(folder: Path) -> Tensor:
    """Output weights [V, H'] of a checkpoint, in their own dtype; nothing else is read.

    Raises:
        BadInput: no safetensors file of the folder holds them.
    """
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            if HEAD in weights.keys():  # noqa: SIM118 (a safetensors handle is no mapping)
                return weights.get_tensor(HEAD)
    raise BadInput(f"{folder}: no {HEAD} in its safetensors files; expected a teacher with untied embeddings")
