"""Which files hold the weights of a checkpoint: one, or the shards of an index. Others beside them are not read."""

import re
from pathlib import Path

from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: one file, or the shards that its index names.

    Raises:
        BadInput: no such file, a damaged index, or a missing shard.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise BadInput(f"{folder}: no .safetensors file; weights in other formats are not read")
    names = sorted(set(weight_map(folder).values()))
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise BadInput(
            f"{folder}: {len(absent)} of the {len(names)} shards that {INDEX} names are missing ({absent[0]})"
        )
    return [folder / name for name in names]


def weight_map(folder: Path) -> dict[str, str]:
    """Name of the shard by name of the tensor.

    Raises:
        BadInput: not an index, or the name of a shard could lead out of the folder.
    """
    index = read_json(folder / INDEX, expected="the index of a sharded checkpoint")
    table = index.get("weight_map")
    plain = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")
    if not isinstance(table, dict) or not table or not all(plain.fullmatch(str(name)) for name in table.values()):
        raise BadInput(f"{folder / INDEX}: expected weight_map, from names of tensors to names of .safetensors files")
    if not isinstance(index.get("metadata"), dict):  # transformers needs it
        raise BadInput(f"{folder / INDEX}: expected metadata, an object, which may be empty")
    return table
