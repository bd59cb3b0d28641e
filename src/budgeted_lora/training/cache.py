"""Where the teacher's final hidden states come from: read from a file made once, or computed beside the student.

The hidden states after the final norm are what the output layer sees, so hidden @ head^T are the teacher's logits
exactly, at hidden/vocabulary of their size. A cache is indexed by window number: every cell and seed reads the same.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from budgeted_lora.data.tokens import Windows
from budgeted_lora.errors import BadInput
from budgeted_lora.files import atomic_folder, check_digest, naming, read_json, sha256_file, short_hash, write_record

STORED = {torch.float32: np.dtype("<i4"), torch.bfloat16: np.dtype("<i2"), torch.float16: np.dtype("<i2")}
HEADS = ("lm_head.weight", "model.embed_tokens.weight")  # the second where embeddings are tied


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
        cls, folder: Path, *, teacher: Path, windows: Windows, count: int, device: torch.device, verify: bool = True
    ) -> "HiddenCache":
        """Opens a cache for training from `teacher` on the first `count` windows.

        Args:
            verify: whether to compare digests, which reads the whole file: 1 to 2 s per GB once it is in memory, else
                at the disk's speed; batches find it in the page cache then. One process of several is enough.

        Raises:
            BadInput: the cache was made from another teacher or token file, is too short, or is damaged.
        """
        if verify:
            check_digest(teacher)
        about = read_json(folder / "cache.json", expected="the record of a teacher cache")
        for key, expected in {"teacher": weights_digest(teacher), "tokens": windows.file.sha256}.items():
            if about[key] != expected:
                raise BadInput(
                    f"{folder}: made from {key} {about[key][:12]}, but this run has {expected[:12]}; "
                    "delete it and rerun"
                )
        if (about["shape"][1], about["rows"]) != (windows.sequence_length, windows.packing):
            made = f"{about['rows']} windows of {about['shape'][1]} tokens"
            wanted = f"{windows.packing} windows of {windows.sequence_length}"
            raise BadInput(f"{folder}: made for {made}, expected {wanted}; delete it and rerun")
        if about["shape"][0] < count:
            raise BadInput(
                f"{folder}: holds {about['shape'][0]} windows, expected at least {count}; delete it and rerun"
            )
        dtype = getattr(torch, about["dtype"])
        file, expected = folder / "hidden.bin", int(np.prod(about["shape"])) * dtype.itemsize
        size = file.stat().st_size if file.exists() else 0
        if size != expected:
            raise BadInput(f"{file}: {size} bytes, expected {expected}; truncated or damaged; delete it and rerun")
        if verify and sha256_file(file) != about["sha256"]:
            raise BadInput(f"{file}: its SHA-256 differs from the one in cache.json; delete {folder} and rerun")
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


def describe_cache(model: Any, windows: Windows, *, count: int, batch_windows: int, teacher: Path) -> dict[str, Any]:
    """What cache.json says of the hidden states before they are computed: shape, dtype, and digests of their origin.

    Args:
        count: how many of the first windows; cut to those there are.
        batch_windows: windows in one forward pass.
        teacher: the folder `model` was loaded from.

    Raises:
        BadInput: the token file holds no window.
    """
    windows.refuse_empty()
    return {
        "shape": [min(count, windows.count), windows.sequence_length, model.config.hidden_size],
        "dtype": str(model.lm_head.weight.dtype).removeprefix("torch."),
        "rows": windows.packing,
        "batch_windows": batch_windows,
        "teacher": weights_digest(teacher),
        "tokens": windows.file.sha256,
    }


def cache_hidden(
    model: Any, windows: Windows, about: Mapping[str, Any], *, folder: Path, out: Path, device: torch.device
) -> dict[str, Any]:
    """Writes `out/hidden.bin` and `out/cache.json`, whole or not at all.

    A killed run continues after its last whole batch: the unfinished file waits in `folder`, beside a digest of every
    batch. Lock the folder, and name it by all that determines the bytes.

    Args:
        about: what `describe_cache` returned.

    Returns:
        what cache.json holds: `about` and the file's sha256.
    """
    (count, length, hidden), batch_windows = about["shape"], about["batch_windows"]
    dtype = getattr(torch, about["dtype"])
    integers = torch.int32 if dtype.itemsize == 4 else torch.int16  # numpy has no bfloat16
    window_bytes = length * hidden * dtype.itemsize
    model = model.eval().to(device)
    partial, lines = folder / "hidden.bin", folder / "batches.sha256"
    with naming(partial), partial.open("a+b", buffering=0) as stream, lines.open("a+b", buffering=0) as digests:
        done, all_batches = verified(stream, digests, size=batch_windows * window_bytes, total=count * window_bytes)
        done //= window_bytes
        for start in tqdm(range(done, count, batch_windows), desc="teacher cache", unit="batch", mininterval=10):
            ids, _ = windows.read(np.arange(start, min(start + batch_windows, count)))
            states = final_hidden(model, torch.from_numpy(ids).to(device))
            batch = states.cpu().contiguous().view(integers).numpy().astype(STORED[dtype]).tobytes()
            all_batches.update(batch)
            write_all(digests, f"{hashlib.sha256(batch).hexdigest()}\n".encode())
            write_all(stream, batch)
        os.fsync(stream.fileno())
    # The digest is of what was computed, not of what the disk returns, so a bad disk is noticed.
    record = {**about, "sha256": all_batches.hexdigest()}
    with atomic_folder(out) as temporary:
        _link(partial, temporary / "hidden.bin")
        write_record(temporary / "cache.json", record)
    return record


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
    for name in HEADS:
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as weights:
                if name in weights.keys():  # noqa: SIM118 (a safetensors handle is no mapping)
                    return weights.get_tensor(name)
    raise BadInput(f"{folder}: no {' and no '.join(HEADS)} in its safetensors files; expected a causal model")
