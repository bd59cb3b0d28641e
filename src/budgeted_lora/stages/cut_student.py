"""Stage cut_student: cut an untrained student from the first teacher."""

from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from budgeted_lora.beyond.importance import block_influence
from budgeted_lora.config.types import Packing, Positive, Strict
from budgeted_lora.data.tokens import TokenFile, Windows
from budgeted_lora.errors import BadInput
from budgeted_lora.files import atomic_folder, write_digest
from budgeted_lora.models.checkpoint import copy_generation
from budgeted_lora.models.device import prepare
from budgeted_lora.models.load import check_vocabulary, load_model, save_model
from budgeted_lora.models.student import cut, layer_indices
from budgeted_lora.provenance import Clock, write_result


class Calibration(Strict):
    """On which windows of the training file the layers' importance is measured, and how many in one forward pass."""

    windows: Positive
    batch_windows: Positive
    sequence_length: Positive
    rows: Packing


def cut_student(
    *,
    teacher: Path,
    init: str,
    depth: int,
    out: Path,
    record: Path,
    scale: str,
    ffn: int | None = None,
    seed: int = 0,
    importance: Calibration | None = None,
    tokens: Path | None = None,
    device: str = "cpu",
    threads: Positive = 1,
) -> None:
    """Writes the model folder of an untrained student and a record of the teacher layers in it; see `student.cut`.

    Args:
        importance, tokens: for init importance, how its windows are read, and from which file.
        device, threads: on which the importance is measured.

    Raises:
        BadInput: see `student.cut`; or init importance has no windows to measure on.
    """
    clock, scores = Clock(), None
    source = load_model(teacher)
    layers = source.config.num_hidden_layers
    if init == "importance":
        if importance is None or tokens is None:
            raise BadInput("cut_student: init importance needs importance and tokens; expected both")
        check_vocabulary(teacher, vocab_size=TokenFile.open(tokens).vocab_size, what=f"the token file {tokens}")
        scores = measured(source, tokens, importance, device=prepare(device, threads=threads))
        source = source.to("cpu")
    student = cut(source, init=init, depth=depth, ffn=ffn, seed=seed, scores=scores)
    with atomic_folder(out) as folder:
        save_model(student, folder)
        copy_generation(teacher, folder)
    payload = {
        "init": init,
        "layers": layer_indices(init, layers=layers, depth=depth, scores=scores),
        "ffn": student.config.intermediate_size,
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
    }
    values, inputs = {"init": init, "depth": depth, "ffn": ffn, "seed": seed}, [teacher]
    if scores is not None:
        payload["importance"] = scores
        values |= {"importance": importance.model_dump(mode="json"), "threads": threads}
        inputs.append(tokens.with_suffix(".json"))
    write_result(record, payload, scale=scale, cell=None, values=values, inputs=inputs, clock=clock)
    write_digest(out)


def measured(model: PreTrainedModel, tokens: Path, about: Calibration, *, device: torch.device) -> list[float]:
    """The influence of every layer on the first windows of a token file, or on all if it has fewer."""
    available = Windows(TokenFile.open(tokens), about.sequence_length, about.rows)
    available.refuse_empty()
    windows, batches = min(about.windows, available.count), []
    for start in range(0, windows, about.batch_windows):
        ids, valid = available.read(np.arange(start, min(start + about.batch_windows, windows)))
        batches.append((torch.from_numpy(ids).to(device), torch.from_numpy(valid).to(device)))
    scores = block_influence(model.to(device), batches)
    if not np.isfinite(scores).all():
        raise BadInput(f"{tokens}: a layer's importance is not finite; expected a teacher with finite hidden states")
    return scores
