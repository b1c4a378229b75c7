"""Fixed positions for a grid of any size: sines and cosines of the column and of the row."""

import torch
from jaxtyping import Float
from torch import Tensor

from adaptmed.errors import InputError, sentence


def sincos_positions(
    grid: tuple[int, int], width: int, *, device: torch.device | str | None = None
) -> Float[Tensor, "token width"]:
    r"""Embed every cell of a grid, row by row: the first half of the channels says the column, the second the row.

    Each half holds :math:`\sin(x \omega_j)` for all j, then :math:`\cos(x \omega_j)`, with
    :math:`\omega_j = 10000^{-j / (width / 4)}`.

    Args:
        grid: ``(height, width)`` in cells.
        width: Channels, a multiple of 4.
        device: Where to make them.

    Raises:
        InputError: If the width is no multiple of 4.

    Example:
        >>> sincos_positions((1, 2), 4)[1].tolist()  # column 1, row 0: sin 1, cos 1, sin 0, cos 0
        [0.84147..., 0.54030..., 0.0, 1.0]

    References:
        He et al. 2022, arXiv:2111.06377.
    """
    if width % 4:
        raise InputError(sentence("width", expected="a multiple of 4", got=width, fix="Pass for example 384."))
    steps = torch.arange(width // 4, dtype=torch.float64, device=device) / (width // 4)
    row, column = (torch.arange(side, dtype=torch.float64, device=device) for side in grid)
    angles = torch.stack(torch.meshgrid(column, row, indexing="xy"), dim=-1)[..., None] * 10000.0**-steps
    halves = torch.cat([angles.sin(), angles.cos()], dim=-1)  # (height, width, 2, width / 2)
    return halves.flatten(2).flatten(0, 1).float()
