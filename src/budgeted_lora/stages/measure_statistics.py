"""Stage measure_statistics: second moments and gradients of an untrained student's projections on training text.

For the report's figure on other rules it also measures what each dense path is worth (`removals.removal_losses`).
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from budgeted_lora.beyond.removals import removal_losses
from budgeted_lora.beyond.statistics import STATISTICS, measure
from budgeted_lora.config.types import Count, Positive
from budgeted_lora.data.tokens import TokenFile, Windows
from budgeted_lora.errors import BadInput
from budgeted_lora.files import atomic_folder, write_digest
from budgeted_lora.method.projections import named_projections
from budgeted_lora.models.device import prepare
from budgeted_lora.models.load import check_vocabulary, load_model
from budgeted_lora.provenance import Clock, write_result


def measure_statistics(
    *,
    student: Path,
    tokens: Path,
    windows: Positive,
    batch_windows: Positive,
    sequence_length: Positive,
    rows: str,
    rank: Positive,
    removal_windows: Count,
    out: Path,
    record: Path,
    scale: str,
    device: str,
    threads: Positive,
) -> None:
    """Writes out/statistics.safetensors (see `statistics.InputStatistics`) from the first windows of the training file.

    The record says what removing each dense path alone does to the loss on the first `removal_windows` of them (whole
    batches), with a low-rank path of rank `rank` in its place; nothing of that kind for 0 windows.

    Raises:
        BadInput: the vocabularies differ, the file holds fewer windows, or a statistic is not finite.
    """
    clock = Clock()
    place = prepare(device, threads=threads)
    file = TokenFile.open(tokens)
    check_vocabulary(student, vocab_size=file.vocab_size, what=f"the token file {tokens}")
    available = Windows(file, sequence_length, rows)
    if available.count < windows:
        raise BadInput(f"{tokens}: {available.count} windows; expected lora.statistics_windows = {windows} or more")
    model = load_model(student, dtype=torch.float32).to(place).eval()
    linears = {name: linear for name, _, _, linear in named_projections(model)}
    batches = []
    for start in range(0, windows, batch_windows):
        numbers = np.arange(start, min(start + batch_windows, windows))
        ids, valid = available.read(numbers)
        batches.append((torch.from_numpy(ids).to(place), torch.from_numpy(valid).to(place)))
    statistics = measure(model, linears, batches)
    tensors = statistics.tensors()
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise BadInput(f"{student}: {name} is not finite on {tokens}; expected a student with a finite loss")
    with atomic_folder(out) as folder:
        save_file(tensors, folder / STATISTICS, metadata={"format": "pt"})
    replaced = batches[: -(-removal_windows // batch_windows)]
    results = {
        "tokens": sum(int(valid.sum()) for _, valid in batches),
        "removal_windows": sum(len(ids) for ids, _ in replaced),
        "removals": removal_losses(model, linears, statistics.moments, replaced, rank=rank) if replaced else [],
    }
    values = {"windows": windows, "sequence_length": sequence_length, "rows": rows, "threads": threads}
    values |= {"rank": rank, "removal_windows": removal_windows}
    inputs = [student, tokens.with_suffix(".json")]
    write_result(record, results, scale=scale, cell=None, values=values, inputs=inputs, clock=clock)
    write_digest(out)
