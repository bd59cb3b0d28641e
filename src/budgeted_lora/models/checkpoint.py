"""Checks that a checkpoint folder is complete and as configured, from file headers alone; and the shipped folders."""

import hashlib
import math
import re
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from tokenizers import Tokenizer

from budgeted_lora.config.anatomy import MLP, Anatomy, read_anatomy, refuse_other_sizes, refuse_short_context
from budgeted_lora.config.sections import Teacher
from budgeted_lora.config.types import Count
from budgeted_lora.errors import BadInput
from budgeted_lora.files import read_json, sha256_file
from budgeted_lora.models.shards import INDEX, WEIGHTS, weight_files, weight_map

TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip
GENERATION = "generation_config.json"
NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
COMPUTED = ".rotary_emb.inv_freq"  # older files hold it, though config.json says it
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LISTED = 3  # names of tensors in one line
BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
PLAIN = ("BF16", "F16", "F32", "F64")  # types of weights that are not quantised
LARGEST_HEADER = 100_000_000  # the format's own limit
Shapes = dict[str, list[int]]


class Entry(BaseModel):
    """What a safetensors header says of a tensor; `data_offsets` are its first byte and the one after its last."""

    model_config = ConfigDict(strict=True)

    dtype: str
    shape: list[Count]
    data_offsets: tuple[Count, Count]


Header = TypeAdapter(dict[str, dict[str, str] | Entry])


class Stored(NamedTuple):
    """A tensor in a safetensors file: its bytes are file[start:stop]."""

    file: Path
    dtype: str
    shape: list[int]
    start: int
    stop: int


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a checkpoint; checks that each file is complete and holds the tensors of the index.

    Raises:
        BadInput: a file is truncated or damaged, or lacks a tensor of the index; or from `weight_files`.
    """
    files = weight_files(folder)
    headers = {file.name: header(file) for file in files}
    if files[0].name != WEIGHTS:
        for tensor, shard in weight_map(folder).items():
            if tensor not in headers[shard]:
                raise BadInput(f"{folder / shard}: {INDEX} puts {tensor} here, but the shard does not hold it")
    return {name: tensor for tensors in headers.values() for name, tensor in tensors.items()}


def header(file: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file, from its header.

    Raises:
        BadInput: not a safetensors file, its size differs from that of the header, or its weights are quantised.
    """
    size, unreadable = file.stat().st_size, f"{file}: unreadable header; damaged, or not a safetensors file"
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            raise BadInput(f"{file}: {size} bytes, cut short or not a safetensors file")
        try:
            about = Header.validate_json(stream.read(length))
        except ValidationError:
            raise BadInput(unreadable) from None
    metadata = about.pop("__metadata__", {})
    if isinstance(metadata, Entry) or not all(isinstance(entry, Entry) for entry in about.values()):
        raise BadInput(unreadable)
    end = max((entry.data_offsets[1] for entry in about.values()), default=0)
    if size != 8 + length + end:
        raise BadInput(f"{file}: {size} bytes, expected {8 + length + end}; truncated or damaged, fetch it again")
    _refuse_overlaps(file, about)
    tensors = {
        name: Stored(file, entry.dtype, entry.shape, *(8 + length + place for place in entry.data_offsets))
        for name, entry in about.items()
    }
    for name, tensor in tensors.items():
        if tensor.dtype not in PLAIN and name.endswith((".weight", ".bias")):
            raise BadInput(f"{file}: {name} is stored as {tensor.dtype}, expected one of {', '.join(PLAIN)}")
    return tensors


def _refuse_overlaps(file: Path, about: dict[str, Entry]) -> None:
    """Refuses tensors that lie over one another, leave bytes between them, or have no place for their values.

    Raises:
        BadInput: names the first one.
    """
    place = 0
    for name, entry in sorted(about.items(), key=lambda item: item[1].data_offsets):
        start, stop = entry.data_offsets
        width = BYTES.get(entry.dtype)
        if start != place or (width is not None and stop - start != math.prod(entry.shape) * width):
            raise BadInput(f"{file}: {name} is {entry.dtype} {entry.shape} at bytes {start} to {stop}; damaged header")
        place = stop


