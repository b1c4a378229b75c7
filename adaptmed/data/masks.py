"""Masks: a label for every pixel or voxel of an image; read, compared with the image, and written in its geometry."""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int32, Integer
from numpy.typing import NDArray
from PIL import Image, ImageOps

from adaptmed.data.decoding import decoding, refusal, times
from adaptmed.data.fitting import MAX_PIXELS
from adaptmed.data.mask_labels import HIGHEST, refuse_other_values, values_in
from adaptmed.data.volumes.grids import Plane, corner_distance_mm, turn
from adaptmed.data.volumes.nifti import is_nifti, mask_like, new_mask, read_nifti
from adaptmed.data.volumes.reading import Volume
from adaptmed.files import written_whole

GEOMETRY_TOLERANCE = 0.1
_SHOWN = 4


@dataclass(frozen=True, eq=False)
class Mask:
    """Labels of a picture ``(height, width)`` or of a volume ``(depth, height, width)``.

    Attributes:
        values: 0 is background.
        affine: Of a volume, as in ``Volume``; ``None`` for a picture.
        source: The file.
    """

    values: Int32[np.ndarray, "*depth height width_px"]
    affine: Float64[np.ndarray, "4 4"] | None
    source: Path


def read_mask(path: Path | str, labels: Mapping[int, str] | None = None, *, plane: Plane = "axial") -> Mask:
    """Read a PNG or NIfTI file as labels.

    PNG: grey values, below 8 bit scaled to 8; with a palette the indices into it, whatever the colours. Pixels with
    colour channels count as grey when these agree everywhere and nothing is transparent. EXIF orientation is applied,
    as to images. NIfTI: whole numbers, turned as ``read_volume`` turns the image.

    A file that holds no value but 0 and 255 is binary: 255 is read as label 1, unless ``labels`` names 255.

    Args:
        path: The file.
        labels: Value → name of what may stand in it; 0 always may. ``None``: anything.
        plane: That of the volume; says nothing for PNG.

    Raises:
        InputError: The file is missing, damaged or another kind of file, has colours, or numbers that are not whole or
            not from 0 to 65535, or values outside ``labels``; or ``read_nifti`` refuses it.
    """
    path, affine = Path(path), None
    if is_nifti(path):
        stored, stored_affine = read_nifti(path)
        values, affine = turn(_whole_numbers(path, stored), stored_affine, plane)
    else:
        with decoding(path, "PNG or NIfTI"):
            values = _read_png(path)
    if set(values_in(values)) <= {0, 255} and 255 not in (labels or {}):
        values = np.minimum(values, 1)
    if labels is not None:
        refuse_other_values(str(path), values_in(values), labels)
    return Mask(values, affine, path)


def refuse_other_geometry(mask: Mask, image: NDArray[Any] | Volume, name: str) -> None:
    """Raise unless a mask lies on its image: as many pixels, for volumes also in the same place.

    Args:
        mask: As read, of the same plane as the volume.
        image: A picture as ``read_image`` gives it, or a volume.
        name: Of the image, for the message.

    Raises:
        InputError: A picture with a NIfTI mask or a volume with a PNG mask, another size, or affines that put a corner
            voxel in places further apart than a tenth of the smallest voxel side.
    """
    flat = not isinstance(image, Volume)
    if flat != (mask.affine is None):
        expected = f"a {'PNG' if flat else 'NIfTI'} mask, as `{name}` is a {'picture' if flat else 'volume'}"
        raise refusal(mask.source, expected, "NIfTI" if flat else "PNG", "Convert the mask.")
    size = image.shape[:2] if not isinstance(image, Volume) else image.values.shape
    if mask.values.shape != size:
        fix = "Draw the mask on the image as it is, without cropping or resizing."
        raise refusal(mask.source, f"the size of its image `{name}`, {times(size)}", times(mask.values.shape), fix)
    if not isinstance(image, Volume) or mask.affine is None:
        return
    apart_mm = corner_distance_mm(mask.affine, image.affine, size)
    if apart_mm > GEOMETRY_TOLERANCE * min(image.spacing_mm):
        expected = f"the affine of its image `{name}` (corners within {GEOMETRY_TOLERANCE} voxel)"
        raise refusal(mask.source, expected, f"corners {apart_mm:.3g} mm apart", "Resample the mask to the image.")


