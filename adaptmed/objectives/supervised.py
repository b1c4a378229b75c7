"""Supervised objectives that leave out what is not labelled."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


def masked_bce(logits: Float[Tensor, "batch label"], labels: Float[Tensor, "batch label"]) -> Float[Tensor, ""]:
    """Binary cross-entropy, the mean over the labelled entries.

    Args:
        logits: One logit per label.
        labels: 0, 1 or between; NaN where not labelled.

    Returns:
        Nats; 0 with a graph where nothing is labelled.

    Example:
        >>> nan = float("nan")
        >>> masked_bce(torch.zeros(1, 2), torch.tensor([[1.0, nan]]))
        tensor(0.6931)
    """
    labelled = ~labels.isnan()
    targets = torch.where(labelled, labels, 0.0).to(logits.dtype)
    losses = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return torch.where(labelled, losses, 0.0).sum() / labelled.sum().clamp(min=1)


def masked_cross_entropy(logits: Float[Tensor, "batch class"], labels: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Cross-entropy over classes that exclude each other, the mean over the labelled items.

    Args:
        logits: One logit per class.
        labels: Class numbers; -1 where not labelled.

    Returns:
        Nats; 0 with a graph where nothing is labelled.
    """
    total = functional.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
    return total / (labels >= 0).sum().clamp(min=1)
