"""Which GPUs this process may use: CUDA_VISIBLE_DEVICES as CUDA reads it, in full UUIDs. No torch, no CUDA."""

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from budgeted_lora.errors import BadInput

VISIBLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"
ENDS = ("", "NoDevFiles")  # words that end the list, like a negative number
LINE = re.compile(r"^\s*(GPU|MIG)\b[^:\n]*:?(.*)\(UUID: ([^)]+)\)", re.MULTILINE)


@dataclass(frozen=True)
class Gpu:
    """A GPU as `nvidia-smi -L` lists it; with `instances` (UUIDs), it is split by MIG and cannot be used whole."""

    name: str
    uuid: str
    instances: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """UUIDs that a job can use."""
        return self.instances or (self.uuid,)


def visible_devices() -> list[str]:
    """UUIDs this process may choose from: those of an inherited CUDA_VISIBLE_DEVICES (Slurm, Kubernetes), or all.

    Without nvidia-smi the inherited words are taken as they are.

    Raises:
        BadInput: the list names a device twice or one that is not there, or by a number or part of a UUID that could be
            several.
    """
    listed, inherited = nvidia_smi(), os.environ.get(VISIBLE)
    if inherited is None:
        return [uuid for gpu in listed for uuid in gpu.ids]
    names = []
    for word in map(str.strip, inherited.split(",")):
        if word in ENDS or re.fullmatch(r"-\d+", word):
            break  # for CUDA, too
        names.append(_full_id(word, listed) if listed else word)
    refuse_twice(names, where=f"{VISIBLE} {inherited!r}")
    return names


def refuse_twice(names: Sequence[str], *, where: str) -> None:
    """Raises BadInput if a device is listed twice: nothing could ever hold it twice, and CUDA refuses such a list."""
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise BadInput(f"{where}: names device {twice} twice, expected each once")


def _full_id(word: str, listed: Sequence[Gpu]) -> str:
    """The UUID of a device by its number, its UUID or the beginning of that. Raises BadInput if it is none or several.

    An unknown device is refused: CUDA silently ends the list there, and every device after it would be lost.
    """
    if word.isdecimal():
        return _numbered(int(word), listed)
    known = [uuid for gpu in listed for uuid in dict.fromkeys((gpu.uuid, *gpu.instances))]
    fitting = [uuid for uuid in known if uuid.lower() == word.lower()]
    fitting = fitting or [uuid for uuid in known if uuid.lower().startswith(word.lower()) and len(word) > len("GPU-")]
    if len(fitting) != 1:
        what = "several devices" if fitting else "no device"
        raise BadInput(f"{VISIBLE}: {word!r} is {what} of nvidia-smi -L: {', '.join(fitting or known)}")
    whole = next((gpu for gpu in listed if gpu.uuid == fitting[0]), None)
    return _usable(whole, word) if whole else fitting[0]


def _numbered(number: int, listed: Sequence[Gpu]) -> str:
    """The UUID of a device by CUDA's number: nvidia-smi's if all are of one kind, or if CUDA_DEVICE_ORDER says so."""
    kinds = sorted({gpu.name for gpu in listed})
    if len(kinds) > 1 and os.environ.get(ORDER) != "PCI_BUS_ID":
        raise BadInput(
            f"{VISIBLE}: {number} could be any of {', '.join(kinds)}, since CUDA counts the fastest first; expected "
            f"UUIDs (nvidia-smi -L), or {ORDER}=PCI_BUS_ID"
        )
    if number >= len(listed):
        raise BadInput(f"{VISIBLE}: there is no device {number}; nvidia-smi -L lists {len(listed)}, from 0")
    return _usable(listed[number], str(number))


def _usable(gpu: Gpu, word: str) -> str:
    if len(gpu.ids) > 1:
        raise BadInput(
            f"{VISIBLE}: {word!r} is split by MIG; expected one of its instances: {', '.join(gpu.instances)}"
        )
    return gpu.ids[0]


def nvidia_smi() -> list[Gpu]:
    """The GPUs of this machine in the order of their buses; empty without a driver."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_listing(done.stdout) if done.returncode == 0 else []


def parse_listing(listing: str) -> list[Gpu]:
    """What `nvidia-smi -L` prints, with the MIG instances below each GPU."""
    gpus: list[Gpu] = []
    for kind, name, uuid in LINE.findall(listing):
        if kind == "GPU":
            gpus.append(Gpu(name.strip(), uuid))
        elif gpus:
            gpus[-1] = Gpu(gpus[-1].name, gpus[-1].uuid, (*gpus[-1].instances, uuid))
    return gpus
