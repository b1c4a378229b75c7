"""The default decoder from the bank: the raw image says where edges are, the fused grid what they are edges of."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from monai.networks.blocks import UnetOutBlock
from torch import Tensor, nn
from torch.nn import functional

from adaptmed.heads.decoders.blocks import Enter, check_maps, check_pixels, double
from adaptmed.heads.decoders.config import ImageConcatConfig
from adaptmed.heads.decoders.maps import resize

LEVELS = 4
DROPOUT = 0.5


class ImageConcatDecoder(nn.Module):
    """Join the fused grid to a small convolution pyramid of the raw image, and decode both together.

    After ``ConvDecoderWithImage`` of kaiko-eva, which joins the raw image once, at full resolution: two convolutions
    there see five pixels, too few to tell what the tokens are too coarse for. Here the image is halved four times (in
    the plane of the slices; depth stays), the grid joins at the bottom, and the way up reads every level.

    In training whole channels of the grid are dropped: frozen tokens know every single image, and with few masks a
    decoder learns them by heart.

    Args:
        config: Shape of the decoder.
    """

    def __init__(self, config: ImageConcatConfig) -> None:
        super().__init__()
        self.config = config
        dims, channels = config.spatial_dims, config.channels
        widths = [channels * factor for factor in range(1, LEVELS + 2)]
        joined = 2 * channels
        self.enter = Enter(dims, config.widths, [joined])
        self.drop = nn.Dropout2d(DROPOUT) if dims == 2 else nn.Dropout3d(DROPOUT)
        before = [config.image_channels, *widths]
        self.down = nn.ModuleList(double(dims, before[level], widths[level]) for level in range(LEVELS))
        self.bottom = double(dims, widths[-2] + joined, widths[-1])
        self.up = nn.ModuleList(
            double(dims, widths[level + 1] + widths[level], widths[level]) for level in reversed(range(LEVELS))
        )
        self.out = UnetOutBlock(dims, channels, config.classes)

    def forward(
        self,
        maps: Sequence[Float[Tensor, "batch _width *_grid"]],
        size: Sequence[int],
        pixels: Float[Tensor, "batch image_channel *_size"] | None = None,
    ) -> Float[Tensor, "batch class *_size"]:
        """Return logits of the input's size.

        Args:
            maps: The fused grid, alone in a list.
            size: Sides of the input in pixels.
            pixels: Raw images of that size.

        Raises:
            InputError: What comes is not what the decoder was built for, or the images are missing.
        """
        check_maps(maps, size, self.config)
        grid = self.drop(self.enter(maps)[0])
        x, skips = check_pixels(pixels, size, self.config.image_channels), []
        for down in self.down:
            x = down(x)
            skips.append(x)
            x = _halved(x)
        x = self.bottom(torch.cat([x, resize(grid, x.shape[2:]).to(x.dtype)], dim=1))
        for up, skip in zip(self.up, reversed(skips), strict=True):
            x = up(torch.cat([resize(x, skip.shape[2:]), skip], dim=1))
        return self.out(x)


def _halved(x: Float[Tensor, "batch channel *_size"]) -> Float[Tensor, "batch channel *_half"]:
    """Take means of two by two pixels within the plane; an odd side keeps its last row alone."""
    pooling = functional.avg_pool2d if x.ndim == 4 else functional.avg_pool3d
    side = 2 if x.ndim == 4 else (1, 2, 2)
    return pooling(x, side, ceil_mode=True, count_include_pad=False)
