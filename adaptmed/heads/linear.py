"""Heads that give logits for classification: linear, and the two layers of the Adaptor paper."""

from typing import Self

import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor, nn

CONSTANT = 1e-6
"""Standard deviation up to which a feature counts as constant; it is not scaled then."""


class LinearHead(nn.Module):
    """One linear layer from features to logits, on standardised features so that one learning rate suits all of them.

    The statistics are buffers; they start as the identity.

    Args:
        width: Width of the features.
        outputs: Number of labels or classes.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.linear = nn.Linear(width, outputs)

    @classmethod
    def of_probe(
        cls, weight: Float[ndarray, "output width"], bias: Float[ndarray, " output"], features: Float[Tensor, "n width"]
    ) -> Self:
        """Start at a probe.

        Args:
            weight: Of the probe, on the features as they are.
            bias: Of the probe.
            features: Of the rows the probe was fitted on; their mean and standard deviation are kept.

        Returns:
            A head with the same logits, up to float32.
        """
        head = cls(weight.shape[1], weight.shape[0])
        exact = features.double()
        mean, std = exact.mean(dim=0), exact.std(dim=0, correction=0)
        std = torch.where(std > CONSTANT, std, torch.ones_like(std))
        with torch.no_grad():
            head.mean.copy_(mean)
            head.std.copy_(std)
            head.linear.weight.copy_(torch.as_tensor(weight) * std)
            head.linear.bias.copy_(torch.as_tensor(bias) + torch.as_tensor(weight) @ mean)
        return head

    def forward(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch output"]:
        """Return logits."""
        return self.linear((features.to(self.mean.dtype) - self.mean) / self.std)


def paper_head(width: int, outputs: int, *, hidden: int = 512) -> nn.Module:
    """Build the two-layer head of the Adaptor paper (arXiv 2401.01179).

    Dropout(0.1), Linear without bias, BatchNorm, ReLU, Dropout(0.1), Linear. In training its BatchNorm needs two or
    more items and mixes the items of a batch; in evaluation not.

    Example:
        >>> paper_head(256, 5).eval()(torch.zeros(1, 256)).shape
        torch.Size([1, 5])
    """
    first = nn.Linear(width, hidden, bias=False)
    last = nn.Linear(hidden, outputs)
    return nn.Sequential(nn.Dropout(0.1), first, nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.1), last)
