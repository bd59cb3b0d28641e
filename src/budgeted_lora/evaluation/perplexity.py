"""Perplexity on a fixed set of windows, with a standard error over windows (paper section 4, method.md 7)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional

from budgeted_lora.errors import BadInput

LOGITS_AT_ONCE = 1 << 23  # logits computed together: bounds memory where the vocabulary is large


class Windows(Protocol):
    """What is asked of a token file (`data.tokens.TokenFile`)."""

    def len_windows(self, sequence_length: int, packing: str) -> int: ...

    def windows(self, indices: Any, *, sequence_length: int, packing: str) -> tuple[Any, Any]: ...


@dataclass(frozen=True)
class PerplexityResult:
    """Perplexity of one model on one set of windows.

    Attributes:
        value: exp of the mean negative log-likelihood of a token (nats).
        standard_error: of `value`, delta method, windows as the sampling unit; 0 when there is one window.
        mean_nll: nats a token.
        tokens: tokens scored; the first of each window is not.
        window_nll: float64 [windows], sum over the window's scored tokens.
        window_count: int64 [windows], tokens scored in each window.
    """

    value: float
    standard_error: float
    mean_nll: float
    tokens: int
    window_nll: np.ndarray
    window_count: np.ndarray

    def summary(self) -> dict[str, float | int]:
        """The scalars, as they stand in JSON."""
        return {
            "value": self.value,
            "standard_error": self.standard_error,
            "mean_nll": self.mean_nll,
            "tokens": self.tokens,
            "windows": len(self.window_nll),
        }


def summarise(window_nll: np.ndarray, window_count: np.ndarray) -> PerplexityResult:
    """Perplexity and its standard error from sums per window.

    The mean is a ratio of two sums over windows, so its variance is that of the residuals
    `nll_w - mean * count_w`; the exponential multiplies it by the squared perplexity.
    """
    nll, count = np.asarray(window_nll, dtype=np.float64), np.asarray(window_count, dtype=np.int64)
    total = int(count.sum())
    mean = float(nll.sum() / total)
    windows = len(nll)
    residuals = nll - mean * count
    variance = windows / (windows - 1) * float((residuals**2).sum()) / total**2 if windows > 1 else 0.0
    value = math.exp(mean)
    return PerplexityResult(value, value * math.sqrt(variance), mean, total, nll, count)


@torch.inference_mode()
def perplexity(
    model: torch.nn.Module,
    token_file: Windows,
    *,
    tokens: int | None,
    sequence_length: int,
    packing: str,
    batch_windows: int,
) -> PerplexityResult:
    """Scores non-overlapping windows from the start of a token file.

    Every token but the first of its window is predicted from those before it in the window. The windows taken
    do not depend on `batch_windows`. Padding (of single documents) stands on the right, where causal attention
    keeps it from the scored positions, so no attention mask is needed.

    Args:
        model: a transformers causal language model with `.model` (decoder) and `.lm_head`.
        tokens: stop once the windows hold this many tokens; all windows when None.
        sequence_length: tokens of a window.
        packing: "packed" or "document", see `data.tokens`.

    Raises:
        BadInput: there is nothing to score, a token is outside the model's vocabulary, or a likelihood is not finite.
    """
    model.eval()
    device = next(model.parameters()).device
    sums, counts = [], []
    shape = {"sequence_length": sequence_length, "packing": packing, "batch_windows": batch_windows}
    for ids, mask in _batches(token_file, tokens=tokens, **shape):
        largest, vocabulary = int(ids.max()), model.config.vocab_size
        if largest >= vocabulary:
            raise BadInput(
                f"token {largest} in the evaluation windows; the model's vocabulary has {vocabulary} entries"
            )
        sums.append(_window_sums(model, ids.to(device), mask.to(device)).cpu().numpy())
        counts.append(mask[:, 1:].sum(dim=1).numpy())
    window_nll = np.concatenate(sums) if sums else np.zeros(0)
    window_count = np.concatenate(counts) if counts else np.zeros(0, dtype=np.int64)
    scored = window_count > 0
    if not scored.any():
        raise BadInput(f"no window of {sequence_length} tokens with a token to score; expected a longer token file")
    if not np.isfinite(window_nll).all():
        first = int(np.argmin(np.isfinite(window_nll)))
        raise BadInput(f"the likelihood of window {first} is not finite; expected usable weights")
    return summarise(window_nll[scored], window_count[scored])


def _batches(
    token_file: Windows, *, tokens: int | None, sequence_length: int, packing: str, batch_windows: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(ids int64 [B, L], mask bool [B, L]) until the windows hold `tokens` tokens; always at least one window."""
    available = token_file.len_windows(sequence_length, packing)
    seen = 0
    for start in range(0, available, batch_windows):
        indices = np.arange(start, min(start + batch_windows, available))
        ids, mask = token_file.windows(indices, sequence_length=sequence_length, packing=packing)
        ids, mask = torch.as_tensor(ids), torch.as_tensor(mask)
        held = seen + mask.sum(dim=1).cumsum(0)
        if tokens is not None and int(held[-1]) > tokens:
            fitting = int((held <= tokens).sum())
            if seen == 0:
                fitting = max(fitting, 1)
            if fitting:
                yield ids[:fitting], mask[:fitting]
            return
        yield ids, mask
        seen = int(held[-1])


def _window_sums(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Float64 [B]: negative log-likelihood (nats) summed over the scored tokens of each window."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    scored = mask[:, 1:]
    states, targets = hidden[:, :-1][scored], ids[:, 1:][scored]
    step = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    parts = [
        functional.cross_entropy(model.lm_head(states[i : i + step]).float(), targets[i : i + step], reduction="none")
        for i in range(0, len(targets), step)
    ]
    sums = torch.zeros(len(ids), dtype=torch.float64, device=ids.device)
    if parts:
        window = torch.arange(len(ids), device=ids.device).unsqueeze(1).expand_as(scored)[scored]
        sums.index_add_(0, window, torch.cat(parts).double())
    return sums
