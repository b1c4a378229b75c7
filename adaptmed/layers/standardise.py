"""Input statistics of frozen features, as the first layer of what is trained on them."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Standardise(nn.Module):
    """Shift and scale every channel of frozen features to mean 0 and variance 1 over a bank.

    Frozen encoders give channels whose scales differ by orders of magnitude (DINOv2) and whose means are far from 0.
    The statistics are buffers, saved with what is trained on them; they start as the identity.
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