def check_checkpoint(
    folder: Path, *, name: str, spec: Teacher, context: int | None = None, contents: bool = False
) -> dict[str, Any]:
    """Compares family, sizes, weights and tokenizer of a checkpoint with the configured teacher and with each other.

    Args:
        name: of the teacher in `teacher_ladder`.
        context: tokens that it will read at once, where that is known.
        contents: also read every weight, see `contents.check_contents`.

    Returns:
        model_type, vocab_size and parameters, the number of weights.

    Raises:
        BadInput: names the first difference; or from `read_anatomy`, `stored_tensors`, `check_shapes` or
            `check_contents`.
    """
    about = read_json(folder / "config.json", expected="the configuration of a checkpoint")
    anatomy = read_anatomy(about, where=folder)
    refuse_other_sizes(anatomy, spec.given_sizes, where=folder, name=name)
    refuse_short_context(anatomy, context, where=folder)
    stored = stored_tensors(folder)
    check_shapes({name: tensor.shape for name, tensor in stored.items()}, anatomy, where=folder)
    entries = vocabulary_of(folder)
    tokens = 1 + max(entries.values()) if entries else 0
    if tokens > anatomy.vocab_size:
        raise BadInput(
            f"{folder}: vocabulary of {anatomy.vocab_size}, but its tokenizer has {tokens}; "
            "teacher, student and tokens must share one"
        )
    if contents:
        from budgeted_lora.models.contents import check_contents
        from budgeted_lora.models.load import check_configuration

        check_configuration(folder)
        check_contents(stored, tied=(HEAD, EMBEDDINGS) if anatomy.tied else None)
    return {"model_type": about["model_type"], "vocab_size": anatomy.vocab_size, "parameters": anatomy.parameters}


def check_shapes(shapes: Shapes, anatomy: Anatomy, *, where: object) -> None:
    """Compares the tensors that a checkpoint holds with those of its network.

    Raises:
        BadInput: names those that are missing, the first one of another shape, or those that no layer would use.
    """
    expected = expected_shapes(anatomy)
    absent = [tensor for tensor in expected if tensor not in shapes]
    if absent:
        head = "; its output layer is not the embedding matrix (tie_word_embeddings)" if HEAD in absent else ""
        raise BadInput(f"{where}: no {_some(absent)}{head}; expected what config.json describes")
    for tensor, shape in expected.items():
        if shapes[tensor] != shape:
            raise BadInput(f"{where}: {tensor} is {shapes[tensor]}, but config.json says {shape}")
    surplus = sorted(tensor for tensor in shapes.keys() - expected.keys() if not tensor.endswith(COMPUTED))
    if anatomy.tied:
        surplus = [tensor for tensor in surplus if tensor != HEAD]  # some files repeat the embeddings
    if surplus:
        raise BadInput(f"{where}: holds {_some(surplus)}, which would not be used; expected what config.json describes")


def _some(tensors: list[str]) -> str:
    more = f" and {len(tensors) - LISTED} more tensors" if len(tensors) > LISTED else ""
    return ", ".join(tensors[:LISTED]) + more


def expected_shapes(anatomy: Anatomy) -> Shapes:
    """Shapes of every weight of a network, by tensor."""
    matrix = [anatomy.vocab_size, anatomy.hidden]
    shapes = {EMBEDDINGS: matrix, "model.norm.weight": [anatomy.hidden]} | ({} if anatomy.tied else {HEAD: matrix})
    for layer in range(anatomy.layers):
        for kind, (d_in, d_out) in anatomy.sizes().items():
            name = f"model.layers.{layer}.{'mlp' if kind in MLP else 'self_attn'}.{kind}_proj"
            shapes[f"{name}.weight"] = [d_out, d_in]
            if kind in anatomy.biased:
                shapes[f"{name}.bias"] = [d_out]
        for norm in NORMS[: anatomy.layer_norms]:
            shapes[f"model.layers.{layer}.{norm}.weight"] = [anatomy.hidden]
        for norm in ("q_norm", "k_norm") if anatomy.head_norms else ():
            shapes[f"model.layers.{layer}.self_attn.{norm}.weight"] = [anatomy.head_dim]
    return shapes


