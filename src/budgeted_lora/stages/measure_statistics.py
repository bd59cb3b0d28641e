"""Stage: second moments and gradients of an untrained student's projections on a few batches of training text.

Beside them, for the report: what each dense path is worth (`removals.removal_losses`).
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

from budgeted_lora.beyond.low_rank import STATISTICS
from budgeted_lora.beyond.removals import removal_losses
from budgeted_lora.data.tokens import TokenFile
from budgeted_lora.errors import BadInput
from budgeted_lora.files import atomic_folder
from budgeted_lora.method.projections import named_projections
from budgeted_lora.models.device import prepare
from budgeted_lora.models.load import check_vocabulary, load_model
from budgeted_lora.provenance import Clock, write_result


def measure_statistics(
    *,
    student: Path,
    tokens: Path,
    windows: int,
    batch_windows: int,
    sequence_length: int,
    rows: str,
    rank: int,
    removal_windows: int,
    out: Path,
    record: Path,
    scale: str,
    device: str,
    threads: int,
) -> None:
    """Writes out/statistics.safetensors (see `low_rank.InputStatistics`) from the first windows of the training file.

    The record says what removing each dense path alone does to the loss on the first `removal_windows` of them (whole
    batches), with a low-rank path of rank `rank` in its place.

    Raises:
        BadInput: the vocabularies differ, the file holds fewer windows, or a statistic is not finite.
    """
    clock = Clock()
    place = prepare(device, threads=threads)
    file = TokenFile.open(tokens)
    check_vocabulary(student, vocab_size=file.vocab_size, what=f"the token file {tokens}")
    available = file.len_windows(sequence_length, rows)
    if available < windows:
        raise BadInput(f"{tokens}: {available} windows; expected lora.statistics_windows = {windows} or more")
    model = load_model(student, dtype=torch.float32).to(place).eval()
    linears = {name: linear for name, _, _, linear in named_projections(model)}
    moments = {name: torch.zeros(w.in_features, w.in_features, dtype=torch.float64) for name, w in linears.items()}
    seen = 0
    mask = torch.empty(0)

    def watch(name: str) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0].detach()[mask].double()
            moments[name] += (x.T @ x).cpu()

        return hook

    batches = []
    handles = [linear.register_forward_pre_hook(watch(name)) for name, linear in linears.items()]
    for start in range(0, windows, batch_windows):
        numbers = np.arange(start, min(start + batch_windows, windows))
        ids, valid = file.windows(numbers, sequence_length=sequence_length, packing=rows)
        batch, mask = torch.from_numpy(ids).to(place), torch.from_numpy(valid).to(place)
        seen += int(mask.sum())
        batches += [(batch, mask)] if start < removal_windows else []
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
        scored = mask[:, :-1] & mask[:, 1:]
        functional.cross_entropy(logits[scored], batch[:, 1:][scored], reduction="sum").backward()
    for handle in handles:
        handle.remove()
    moments = {name: (moment / seen).float() for name, moment in moments.items()}
    tensors = {f"{name}.moment": moment for name, moment in moments.items()}
    tensors |= {f"{name}.gradient": (w.weight.grad / seen).float().cpu().contiguous() for name, w in linears.items()}
    with atomic_folder(out) as folder:
        save_file(tensors, folder / STATISTICS, metadata={"format": "pt"})
    odd = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if odd:
        raise BadInput(f"{student}: {odd[0]} is not finite on {tokens}; expected a student with a finite loss")
    removals = removal_losses(model, linears, moments, batches, rank=rank)
    found = {"tokens": seen, "removal_windows": sum(len(ids) for ids, _ in batches), "removals": removals}
    values = {"windows": windows, "sequence_length": sequence_length, "rows": rows, "threads": threads}
    values |= {"rank": rank, "removal_windows": removal_windows}
    inputs = [student, tokens.with_suffix(".json")]
    write_result(record, found, scale=scale, cell=None, values=values, inputs=inputs, clock=clock)
