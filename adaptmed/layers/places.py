"""Some tokens of a grid: where they stand among all tokens, and how they are put back there."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def token_places(kept: Int[Tensor, "batch kept"], prefix: int) -> Int[Tensor, "batch seen"]:
    """Return the places of the prefix and of some grid tokens among all tokens.

    Args:
        kept: Places in the grid, row by row.
        prefix: How many tokens stand before the grid.

    Example:
        >>> token_places(torch.tensor([[0, 3]]), 1).tolist()
        [[0, 1, 4]]
    """
    before = torch.arange(prefix, device=kept.device).expand(len(kept), prefix)
    return torch.cat([before, kept.long() + prefix], dim=1)


def put_back(
    seen: Float[Tensor, "batch seen width"], kept: Int[Tensor, "batch kept"], *, prefix: int, cells: int
) -> tuple[Float[Tensor, "batch token width"], Bool[Tensor, "batch token"]]:
    """Put the prefix and the kept tokens of a grid back to their places, zeros between them; gradients pass.

    Args:
        seen: The prefix, then the kept tokens.
        kept: Places of the latter in the grid.
        prefix: How many tokens stand before the grid.
        cells: Tokens of the whole grid.

    Returns:
        All tokens, and where they were seen.

    Example:
        >>> values, valid = put_back(torch.ones(1, 2, 1), torch.tensor([[1]]), prefix=1, cells=3)
        >>> values.flatten().tolist(), valid.tolist()
        ([1.0, 0.0, 1.0, 0.0], [[True, False, True, False]])
    """
    places = token_places(kept, prefix)
    values = seen.new_zeros(len(kept), prefix + cells, seen.shape[2])
    values = values.scatter(1, places[..., None].expand(-1, -1, seen.shape[2]), seen)
    valid = torch.zeros(values.shape[:2], dtype=torch.bool, device=seen.device).scatter(1, places, True)
    return values, valid
