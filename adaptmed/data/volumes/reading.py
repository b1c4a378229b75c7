"""Volumes: NIfTI files and DICOM series as slices of one plane, on their way to an encoder of pictures."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from adaptmed.data.images import prepare
from adaptmed.data.volumes.grids import Plane, spacing_of, turn, turned_shape
from adaptmed.data.volumes.nifti import is_nifti, nifti_grid, read_nifti
from adaptmed.data.volumes.series import read_series, series_grid
from adaptmed.errors import InputError, sentence
from adaptmed.types import Preprocessing

_PERCENTILES = (0.5, 99.5)
_COUNTED = 1_000_000


@dataclass(frozen=True, eq=False)
class Volume:
    """A grid of voxels, ordered as slices of a plane.

    Attributes:
        values: In the units of the file: Hounsfield units of CT, arbitrary ones of MR.
        spacing_mm: Between slices, rows and columns.
        affine: From indices ``(slice, row, column)`` to millimetres in NIfTI's world (right, front, head).
        source: The NIfTI file or the folder of the DICOM series.
        plane: Of the slices.
    """

    values: Float32[np.ndarray, "depth height width_px"]
    spacing_mm: tuple[float, float, float]
    affine: Float64[np.ndarray, "4 4"]
    source: Path
    plane: Plane = "axial"


def is_volume(path: Path) -> bool:
    """Whether a path of a manifest names a volume: a NIfTI file, or a folder (of a DICOM series)."""
    return is_nifti(path) or path.is_dir()


def read_volume(path: Path | str, plane: Plane = "axial") -> Volume:
    """Read a NIfTI file (``.nii``, ``.nii.gz``) or the DICOM series in a folder.

    Axes are put in one order, whatever the order in the file (see ``grids.turn``), so that left is on the same side in
    all volumes; no voxel is resampled.

    Args:
        path: File or folder.
        plane: Of the slices.

    Raises:
        InputError: What ``read_nifti`` and ``read_series`` refuse, values that are not finite, or the same value in
            every voxel.
    """
    path = Path(path)
    stored, stored_affine = read_series(path) if path.is_dir() else read_nifti(path, np.float32)
    low, high = stored.min(), stored.max()
    expected, fix = "a volume with content", "Leave this row out."
    if not (np.isfinite(low) and np.isfinite(high)):  # a NaN is both
        raise InputError(sentence(str(path), expected=expected, got="values that are not finite", fix=fix))
    if low == high:
        raise InputError(sentence(str(path), expected=expected, got="the same value in every voxel", fix=fix))
    values, affine = turn(stored, stored_affine, plane)
    return Volume(values, spacing_of(affine), affine, path, plane)


def slices_shape(path: Path, plane: Plane = "axial") -> tuple[int, int, int]:
    """Return about how many slices, rows and columns a volume has, from headers alone; 0 where they cannot be read."""
    try:
        shape, affine = series_grid(path) if path.is_dir() else nifti_grid(path)
        return turned_shape(shape, affine, plane)
    except InputError:
        return 0, 0, 0


def as_grey(volume: Volume, window: tuple[float, float] | None = None) -> Float32[np.ndarray, "depth height width_px"]:
    """Scale the values of a volume to [0, 1], as pictures have them.

    Args:
        volume: As read.
        window: ``(level, width)`` in the volume's units, for CT: level - width / 2 and below becomes 0, level + width /
            2 and above 1; (40.0, 400.0) shows soft tissue, (-600.0, 1500.0) the lung. ``None``, for MR: from the 0.5th
            to the 99.5th percentile (of about a million voxels, evenly picked), or from the lowest to the highest value
            where these are one.

    Raises:
        InputError: The width is not above 0.

    Example:
        >>> values = np.array([[[-300.0, -160.0, 40.0, 240.0]]], dtype=np.float32)
        >>> as_grey(Volume(values, (1.0, 1.0, 1.0), np.eye(4), Path("ct.nii")), window=(40.0, 400.0)).tolist()
        [[[0.0, 0.0, 0.5, 1.0]]]
    """
    if window is None:
        low, high = _range(volume.values)
    else:
        check_window(window)
        low, high = window[0] - window[1] / 2, window[0] + window[1] / 2
    return ((volume.values - np.float32(low)) / np.float32(high - low)).clip(0, 1)


def check_window(window: tuple[float, float]) -> None:
    """Refuse a window that ``as_grey`` cannot show.

    Raises:
        InputError: The width is not above 0, or a number is not finite.
    """
    if not (np.isfinite(window).all() and window[1] > 0):
        fix = "Pass for example (40.0, 400.0)."
        raise InputError(sentence("window", expected="(level, width) with a width above 0", got=window, fix=fix))


def slices_to_input(
    grey: Float32[np.ndarray, "depth height width_px"], preprocessing: Preprocessing
) -> Float[Tensor, "depth 3 input_height input_width"]:
    """Turn every slice into an encoder's input, as ``prepare`` does with a picture.

    A slice stands in all three channels alike. It knows nothing of its neighbours, so that its Tokens mean the same at
    any spacing; depth is mixed later. Pixels count as squares, whatever their spacing.

    Args:
        grey: Values in [0, 1], from ``as_grey``.
        preprocessing: The encoder's input facts; ``mask_to_input`` lays the mask in the same place.
    """
    return torch.stack([prepare(picture, preprocessing) for picture in grey])


def _range(values: Float32[np.ndarray, "depth height width_px"]) -> tuple[float, float]:
    some = values.ravel()[:: max(1, values.size // _COUNTED)]
    low, high = np.percentile(some, _PERCENTILES).tolist()
    return (low, high) if low < high else (float(values.min()), float(values.max()))
