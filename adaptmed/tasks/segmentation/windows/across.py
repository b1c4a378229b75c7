"""Features of slices in the two other planes, brought to the places of a window of axial slices.

An encoder of pictures that has read a volume's coronal and sagittal slices too knows of every voxel what stands above
and below it. A voxel lies in one slice of each plane; the features there are interpolated between the cells of a grid
of tokens, and between slices.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.nn import functional

from adaptmed.data.fitting import Side, place
from adaptmed.data.volumes.grids import Plane
from adaptmed.types import Preprocessing, Tokens


@dataclass(frozen=True)
class Across:
    """All slices of one volume in one other plane.

    Attributes:
        tokens: Of the encoder, slice by slice.
        places: Where the cells of the axial slices of a window lie among them, from ``places_across``.
    """

    tokens: Tokens
    places: Float[Tensor, "depth row column 3"]

    def to(self, device: torch.device | str) -> Self:
        """Return the same slices on another device."""
        return replace(self, tokens=self.tokens.to(device), places=self.places.to(device))


def brought(
    maps: Float[Tensor, "slice channel row column"], places: Float[Tensor, "depth new_row new_column 3"]
) -> Float[Tensor, "channel depth new_row new_column"]:
    """Interpolate the feature maps of slices at places among them; beyond an edge the edge is repeated."""
    volume = maps.transpose(0, 1)[None]
    return functional.grid_sample(
        volume, places[None].to(volume.dtype), mode="bilinear", padding_mode="border", align_corners=False
    )[0]


def places_across(
    shape: Sequence[int],
    offsets: Int[np.ndarray, " depth"],
    plane: Plane,
    preprocessing: Preprocessing,
    grid: Sequence[int],
) -> Float[Tensor, "depth row column 3"]:
    """Return where the cells of axial slices lie among the slices of another plane.

    Args:
        shape: ``(depth, height, width)`` of the volume in axial order.
        offsets: Axial slices of the window.
        plane: ``coronal`` or ``sagittal``.
        preprocessing: How every slice became the encoder's input.
        grid: ``(rows, columns)`` of the tokens of a slice, the same in every plane.

    Returns:
        ``(x, y, z)`` from -1 to 1 for column, row and slice, as ``grid_sample`` takes them.
    """
    depth, height, width = shape
    rows, columns = place((height, width), preprocessing)
    y, x = (_source_of_cells(side, cells) for side, cells in zip((rows, columns), grid, strict=True))
    z = np.asarray(offsets, dtype=np.float64) + 0.5
    # Other planes show the head above the feet, so that their rows run against the axial order of slices.
    slices, length, across, wide = (y, height, x, width) if plane == "coronal" else (x, width, y, height)
    other_rows, other_columns = place((depth, wide), preprocessing)
    row, column = _share(other_rows, depth - z), _share(other_columns, across)
    number = 2 * slices / length - 1
    full = (len(z), len(y), len(x))
    along_y, along_x = (1, -1, 1), (1, 1, -1)
    of_slices, of_columns = (along_y, along_x) if plane == "coronal" else (along_x, along_y)
    parts = [column.reshape(of_columns), row.reshape(-1, 1, 1), number.reshape(of_slices)]
    return torch.from_numpy(np.stack([np.broadcast_to(part, full) for part in parts], axis=-1)).float()


def _source_of_cells(side: Side, cells: int) -> Float64[np.ndarray, " cell"]:
    """Where the centres of token cells lie on a side of the slice, in voxels; outside it where the input is padding."""
    inside = (np.arange(cells) + 0.5) / cells * side.window
    return (inside + side.start) * (side.source / side.resized)


def _share(side: Side, source: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Where places on a side of a slice lie in the input, from -1 to 1."""
    return 2 * (source * (side.resized / side.source) - side.start) / side.window - 1
