"""Random changes of training images: small turns, shifts, scales and contrast. Never a flip: reports name sides.

A change is drawn from the seed it is given and nothing else, so that a resumed run sees the same pictures.
"""

import math

import torch
from jaxtyping import Float
from monai.transforms import Compose, RandAdjustContrast, RandAffine, RandScaleIntensity
from torch import Tensor

TURN_DEGREES, SHIFT, SCALE = 10.0, 0.05, 0.1
CONTRAST, BRIGHTNESS = (0.8, 1.25), 0.1


def augment(pixels: Float[Tensor, "3 height width_px"], *, seed: int) -> Float[Tensor, "3 height width_px"]:
    """Change one normalised image: turn by up to 10 degrees, shift by 5 %, scale by 10 %, contrast and brightness.

    Args:
        pixels: Normalised pixels.
        seed: Of the change.

    Example:
        >>> picture = torch.rand(3, 32, 32)
        >>> torch.equal(augment(picture, seed=1), augment(picture, seed=1))
        True
    """
    shift = [SHIFT * side for side in pixels.shape[1:]]
    changes = Compose(
        [
            RandAffine(
                prob=1.0,
                rotate_range=math.radians(TURN_DEGREES),
                translate_range=shift,
                scale_range=SCALE,
                padding_mode="border",
            ),
            RandAdjustContrast(prob=0.5, gamma=CONTRAST),
            RandScaleIntensity(factors=BRIGHTNESS, prob=0.5),
        ]
    )
    changes.set_random_state(seed=seed % 2**32)
    changed = changes(pixels)
    return torch.as_tensor(changed).contiguous()
