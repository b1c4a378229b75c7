"""Voxel grids: where they lie in space, how they are turned into one order of axes, and how far two are apart.

An affine maps voxel indices to millimetres in the world of NIfTI, whose axes point to the patient's right, front and
head (RAS+).
"""

from collections.abc import Sequence
from itertools import product
from typing import Literal, cast

import numpy as np
from jaxtyping import Float64, Shaped
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

Plane = Literal["axial", "coronal", "sagittal"]
Planes = Literal["axial", "coronal", "sagittal", "three"]
"""In which volumes are sliced: one of them, or all three, the axial one first."""
Affine = Float64[np.ndarray, "4 4"]
_TOWARDS = {"axial": ("S", "P", "L"), "coronal": ("P", "I", "L"), "sagittal": ("L", "I", "P")}


def planes_in(planes: str) -> tuple[Plane, ...]:
    """Return the planes that volumes are sliced in, in the order of their slices.

    Example:
        >>> planes_in("three"), planes_in("coronal")
        (('axial', 'coronal', 'sagittal'), ('coronal',))
    """
    return ("axial", "coronal", "sagittal") if planes == "three" else (cast(Plane, planes),)


def turn(
    values: Shaped[np.ndarray, "i j k"], affine: Affine, plane: Plane
) -> tuple[Shaped[np.ndarray, "depth height width_px"], Affine]:
    """Order the axes of a grid so that its slices lie in a plane; voxels are moved, never mixed.

    Axial: slices from the feet to the head, rows from front to back, columns from the patient's right to left, as
    radiologists look at them. Coronal: slices from front to back, rows from head to feet, columns from right to left.
    Sagittal: slices from right to left, rows from head to feet, columns from front to back. An oblique grid is turned
    to the nearest axes and stays oblique.

    Args:
        values: Voxels as stored.
        affine: Of the stored axes.
        plane: Of the slices.

    Returns:
        The voxels and the affine of their new axes.
    """
    change = ornt_transform(io_orientation(affine), axcodes2ornt(_TOWARDS[plane]))
    turned = np.ascontiguousarray(apply_orientation(values, change))
    return turned, affine @ inv_ornt_aff(change, values.shape)


def turn_back(
    values: Shaped[np.ndarray, "depth height width_px"], stored_affine: Affine, plane: Plane
) -> Shaped[np.ndarray, "i j k"]:
    """Order the axes as they were stored: the inverse of ``turn``."""
    change = ornt_transform(axcodes2ornt(_TOWARDS[plane]), io_orientation(stored_affine))
    return np.ascontiguousarray(apply_orientation(values, change))


def turned_shape(shape: Sequence[int], affine: Affine, plane: Plane) -> tuple[int, int, int]:
    """Return the slices, rows and columns that ``turn`` makes of a grid.

    Example:
        >>> turned_shape((10, 20, 30), np.eye(4), "axial"), turned_shape((10, 20, 30), np.eye(4), "sagittal")
        ((30, 20, 10), (10, 30, 20))
    """
    change = ornt_transform(io_orientation(affine), axcodes2ornt(_TOWARDS[plane]))
    depth, height, width = (int(shape[axis]) for axis in np.argsort(change[:, 0]))
    return depth, height, width


def spacing_of(affine: Affine) -> tuple[float, float, float]:
    """Return the distance between neighbouring voxels along each axis, in millimetres."""
    first, second, third = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return first, second, third


def corner_distance_mm(first: Affine, second: Affine, shape: tuple[int, ...]) -> float:
    """Return how far apart two affines put the corner voxels of a grid, at the worst corner.

    Example:
        >>> corner_distance_mm(np.eye(4), np.diag([1.0, 1.0, 1.5, 1.0]), (3, 3, 3))
        1.0
    """
    corners = np.array([(*corner, 1) for corner in product(*((0, side - 1) for side in shape))])
    return float(np.linalg.norm(corners @ (first - second).T[:, :3], axis=1).max())
