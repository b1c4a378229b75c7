"""Heads that give logits for classification: linear, and the two layers of the Adaptor paper."""

from typing import Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn


class LinearHead(nn.Module):
    """One linear layer from an embedding to logits.

    Args:
        width: Width of the embedding.
        outputs: Number of labels or classes.
    """

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)

    @classmethod
    def from_weights(
        cls, weight: Float[Tensor, "output width"] | np.ndarray, bias: Float[Tensor, " output"] | np.ndarray
    ) -> Self:
        """Start at weights that are known, for example those of a probe; they are copied, as float32."""
        head = cls(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            head.linear.weight.copy_(torch.as_tensor(weight))
            head.linear.bias.copy_(torch.as_tensor(bias))
        return head

    def forward(self, embedding: Float[Tensor, "batch width"]) -> Float[Tensor, "batch output"]:
        """Return logits."""
        return self.linear(embedding)


def classification_head(width: int, outputs: int, *, hidden: int | None = None) -> nn.Module:
    """Build a linear head, or with ``hidden`` the two-layer head of the Adaptor paper.

    The latter is Dropout(0.1), Linear without bias, BatchNorm, ReLU, Dropout(0.1), Linear (arXiv 2401.01179; hidden
    512 there). In training its BatchNorm needs two or more items and mixes the items of a batch; in evaluation not.

    Example:
        >>> classification_head(256, 5, hidden=512).eval()(torch.zeros(1, 256)).shape
        torch.Size([1, 5])
    """
    if hidden is None:
        return LinearHead(width, outputs)
    first = nn.Linear(width, hidden, bias=False)
    last = nn.Linear(hidden, outputs)
    return nn.Sequential(nn.Dropout(0.1), first, nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.1), last)


def text_informed_head(prompts: Float[Tensor, "output width"], *, scale: float) -> LinearHead:
    """Build a linear head whose weights are prompt embeddings, so that its logits are zero-shot scores.

    Args:
        prompts: Per class its prompt embedding, or per label the positive minus the negative one
            (``adaptmed.heads.prompts`` makes both).
        scale: Factor on the scores, 1 / temperature.

    Returns:
        The head, with bias 0, free to be trained. ``adaptmed.heads.probe.fit_text_informed_probe`` fits one with
        a penalty that pulls towards this start.
    """
    return LinearHead.from_weights(scale * prompts, torch.zeros(len(prompts)))
