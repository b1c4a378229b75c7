"""The UNETR-style decoder: taps of one grid and the raw image as the skip connections of a U-Net."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from monai.networks.blocks import UnetOutBlock
from torch import Tensor, nn

from adaptmed.heads.decoders.blocks import Enter, check_maps, check_pixels, doubled, residual
from adaptmed.heads.decoders.config import UnetrConfig
from adaptmed.heads.decoders.maps import resize, sizes_between


class UnetrDecoder(nn.Module):
    """Start at the fused grid, and on the way up join the shallower taps and at last the raw image.

    After Hatamizadeh et al. 2021, arXiv:2103.10504, whose residual blocks it takes from MONAI. UNETR doubles sides by
    transposed convolutions and so needs a patch that is a power of two; here all levels between the grid and the input
    grow by one factor and sizes are matched by interpolation, each tap in one step.

    Args:
        config: Shape of the decoder.
    """

    def __init__(self, config: UnetrConfig) -> None:
        super().__init__()
        self.config = config
        dims, levels = config.spatial_dims, len(config.widths)
        channels = doubled(config.channels, levels + 1, most=4)
        self.enter = Enter(dims, config.widths, channels[1:])
        self.skips = nn.ModuleList(residual(dims, count, count) for count in channels[1:-1])
        self.stem = residual(dims, config.image_channels, channels[0])
        self.up = nn.ModuleList(residual(dims, channels[i + 1] + channels[i], channels[i]) for i in range(levels))
        self.out = UnetOutBlock(dims, channels[0], config.classes)

    def forward(
        self,
        maps: Sequence[Float[Tensor, "batch _width *_grid"]],
        size: Sequence[int],
        pixels: Float[Tensor, "batch image_channel *_size"] | None = None,
    ) -> Float[Tensor, "batch class *_size"]:
        """Return logits of the input's size.

        Args:
            maps: Taps, shallow to deep; the last one is the fused grid.
            size: Sides of the input in pixels.
            pixels: Raw images of that size.

        Raises:
            InputError: What comes is not what the decoder was built for, or the images are missing.
        """
        check_maps(maps, size, self.config)
        image = check_pixels(pixels, size, self.config.image_channels)
        *taps, x = self.enter(maps)
        *between, _ = sizes_between(x.shape[2:], size, len(maps))
        skips = [skip(resize(tap, level)) for skip, tap, level in zip(self.skips, taps, between[::-1], strict=True)]
        for skip, up in zip([self.stem(image.to(x.dtype)), *skips][::-1], list(self.up)[::-1], strict=True):
            x = up(torch.cat([resize(x, skip.shape[2:]), skip], dim=1))
        return self.out(x)
