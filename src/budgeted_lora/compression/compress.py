"""From a trained student to plain linear layers: drop, approximate or keep each dense path (paper, section 3.4)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import MistralConfig, PreTrainedModel

from budgeted_lora.budget.cost import dense_macs, projections
from budgeted_lora.budget.plan import Decision, decide, svd_rank, totals
from budgeted_lora.compression.card import copy_tokenizer, model_card
from budgeted_lora.config import Compression
from budgeted_lora.data.tokens import TokenFile
from budgeted_lora.errors import BadInput
from budgeted_lora.files import atomic_folder, check_digest, write_text
from budgeted_lora.models.compressed import CompressedMistralConfig, CompressedMistralForCausalLM
from budgeted_lora.models.load import load_model, save_model
from budgeted_lora.models.low_rank import InputStatistics, low_rank_factors
from budgeted_lora.models.projections import model_shape
from budgeted_lora.models.trained import TrainedStudent, load_trained
from budgeted_lora.provenance import Clock, write_result
from budgeted_lora.recipe import Recipe

MODULE_SETTINGS = ("rank_threshold", "svd_threshold", "r_max", "gate_hardening")
PARITY_WINDOWS = 4
PARITY_TOLERANCE = 1e-3  # of the largest logit, float32; rounding alone stays far below


@dataclass(frozen=True)
class Compressed:
    """One projection after compression: `dense` [d_out, d_in] if kept, else `down` [r, d_in] and `up` [d_out, r].

    `record` holds d, decision, lora_rank, svd_rank, dense_macs, macs, reconstruction_error (Frobenius norm of the
    difference to the trained map), relative_error (over the norm of that map), and exact: whether the compressed map
    is the trained one but for rounding.
    """

    decision: Decision
    dense: Tensor | None
    down: Tensor | None
    up: Tensor | None
    record: dict[str, Any]


@torch.no_grad()
def compress_module(
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    gates: Tensor | None,
    *,
    d: float,
    scale: float,
    rank_threshold: float,
    drop_threshold: float,
    svd_threshold: float,
    r_max: int,
    gate_hardening: Literal["soft", "one"],
) -> Compressed:
    """Compresses d W + scale B diag(g) A, in float32 or the weights' own higher precision.

    Args:
        weight, a, b: W [d_out, d_in], A [r, d_in], B [d_out, r].
        gates: gate values g in (0, 1), [r]; None for plain LoRA, whose ranks all stay.
        d: final dense coefficient.
        scale: alpha / r.
        rank_threshold: ranks with g at or below it are cut; the one with the largest gate always stays.
        r_max: SVD rank of a coefficient of 1.
        gate_hardening: whether surviving gates keep their value ("soft") or become 1 ("one").
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    weight, a, b = weight.to(dtype), a.to(dtype), b.to(dtype)
    soft = torch.ones(len(a), dtype=dtype, device=a.device) if gates is None else gates.to(dtype)
    trained = d * weight + (b * (scale * soft)) @ a
    kept = _surviving(gates, ranks=len(a), threshold=rank_threshold).to(a.device)
    hard = torch.ones_like(soft) if gate_hardening == "one" else soft
    down, up = a[kept], b[:, kept] * (scale * hard[kept])

    decision = decide(d, drop_threshold=drop_threshold, svd_threshold=svd_threshold)
    d_out, d_in = weight.shape
    k = 0
    if decision == "svd":
        k = svd_rank(d, r_max=r_max, d_in=d_in, d_out=d_out)
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        root = torch.sqrt(d * values[:k])  # half to each side, so that both factors have like magnitudes
        down, up = torch.cat([down, root[:, None] * right[:k]]), torch.cat([up, left[:, :k] * root], dim=1)
    dense = d * weight + up @ down if decision == "keep" else None

    error = torch.linalg.matrix_norm((up @ down if dense is None else dense) - trained).item()
    norm = torch.linalg.matrix_norm(trained).item()
    exact = (
        len(kept) == len(a) and torch.equal(hard, soft) and (decision == "keep" or d == 0.0 or k == min(d_in, d_out))
    )
    record = {
        "d": d,
        "decision": decision,
        "lora_rank": len(kept),
        "svd_rank": k,
        "dense_macs": d_in * d_out,
        "macs": d_in * d_out if dense is not None else (len(kept) + k) * (d_in + d_out),
        "reconstruction_error": error,
        "relative_error": error / norm if norm else 0.0,
        "exact": exact,
    }
    return Compressed(decision, dense, None if dense is not None else down, None if dense is not None else up, record)


