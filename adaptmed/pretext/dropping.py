"""Token dropout: which tokens of an item a training step reads."""

from dataclasses import replace

from jaxtyping import Int
from torch import Tensor

from adaptmed.layers.draws import item_draws
from adaptmed.types import Tokens


def drop_tokens(tokens: Tokens, share: float, *, items: Int[Tensor, " batch"], seed: int) -> Tokens:
    """Turn a random share of every item's valid tokens into padding, which no fusion computes; the first one stays.

    Of ``n`` valid tokens ``round(n (1 - share))``, at least one, are kept. The choice depends on the seed and the item
    alone: not on its batch, its padding or its process.

    Args:
        tokens: Of images or texts.
        share: In [0, 1); 0 drops nothing.
        items: Number of every item.
        seed: Of this step and modality.

    Example:
        >>> import torch
        >>> tokens = Tokens(torch.zeros(1, 8, 2), torch.ones(1, 8, dtype=torch.bool), torch.zeros(1, 2))
        >>> drop_tokens(tokens, 0.25, items=torch.tensor([3]), seed=0).valid.sum().item()
        6
    """
    if share == 0:
        return tokens
    valid = tokens.valid
    score = item_draws(items, valid.shape[1], seed=seed)
    score = score.masked_fill(valid & (valid.cumsum(1) == 1), -1.0).masked_fill(~valid, 2.0)
    kept = (valid.sum(1, keepdim=True) * (1 - share)).round().clamp(min=1)
    place = score.argsort(dim=1, stable=True).argsort(dim=1)
    return replace(tokens, valid=valid & (place < kept))
