"""Learned positions for image tokens, interpolated to any grid."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


def interpolate_positions(
    positions: Float[Tensor, "height width_px width"], grid: tuple[int, int]
) -> Float[Tensor, "token width"]:
    """Resample a grid of position embeddings to another grid and flatten it row by row.

    The same grid comes back untouched. Corners are not aligned: a position stands for the middle of its cell, so
    that halving the grid averages neighbours.

    Args:
        positions: One embedding per cell of the grid they were learned on.
        grid: ``(height, width)`` wanted.

    Example:
        >>> interpolate_positions(torch.arange(4.0).reshape(2, 2, 1), (1, 1)).tolist()
        [[1.5]]
    """
    if positions.shape[:2] != grid:
        channels_first = positions.permute(2, 0, 1)[None]
        positions = functional.interpolate(
            channels_first, size=grid, mode="bilinear", antialias=True, align_corners=False
        )[0].permute(1, 2, 0)
    return positions.flatten(0, 1)


class GridPositions(nn.Module):
    """Learned position embeddings for prefix tokens and for a 2-D grid.

    Args:
        width: Width of the tokens.
        grid: ``(height, width)`` at which the positions are learned.
        prefix: Number of tokens before the grid, each with its own embedding.
    """

    def __init__(self, width: int, grid: tuple[int, int], prefix: int) -> None:
        super().__init__()
        self.grid = nn.Parameter(torch.randn(*grid, width) * 0.02)
        self.prefix = nn.Parameter(torch.randn(prefix, width) * 0.02) if prefix else None

    def forward(self, grid: tuple[int, int]) -> Float[Tensor, "token width"]:
        """Return the positions of the prefix tokens followed by those of ``grid``, row by row."""
        cells = interpolate_positions(self.grid, grid)
        return cells if self.prefix is None else torch.cat([self.prefix, cells])
