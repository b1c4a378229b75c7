"""From tokens to one vector."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def masked_mean(
    values: Float[Tensor, "batch token width"], valid: Bool[Tensor, "batch token"]
) -> Float[Tensor, "batch width"]:
    """Mean over valid tokens; zeros for an item without any.

    Example:
        >>> masked_mean(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]])).item()
        2.0
    """
    weight = valid.to(values.dtype)
    return torch.einsum("btw,bt->bw", values, weight) / weight.sum(1, keepdim=True).clamp(min=1)
