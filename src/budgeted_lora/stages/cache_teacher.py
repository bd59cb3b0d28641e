"""Stage: a teacher's final hidden states, once for all its students."""

from pathlib import Path

import torch

from budgeted_lora.config.types import Positive
from budgeted_lora.data.tokens import TokenFile, Windows
from budgeted_lora.files import short_hash
from budgeted_lora.models.attention import attend_as_teacher
from budgeted_lora.models.device import compute_dtype, multiply_wide, prepare
from budgeted_lora.models.load import check_vocabulary, load_model
from budgeted_lora.provenance import Clock, write_result
from budgeted_lora.training.cache import cache_hidden, describe_cache
from budgeted_lora.training.state import locked_folder
from budgeted_lora.workflow.code import code_digest
from budgeted_lora.workflow.runs import discard


def cache_teacher(
    *,
    teacher: Path,
    tokens: Path,
    windows: Positive,
    sequence_length: Positive,
    rows: str,
    batch_windows: Positive,
    precision: str,
    scale: str,
    out: Path,
    state: Path,
    device: str,
    threads: Positive,
) -> None:
    """Computes a teacher's final hidden states for the first `windows` windows of `tokens` (train.bin).

    Args:
        precision: bfloat16 or float32, as in the recipes of the students that will read it.
        out: folder that gets hidden.bin and cache.json, whose bytes repeat, and provenance.json, which holds the rest.
        state: as in `train_cell`.
    """
    clock = Clock()
    place = prepare(device, threads=threads)
    file = TokenFile.open(tokens)
    check_vocabulary(teacher, vocab_size=file.vocab_size, what=f"the token file {tokens} (for the teacher)")
    model = attend_as_teacher(load_model(teacher, dtype=compute_dtype(precision, place)))
    multiply_wide(model.config.hidden_size, place)
    cut = Windows(file, sequence_length, rows)
    about = describe_cache(model, cut, count=windows, batch_windows=batch_windows, teacher=teacher)
    computed_by = [code_digest("cache_teacher"), torch.__version__, str(place), torch.get_num_threads()]
    with locked_folder(state / f"cache-{short_hash([about, computed_by], digits=12)}") as folder:
        about = cache_hidden(model, cut, about, folder=folder, out=out, device=place)
        discard(folder)
    inputs = [teacher, tokens.with_suffix(".json")]
    values = {**about, "threads": threads, "precision": precision}
    write_result(out / "provenance.json", {}, scale=scale, cell=None, values=values, inputs=inputs, clock=clock)
