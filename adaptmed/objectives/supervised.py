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


def masked_cross_entropy(
    logits: Float[Tensor, "batch class"],
    labels: Int[Tensor, " batch"],
    *,
    weights: Float[Tensor, " class"] | None = None,
    smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Cross-entropy over classes that exclude each other, the mean over the labelled items.

    Args:
        logits: One logit per class.
        labels: Class numbers; -1 where not labelled.
        weights: How much an item of each class counts, as in :func:`balanced_weights`; ``None`` is 1.
        smoothing: Share of each target that is spread over all classes, in [0, 1).

    Returns:
        Nats; 0 with a graph where nothing is labelled.
    """
    weights = None if weights is None else weights.to(logits)
    total = functional.cross_entropy(
        logits, labels, weight=weights, ignore_index=-1, reduction="sum", label_smoothing=smoothing
    )
    return total / (labels >= 0).sum().clamp(min=1)


def balanced_weights(labels: Int[Tensor, " n"], classes: int) -> Float[Tensor, " class"]:
    """Weigh every class by the inverse of how often it comes, with mean 1 over the classes that come.

    Args:
        labels: Class numbers; -1 where not labelled.
        classes: How many there are; one that never comes weighs 0.

    Example:
        >>> balanced_weights(torch.tensor([0, 0, 0, 1, -1]), 3)
        tensor([0.5000, 1.5000, 0.0000])
    """
    counts = labels[labels >= 0].bincount(minlength=classes).float()
    inverse = torch.where(counts > 0, 1 / counts.clamp(min=1), 0.0)
    return inverse * (counts > 0).sum() / inverse.sum().clamp(min=1e-12)


def answer_bce(logits: Float[Tensor, "batch answer"], answers: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Binary cross-entropy of every answer on its own, summed over answers; the mean over the labelled items.

    The papers' loss for questions (M3AE, UMD): the mean over answers, times how many there are.

    Args:
        logits: One logit per answer.
        answers: The number of the right one; -1 where there is none among them.

    Returns:
        Nats; 0 with a graph where nothing is labelled.

    Example:
        >>> answer_bce(torch.zeros(1, 3), torch.tensor([2]))
        tensor(2.0794)
    """
    labelled = (answers >= 0)[:, None]
    targets = (answers[:, None] == torch.arange(logits.shape[1], device=logits.device)).to(logits.dtype)
    losses = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return torch.where(labelled, losses, 0.0).sum() / labelled.sum().clamp(min=1)
