"""Pictures of predictions beside the truth: the outlines and tints of labels on the image."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer, UInt8
from matplotlib import colormaps
from PIL import Image
from scipy.ndimage import binary_erosion

TINT = 0.35


@dataclass(frozen=True)
class Overlay:
    """One test image with its truth and what arms predicted.

    Attributes:
        name: Of the row.
        pictures: Caption → PNG bytes, the image first, then the truth.
    """

    name: str
    pictures: Mapping[str, bytes]


def draw_overlay(
    name: str,
    image: Float[np.ndarray, "height width_px 3"],
    truth: Integer[np.ndarray, "height width_px"],
    predicted: Mapping[str, Integer[np.ndarray, "height width_px"]],
) -> Overlay:
    """Lay truth and predictions over one image; what is predicted on padding counts nowhere and is not drawn.

    Args:
        name: Of the row.
        image: Values in [0, 1].
        truth: Class numbers; 0 is background, -1 padding.
        predicted: Arm → class numbers of the same size.
    """
    pictures = {"image": _png(image), "truth": _png(_laid_over(image, truth))}
    counted = {arm: np.where(truth < 0, 0, classes) for arm, classes in predicted.items()}
    return Overlay(name, pictures | {arm: _png(_laid_over(image, classes)) for arm, classes in counted.items()})


def colours(names: Sequence[str]) -> dict[str, str]:
    """The colour of each label, as HTML writes it.

    Example:
        >>> colours(["effusion"])
        {'effusion': '#1f77b4'}
    """
    return {
        name: "#" + "".join(f"{channel:02x}" for channel in _colour(number + 1)) for number, name in enumerate(names)
    }


def _laid_over(
    image: Float[np.ndarray, "height width_px 3"], classes: Integer[np.ndarray, "height width_px"]
) -> Float[np.ndarray, "height width_px 3"]:
    laid = image.copy()
    for number in np.unique(classes[classes > 0]):
        region = classes == number
        colour = np.array(_colour(int(number))) / 255
        laid[region] = (1 - TINT) * laid[region] + TINT * colour
        laid[region & ~binary_erosion(region)] = colour
    return laid


def _colour(number: int) -> tuple[int, int, int]:
    red, green, blue = colormaps["tab10"]((number - 1) % 10)[:3]
    return round(255 * red), round(255 * green), round(255 * blue)


def _png(image: Float[np.ndarray, "height width_px 3"]) -> bytes:
    pixels: UInt8[np.ndarray, "height width_px 3"] = (image.clip(0, 1) * 255).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
