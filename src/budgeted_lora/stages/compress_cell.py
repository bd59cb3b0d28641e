"""Stage compress_cell: compress one trained student to what its budget left."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from budgeted_lora.beyond.statistics import InputStatistics
from budgeted_lora.beyond.truncate import truncate_module
from budgeted_lora.config.recipe import Recipe
from budgeted_lora.config.sections import Compression
from budgeted_lora.config.types import Positive
from budgeted_lora.data.tokens import TokenFile, Windows
from budgeted_lora.errors import BadInput
from budgeted_lora.files import atomic_folder, check_digest, write_digest, write_text
from budgeted_lora.method.compress import compress_modules, untouched
from budgeted_lora.method.cost import dense_macs, projections
from budgeted_lora.method.projections import model_shape
from budgeted_lora.method.structure import totals
from budgeted_lora.models.card import model_card
from budgeted_lora.models.checkpoint import copy_generation, copy_tokenizer
from budgeted_lora.models.device import on_device
from budgeted_lora.models.load import load_model, save_model
from budgeted_lora.models.plain import compressed_model
from budgeted_lora.models.trained import TrainedStudent, load_trained
from budgeted_lora.provenance import Clock, write_result

PARITY_WINDOWS = 4
PARITY_TOLERANCE = 1e-3  # of the largest logit, float32; rounding alone stays far below
MODULE_OPTIONS = {"rank_threshold", "svd_threshold", "r_max", "rank_multiple", "gate_hardening"}


def compress_student(
    student: TrainedStudent,
    *,
    variant: Compression,
    drop_threshold: float,
    macs: int | None = None,
    moments: Mapping[str, Tensor] | None = None,
) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
    """A model of plain linear layers in float32, and the record of every projection, in `named_modules()` order.

    Args:
        macs: with variant.macs_of_budget, the MACs a KD Full student is truncated to, in equal shares.
        moments: with variant.truncation "outputs", the second moment of each projection's inputs.

    Raises:
        BadInput: macs_of_budget on a student with low-rank paths, or truncation by outputs without moments.
    """
    if variant.macs_of_budget is not None and student.modules:
        raise BadInput(f"compression.macs_of_budget on a {student.method} student; only KD Full is truncated")
    if variant.truncation == "outputs" and moments is None:
        raise BadInput("compression.truncation: outputs needs input statistics, which only an undistilled student has")
    weights = {
        projection.name: student.model.get_submodule(projection.name).weight.detach().float()
        for projection in projections(model_shape(student.model))
    }
    if variant.macs_of_budget is None:
        thresholds = variant.model_dump(include=MODULE_OPTIONS)
        compressed = compress_modules(student.modules, drop_threshold=drop_threshold, **thresholds)
    else:
        share = macs / dense_macs(model_shape(student.model))
        chosen = moments if variant.truncation == "outputs" else {}
        compressed = {
            name: truncate_module(weight, share=share, moment=chosen.get(name), rank_multiple=variant.rank_multiple)
            for name, weight in weights.items()
        }
    modules = {name: untouched(weight) for name, weight in weights.items()} | compressed
    records = [{"name": name, **module.record} for name, module in modules.items()]
    return compressed_model(student.model, compressed), records


def summarize(
    model: PreTrainedModel, records: list[dict[str, Any]], *, method: str, rank: int | None
) -> dict[str, Any]:
    """The totals of compression.json.

    KD Full and KD LoRA count as 0 % smaller, by the paper's convention: their row is the dense model. Only a student
    with LoRA has a "vs LoRA" base.
    """
    sums = totals(
        model_shape(model),
        rank=rank or 1,
        decisions=[record["decision"] for record in records],
        macs=[record["macs"] for record in records],
    )
    result = {**vars(sums), "avg_rank": sum(record["lora_rank"] for record in records) / len(records)}
    if method != "budgeted_lora" and sums.macs == sums.dense_macs:
        result["param_reduction_pct"] = 0.0
    if rank is None:
        result |= {"speedup_vs_lora": None, "avg_rank": None}
    return result


@torch.no_grad()
def parity(
    before: PreTrainedModel, after: PreTrainedModel, *, ids: Tensor, mask: Tensor, exact: bool
) -> dict[str, Any]:
    """Largest difference of logits, float32, over the positions of `mask` [B, L] of a batch `ids` [B, L].

    Raises:
        RuntimeError: the compressed map should be the trained one, and the logits say otherwise.
    """
    expected, actual = before(input_ids=ids).logits[mask], after(input_ids=ids).logits[mask]
    difference, largest = (expected - actual).abs().max().item(), expected.abs().max().item()
    if exact and not difference <= PARITY_TOLERANCE * max(1.0, largest):
        raise RuntimeError(
            f"compression approximated nothing, yet logits differ by {difference:.3g} (largest logit {largest:.3g})"
        )
    return {
        "max_abs_logit_difference": difference,
        "max_abs_logit": largest,
        "exact": exact,
        "dtype": "float32",
        "windows": len(ids),
        "tokens": int(mask.sum()),
    }


def compress_cell(
    *,
    recipe: Recipe,
    cell: str,
    scale: str,
    student: Path,
    trained: Path,
    tokens: Path,
    tokenizer: Path,
    variant: Compression,
    out: Path,
    macs: int | None = None,
    threads: Positive = 1,
    statistics: Path | None = None,
) -> None:
    """Compresses one trained student: writes out/model/ and out/compression.json.

    The model that parity is measured on is the one read back from disk.

    Args:
        student: model folder that training began with; gives the configuration.
        trained: folder that training wrote (`models.trained`).
        tokens: validation.bin, of which the first windows are the parity batch.
        tokenizer: folder whose files go into the model folder.
        macs: with variant.macs_of_budget, the MACs that this budget leaves.
        threads: CPU threads; the bytes of an SVD may depend on them.
        statistics: folder of the untrained student's statistics, where the variant needs one.

    Raises:
        BadInput: an input is missing, damaged or of another method, or the token file holds no window.
        RuntimeError: nothing was approximated, yet the logits differ.
    """
    clock = Clock()
    with on_device("cpu", threads=threads):
        before = open_student(student, trained, recipe, undistilled=variant.undistilled, budget=variant.budget)
        check_digest(tokenizer)
        ids, mask = _parity_batch(tokens, recipe)
        model, records = compress_student(
            before,
            variant=variant,
            drop_threshold=recipe.drop_threshold or 0.0,
            macs=macs,
            moments=InputStatistics.open(statistics).moments if statistics and variant.undistilled else None,
        )
        sums = summarize(model, records, method=recipe.method, rank=recipe.rank)
        with atomic_folder(out / "model") as folder:
            save_model(model, folder)
            copy_tokenizer(tokenizer, folder)
            copy_generation(student, folder)
            card = model_card(cell=cell, scale=scale, recipe=recipe, totals=sums, budget=variant.budget)
            write_text(folder / "README.md", card)
        exact = all(record["exact"] for record in records)
        same = parity(before.model, load_model(out / "model"), ids=ids, mask=mask, exact=exact)
    payload = {"modules": records, "totals": sums, "parity": same}
    settings = variant.model_dump(mode="json") | ({} if macs is None else {"macs": macs})
    values = {"recipe": recipe.model_dump(mode="json"), "settings": settings, "threads": threads}
    inputs = [student, trained, tokens, tokenizer, *([statistics] if statistics else [])]
    write_result(out / "compression.json", payload, scale=scale, cell=cell, values=values, inputs=inputs, clock=clock)
    write_digest(out / "model")


def open_student(
    student: Path, trained: Path, recipe: Recipe, *, undistilled: bool, budget: float | None = None
) -> TrainedStudent:
    """The student to compress: trained, an elastic one set to a budget, or as training began with it.

    Raises:
        BadInput: its method is another one, or the budget is missing or too much.
    """
    if undistilled:
        before = TrainedStudent(load_model(student).float().eval(), {}, "kd_full")
    else:
        before = load_trained(student=student, trained=trained, budget=budget)
    if before.method != recipe.method:
        raise BadInput(f"{trained}: was trained by {before.method}; expected {recipe.method}")
    return before


def _parity_batch(tokens: Path, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """The first windows of a token file, ids and mask [B, L]."""
    windows = Windows(TokenFile.open(tokens), recipe.sequence_length, recipe.rows)
    windows.refuse_empty()
    ids, mask = windows.read(np.arange(min(PARITY_WINDOWS, windows.count)))
    return torch.from_numpy(ids), torch.from_numpy(mask)
