"""Random changes of training images: small turns, shifts, scales and contrast. Never a flip: reports name sides.

A change is drawn from the seed it is given and nothing else, so that a resumed run sees the same pictures.
"""

import math

import torch
from jaxtyping import Float, Integer
from monai.transforms import Compose, RandAdjustContrast, RandAffine, RandScaleIntensity
from torch import Tensor

TURN_DEGREES, SHIFT, SCALE = 10.0, 0.05, 0.1
CONTRAST, BRIGHTNESS = (0.8, 1.25), 0.1


def augment(pixels: Float[Tensor, "3 height width_px"], *, seed: int) -> Float[Tensor, "3 height width_px"]:
    """Change one normalised image: turn by up to 10 degrees, shift by 5 %, stretch by 10 %, contrast and brightness.

    The stretch is of the height alone: MONAI takes a single number for the first axis.

    Args:
        pixels: Normalised pixels.
        seed: Of the change.

    Example:
        >>> picture = torch.rand(3, 32, 32)
        >>> torch.equal(augment(picture, seed=1), augment(picture, seed=1))
        True
    """
    return _plain(_draw(pixels.shape[1:], seed)(pixels))


def augment_with_mask(
    pixels: Float[Tensor, "channel *depth height width_px"],
    mask: Integer[Tensor, "*depth height width_px"],
    *,
    seed: int,
) -> tuple[Float[Tensor, "channel *depth height width_px"], Integer[Tensor, "*depth height width_px"]]:
    """Change an image and its mask together: both move alike, contrast and brightness touch the image alone.

    The image of a picture comes out as ``augment`` gives it for the same seed. A volume is turned within its
    slices and shifted along all axes; its rows and columns are scaled.

    Args:
        pixels: Normalised pixels of a picture, or channels of a volume.
        mask: Labels; each pixel takes the value of the nearest one, so that no new value appears. What comes in at an
            edge repeats the edge, as in the image.
        seed: Of the change.

    Example:
        >>> picture, mask = torch.rand(3, 32, 32), torch.zeros(32, 32, dtype=torch.int64)
        >>> moved, labels = augment_with_mask(picture, mask, seed=1)
        >>> torch.equal(moved, augment(picture, seed=1)), labels.unique().tolist()
        (True, [0])
    """
    changes = _draw(mask.shape, seed)
    changed = _plain(changes(pixels))
    move = changes.transforms[0]
    moved = _plain(move(mask[None].float(), mode="nearest", randomize=False))[0]
    return changed, moved.round().to(mask.dtype).contiguous()


def _plain(changed: Tensor) -> Tensor:
    """A tensor of torch itself: MONAI's own kind would follow the image through every layer of an encoder."""
    return changed.as_subclass(torch.Tensor).contiguous()


def _draw(sides: tuple[int, ...], seed: int) -> Compose:
    """Return the changes of this seed; the first one moves, the others do not."""
    flat = len(sides) == 2
    changes = Compose(
        [
            RandAffine(
                prob=1.0,
                rotate_range=math.radians(TURN_DEGREES),
                translate_range=[SHIFT * side for side in sides],
                scale_range=SCALE if flat else (0.0, SCALE, SCALE),
                padding_mode="border",
            ),
            RandAdjustContrast(prob=0.5, gamma=CONTRAST),
            RandScaleIntensity(factors=BRIGHTNESS, prob=0.5),
        ]
    )
    changes.set_random_state(seed=seed % 2**32)
    return changes
