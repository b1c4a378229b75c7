"""Slices of volumes as a bank keeps them, in 8 bits and one channel, and on their way to an encoder's input.

A slice is kept at its own size and resized where it is read. One with more pixels than the encoder's input is kept as
it lies there, which is smaller and loses nothing that the encoder sees.
"""

import math
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8
from torch import Tensor

from adaptmed.data.images import at_size, from_bytes, prepare, to_bytes
from adaptmed.types import Preprocessing


def stored_pixels(size_px: tuple[int, int], preprocessing: Preprocessing) -> int:
    """Return how many pixels are kept of a slice.

    Args:
        size_px: ``(height, width)`` of the slice.
        preprocessing: Its ``image_size_px`` decides.

    Example:
        >>> facts = Preprocessing((32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> stored_pixels((20, 30), facts), stored_pixels((512, 512), facts)
        (600, 1024)
    """
    return min(math.prod(size_px), math.prod(preprocessing.image_size_px))


def slices_to_store(
    grey: Float32[np.ndarray, "depth height width_px"],
    inputs: Float[Tensor, "depth 3 input_height input_width"],
    preprocessing: Preprocessing,
) -> UInt8[Tensor, "depth pixel"]:
    """Return the pixels that are kept of the slices of a volume, row behind row, in 256 steps from black to white.

    Args:
        grey: Values in [0, 1], from ``as_grey``.
        inputs: The encoder's input made of them.
        preprocessing: They were made with.
    """
    if _is_own((grey.shape[1], grey.shape[2]), preprocessing):
        return torch.from_numpy(np.rint(grey * 255).astype(np.uint8)).flatten(1)
    return to_bytes(inputs, preprocessing)[:, 0].flatten(1)


def slices_from_store(
    stored: UInt8[Tensor, "n longest"],
    sizes_px: Int[Tensor, "n 2"],
    preprocessing: Preprocessing,
    *,
    shown_px: tuple[int, int] | None = None,
) -> Float[Tensor, "n 3 shown_height shown_width"]:
    """Turn what ``slices_to_store`` kept into an encoder's input again, or into the same at another size.

    Half a step of 256 is lost where a slice is kept. Resizing adds up at most 1.6 times as much at a pixel (bicubic
    weights have a sum of magnitudes of 1.25 along each side), so that an input is at most 0.8 steps from what it was.

    Args:
        stored: Of slices that may differ in size, padded on the right.
        sizes_px: ``(height, width)`` of the slices.
        preprocessing: The encoder's input facts.
        shown_px: ``(height, width)`` to give, laid as the encoder's input is; ``None`` is that input's size.
    """
    shown = preprocessing if shown_px is None else replace(preprocessing, image_size_px=shown_px)
    sizes: list[tuple[int, int]] = [(height, width) for height, width in sizes_px.tolist()]
    found = [_to_input(pixels, size, preprocessing, shown) for pixels, size in zip(stored, sizes, strict=True)]
    return torch.stack(found) if found else torch.zeros(0, 3, *shown.image_size_px)


def _to_input(
    pixels: UInt8[Tensor, " longest"], size_px: tuple[int, int], preprocessing: Preprocessing, shown: Preprocessing
) -> Float[Tensor, "3 shown_height shown_width"]:
    pixels = pixels[: stored_pixels(size_px, preprocessing)]
    if _is_own(size_px, preprocessing):
        return prepare(pixels.view(size_px).numpy().astype(np.float32) / 255, shown)
    laid = pixels.view(1, 1, *preprocessing.image_size_px).expand(1, 3, -1, -1)
    return at_size(from_bytes(laid, preprocessing), shown.image_size_px)[0]


def _is_own(size_px: tuple[int, int], preprocessing: Preprocessing) -> bool:
    return math.prod(size_px) <= math.prod(preprocessing.image_size_px)
