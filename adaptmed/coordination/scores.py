"""How well each modality alone answers: what GM-Coord compares.

Zhang et al. 2024 (UMD), arXiv:2404.06057, after OGM-GE (Peng et al. 2022, arXiv:2203.15332).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from adaptmed.errors import InputError, sentence


@torch.no_grad()
def logits_alone(
    head: nn.Module, joint: Float[Tensor, "batch joint_width"]
) -> tuple[Float[Tensor, "batch *output"], Float[Tensor, "batch *output"]]:
    """Return what a task head makes of the image half alone and of the text half alone, without gradient.

    The whole head reads the joint vector with the other half set to zero, in evaluation mode: nothing is dropped, no
    statistics are moved. Its mode is as before afterwards.

    Args:
        head: From joint vectors to logits.
        joint: The text's half first, as the fusion ``co`` gives it.
    """
    modes = [(module, module.training) for module in head.modules()]
    head.eval()
    text, image = joint.detach().chunk(2, dim=1)
    nothing = torch.zeros_like(image)
    alone = head(torch.cat([nothing, image], dim=1)), head(torch.cat([text, nothing], dim=1))
    for module, training in modes:
        module.training = training
    return alone


@torch.no_grad()
def last_linear_logits(
    last: nn.Linear, joint: Float[Tensor, "batch joint_width"]
) -> tuple[Float[Tensor, "batch output"], Float[Tensor, "batch output"]]:
    """Return the released code's logits of the image alone and of the text alone.

    Each half passes its half of the last linear layer, with half of the bias; earlier layers of the head are skipped,
    which is right for a head of one layer only.

    Args:
        last: The head's last layer, as wide as the joint vector.
        joint: The text's half first, as the fusion ``co`` gives it.

    Raises:
        InputError: If the layer is not as wide as the joint vector.
    """
    if last.in_features != joint.shape[1]:
        fix = "Use logits_alone, which reads the whole head."
        expected = f"a last layer that reads {joint.shape[1]} values"
        raise InputError(sentence("last", expected=expected, got=last.in_features, fix=fix))
    bias = None if last.bias is None else last.bias / 2
    halves = zip(joint.chunk(2, dim=1), last.weight.chunk(2, dim=1), strict=True)
    text, image = (functional.linear(half, weight, bias) for half, weight in halves)
    return image, text


def class_score(logits: Float[Tensor, "batch class"], labels: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Add up the probability of the true class over the labelled items of the batch.

    Over several processes the scores of the whole batch are the sum of theirs.

    Args:
        logits: One per class; for retrieval one per candidate.
        labels: -1 where not labelled.

    Example:
        >>> class_score(torch.zeros(3, 4), torch.tensor([2, 0, -1]))
        tensor(0.5000)
    """
    probability = logits.float().softmax(1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
    return torch.where(labels >= 0, probability, 0.0).sum()


def label_score(logits: Float[Tensor, "batch label"], labels: Float[Tensor, "batch label"]) -> Float[Tensor, ""]:
    """Add up the probability of what is true over the labelled entries, where each label is a yes-no question.

    An extension: the paper has one class per item.

    Args:
        logits: One per label.
        labels: 0, 1 or between; NaN where not labelled.

    Example:
        >>> label_score(torch.zeros(1, 2), torch.tensor([[1.0, float("nan")]]))
        tensor(0.5000)
    """
    probability = logits.float().sigmoid()
    return torch.nan_to_num(labels * probability + (1 - labels) * (1 - probability), nan=0.0).sum()
