"""How a picture comes to lie in an encoder's input: itself, its mask, and a prediction on the way back.

Everything goes by one placement: the picture is resized, and a window of the input's size is laid over it. Where the
window reaches beyond the picture (``pad``) there is nothing to predict; what the window leaves out (``crop``) no
encoder has seen.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64, Integer
from PIL import Image
from torch import Tensor

from adaptmed.data.decoding import times
from adaptmed.errors import InputError, sentence
from adaptmed.types import Preprocessing

MAX_PIXELS = 100_000_000
NOT_LABELLED = -1
_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True)
class Side:
    """One side of a picture under the window, in pixels.

    Attributes:
        source: Its length in the source.
        resized: Its length after resizing.
        start: Where the window starts on the resized side; negative where padding comes first.
        window: Length of the window.
    """

    source: int
    resized: int
    start: int
    window: int

    @property
    def seen(self) -> slice:
        """The part of the window that shows the picture."""
        return slice(max(0, -self.start), min(self.window, self.resized - self.start))

    def from_window(self) -> tuple[Int64[np.ndarray, " window"], Bool[np.ndarray, " window"]]:
        """Return for every pixel of the window the source pixel under its centre, and whether there is one."""
        index = np.floor((np.arange(self.window) + self.start + 0.5) * (self.source / self.resized)).astype(np.int64)
        inside = (index >= 0) & (index < self.source)
        return index.clip(0, self.source - 1), inside

    def from_source(self) -> tuple[Float64[np.ndarray, " source"], Bool[np.ndarray, " source"]]:
        """Return for every source pixel where its centre lies in the window, and whether it lies in it."""
        place = (np.arange(self.source) + 0.5) * (self.resized / self.source) - self.start
        return place, (place >= 0) & (place < self.window)


def place(size_px: tuple[int, int], preprocessing: Preprocessing) -> tuple[Side, Side]:
    """Return how the height and the width of a picture lie in the input.

    Args:
        size_px: ``(height, width)`` of the picture.
        preprocessing: Its ``image_size_px``, ``fit`` and ``crop_fraction`` decide.

    Raises:
        InputError: With ``crop``: resizing the shorter side gives over 100 million pixels.

    Example:
        >>> facts = Preprocessing((32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), fit="pad")
        >>> [(side.resized, side.start) for side in place((50, 100), facts)]
        [(16, -8), (32, 0)]
    """
    window = preprocessing.image_size_px
    match preprocessing.fit:
        case "squash":
            resized, start = window, (0, 0)
        case "crop":
            resized = _shorter_side(size_px, preprocessing)
            start = round((resized[0] - window[0]) / 2), round((resized[1] - window[1]) / 2)
        case "pad":
            scale = min(window[1] / size_px[1], window[0] / size_px[0])
            resized = max(1, round(size_px[0] * scale)), max(1, round(size_px[1] * scale))
            start = -((window[0] - resized[0]) // 2), -((window[1] - resized[1]) // 2)
    height, width = (Side(*facts) for facts in zip(size_px, resized, start, window, strict=True))
    return height, width


def fit(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Bring a picture to the input size; black where the window reaches beyond it."""
    height, width = place((image.height, image.width), preprocessing)
    resized = image.resize((width.resized, height.resized), _RESAMPLING[preprocessing.interpolation])
    return resized.crop((width.start, height.start, width.start + width.window, height.start + height.window))


