"""Stage measure_speed: time a compressed structure against the dense student."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from budgeted_lora.config.sections import Speed
from budgeted_lora.config.types import Positive
from budgeted_lora.evaluation import speed
from budgeted_lora.files import read_json, short_hash
from budgeted_lora.method.cost import ModelShape, dense_macs, lora_macs, projections
from budgeted_lora.models.device import on_device
from budgeted_lora.provenance import Clock, write_result


@torch.inference_mode()
def measure_speed(
    *,
    student: Mapping[str, Any],
    tokens: Path,
    out: Path,
    scale: str,
    sizes: Speed,
    threads: Positive,
    device: str,
    structure: Mapping[str, Any] | None = None,
    compressed: Path | None = None,
) -> None:
    """Times one compressed structure against the dense student and against unmerged LoRA, and writes JSON.

    Args:
        student: fields of `SpeedShape` without vocab_size.
        tokens: record of a token file, which gives the vocabulary.
        sizes: of prefill and decoding; the modules are timed on batch x length and on batch tokens.
        device: "auto", "cpu" (float32) or "cuda" (bfloat16).
        structure: `Structure.as_json()` or anything with its `modules`.
        compressed: compression.json with the structure, if it is known only after compression.

    Raises:
        BadInput: the structure does not fit the shape, or the device is unknown or missing.
    """
    clock = Clock()
    network = {"shape": ModelShape(**student["shape"]), "vocab_size": read_json(tokens)["vocab_size"]}
    shape = speed.SpeedShape(**dict(student) | network)
    batch, length, decode_tokens = sizes.batch, sizes.length, sizes.decode_tokens
    if compressed is not None:
        record = read_json(compressed)
        structure = record["totals"] | {"modules": [m | {"rank": m["lora_rank"]} for m in record["modules"]]}
    ranks = speed.factor_ranks(shape.shape, structure["modules"])
    names = [module.name for module in projections(shape.shape)]
    macs, student_macs = sum(module["macs"] for module in structure["modules"]), dense_macs(shape.shape)
    with on_device(device, threads=threads) as chosen:
        torch.manual_seed(0)
        prompt = min(speed.DECODE_PROMPT, length)
        models = speed.build(shape, ranks, length=max(length, prompt + decode_tokens), device=chosen)
        common = {"repeats": sizes.repeats, "device": chosen}
        result = {
            "structure": {key: value for key, value in structure.items() if key != "modules"},
            "structure_hash": short_hash([[name, ranks.get(name)] for name in names]),
            "mac_speedup": student_macs / macs,
            "mac_speedup_vs_lora": (student_macs + lora_macs(shape.shape, rank=shape.rank)) / macs,
            "dtype": str(next(models["dense"].parameters()).dtype).removeprefix("torch."),
            "device": chosen.type,
            "threads": threads,
            "modules": speed.time_modules(models, names, tokens=batch * length, **common),
            "modules_decode": speed.time_modules(models, names, tokens=batch, **common),
            "kinds": speed.time_kinds(models, ranks, tokens=batch * length, **common),
            "prefill": speed.time_prefill(models, batch=batch, length=length, keep=1, **common),
            "prefill_all_logits": speed.time_prefill(models, batch=batch, length=length, keep=0, **common),
            "decode": speed.time_decode(models, batch=batch, prompt=prompt, tokens=decode_tokens, **common),
        }
        values = vars(shape) | {"shape": shape.shape.as_json()} | sizes.model_dump() | {"threads": threads}
        write_result(out, result, scale=scale, cell=None, values=values, inputs=[], clock=clock)
