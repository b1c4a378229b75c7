"""From tokens to one vector, and from all tokens to some of them."""

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


def drop_tokens(
    values: Float[Tensor, "batch token width"], valid: Bool[Tensor, "batch token"], share: float
) -> tuple[Float[Tensor, "batch kept width"], Bool[Tensor, "batch kept"]]:
    """Leave a random share of the tokens out, another choice for every item; the first token always stays.

    The order of the kept tokens is kept. The choice comes from torch's global generator.

    Args:
        values: Token features, positions included.
        valid: False at padding, which is as likely to be dropped as the rest.
        share: In [0, 1).
    """
    token = values.shape[1]
    kept = max(1, round(token * (1 - share)))
    score = torch.rand(values.shape[:2], device=values.device)
    score[:, 0] = -1.0
    chosen = score.topk(kept, dim=1, largest=False).indices.sort(dim=1).values
    return values.gather(1, chosen[:, :, None].expand(-1, -1, values.shape[2])), valid.gather(1, chosen)
