"""A projection as two thin linear layers: what compression leaves of one whose dense path is gone."""

from torch import Tensor, nn


class FactorizedLinear(nn.Module):
    """y = up(down(x)): two linear layers, d_in -> rank -> d_out; only `up` can have a bias."""

    def __init__(self, d_in: int, d_out: int, *, rank: int, bias: bool = False) -> None:
        super().__init__()
        self.down = nn.Linear(d_in, rank, bias=False)
        self.up = nn.Linear(rank, d_out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x [..., d_in] -> [..., d_out]."""
        return self.up(self.down(x))
