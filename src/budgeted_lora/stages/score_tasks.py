"""Stage score_tasks: score one model on tasks of lm-evaluation-harness."""

from collections.abc import Sequence
from pathlib import Path

from budgeted_lora.config.types import Positive
from budgeted_lora.data.tokenizer import open_tokenizer
from budgeted_lora.evaluation import harness
from budgeted_lora.models.device import on_device
from budgeted_lora.models.load import load_model
from budgeted_lora.provenance import Clock, write_result


def score_tasks(
    *,
    model: Path,
    tokenizer: Path,
    out: Path,
    tasks: list[str],
    scale: str,
    device: str,
    threads: Positive,
    batch: Positive = 1,
    folder: Path | None = None,
    files: Sequence[Path] = (),
    limit: Positive | None = None,
    cell: str | None = None,
) -> None:
    """Writes the scores of a model, with the versions of harness and tasks, to one JSON file.

    Args:
        model: folder of a plain or compressed model, scored in float32.
        tasks, folder, limit, batch: see `evaluation.harness.score`.
        files: of the folder, whose digests are recorded.

    Raises:
        BadInput: a folder cannot be used, the package lm_eval is missing, or what `harness.score` raises.
    """
    clock = Clock()
    values = {"tasks": tasks, "folder": str(folder) if folder else None, "limit": limit, "batch": batch}
    with on_device(device, threads=threads) as chosen:
        network = load_model(model).to(chosen)
        opened = open_tokenizer(tokenizer)
        payload = harness.score(network, opened, tasks=tasks, folder=folder, limit=limit, batch=batch)
    payload["tokenizer"] = opened.record()
    about = {"scale": scale, "cell": cell, "values": values, "inputs": [model, tokenizer, *files]}
    write_result(out, payload, clock=clock, **about)
