"""Image-text matching: does this text belong to this image?"""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def matching_loss(logits: Float[Tensor, " batch"], matches: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Binary cross-entropy of matched against mismatched pairs.

    Args:
        logits: Above 0 says "matched".
        matches: 1 for a matched pair, 0 for a mismatched one, NaN for a pair that counts for nothing.

    Returns:
        The mean over pairs that count; 0 with a graph when there is none.

    Example:
        >>> import torch
        >>> round(matching_loss(torch.zeros(2), torch.tensor([1.0, 0.0])).item(), 4)  # log 2
        0.6931
        >>> matching_loss(torch.zeros(1), torch.tensor([float("nan")])).item()
        0.0
    """
    counts = ~matches.isnan()
    if not counts.any():
        return logits.sum() * 0.0
    return functional.binary_cross_entropy_with_logits(logits[counts], matches[counts])
