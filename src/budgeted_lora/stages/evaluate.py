"""Stage evaluate: measure the perplexity and, optionally, the in-context learning of one model."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch

from budgeted_lora.config.sections import EvaluationOptions
from budgeted_lora.config.types import Fraction, Positive
from budgeted_lora.data.token_bytes import token_bytes
from budgeted_lora.data.tokenizer import open_tokenizer
from budgeted_lora.data.tokens import TokenFile, Windows
from budgeted_lora.errors import BadInput
from budgeted_lora.evaluation import icl as in_context
from budgeted_lora.evaluation.perplexity import PerplexityResult, bits_per_byte, perplexity, scored_bytes, summarise
from budgeted_lora.files import read_json, write_with
from budgeted_lora.models.decoder import load_decoder
from budgeted_lora.models.device import multiply_wide, on_device
from budgeted_lora.provenance import Clock, write_result
from budgeted_lora.stages.twins import RECORD, WINDOWS, Twins

PARITY = ("max_abs_logit_difference", "max_abs_logit", "tokens")  # what is quoted of a compression's record


def evaluate(
    *,
    model: Path,
    tokens: Path,
    tokenizer: Path,
    out: Path,
    evaluation: EvaluationOptions,
    scale: str,
    device: str,
    threads: Positive,
    cell: str | None = None,
    icl: bool = True,
    student: Path | None = None,
    uncompressed: Path | None = None,
    compression: Path | None = None,
    budget: Fraction | None = None,
) -> None:
    """Writes perplexity.json and perplexity_windows.parquet, and with `icl` icl.json and icl_examples.parquet.

    All models are evaluated in float32, whatever dtype their folders hold, so that rows of a table are comparable. The
    Parquet file has one row per window: `nll` (nats, sum over the scored tokens) and `tokens` (their number).

    Args:
        model: folder of a plain or compressed model.
        tokens: the data folder, with the validation and functions token files and manifest.json.
        tokenizer: folder of the tokenizer.
        out: folder for the results; other files in it stay.
        uncompressed: folder of the trained student before compression, scored on the same windows; requires `student`,
            the model folder of the student before training.
        compression: record of the model's compression. If it approximated nothing, the trained student is the same
            function but for rounding: it is not scored again, and the record says so.
        budget: F that an elastic student was cut to, at which the trained one is scored too.

    Raises:
        BadInput: a file cannot be used, a prompt is too long, or a likelihood is not finite.
    """
    clock = Clock()
    if (student is None) != (uncompressed is None):
        raise BadInput("evaluate: student and uncompressed are needed together; only one was given")
    files = [TokenFile.open(Path(tokens) / name) for name in ("validation.bin", "functions.bin")]
    validation, functions = _windows(*files, evaluation)
    about = {"scale": scale, "cell": cell, "values": evaluation.model_dump(mode="json")}
    with on_device(device, threads=threads) as chosen:
        network = _network(model, device=chosen)
        conditions = _conditions(*files, evaluation, device=chosen, threads=threads, budget=budget)
        known = Twins(out, conditions | {"validation_tokens": evaluation.validation_tokens})
        twin = known.twin("compressed", [model])
        result, on_functions = _taken(twin) if twin else _scores(network, validation, functions, evaluation)
        before = None
        if uncompressed is not None and (parity := _exact_parity(compression)):
            before = result.summary() | {"same_by_construction": parity}
        elif uncompressed is not None and (twin := known.twin("uncompressed", [student, uncompressed])):
            before = read_json(twin)["uncompressed"]
        elif uncompressed is not None:
            before = _score(_trained(student, uncompressed, budget, chosen), validation, evaluation).summary()
        frame = out / WINDOWS
        columns = {"window": range(len(result.window_nll)), "nll": result.window_nll, "tokens": result.window_count}
        write_with(frame, pd.DataFrame(columns).to_parquet)
        payload = {**result.summary(), "functions": on_functions, "uncompressed": before, "conditions": conditions}
        payload = _per_byte(payload, validation, functions, tokenizer, evaluation)
        inputs = [path for path in (model, uncompressed, tokenizer, *(file.path for file in files)) if path is not None]
        more = {"inputs": inputs, "files": [frame], "scored": known.scored}
        write_result(out / RECORD, payload, clock=clock, **more, **about)
        if icl:
            clock, frame = Clock(), out / "icl_examples.parquet"
            payload = _in_context(network, tokenizer, evaluation, frame=frame)
            read = sorted(Path(evaluation.probes_folder).glob("*.json")) if evaluation.probes == "folder" else []
            inputs = [model, tokenizer, *read]
            write_result(out / "icl.json", payload, inputs=inputs, files=[frame], clock=clock, **about)


def _network(model: Path, *, device: torch.device) -> torch.nn.Module:
    """The compressed student, and the process set up for its width."""
    network = load_decoder(model).to(device)
    multiply_wide(network.model.embed_tokens.weight.shape[1], device)
    return network


def _trained(student: Path, trained: Path, budget: float | None, device: torch.device) -> torch.nn.Module:
    """The trained student before compression."""
    from budgeted_lora.models.trained import load_trained  # with transformers, which takes seconds

    return load_trained(student=student, trained=trained, budget=budget).model.to(device)


def _windows(validation: TokenFile, functions: TokenFile, options: EvaluationOptions) -> tuple[Windows, Windows]:
    """What is scored of both files; BadInput if nothing of held-out prose is left."""
    how = {"sequence_length": options.sequence_length, "packing": options.rows}
    prose = Windows(validation, **how, skipped=options.skip_windows)
    prose.refuse_empty()
    return prose, Windows(functions, **how)


def _scores(
    network: torch.nn.Module, validation: Windows, functions: Windows, options: EvaluationOptions
) -> tuple[PerplexityResult, dict[str, Any] | None]:
    """Perplexity on the validation windows, and its scalars on function documents, where there are any."""
    on_functions = _score(network, functions, options).summary() if functions.count else None
    return _score(network, validation, options), on_functions


def _taken(twin: Path) -> tuple[PerplexityResult, dict[str, Any] | None]:
    """The same from the record of an equal model, whose table of windows `Twins` has found whole."""
    windows = pd.read_parquet(twin.with_name(WINDOWS))
    return summarise(windows["nll"].to_numpy(), windows["tokens"].to_numpy()), read_json(twin)["functions"]


def _score(network: torch.nn.Module, windows: Windows, options: EvaluationOptions) -> PerplexityResult:
    return perplexity(network, windows, token_limit=options.validation_tokens, batch_windows=options.batch_windows)


def _per_byte(
    payload: dict[str, Any], validation: Windows, functions: Windows, tokenizer: Path, options: EvaluationOptions
) -> dict[str, Any]:
    """The same with `bits_per_byte` beside each perplexity, and the number of `bytes`.

    Bytes are the UTF-8 bytes of the scored tokens alone (`scored_bytes`); null for a tokenizer whose tokens do not keep
    the text (`token_bytes`).
    """
    sizes = token_bytes(open_tokenizer(tokenizer))
    limits = {"token_limit": options.validation_tokens, "batch_windows": options.batch_windows}

    def beside(scores: dict[str, Any] | None, windows: Windows) -> dict[str, Any] | None:
        if scores is None:
            return None
        size = scored_bytes(windows, sizes, **limits) if sizes else 0
        nats = scores["mean_nll"] * scores["tokens"]
        return scores | {"bits_per_byte": bits_per_byte(nats, size=size), "bytes": size or None}

    parts = {"functions": functions, "uncompressed": validation}
    return beside(payload, validation) | {name: beside(payload[name], windows) for name, windows in parts.items()}


def _exact_parity(compression: Path | None) -> dict[str, Any] | None:
    """How far logits before and after compression differ, if it approximated nothing; else None."""
    if compression is None:
        return None
    try:
        parity = read_json(compression, expected="the record of a compression")["parity"]
        return {name: parity[name] for name in PARITY} if parity["exact"] else None
    except (KeyError, TypeError):
        raise BadInput(f"{compression}: no parity; expected the record of a compression") from None


def _conditions(
    validation: TokenFile,
    functions: TokenFile,
    options: EvaluationOptions,
    *,
    device: torch.device,
    threads: int,
    budget: float | None,
) -> dict[str, Any]:
    """All that determines the perplexity besides the weights."""
    manifest = validation.path.with_name("manifest.json")
    held_out = read_json(manifest).get("proof", {}).get("held_out_md5_list_sha256", {}) if manifest.is_file() else {}
    return {
        "validation_sha256": validation.sha256,
        "functions_sha256": functions.sha256,
        "slice_sha256": held_out.get("validation"),
        "sequence_length": options.sequence_length,
        "rows": options.rows,
        "batch_windows": options.batch_windows,
        **({"skip_windows": options.skip_windows} if options.skip_windows else {}),
        **({} if budget is None else {"budget": budget}),
        "dtype": "float32",
        "device": device.type,
        "threads": threads,
    }


def _in_context(
    network: torch.nn.Module, tokenizer: Path, options: EvaluationOptions, *, frame: Path
) -> dict[str, Any]:
    """Answers the probes and writes one row per example to `frame`; returns the scores."""
    opened = open_tokenizer(tokenizer)
    probes = probe_set(options)
    examples = in_context.build_examples(probes, seeds=options.demonstration_seeds, space=options.prompt_space)
    limits = {"sequence_length": options.context or options.sequence_length, "batch": options.icl_batch}
    answers, encoded = in_context.answer_examples(
        network, opened.tokenizer, examples, end_id=opened.end_id, space=options.prompt_space, **limits
    )
    rows = in_context.example_rows(examples, answers, encoded)
    write_with(frame, pd.DataFrame(rows).to_parquet)
    return {
        **in_context.summarise(probes, examples, rows),
        "shots": options.shots,
        "longest_prompt_with_answer": encoded.longest,
        "prefix_breaks": encoded.prefix_breaks,
        "tokenizer": opened.record(),
        "dtype": "float32",
    }


def probe_set(options: EvaluationOptions) -> list[in_context.Probe]:
    """The 19 probes: ours, or the original files of a folder. Raises BadInput if a file or the slice cannot be used."""
    amounts = {"shots": options.shots, "queries": options.queries}
    if options.probes == "folder":
        return in_context.original_probes(options.probes_folder, **amounts)
    split = {"slice_per_mille": options.slice_per_mille, "hold_out_words": options.hold_out_words}
    return in_context.generated_probes(**amounts, **split)
