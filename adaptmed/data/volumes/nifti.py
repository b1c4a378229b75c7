"""NIfTI files: voxels with their affine, and masks in the geometry of another file."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from jaxtyping import Integer
from numpy.typing import DTypeLike, NDArray

from adaptmed.data.decoding import decoding, refusal, times
from adaptmed.data.volumes.grids import Affine, Plane, spacing_of, turn_back

MAX_VOXELS = 600_000_000
_FLAT = 1e-3  # of the volume of a voxel with axes at right angles
_SUFFIXES = (".nii", ".nii.gz")
_GEOMETRY = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)


def is_nifti(path: Path) -> bool:
    """Whether the name of a file says NIfTI: ``.nii`` or ``.nii.gz``."""
    return path.name.lower().endswith(_SUFFIXES)


def read_nifti(path: Path, dtype: DTypeLike | None = None) -> tuple[NDArray[Any], Affine]:
    """Read the voxels of a NIfTI-1 or NIfTI-2 file, slope and intercept applied, and their affine.

    Args:
        path: The file. Further dimensions of one are dropped.
        dtype: Of the voxels; ``None``: as stored, float64 where a slope applies.

    Raises:
        InputError: The file is missing, damaged or another kind of image; has not three dimensions, more than 600
            million voxels, colours or complex numbers; is not in millimetres; or does not say how it lies in space
            (no sform and no qform, or one that cannot be inverted).
    """
    with decoding(path, "NIfTI"):
        image = nibabel.load(path, mmap=False)
        _refuse(path, image)
        voxels = np.asarray(image.dataobj, dtype=dtype).reshape(image.shape[:3])
        return voxels, image.affine.astype(np.float64)


def nifti_grid(path: Path) -> tuple[tuple[int, ...], Affine]:
    """Return the size and the affine of a NIfTI file from its header alone.

    Raises:
        InputError: As of ``read_nifti``, where it can be seen in the header.
    """
    with decoding(path, "NIfTI"):
        image = nibabel.load(path)
        _refuse(path, image)
        return image.shape[:3], image.affine.astype(np.float64)


def new_mask(values: Integer[np.ndarray, "i j k"], affine: Affine) -> bytes:
    """Return labels from 0 to 65535 as a NIfTI file that lies where ``affine`` says."""
    return nibabel.Nifti1Image(_compact(values), affine).to_bytes()


def mask_like(values: Integer[np.ndarray, "depth height width_px"], source: Path, plane: Plane) -> bytes:
    """Return labels from 0 to 65535 as a NIfTI file with the axes and the geometry of the file they were made for.

    Spacing, units, sform and qform are taken bit by bit and nothing else: descriptions and extensions of the source may
    name the patient.

    Args:
        values: In the order that ``turn`` gave the source's axes.
        source: The NIfTI file.
        plane: That it was turned to.

    Raises:
        InputError: The source is gone or has another size now.
    """
    with decoding(source, "NIfTI"):
        image = nibabel.load(source, mmap=False)
    stored = turn_back(_compact(values), image.affine, plane)
    if stored.shape != image.shape[:3]:
        fix = "Predict again from the file as it is now."
        raise refusal(source, f"a volume of {times(stored.shape)}, as predicted", times(image.shape), fix)
    header = type(image.header)()
    for name in _GEOMETRY:
        header[name] = image.header[name]
    header.set_data_dtype(stored.dtype)
    return type(image)(stored, None, header).to_bytes()


def _compact(values: Integer[np.ndarray, "i j k"]) -> NDArray[np.unsignedinteger]:
    return values.astype(np.uint8 if values.max(initial=0) < 256 else np.uint16)


def _refuse(path: Path, image: Any) -> None:
    """Raise for everything that can be seen before the voxels are read."""
    if not isinstance(image, nibabel.Nifti1Image):
        raise refusal(path, "a NIfTI image", type(image).__name__, "Convert it to NIfTI.")
    shape = image.shape
    if len(shape) < 3 or any(side != 1 for side in shape[3:]):
        fix = "Write every volume that you want to a file and a row of its own."
        raise refusal(path, "three dimensions", f"{len(shape)}: {times(shape)}", fix)
    if not 0 < int(np.prod(shape, dtype=object)) <= MAX_VOXELS:
        raise refusal(path, f"1 to {MAX_VOXELS} voxels", times(shape), "Cut or resample the volume.")
    if image.get_data_dtype().kind not in "iuf":
        raise refusal(path, "real numbers", f"{image.get_data_dtype()} voxels", "Leave this row out.")
    unit = image.header.get_xyzt_units()[0]
    if unit not in ("mm", "unknown"):
        raise refusal(path, "lengths in millimetres", unit, "Write the file again in millimetres.")
    if not (int(image.header["sform_code"]) or int(image.header["qform_code"])):
        fix = "Set the sform, if you know how the patient lay."
        raise refusal(path, "a position in space", "neither sform nor qform, so that left and right are unknown", fix)
    axes = image.affine[:3, :3]
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(axes)) <= _FLAT * np.prod(spacing_of(image.affine)):
        raise refusal(path, "an affine that can be inverted", image.affine.tolist(), "Mend the sform.")
