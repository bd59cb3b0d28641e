"""Stage: perplexity and, if asked for, in-context learning of one model in one job."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from budgeted_lora.config.jobs import EvaluationOptions, read_options
from budgeted_lora.data.tokenizer import open_tokenizer
from budgeted_lora.data.tokens import TokenFile, Windows
from budgeted_lora.errors import BadInput
from budgeted_lora.evaluation import icl as probes
from budgeted_lora.evaluation.perplexity import PerplexityResult, perplexity
from budgeted_lora.files import read_json, write_with
from budgeted_lora.models.device import on_device
from budgeted_lora.models.load import load_model
from budgeted_lora.models.trained import load_trained
from budgeted_lora.provenance import Clock, write_result


def evaluate_model(
    *,
    model: Path,
    tokens: Path,
    tokenizer: Path,
    out: Path,
    values: Mapping[str, Any],
    scale: str,
    cell: str | None,
    device: str,
    threads: int,
    icl: bool,
    student: Path | None = None,
    uncompressed: Path | None = None,
) -> None:
    """Writes perplexity.json and perplexity_windows.parquet, and with `icl` icl.json and icl_examples.parquet.

    Weights are evaluated in float32 whatever they are stored in, so that rows of a table differ by their models only.

    Args:
        model: folder of a plain or compressed model.
        tokens: the data folder, with validation and functions token files and manifest.json.
        tokenizer: folder of the tokenizer.
        out: folder the results go to; other files in it stay.
        values: see `settings.EvaluationOptions`.
        uncompressed: folder of the trained student before compression, scored beside it on the same windows;
            needs `student`, the model folder that training began with.

    Raises:
        BadInput: a file or value cannot be used, a prompt does not fit, or a likelihood is not finite.
    """
    clock, settings, out = Clock(), read_options(values), Path(out)
    if (student is None) != (uncompressed is None):
        raise BadInput("an uncompressed student is its trained folder and its student folder; only one was given")
    validation, functions = (
        Windows(TokenFile.open(Path(tokens) / name), settings.sequence_length, settings.rows)
        for name in ("validation.bin", "functions.bin")
    )
    with on_device(device, threads=threads) as where:
        network = load_model(model, dtype=torch.float32).to(where)
        result = _score(network, validation, settings)
        on_functions = _score(network, functions, settings) if functions.count else None
        before = None
        if uncompressed is not None:
            before = _score(load_trained(student=student, trained=uncompressed).model.to(where), validation, settings)
        about = {"scale": scale, "cell": cell, "values": settings.model_dump(mode="json")}
        write_with(out / "perplexity_windows.parquet", _window_frame(result).to_parquet)
        payload = {
            **result.summary(),
            "functions": None if on_functions is None else on_functions.summary(),
            "uncompressed": None if before is None else before.summary(),
            "conditions": _conditions(validation.file, functions.file, settings, where=where, threads=threads),
        }
        inputs = [path for path in (model, uncompressed, validation.file.path, functions.file.path) if path is not None]
        files = [out / "perplexity_windows.parquet"]
        write_result(out / "perplexity.json", payload, inputs=inputs, files=files, clock=clock, **about)
        if icl:
            _write_icl(network, tokenizer, settings, out=out, model=model, about=about)


def _score(network: torch.nn.Module, windows: Windows, settings: EvaluationOptions) -> PerplexityResult:
    return perplexity(network, windows, token_limit=settings.validation_tokens, batch_windows=settings.batch_windows)


def _window_frame(result: PerplexityResult) -> pd.DataFrame:
    """One row a window: `nll` (nats, sum over the scored tokens) and `tokens` (how many those are)."""
    columns = {"window": range(len(result.window_nll)), "nll": result.window_nll, "tokens": result.window_count}
    return pd.DataFrame(columns)


def _conditions(
    validation: TokenFile, functions: TokenFile, settings: EvaluationOptions, *, where: torch.device, threads: int
) -> dict[str, Any]:
    """What makes the perplexity repeatable beside the weights."""
    manifest = validation.path.with_name("manifest.json")
    held_out = read_json(manifest).get("proof", {}).get("held_out_md5_list_sha256", {}) if manifest.is_file() else {}
    return {
        "validation_sha256": validation.sha256,
        "functions_sha256": functions.sha256,
        "slice_sha256": held_out.get("validation"),
        "sequence_length": settings.sequence_length,
        "rows": settings.rows,
        "batch_windows": settings.batch_windows,
        "dtype": "float32",
        "device": where.type,
        "threads": threads,
    }


def _write_icl(
    network: torch.nn.Module,
    tokenizer: Path,
    settings: EvaluationOptions,
    *,
    out: Path,
    model: Path,
    about: Mapping[str, Any],
) -> None:
    clock = Clock()
    encoder, end_id = open_tokenizer(tokenizer)
    asked = probe_set(settings)
    examples = probes.build_examples(asked, seeds=settings.demonstration_seeds, space=settings.prompt_space)
    answers, encoded = probes.answer_examples(
        network,
        encoder,
        examples,
        end_id=end_id,
        sequence_length=settings.context or settings.sequence_length,
        batch=settings.icl_batch,
        space=settings.prompt_space,
    )
    rows = probes.example_rows(examples, answers, encoded)
    write_with(out / "icl_examples.parquet", pd.DataFrame(rows).to_parquet)
    payload = {
        **probes.summarise(asked, examples, rows),
        "shots": settings.shots,
        "longest_prompt_with_answer": encoded.longest,
        "prefix_breaks": encoded.prefix_breaks,
        "dtype": "float32",
    }
    files = [out / "icl_examples.parquet"]
    write_result(out / "icl.json", payload, inputs=[model, Path(tokenizer)], files=files, clock=clock, **about)


def probe_set(settings: EvaluationOptions) -> list[probes.Probe]:
    """The 19 probes of a scale: ours, or those of a folder of the original files.

    Raises:
        BadInput: a file of the folder is missing or unusable.
    """
    if settings.probes == "folder":
        return probes.original_probes(settings.probes_folder, shots=settings.shots, queries=settings.queries)
    return probes.generated_probes(
        shots=settings.shots,
        queries=settings.queries,
        slice_per_mille=settings.slice_per_mille,
        hold_out_words=settings.hold_out_words,
    )
