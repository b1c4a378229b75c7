"""Random changes of what a decoder reads: feature maps, pixels and masks of one window move together.

Tokens of a bank are computed once, so that an image cannot be changed before its encoder. Behind it everything can be:
a map of features is moved as the image and the mask are, and says of every place what the encoder said of it. What is
lost is that an encoder would have said something else of a turned image. Never a flip: reports name sides.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

TURN_DEGREES, SHIFT, SCALE = 15.0, 0.08, 0.15
CONTRAST, BRIGHTNESS = 0.2, 0.2


@dataclass(frozen=True)
class Changes:
    """One change for each picture, or for each window of a volume, whose slices all move alike.

    Attributes:
        moves: From places in the changed image to places in the image, both from -1 to 1 along ``(x, y)``.
        contrast: Factor of the normalised pixels.
        brightness: Added to them.
    """

    moves: Float[Tensor, "batch 2 3"]
    contrast: Float[Tensor, " batch"]
    brightness: Float[Tensor, " batch"]

    @classmethod
    def draw(cls, seeds: Sequence[Sequence[int]], size: tuple[int, int]) -> Self:
        """Draw a change from each seed: turned by up to 15 degrees, shifted by 8 %, stretched by 15 % along each side.

        Args:
            seeds: One for each window.
            size: ``(height, width)`` of the images: a turn keeps angles whatever their ratio.

        Example:
            >>> first, again = (Changes.draw([[0, 7]], (8, 8)) for _ in range(2))
            >>> torch.equal(first.moves, again.moves)
            True
        """
        drawn = [_draw(np.random.default_rng(list(seed)), size) for seed in seeds]
        moves, shades = (np.stack(side).astype(np.float32) for side in zip(*drawn, strict=True))
        contrast, brightness = torch.from_numpy(shades).unbind(1)
        return cls(torch.from_numpy(moves), contrast, brightness)

    def to(self, device: torch.device | str) -> Self:
        """Return the same changes on another device."""
        return type(self)(*(part.to(device) for part in (self.moves, self.contrast, self.brightness)))

    def of_map(self, values: Float[Tensor, "batch channel *size"]) -> Float[Tensor, "batch channel *size"]:
        """Move feature maps or pixels; what comes in at an edge repeats the edge."""
        return moved(values, self.moves)

    def of_pixels(self, pixels: Float[Tensor, "batch channel *size"]) -> Float[Tensor, "batch channel *size"]:
        """Move pixels, and change their contrast and brightness."""
        beside = (-1, *(1,) * (pixels.ndim - 1))
        return moved(pixels, self.moves) * self.contrast.view(beside) + self.brightness.view(beside)

    def of_mask(self, mask: Int[Tensor, "batch *size"]) -> Int[Tensor, "batch *size"]:
        """Move masks; every pixel takes the value of the nearest one, so that no new value appears."""
        return moved(mask[:, None].float(), self.moves, nearest=True)[:, 0].round().to(mask.dtype)


def moved(
    values: Float[Tensor, "batch channel *size"], moves: Float[Tensor, "batch 2 3"], *, nearest: bool = False
) -> Float[Tensor, "batch channel *size"]:
    """Move images or maps of any resolution by the same affine maps.

    Args:
        values: Pictures, or volumes with their slices before the rows.
        moves: As of ``Changes``.
        nearest: Take the nearest pixel instead of interpolating linearly.

    Example:
        >>> still = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])
        >>> values = torch.rand(1, 2, 5, 4, 6)
        >>> torch.allclose(moved(values, still), values, atol=1e-6)
        True
    """
    # The slices of a window move alike, so that they count as channels.
    flat = values.flatten(1, -3) if values.ndim > 4 else values
    grid = functional.affine_grid(moves.to(flat.dtype), list(flat.shape), align_corners=False)
    mode = "nearest" if nearest else "bilinear"
    return functional.grid_sample(flat, grid, mode=mode, padding_mode="border", align_corners=False).view(values.shape)


def _draw(generator: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    angle = math.radians(generator.uniform(-TURN_DEGREES, TURN_DEGREES))
    stretch_x, stretch_y = 1 + generator.uniform(-SCALE, SCALE, 2)
    shift = generator.uniform(-2 * SHIFT, 2 * SHIFT, 2)  # a side is 2 long
    ratio = size[0] / size[1]
    cosine, sine = math.cos(angle), math.sin(angle)
    turn = np.array([[cosine * stretch_x, -sine * stretch_y * ratio], [sine * stretch_x / ratio, cosine * stretch_y]])
    shades = 1 + generator.uniform(-CONTRAST, CONTRAST), generator.uniform(-BRIGHTNESS, BRIGHTNESS)
    return np.concatenate([turn, shift[:, None]], axis=1), np.array(shades)