def write_mask(path: Path, values: Integer[np.ndarray, "*depth height width_px"], volume: Volume | None = None) -> None:
    """Write a mask in the geometry of its image, whole or not at all.

    A picture's mask becomes a grey PNG of 8 bit, or 16 where a label is above 255. A volume's becomes NIfTI: on the
    axes of the source file, with its sform and qform bit by bit, or for a DICOM series with the affine of the volume.
    Labels 0 and 255 alone would be read again as 0 and 1, unless 255 is named.

    Args:
        path: ``.png``, or ``.nii`` or ``.nii.gz`` when there is a ``volume``. The folder is made if missing.
        values: Labels from 0 to 65535.
        volume: As read from its source, which must still be there.

    Raises:
        InputError: Another suffix, another size than the volume's, or a label out of range.
    """
    path = Path(path)
    if values.min(initial=0) < 0 or values.max(initial=0) > HIGHEST:
        got = f"{values.min()} to {values.max()}"
        raise refusal(path, f"labels from 0 to {HIGHEST}", got, "Give padding and unlabelled pixels a label first.")
    if (path.suffix.lower() == ".png") != (volume is None) or (volume is not None and not is_nifti(path)):
        expected = "a name that ends in .png" if volume is None else "a name that ends in .nii or .nii.gz"
        raise refusal(path, expected, path.name, "Choose another name.")
    size = volume.values.shape if volume is not None else values.shape[-2:]
    if values.shape != size:
        got, fix = times(values.shape), "Bring the prediction to the size of its source first."
        raise refusal(path, f"a mask of {times(size)}", got, fix)
    with written_whole(path) as temporary:
        temporary.write_bytes(_png_bytes(values) if volume is None else _volume_bytes(path, values, volume))


def _volume_bytes(path: Path, values: Integer[np.ndarray, "depth height width_px"], volume: Volume) -> bytes:
    if volume.source.is_dir():
        content = new_mask(values.transpose(2, 1, 0), volume.affine[:, [2, 1, 0, 3]])
    else:
        content = mask_like(values, volume.source, volume.plane)
    return gzip.compress(content, mtime=0) if path.suffix.lower() == ".gz" else content


def _png_bytes(values: Integer[np.ndarray, "height width_px"]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(values.astype(np.uint8 if values.max(initial=0) < 256 else np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def _read_png(path: Path) -> Int32[np.ndarray, "height width_px"]:
    with Image.open(path, formats=("PNG",)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise refusal(path, f"at most {MAX_PIXELS} pixels", f"{image.width} × {image.height}", "Shrink the mask.")
        if getattr(image, "is_animated", False):
            raise refusal(path, "a single frame", "an animation", "Write one frame to the file.")
        upright = ImageOps.exif_transpose(image)
    if upright.mode == "1":
        upright = upright.convert("L")
    if upright.mode in ("L", "P") or upright.mode.startswith("I"):
        return np.asarray(upright).astype(np.int32)
    pixels = np.asarray(upright.convert("RGBA"))
    if (pixels[..., 3] != 255).any() or (pixels[..., :3] != pixels[..., :1]).any():
        got = "transparent pixels" if (pixels[..., 3] != 255).any() else "colours"
        raise refusal(path, "grey values or palette indices", got, "Write the labels as the values of a grey PNG.")
    return pixels[..., 0].astype(np.int32)


def _whole_numbers(path: Path, stored: NDArray[Any]) -> Int32[np.ndarray, "i j k"]:
    fitting = (stored >= 0) & (stored <= HIGHEST) & (stored == np.floor(stored))
    if not fitting.all():
        others = np.unique(stored[~fitting])
        got = ", ".join(f"{value:g}" for value in others[:_SHOWN]) + (" and others" if others[_SHOWN:].size else "")
        fix = "Write labels, not probabilities; a resampled mask needs nearest interpolation."
        raise refusal(path, f"whole numbers from 0 to {HIGHEST}", got, fix)
    return stored.astype(np.int32)
