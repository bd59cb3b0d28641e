"""Perplexity on a fixed set of windows, with a standard error over windows (paper section 4, method.md 7)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from budgeted_lora.data.token_bytes import TokenBytes
from budgeted_lora.data.tokens import Windows
from budgeted_lora.errors import BadInput

LOGITS_AT_ONCE = 1 << 23  # logits computed together: bounds memory where the vocabulary is large


@dataclass(frozen=True)
class PerplexityResult:
    """Perplexity of one model on one set of windows.

    Attributes:
        value: exp of the mean negative log-likelihood per token (nats).
        standard_error: of `value`, by the delta method with windows as the sampling unit; 0 for a single window.
        mean_nll: nats per token.
        token_count: scored tokens; the first token of each window is not scored.
        window_nll: float64 [windows], sum over the window's scored tokens.
        window_count: int64 [windows], tokens scored in each window.
    """

    value: float
    standard_error: float
    mean_nll: float
    token_count: int
    window_nll: np.ndarray
    window_count: np.ndarray

    def summary(self) -> dict[str, float | int]:
        """The scalars under the keys of perplexity.json."""
        scored = {"tokens": self.token_count, "windows": len(self.window_nll)}
        return {"value": self.value, "standard_error": self.standard_error, "mean_nll": self.mean_nll} | scored


LARGEST_NLL = 700.0  # nats per token; the exponential of more is no float64


def summarise(window_nll: np.ndarray, window_count: np.ndarray) -> PerplexityResult:
    """Perplexity and its standard error from sums per window.

    The mean is a ratio of two sums over windows, so its variance is that of the residuals
    `nll_w - mean * count_w`; the exponential multiplies it by the squared perplexity.
    """
    nll, count = np.asarray(window_nll, dtype=np.float64), np.asarray(window_count, dtype=np.int64)
    total = int(count.sum())
    mean = float(nll.sum() / total)
    if not mean < LARGEST_NLL:
        raise BadInput(f"the model's loss is {mean:g} nats per token, whose perplexity is no number; it has diverged")
    windows = len(nll)
    residuals = nll - mean * count
    variance = windows / (windows - 1) * float((residuals**2).sum()) / total**2 if windows > 1 else 0.0
    value = math.exp(mean)
    return PerplexityResult(value, value * math.sqrt(variance), mean, total, nll, count)


def scored_bytes(windows: Windows, of: TokenBytes, *, token_limit: int | None, batch_windows: int) -> int:
    """UTF-8 bytes of the text that the tokens scored by `perplexity` with the same arguments stand for.

    They are counted token by token, so a window that begins or ends inside a document counts what it scores of it. The
    first token of a window is not scored and not counted. The end token between documents stands for no text: it adds
    its nats to the likelihood and no byte.
    """
    total = 0
    for ids, mask in _batches(windows, token_limit=token_limit, batch_windows=batch_windows):
        numbers, scored = ids.numpy(), mask[:, 1:].numpy()
        total += int(of.of(numbers[:, 1:], numbers[:, :-1])[scored].sum())
    return total


def bits_per_byte(nats: float, *, size: int) -> float | None:
    """The negative log-likelihood of all scored tokens in bits, by the bytes they stand for; None without bytes."""
    return nats / (math.log(2) * size) if size else None


@torch.inference_mode()
def perplexity(
    model: torch.nn.Module, windows: Windows, *, token_limit: int | None, batch_windows: int
) -> PerplexityResult:
    """Scores windows from the start of a token file.

    Every token except the first of its window is predicted from the tokens before it in the window. Which windows are
    scored does not depend on `batch_windows`. Padding stands on the right, where causal attention keeps it from the
    scored positions, so no attention mask is needed.

    Args:
        model: a transformers causal language model with `.model` (decoder) and `.lm_head`.
        token_limit: most tokens that the windows hold together, but at least one window; None scores all windows.

    Raises:
        BadInput: no token to score, a token outside the model's vocabulary, or a likelihood that is not finite.
    """
    model.eval()
    device = next(model.parameters()).device
    sums, counts = [], []
    for ids, mask in _batches(windows, token_limit=token_limit, batch_windows=batch_windows):
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
        raise BadInput(f"{windows.file.path}: no window of {windows.sequence_length} tokens with a token to score")
    if not np.isfinite(window_nll).all():
        first = int(np.argmin(np.isfinite(window_nll)))
        raise BadInput(f"the likelihood of window {first} is not finite; check the model's weights")
    return summarise(window_nll[scored], window_count[scored])


def _batches(
    windows: Windows, *, token_limit: int | None, batch_windows: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(ids int64 [B, L], mask bool [B, L]) until the windows hold `token_limit` tokens; at least one window."""
    seen = 0
    for start in range(0, windows.count, batch_windows):
        indices = np.arange(start, min(start + batch_windows, windows.count))
        ids, mask = (torch.as_tensor(array) for array in windows.read(indices))
        seen_after = seen + mask.sum(dim=1).cumsum(0)  # after each window of the batch
        if token_limit is not None and int(seen_after[-1]) > token_limit:
            fitting = max(int((seen_after <= token_limit).sum()), 1 if seen == 0 else 0)
            if fitting:
                yield ids[:fitting], mask[:fitting]
            return
        yield ids, mask
        seen = int(seen_after[-1])


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