def mask_to_input(
    mask: Integer[np.ndarray, "*depth height width_px"], preprocessing: Preprocessing
) -> Int[Tensor, "*depth input_height input_width"]:
    """Lay a mask where ``prepare`` lays its image: the value of the nearest source pixel.

    Args:
        mask: Labels of a picture, or of the slices of a volume.
        preprocessing: The encoder's input facts; ``interpolation`` says nothing here.

    Returns:
        int64, -1 (not labelled) where the input shows padding.

    Example:
        >>> facts = Preprocessing((2, 4), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), fit="pad")
        >>> mask_to_input(np.array([[0, 1], [2, 3]]), facts).tolist()
        [[-1, 0, 1, -1], [-1, 2, 3, -1]]
    """
    height, width = place((mask.shape[-2], mask.shape[-1]), preprocessing)
    (rows, row_inside), (columns, column_inside) = height.from_window(), width.from_window()
    laid = mask[..., rows[:, None], columns].astype(np.int64)
    laid[..., ~(row_inside[:, None] & column_inside)] = NOT_LABELLED
    return torch.from_numpy(laid)


def logits_to_source(
    logits: Float[Tensor, "class *depth height width_px"], size_px: tuple[int, int], preprocessing: Preprocessing
) -> Float[Tensor, "class *depth source_height source_width"]:
    """Bring a prediction at the input's size back to the picture's own size: the way back of ``mask_to_input``.

    Between pixels logits are interpolated linearly; predictions on padding are ignored. What the window left out is
    background: there class 0 has logit 0 and the others minus infinity, so that softmax gives exactly 1 and 0.

    Args:
        logits: Class 0 is the background. A volume has its slices in ``depth``.
        size_px: ``(height, width)`` of the source.
        preprocessing: Those the input was made with.

    Returns:
        float32; ``argmax(0)`` is the mask.

    Raises:
        InputError: ``logits`` are of another size than the input.
    """
    if tuple(logits.shape[-2:]) != tuple(preprocessing.image_size_px):
        expected = f"the size of the input, {times(preprocessing.image_size_px)}"
        fix = "Resize the prediction to the input first."
        raise InputError(sentence("logits", expected=expected, got=times(logits.shape[-2:]), fix=fix))
    sides = place(size_px, preprocessing)
    shown = logits[..., sides[0].seen, sides[1].seen].float()
    (rows, row_inside), (columns, column_inside) = (_places_in_seen(side) for side in sides)
    back = _between(_between(shown, rows, dim=-2), columns, dim=-1)
    outside = ~(row_inside[:, None] & column_inside).to(logits.device)
    back[0, ..., outside] = 0.0
    back[1:, ..., outside] = -math.inf
    return back


def _places_in_seen(side: Side) -> tuple[Float[Tensor, " source"], Bool[Tensor, " source"]]:
    """Return where source pixels lie in the part of the window that shows the picture, from its first centre on."""
    place, inside = side.from_source()
    length = side.seen.stop - side.seen.start
    share = (place - side.seen.start - 0.5).clip(0, length - 1)
    return torch.from_numpy(share).float(), torch.from_numpy(inside)


def _between(values: Float[Tensor, "*before"], places: Float[Tensor, " n"], *, dim: int) -> Float[Tensor, "*after"]:
    """Interpolate linearly along one dimension."""
    below = places.floor().long()
    above = (below + 1).clamp(max=values.shape[dim] - 1)
    share = (places - below).to(values.device)
    share = share[:, None] if dim == -2 else share
    return values.index_select(dim, below.to(values.device)).lerp(
        values.index_select(dim, above.to(values.device)), share
    )


def _shorter_side(size_px: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """The ``(height, width)`` that is cropped, rounded as timm rounds for square and for other targets."""
    target = [math.floor(side / preprocessing.crop_fraction) for side in preprocessing.image_size_px]
    if target[0] == target[1]:
        resized = [int(target[0] * side / min(size_px)) for side in size_px]
    else:
        ratio = min(side / goal for side, goal in zip(size_px, target, strict=True))
        resized = [round(side / ratio) for side in size_px]
    if resized[0] * resized[1] > MAX_PIXELS:
        fix = "Use the fit `pad`, or leave this image out."
        expected = f"sides that differ less, for a resized image of at most {MAX_PIXELS} pixels"
        raise InputError(sentence("image", expected=expected, got=times(size_px[::-1]), fix=fix))
    return resized[0], resized[1]