@torch.no_grad()
def truncate_module(weight: Tensor, *, share: float, moment: Tensor | None = None) -> Compressed:
    """The truncated SVD of a dense W [d_out, d_in] whose two factors cost at most `share` of its MACs, rank 1 at least.

    It is what one would do without the paper's method, and is not retrained. With the second moment of the inputs
    [d_in, d_in] it is the outputs that are kept as well as can be.
    """
    d_out, d_in = weight.shape
    rank = min(max(1, int(share * d_in * d_out / (d_in + d_out))), d_in, d_out)
    up, down = low_rank_factors(weight, rank=rank, moment=moment)
    error = torch.linalg.matrix_norm(weight.double() - up @ down).item()
    norm = torch.linalg.matrix_norm(weight.double()).item()
    dtype = torch.promote_types(weight.dtype, torch.float32)
    record = {
        "d": 1.0,
        "decision": "svd",
        "lora_rank": 0,
        "svd_rank": rank,
        "dense_macs": d_in * d_out,
        "macs": rank * (d_in + d_out),
        "reconstruction_error": error,
        "relative_error": error / norm if norm else 0.0,
        "exact": rank == min(d_in, d_out),
    }
    return Compressed("svd", None, down.to(dtype), up.to(dtype), record)


def _surviving(gates: Tensor | None, *, ranks: int, threshold: float) -> Tensor:
    """Indices of the ranks that stay, ascending; never empty."""
    if gates is None:
        return torch.arange(ranks)
    kept = torch.nonzero(gates > threshold).flatten()
    return kept if len(kept) else gates.argmax().reshape(1)


@torch.no_grad()
def compress_student(
    student: TrainedStudent,
    *,
    settings: Compression,
    drop_threshold: float,
    macs: int | None = None,
    moments: Mapping[str, Tensor] | None = None,
) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
    """A model of plain linear layers in float32, and the record of every projection, in `named_modules()` order.

    A student without anything factorised (KD Full, KD LoRA, F = 1) stays of transformers' own class.

    Args:
        macs: with settings.macs_of_budget, the MACs a KD Full student is truncated to, in equal shares.
        moments: with settings.truncation "outputs", the second moment of each projection's inputs.

    Raises:
        BadInput: macs_of_budget on a student with low-rank paths, or outputs to be kept and no moments.
    """
    if settings.macs_of_budget is not None and student.modules:
        raise BadInput(f"compression.macs_of_budget on a {student.method} student; only KD Full is truncated")
    if settings.truncation == "outputs" and moments is None:
        raise BadInput("compression.truncation: outputs needs input statistics, which only an undistilled student has")
    shape = model_shape(student.model)
    share = None if settings.macs_of_budget is None else macs / dense_macs(shape)
    state = {name: tensor.detach().float() for name, tensor in student.model.state_dict().items()}
    factorized, records = {}, []
    for projection in projections(shape):
        module = student.modules.get(projection.name)
        if module is None and share is None:
            records.append({"name": projection.name, **_untouched(projection.macs)})
            continue
        if module is None:
            moment = moments[projection.name] if settings.truncation == "outputs" else None
            done = truncate_module(state[f"{projection.name}.weight"], share=share, moment=moment)
        else:
            done = compress_module(
                module.weight,
                module.lora_a,
                module.lora_b,
                module.gates(),
                d=module.dense,
                scale=module.scale,
                drop_threshold=drop_threshold,
                **settings.model_dump(include=set(MODULE_SETTINGS)),
            )
        records.append({"name": projection.name, **done.record})
        for leaf in ("weight", "lora_a", "lora_b", "gate_logits"):
            state.pop(f"{projection.name}.{leaf}", None)
        if done.dense is not None:
            state[f"{projection.name}.weight"] = done.dense
        else:
            factorized[projection.name] = len(done.down)
            state[f"{projection.name}.down.weight"], state[f"{projection.name}.up.weight"] = done.down, done.up
    model = _plain_model(student.model, factorized)
    model.load_state_dict(state, strict=True)
    return model.eval(), records


