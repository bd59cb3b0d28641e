"""How sure a perplexity, or a difference of two, is: a paired bootstrap over validation windows, in float64.

Windows are drawn with replacement, the same draw for every model, so what makes a window hard for all of them
cancels in a difference. The interval speaks of the choice of validation text, not of the training seed.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A value with its bootstrap standard error and percentile interval."""

    value: float
    standard_error: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0.0 or self.high < 0.0


def perplexities(nll: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Perplexity of each model.

    Args:
        nll: [models, windows], sum of the negative log likelihood over a window's scored tokens, nats.
        tokens: [windows], scored tokens of each window.

    Returns:
        [models], exp of the token mean.
    """
    return np.exp(nll.sum(axis=-1, dtype=np.float64) / tokens.sum(dtype=np.float64))


def resampled_perplexities(nll: np.ndarray, tokens: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Perplexities of `resamples` draws of the windows, the same draws for every model.

    Args:
        nll: [models, windows]; tokens: [windows], as in `perplexities`.

    Returns:
        [resamples, models], float64.
    """
    nll, tokens = np.asarray(nll, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    windows = tokens.shape[0]
    generator = np.random.default_rng(seed)
    shares = np.full(windows, 1.0 / windows)
    drawn = []
    for start in range(0, resamples, 100):  # in blocks: 1000 draws of 10,000 windows would take 80 MB at once
        counts = generator.multinomial(windows, shares, size=min(100, resamples - start)).astype(np.float64)
        drawn.append(np.exp((counts @ nll.T) / (counts @ tokens)[:, None]))
    return np.concatenate(drawn)


def interval(value: float, draws: np.ndarray, *, confidence: float) -> Interval:
    """Standard error and percentile interval of bootstrap draws [resamples]."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    return Interval(float(value), float(draws.std(ddof=1)), float(low), float(high))
