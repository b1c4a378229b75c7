"""From tokens to feature maps, from slices to volumes, and from one size to another."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from adaptmed.errors import InputError, sentence


def grid_map(
    values: Float[Tensor, "batch token width"], grid: Sequence[int], *, prefix: int = 0
) -> Float[Tensor, "batch width *grid"]:
    """Arrange tokens as a feature map, the prefix tokens left out.

    Args:
        values: Tokens, the grid in row-major order behind the prefix; of an encoder, a tap or a fusion.
        grid: ``(height, width)`` or ``(depth, height, width)`` in tokens.
        prefix: Leading tokens outside the grid.

    Raises:
        InputError: The number of tokens is not that of prefix and grid.

    Example:
        >>> import torch
        >>> grid_map(torch.arange(7.0).reshape(1, 7, 1), (2, 3), prefix=1).tolist()
        [[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]]
    """
    count = 1
    for side in grid:
        count *= side
    if values.shape[1] != prefix + count:
        expected = f"{prefix} prefix token(s) and a grid of {' x '.join(map(str, grid))}"
        got, fix = f"{values.shape[1]} tokens", "Pass the grid and the prefix of these tokens."
        raise InputError(sentence("values", expected=expected, got=got, fix=fix))
    return values[:, prefix:].transpose(1, 2).unflatten(2, tuple(grid))


def stack_slices(
    slices: Float[Tensor, "slice channel height width_px"], depth: int
) -> Float[Tensor, "batch channel depth height width_px"]:
    """Arrange the maps of slices as volumes: a 2-D encoder sees a volume slice by slice.

    Args:
        slices: Maps of all slices, those of one volume behind each other in order.
        depth: Slices per volume.

    Raises:
        InputError: The slices are no whole number of volumes.

    Example:
        >>> import torch
        >>> stack_slices(torch.zeros(6, 8, 4, 5), depth=3).shape
        torch.Size([2, 8, 3, 4, 5])
    """
    if depth < 1 or len(slices) % depth:
        expected, fix = f"a multiple of depth={depth} slices", "Pass the slices of whole volumes of equal depth."
        raise InputError(sentence("slices", expected=expected, got=len(slices), fix=fix))
    return slices.unflatten(0, (-1, depth)).transpose(1, 2)


def resize(maps: Float[Tensor, "batch channel *grid"], size: Sequence[int]) -> Float[Tensor, "batch channel *size"]:
    """Interpolate linearly to ``size``; a map that has it already comes back untouched."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return functional.interpolate(maps, size=tuple(size), mode=mode, align_corners=False)


def sizes_between(grid: Sequence[int], size: Sequence[int], steps: int) -> list[tuple[int, ...]]:
    """Return ``steps`` sizes from ``grid`` to ``size``, each side growing by the same factor per step, ``size`` last.

    A side that has its full length already (depth, where slices are encoded one by one) stays as it is.

    Example:
        >>> sizes_between((14, 14), (224, 224), 4)
        [(28, 28), (56, 56), (112, 112), (224, 224)]
        >>> sizes_between((5, 16, 16), (5, 224, 224), 2)
        [(5, 60, 60), (5, 224, 224)]
    """
    return [
        tuple(max(1, round(a * (b / a) ** (step / steps))) for a, b in zip(grid, size, strict=True))
        for step in range(1, steps + 1)
    ]
