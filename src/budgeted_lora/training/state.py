"""Training state that survives a kill: one file, replaced whole, in a folder that one process at a time may lock.

The folder is no output of the workflow, which deletes outputs when a job starts or fails. It holds `state.safetensors`
(weights that train, optimiser moments, generator states; counters as JSON in its header, so that both change together)
and the growing history.csv and retention.csv, which a resumed run cuts back to where the state was taken. The header
also holds a digest of all of it: a state that is damaged is set aside, and its run starts over.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from budgeted_lora.errors import BadInput
from budgeted_lora.files import lock_alone, naming, sha256_file, write_with

LOCK = "lock"
STATE = "state.safetensors"
DAMAGED = f"{STATE}.damaged"
GROWING = ("history.csv", "retention.csv")
MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")  # of AdamW and Muon


@contextmanager
def locked_folder(folder: Path) -> Iterator[Path]:
    """Makes the folder and holds its lock; the kernel releases it when the process dies.

    Raises:
        BadInput: another process holds it.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOCK).open("a+b", buffering=0) as handle:
            if not lock_alone(handle.fileno()):
                handle.seek(0)
                holder = handle.read().decode().strip() or "unknown"
                raise BadInput(f"{folder}: process {holder} is using this folder; wait for it or stop it")
            if not _same_file(handle.fileno(), folder / LOCK):
                continue  # a run that ended removed the folder between our open and our lock
            handle.truncate(0)
            with naming(folder / LOCK):
                handle.write(str(os.getpid()).encode())
            yield folder
            return


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


class TrainingState:
    """The state of one run in its (locked) folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / STATE

    def save(self, model: nn.Module, *optimizers: torch.optim.Optimizer, values: dict[str, Any]) -> None:
        """Replaces the state. `values` is what else a resumed run must know, as JSON."""
        tensors = {f"rng.{name}": state for name, state in _generator_states().items()}
        for name, parameter in _trained(model):
            tensors[f"weight.{name}"] = parameter.detach()
            for optimizer in optimizers:
                tensors |= {f"{key}.{name}": moment for key, moment in optimizer.state.get(parameter, {}).items()}
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        header = {"values": json.dumps(values), "files": json.dumps(self._growing())}
        header["sha256"] = _digest(tensors, header)  # 1 to 2 s for a GB, about what writing it takes
        write_with(self.file, lambda path: save_file(tensors, path, metadata=header))

    def _growing(self) -> dict[str, tuple[int, str]]:
        """Size and SHA-256 of the files that grow beside the state, as far as they are there."""
        files = [self.folder / name for name in GROWING if (self.folder / name).exists()]
        return {file.name: (file.stat().st_size, sha256_file(file)) for file in files}

    def restore(self, model: nn.Module, *optimizers: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Puts a saved state into model, optimiser and generators.

        A damaged state is renamed to `state.safetensors.damaged`, and stderr says so.

        Returns:
            the `values` it was saved with, or None if nothing has been saved or the state is damaged.
        """
        try:
            values, tensors = self._read()
        except FileNotFoundError:
            return None
        except BadInput as error:
            with suppress(FileNotFoundError):  # another process of the job has seen it too
                self.file.replace(self.folder / DAMAGED)
            print(f"budgeted-lora: {error}; set aside as {DAMAGED}, this run starts over", file=sys.stderr, flush=True)
            return None
        owners = {id(p): each for each in optimizers for group in each.param_groups for p in group["params"]}
        with torch.no_grad():
            for name, parameter in _trained(model):
                parameter.copy_(tensors[f"weight.{name}"])
                # `step` is float32 for the fused optimiser, whatever the weight's dtype
                moments = {key: tensors[f"{key}.{name}"] for key in MOMENTS if f"{key}.{name}" in tensors}
                if moments:
                    state = {key: moment.to(parameter.device) for key, moment in moments.items()}
                    owners[id(parameter)].state[parameter] = state
        torch.set_rng_state(tensors["rng.cpu"])
        if "rng.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng.cuda"])
        return values

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What `save` was given, once its digests are compared.

        Raises:
            FileNotFoundError: nothing has been saved.
            BadInput: the state or a file that grows beside it is damaged.
        """
        try:
            with safe_open(self.file, framework="pt") as saved:
                header = saved.metadata() or {}
                tensors = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118 (no mapping)
        except SafetensorError as error:
            raise BadInput(f"{self.file}: not a whole training state ({' '.join(str(error).split())[:200]})") from None
        if header.pop("sha256", None) != _digest(tensors, header):
            raise BadInput(f"{self.file}: its content does not match the digest it was saved with")
        for name, (size, digest) in json.loads(header["files"]).items():
            if _digest_of_start(self.folder / name, size) != digest:
                raise BadInput(f"{self.folder / name}: not as it was when {STATE} was saved")
        return json.loads(header["values"]), tensors


def _digest(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, and over the other entries of the header."""
    digest = hashlib.sha256(json.dumps(dict(header), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _digest_of_start(file: Path, size: int) -> str | None:
    """SHA-256 of a file's first bytes; None where it has fewer, or is gone."""
    if not file.is_file() or file.stat().st_size < size:
        return None
    with file.open("rb") as stream:
        return hashlib.sha256(stream.read(size)).hexdigest()


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _generator_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state().cpu()
    return states
