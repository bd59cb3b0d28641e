"""Where the teacher's final hidden states come from: read from a file made once, or computed beside the student.

The hidden states after the final norm are what the output layer sees, so hidden @ head^T are the teacher's logits
exactly, at hidden/vocabulary of their size. A cache is indexed by window number: every cell and seed reads the same.
"""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from budgeted_lora.data.tokens import TokenFile
from budgeted_lora.errors import BadInput
from budgeted_lora.files import (
    atomic_folder,
    check_digest,
    naming,
    read_json,
    sha256_file,
    short_hash,
    write_record,
)
from budgeted_lora.training.state import locked_folder
from budgeted_lora.workflow.code import code_digest
from budgeted_lora.workflow.runs import discard

STORED = {torch.float32: np.dtype("<i4"), torch.bfloat16: np.dtype("<i2"), torch.float16: np.dtype("<i2")}
HEAD = "lm_head.weight"


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
        packing: str,
        device: torch.device,
        verify: bool = True,
    ) -> "HiddenCache":
        """Opens a cache for training from `teacher` on the first `windows` windows of `tokens`.

        Args:
            verify: whether to compare digests, which reads the whole file: 1 to 2 s a GB once it is in memory, else at
                the disk's speed; batches find it in the page cache then. For one process of several.

        Raises:
            BadInput: the cache was made from another teacher or token file, is too short, or is damaged.
        """
        if verify:
            check_digest(teacher)
        about = read_json(folder / "cache.json", expected="the record of a teacher cache")
        for key, found in {"teacher": weights_digest(teacher), "tokens": tokens.sha256}.items():
            if about[key] != found:
                raise BadInput(
                    f"{folder}: made from {key} {about[key][:12]}, but this run has {found[:12]}; make it anew"
                )
        if (about["shape"][1], about["rows"]) != (sequence_length, packing):
            made = f"{about['rows']} windows of {about['shape'][1]} tokens"
            raise BadInput(f"{folder}: made for {made}, expected {packing} windows of {sequence_length}; make it anew")
        if about["shape"][0] < windows:
            raise BadInput(f"{folder}: holds {about['shape'][0]} windows, expected at least {windows}; make it anew")
        dtype = getattr(torch, about["dtype"])
        file, expected = folder / "hidden.bin", int(np.prod(about["shape"])) * dtype.itemsize
        size = file.stat().st_size if file.exists() else 0
        if size != expected:
            raise BadInput(f"{file}: {size} bytes, expected {expected}; truncated or damaged, make it anew")
        if verify and sha256_file(file) != about["sha256"]:
            raise BadInput(f"{file}: its SHA-256 differs from the one in cache.json; damaged, remove {folder}")
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
    packing: str,
    batch_windows: int,
    teacher: Path,
    out: Path,
    state: Path,
    device: torch.device,
) -> dict[str, Any]:
    """Writes `out/hidden.bin` and `out/cache.json`, whole or not at all.

    A run that was killed goes on after the last whole batch: the unfinished file waits in a folder under `state`,
    keyed by all that determines its bytes, code and thread count too, with a digest of every batch beside it.

    Args:
        windows: how many of the first windows of `tokens`; cut to those it has.
        batch_windows: windows in one forward pass.
        teacher: the folder `model` was loaded from, for its digest.

    Returns:
        what cache.json holds: shape, dtype, sha256, and the digests of teacher and tokens.

    Raises:
        BadInput: the token file holds no window.
    """
    windows = min(windows, tokens.len_windows(sequence_length, packing))
    if not windows:
        raise BadInput(f"{tokens.path}: holds no window of {sequence_length} tokens; expected at least one")
    dtype, hidden = model.lm_head.weight.dtype, model.config.hidden_size
    about = {
        "shape": [windows, sequence_length, hidden],
        "dtype": str(dtype).removeprefix("torch."),
        "rows": packing,
        "batch_windows": batch_windows,
        "teacher": weights_digest(teacher),
        "tokens": tokens.sha256,
    }
    window_bytes = sequence_length * hidden * dtype.itemsize
    model = model.eval().to(device)
    computed_by = [code_digest("cache"), torch.__version__, str(device), torch.get_num_threads()]
    with locked_folder(state / f"cache-{short_hash([about, computed_by], digits=12)}") as folder:
        partial = folder / "hidden.bin"
        lines = folder / "batches.sha256"
        with naming(partial), partial.open("a+b", buffering=0) as stream, lines.open("a+b", buffering=0) as digests:
            done, all_of_it = verified(stream, digests, size=batch_windows * window_bytes, total=windows * window_bytes)
            done //= window_bytes
            for start in tqdm(range(done, windows, batch_windows), desc="teacher cache", unit="batch", mininterval=10):
                indices = np.arange(start, min(start + batch_windows, windows))
                ids, _ = tokens.windows(indices, sequence_length=sequence_length, packing=packing)
                states = final_hidden(model, torch.from_numpy(ids).to(device))
                integers = torch.int32 if dtype.itemsize == 4 else torch.int16  # numpy has no bfloat16
                batch = states.cpu().contiguous().view(integers).numpy().astype(STORED[dtype]).tobytes()
                all_of_it.update(batch)
                write_all(digests, f"{hashlib.sha256(batch).hexdigest()}\n".encode())
                write_all(stream, batch)
            os.fsync(stream.fileno())
        about["sha256"] = all_of_it.hexdigest()  # of what was computed, so that what the disk made of it is noticed
        with atomic_folder(out) as temporary:
            _link(partial, temporary / "hidden.bin")
            write_record(temporary / "cache.json", about)
        discard(folder)
    return about


def verified(stream: BinaryIO, digests: BinaryIO, *, size: int, total: int) -> tuple[int, Any]:
    """Cuts a file back to its last batch before the first that is not whole, and the lines of digests with it.

    A kill leaves part of a batch; a power failure may leave pages of zeros, since nothing is synced before the end.

    Args:
        stream: the file of batches, unbuffered; it is left at its new end.
        digests: SHA-256 of each batch, a line each.
        size: bytes of a batch, of which the last may have fewer.
        total: bytes of them all.

    Returns:
        bytes kept, and the SHA-256 object that has seen them.
    """
    stream.seek(0)
    digests.seek(0)
    done, seen = 0, hashlib.sha256()
    lines = digests.read().decode(errors="replace").splitlines()
    for line in lines:
        batch = read_all(stream, min(size, total - done))
        if not batch or hashlib.sha256(batch).hexdigest() != line:
            break
        seen.update(batch)
        done += len(batch)
    stream.truncate(done)
    digests.truncate(-(-done // size) * (hashlib.sha256().digest_size * 2 + 1))
    return done, seen


def read_all(stream: BinaryIO, count: int) -> bytes:
    """So many bytes of an unbuffered file, which may give fewer at a time; fewer at its end."""
    parts = []
    while count and (part := stream.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def write_all(stream: BinaryIO, data: bytes) -> None:
    """Writes all of it to an unbuffered file, which may take less at a time."""
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]


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
