"""Drawn slices for miniatures: an ellipse of tissue, brighter in MR, with a bright spot where something is found."""

import numpy as np
from jaxtyping import UInt8


def slice_of(*, side: int, seed: int, bright: bool = False, spot: str | None = None) -> UInt8[np.ndarray, "side side"]:
    """Draw one slice.

    Args:
        side: Height and width in pixels.
        seed: Of size and noise.
        bright: Whether tissue is bright.
        spot: ``left`` or ``right`` draws a bright spot there; ``None`` draws none.
    """
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    inside = (x / draw.uniform(0.6, 0.8)) ** 2 + (y / draw.uniform(0.75, 0.9)) ** 2 < 1
    values = np.where(inside, 160.0 if bright else 90.0, 8.0) + draw.normal(0, 6, (side, side))
    if spot is not None:
        centre = -0.3 if spot == "left" else 0.3
        values[(x - centre) ** 2 + y**2 < 0.02] += 80
    return values.clip(0, 255).astype(np.uint8)
