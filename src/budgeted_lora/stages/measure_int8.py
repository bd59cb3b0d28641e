"""Stage measure_int8: size, perplexity and speed of a compressed student with int8 weights and activations."""

from pathlib import Path

import torch

from budgeted_lora.config.sections import Speed
from budgeted_lora.config.types import Count, Packing, Positive
from budgeted_lora.data.tokens import TokenFile, Windows
from budgeted_lora.evaluation import int8, speed
from budgeted_lora.evaluation.perplexity import perplexity
from budgeted_lora.models.device import on_device
from budgeted_lora.models.load import load_model
from budgeted_lora.provenance import Clock, write_result


@torch.inference_mode()
def measure_int8(
    *,
    model: Path,
    tokens: Path,
    out: Path,
    sequence_length: Positive,
    rows: Packing,
    validation_tokens: Positive,
    batch_windows: Positive,
    sizes: Speed,
    scale: str,
    device: str,
    threads: Positive,
    skip_windows: Count = 0,
    cell: str | None = None,
) -> None:
    """Quantises a model and writes what that does to its size, perplexity and speed, to one JSON file.

    The perplexity is that of the float32 model with int8 projections, on the windows of the student's own perplexity.
    Timed are models in float32 on a CPU and in bfloat16 on a GPU, without compilation.

    Args:
        model: folder of a plain or compressed model.
        tokens: validation.bin.
        sizes: of prefill and decoding.

    Raises:
        BadInput: a file cannot be used, or the package torchao is missing.
    """
    clock = Clock()
    how = {"sequence_length": sequence_length, "packing": rows}
    windows = Windows(TokenFile.open(tokens), **how, skipped=skip_windows)
    windows.refuse_empty()
    with on_device(device, threads=threads) as chosen:
        plain = load_model(model).to(chosen)
        small = int8.quantized(plain)
        scored = perplexity(small, windows, token_limit=validation_tokens, batch_windows=batch_windows)
        if chosen.type == "cuda":
            plain = plain.to(torch.bfloat16)
            small = int8.quantized(plain)
        lengths = {"length": sizes.length, "decode_tokens": sizes.decode_tokens, "repeats": sizes.repeats}
        prompt = min(speed.DECODE_PROMPT, sizes.length)
        payload = {
            "perplexity": scored.summary(),
            "bytes": {"plain": int8.weight_bytes(plain), "int8": int8.weight_bytes(small)},
            **int8.timed(plain, small, batch=sizes.batch, prompt=prompt, device=chosen, **lengths),
            "dtype": str(plain.dtype).removeprefix("torch."),
            "device": chosen.type,
            "threads": threads,
            "versions": int8.versions(),
        }
    values = {
        "sequence_length": sequence_length,
        "rows": rows,
        "validation_tokens": validation_tokens,
        "batch_windows": batch_windows,
        "skip_windows": skip_windows,
        "sizes": sizes.model_dump(),
        "threads": threads,
    }
    about = {"scale": scale, "cell": cell, "values": values, "inputs": [model, tokens]}
    write_result(out, payload, clock=clock, **about)