def copy_generation(source: Path, folder: Path) -> None:
    """Copies the generation settings of a folder into another, if it has any."""
    if (source / GENERATION).is_file():
        shutil.copyfile(source / GENERATION, folder / GENERATION)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copies the tokenizer files of a folder, with its chat template, into another.

    Raises:
        BadInput: no tokenizer.json.
    """
    if not (source / "tokenizer.json").is_file():
        raise BadInput(f"{source}: no tokenizer.json; expected a fast tokenizer")
    for name in TOKENIZER:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def vocabulary_of(folder: Path) -> dict[str, int] | None:
    """Id by token of a folder's tokenizer; None without a tokenizer.json.

    Raises:
        BadInput: tokenizer.json is damaged.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        return Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the Rust library raises a bare Exception
        raise BadInput(f"{path}: not a tokenizer ({str(error).splitlines()[0]})") from None


def check_same_vocabulary(folder: Path, first: Path) -> None:
    """Checks that the token ids of a teacher mean the same as those of the first teacher.

    Raises:
        BadInput: names the first token whose ids differ.
    """
    pair = [read_json(path / "config.json", expected="a checkpoint").get("vocab_size") for path in (folder, first)]
    if pair[0] != pair[1]:
        raise BadInput(f"{folder}: vocabulary of {pair[0]}, but the first teacher has {pair[1]}; they must share one")
    ours, theirs = vocabulary_of(folder), vocabulary_of(first)
    if ours is None or theirs is None:
        return
    differing = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    if differing:
        token = differing[0]
        raise BadInput(
            f"{folder}: {len(differing)} tokens differ from the first teacher's vocabulary ({token!r} is "
            f"{ours.get(token, 'absent')} here, {theirs.get(token, 'absent')} there); all teachers must share one"
        )


def check_downloads(folder: Path) -> dict[str, str]:
    """Compares the files of a Hub snapshot with the Hub's digests.

    The digests are the names of the blobs in the Hub's cache: SHA-256 for large files, Git's blob hash for small ones.

    Returns:
        Digest by file name; a cache without symbolic links has none.

    Raises:
        BadInput: a file differs from the Hub's.
    """
    verified = {}
    for path in sorted(folder.iterdir()):
        blob = path.resolve()
        expected = blob.name if path.is_symlink() else ""
        if re.fullmatch(r"[0-9a-f]{64}", expected):
            digest = sha256_file(blob)
        elif re.fullmatch(r"[0-9a-f]{40}", expected):
            content = b"blob %d\0" % blob.stat().st_size + blob.read_bytes()
            digest = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        else:
            continue
        if digest != expected:
            raise BadInput(
                f"{path}: damaged download, its digest is {digest[:12]} and the Hub's {expected[:12]}; "
                f"delete {blob} and rerun"
            )
        verified[path.name] = expected
    return verified


def shipped_folder(name: str) -> Path:
    """Folder of a teacher that ships with the package.

    Raises:
        BadInput: no teacher of that name ships.
    """
    root = Path(str(files("budgeted_lora").joinpath("assets/teachers")))
    if not (root / name / "card.json").is_file():
        shipped = sorted(path.parent.name for path in root.glob("*/card.json"))
        raise BadInput(
            f"teacher {name!r} does not ship with the package, which has {', '.join(shipped) or 'none'}; "
            "use teachers: pretrain"
        )
    return root / name


def shipped_tokenizer() -> Path:
    """Folder of the tokenizer that the shipped teachers share."""
    return Path(str(files("budgeted_lora").joinpath("assets/tokenizer")))