def _untouched(macs: int) -> dict[str, Any]:
    """Record of a projection of KD Full, which has no low-rank path."""
    nothing_lost = {"reconstruction_error": 0.0, "relative_error": 0.0, "exact": True}
    return {
        "d": 1.0,
        "decision": "keep",
        "lora_rank": 0,
        "svd_rank": 0,
        "dense_macs": macs,
        "macs": macs,
        **nothing_lost,
    }


def _plain_model(model: PreTrainedModel, factorized: Mapping[str, int]) -> PreTrainedModel:
    """An untrained float32 model of the same sizes, its named projections factorised."""
    values = model.config.to_dict()
    if factorized:
        fields = MistralConfig.__dataclass_fields__.keys() - {"architectures", "transformers_version", "dtype"}
        kept = {name: value for name, value in values.items() if name in fields}
        config = CompressedMistralConfig(**({"sliding_window": None} | kept), factorized=dict(factorized))
        kind = CompressedMistralForCausalLM
    else:
        kind, config = type(model), type(model.config)(**values)
    return kind._from_config(config, attn_implementation="sdpa", dtype=torch.float32)


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
    expected, found = before(input_ids=ids).logits[mask], after(input_ids=ids).logits[mask]
    difference, largest = (expected - found).abs().max().item(), expected.abs().max().item()
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
    settings: Mapping[str, Any],
    out: Path,
    threads: int = 1,
    statistics: Path | None = None,
) -> None:
    """Compresses one trained student: writes out/model/ and out/compression.json.

    The model that parity is measured on is the one read back from disk.

    Args:
        student: model folder that training began with; gives the configuration.
        trained: folder that training wrote (`models.trained`).
        tokens: validation.bin, of which the first windows are the parity batch.
        tokenizer: folder whose files go into the model folder.
        settings: values of `config.Compression`; with macs_of_budget also `macs`, what that budget leaves.
        threads: CPU threads; the bytes of an SVD may depend on them.
        statistics: folder of the untrained student's statistics, where the settings need one.

    Raises:
        BadInput: an input is missing, damaged or of another method, or the token file holds no window.
        RuntimeError: nothing was approximated, yet the logits differ.
    """
    clock, out = Clock(), Path(out)
    values = dict(settings)
    macs = values.pop("macs", None)
    chosen = Compression.model_validate(values)
    with _cpu_threads(threads):
        if chosen.undistilled:
            before = TrainedStudent(load_model(student).float().eval(), {}, "kd_full")
        else:
            before = load_trained(student=student, trained=trained)
        if before.method != recipe.method:
            raise BadInput(f"{trained}: was trained by {before.method}; expected {recipe.method}")
        check_digest(tokenizer)
        ids, mask = _parity_batch(tokens, recipe)
        model, records = compress_student(
            before,
            settings=chosen,
            drop_threshold=recipe.drop_threshold or 0.0,
            macs=macs,
            moments=InputStatistics.open(statistics).moments if statistics and chosen.undistilled else None,
        )
        sums = summarize(model, records, method=recipe.method, rank=recipe.rank)
        with atomic_folder(out / "model") as folder:
            save_model(model, folder)
            copy_tokenizer(tokenizer, folder)
            write_text(folder / "README.md", model_card(cell=cell, scale=scale, recipe=recipe, totals=sums))
        exact = all(record["exact"] for record in records)
        same = parity(before.model, load_model(out / "model"), ids=ids, mask=mask, exact=exact)
    write_result(
        out / "compression.json",
        {"modules": records, "totals": sums, "parity": same},
        scale=scale,
        cell=cell,
        values={
            "recipe": recipe.model_dump(mode="json"),
            "settings": dict(settings),
            "threads": threads,
        },
        inputs=[student, trained, tokens, tokenizer, *([statistics] if statistics else [])],
        clock=clock,
    )


def _parity_batch(tokens: Path, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """The first windows of a token file, ids and mask [B, L]."""
    file = TokenFile.open(tokens)
    count = min(PARITY_WINDOWS, file.len_windows(recipe.sequence_length, recipe.rows))
    if count == 0:
        raise BadInput(f"{tokens}: holds no window of {recipe.sequence_length} tokens; expected at least one")
    ids, mask = file.windows(np.arange(count), sequence_length=recipe.sequence_length, rows=recipe.rows)
    return torch.from_numpy(ids), torch.from_numpy(mask)


@contextmanager
def _cpu_threads(threads: int) -> Iterator[None]:
    """Gives torch `threads` CPU threads until the block ends."""
    earlier = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(earlier)
