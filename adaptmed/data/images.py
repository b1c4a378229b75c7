"""One image file to an array, and one array to an encoder's input."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from adaptmed.data.decoding import decoding
from adaptmed.data.dicom import read_dicom
from adaptmed.data.fitting import MAX_PIXELS, fit
from adaptmed.errors import InputError, sentence
from adaptmed.types import Preprocessing

_OVERSHOOT = 0.25
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def read_image(path: Path | str) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Read a PNG, JPEG or DICOM file.

    PNG and JPEG: EXIF orientation is applied, palettes become colours, transparent pixels are laid on black. 16-bit
    grey is divided by 65535, whatever its highest value is (of 16-bit colour Pillow keeps the upper 8 bits). DICOM (by
    suffix ``.dcm`` or ``.dicom``, or by the letters DICM after its preamble): see ``read_dicom``. Safe to call from
    several threads.

    Args:
        path: The file.

    Returns:
        ``(height, width)`` or ``(height, width, 3)``: uint8, or float32 in [0, 1] from data deeper than 8 bit.

    Raises:
        InputError: The file is missing, of another kind, damaged, has several frames or over 100 million pixels, holds
            values that are not finite, or shows a single value everywhere.
    """
    path = Path(path)
    with decoding(path, "PNG, JPEG or DICOM"):
        picture = _decode(path)
    return _checked(path, picture)


def as_array(image: str | Path | NDArray[Any] | Image.Image) -> NDArray[Any]:
    """Return the pixels of one image however it comes: a file is read, a Pillow image unpacked, an array passes.

    Args:
        image: A file as :func:`read_image` takes it, an array, or a Pillow image, of which EXIF orientation, palette
            and transparency are handled as of a file.

    Raises:
        InputError: The file cannot be read.
    """
    if isinstance(image, Image.Image):
        return np.asarray(image) if image.mode == "F" else _array(ImageOps.exif_transpose(image))
    return image if isinstance(image, np.ndarray) else read_image(image)


def prepare(
    image: NDArray[np.uint8] | NDArray[np.floating], preprocessing: Preprocessing
) -> Float[Tensor, "3 height width_px"]:
    """Turn one picture into an encoder's input: resize, crop or pad, three channels, normalise.

    Resizing is antialiased. ``crop`` gives what timm's own evaluation transform gives on 8-bit RGB. ``pad`` fills with
    black; ``pad`` and ``squash`` ignore ``crop_fraction``.

    Args:
        image: ``(height, width)`` or ``(height, width, 3)``, uint8 or floats in [0, 1], as ``read_image`` gives them.
            Floats up to a quarter beyond are clipped: resampling overshoots at edges.
        preprocessing: The encoder's input facts.

    Raises:
        InputError: ``image`` has another shape, dtype or range, an empty side, or with ``crop`` a shape so long and
            narrow that resizing its shorter side gives over 100 million pixels.

    Example:
        >>> facts = Preprocessing((8, 8), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> prepare(np.zeros((20, 30), dtype=np.uint8), facts).shape
        torch.Size([3, 8, 8])
    """
    if image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or 0 in image.shape:
        expected, fix = "shape (height, width) or (height, width, 3)", "Pass what read_image returns."
        raise InputError(sentence("image", expected=expected, got=image.shape, fix=fix))
    if image.dtype == np.uint8:
        pixels = np.asarray(fit(Image.fromarray(image), preprocessing), dtype=np.float32) / 255
    elif np.issubdtype(image.dtype, np.floating):
        _check_range(image)
        channels = np.atleast_3d(image.astype(np.float32, copy=False)).transpose(2, 0, 1)
        fitted = [np.asarray(fit(Image.fromarray(channel), preprocessing)) for channel in channels]
        pixels = np.stack(fitted, axis=-1).clip(0, 1)
    else:
        fix = "Convert it to one of these."
        raise InputError(sentence("image", expected="uint8, or floats in [0, 1]", got=image.dtype, fix=fix))
    mean, std = (np.array(fact, dtype=np.float32) for fact in (preprocessing.mean, preprocessing.std))
    normalised = (np.atleast_3d(pixels) - mean) / std
    return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1)))


