"""Input statistics of frozen tokens: fitted once on training rows, then part of the fusion."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from adaptmed.types import Tokens


class Standardise(nn.Module):
    """Shift and scale every channel of frozen tokens to mean 0 and variance 1 over a bank.

    Frozen encoders give channels whose scales differ by orders of magnitude (DINOv2) and whose means are far from 0.
    The statistics are buffers, saved with the adaptor; they start as the identity.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def fit(self, mean: Float[Tensor, " width"], std: Float[Tensor, " width"]) -> None:
        """Set the statistics; a channel that never varies keeps scale 1."""
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))

    def forward(self, values: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape width"]:
        """Standardise the last axis, in the precision of the statistics."""
        return (values.to(self.mean.dtype) - self.mean) / self.std


def channel_statistics(
    read: Callable[[NDArray[np.int64]], Tokens], rows: NDArray[np.int64]
) -> tuple[Float[Tensor, " width"], Float[Tensor, " width"]]:
    """Mean and standard deviation per channel over valid tokens, in float64 and a few rows at a time."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for start in range(0, len(rows), 128):
        tokens = read(rows[start : start + 128])
        values = tokens.values[tokens.valid].double()
        count, total, squares = count + len(values), total + values.sum(0), squares + values.square().sum(0)
    mean = total / max(count, 1)
    return mean.float(), (squares / max(count, 1) - mean.square()).clamp(min=0).sqrt().float()
