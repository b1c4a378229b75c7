"""The U-Net decoder: a pyramid whose maps shrink by any strides, joined from deep to shallow."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from monai.networks.blocks import UnetOutBlock
from torch import Tensor, nn

from adaptmed.heads.decoders.blocks import Enter, check_maps, double, doubled
from adaptmed.heads.decoders.config import UnetConfig
from adaptmed.heads.decoders.maps import resize


class UnetDecoder(nn.Module):
    """Start at the deepest map, join the shallower ones on the way up, and end at the input's size.

    After Ronneberger et al. 2015, arXiv:1505.04597, on the maps of a frozen network. Each map is interpolated to the
    size of the next one, whatever the strides between them.

    Args:
        config: Shape of the decoder.
    """

    def __init__(self, config: UnetConfig) -> None:
        super().__init__()
        self.config = config
        dims, levels = config.spatial_dims, len(config.widths)
        channels = doubled(config.channels, levels + 1, most=8)
        self.enter = Enter(dims, config.widths, channels[1:])
        self.up = nn.ModuleList(double(dims, channels[i + 1] + channels[i], channels[i]) for i in range(1, levels))
        self.at_size = double(dims, channels[1], channels[0])
        self.out = UnetOutBlock(dims, channels[0], config.classes)

    def forward(
        self,
        maps: Sequence[Float[Tensor, "batch _width *_grid"]],
        size: Sequence[int],
        pixels: Float[Tensor, "batch image_channel *_size"] | None = None,
    ) -> Float[Tensor, "batch class *_size"]:
        """Return logits of the input's size.

        Args:
            maps: Feature maps, shallow to deep; the last one is the fused grid.
            size: Sides of the input in pixels.
            pixels: Not read.

        Raises:
            InputError: What comes is not what the decoder was built for.
        """
        del pixels
        check_maps(maps, size, self.config)
        *skips, x = self.enter(maps)
        for skip, up in zip(skips[::-1], list(self.up)[::-1], strict=True):
            x = up(torch.cat([resize(x, skip.shape[2:]), skip], dim=1))
        return self.out(self.at_size(resize(x, size)))