def to_bytes(
    pixels: Float[Tensor, "n 3 height width_px"], preprocessing: Preprocessing
) -> UInt8[Tensor, "n 3 height width_px"]:
    """Turn an encoder's input back into 256 steps from black to white: exact where 8-bit pictures were prepared.

    Args:
        pixels: From ``prepare``.
        preprocessing: They were prepared with.

    Example:
        >>> facts = Preprocessing((1, 2), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
        >>> to_bytes(prepare(np.array([[7, 250]], dtype=np.uint8), facts)[None], facts)[0, 1].tolist()
        [[7, 250]]
    """
    mean, std = _facts(preprocessing, pixels.device)
    return ((pixels * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def from_bytes(
    stored: UInt8[Tensor, "n 3 height width_px"], preprocessing: Preprocessing
) -> Float[Tensor, "n 3 height width_px"]:
    """Turn what ``to_bytes`` gave into an encoder's input again: at most half a step of 256 from what it was."""
    mean, std = _facts(preprocessing, stored.device)
    return (stored.float() / 255 - mean) / std


def at_size(
    pixels: Float[Tensor, "n 3 height width_px"], size_px: tuple[int, int]
) -> Float[Tensor, "n 3 new_height new_width"]:
    """Resize inputs by linear interpolation, antialiased; those that have the size come back untouched."""
    if tuple(pixels.shape[-2:]) == tuple(size_px):
        return pixels
    return functional.interpolate(pixels, size=size_px, mode="bilinear", align_corners=False, antialias=True)


def _facts(preprocessing: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(fact, device=device)[:, None, None] for fact in (preprocessing.mean, preprocessing.std))
    return mean, std


def _check_range(image: NDArray[Any]) -> None:
    """Refuse floats that are not shares of white; NaN fails both comparisons."""
    low, high = image.min(), image.max()
    if low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT:
        return
    if np.isfinite(image).all():
        got = f"values from {low:g} to {high:g}"
        fix = "Divide by the full range (255 for 8 bit), or pass uint8; normalised pixels go in as one Tensor."
    else:
        got, fix = "values that are not finite", "Replace NaN and infinity first."
    raise InputError(sentence("image", expected="floats in [0, 1]", got=got, fix=fix))


def _decode(path: Path) -> NDArray[np.generic]:
    with path.open("rb") as file:
        head = file.read(132)
    if path.suffix.lower() in (".dcm", ".dicom") or head[128:] == b"DICM":
        return read_dicom(path, MAX_PIXELS)
    with Image.open(path, formats=("PNG", "JPEG")) as image:
        if image.width * image.height > MAX_PIXELS:
            got, fix = f"{image.width} × {image.height}", "Shrink the image."
            raise InputError(sentence(str(path), expected=f"at most {MAX_PIXELS} pixels", got=got, fix=fix))
        if getattr(image, "is_animated", False) and image.format == "PNG":
            fix = "Write every frame that you want to a file and a row of its own."
            raise InputError(sentence(str(path), expected="a single frame", got="an animation", fix=fix))
        return _array(ImageOps.exif_transpose(image))


def _array(image: Image.Image) -> NDArray[np.generic]:
    """Return the pixels of any of Pillow's modes as grey or RGB."""
    if image.mode in _SIXTEEN_BIT:
        return np.asarray(image).astype(np.float32) / 65535
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image).convert("RGB")
        return np.asarray(image)[..., 0] if grey else np.asarray(image)
    return np.asarray(image.convert("L" if grey else "RGB"))


def _checked(path: Path, picture: NDArray[Any]) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Refuse pictures without content and return the others as uint8 or float32."""
    expected, fix = "an image with content", "Leave this row out."
    if picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (3,)) or picture.size == 0:
        raise InputError(sentence(str(path), expected=expected, got=f"shape {picture.shape}", fix=fix))
    if picture.min() == picture.max():
        raise InputError(sentence(str(path), expected=expected, got="the same value in every pixel", fix=fix))
    if picture.dtype == np.uint8:
        return picture.view(np.uint8)
    if not np.isfinite(picture).all():
        raise InputError(sentence(str(path), expected=expected, got="values that are not finite", fix=fix))
    return picture.astype(np.float32).clip(0, 1)
