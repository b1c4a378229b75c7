"""The image-concat decoder: the fused grid says what is there, the raw image where its edges are."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from monai.networks.blocks import UnetOutBlock
from torch import Tensor, nn

from adaptmed.heads.decoders.blocks import Enter, check_maps, check_pixels, double
from adaptmed.heads.decoders.config import ImageConcatConfig
from adaptmed.heads.decoders.maps import resize, sizes_between


class ImageConcatDecoder(nn.Module):
    """Upsample the fused grid in three steps and join the raw image at full resolution.

    After ``ConvDecoderWithImage`` of kaiko-eva, with a block at the grid itself, two upsampling steps of equal factor
    instead of one of two, and GroupNorm instead of BatchNorm.

    Args:
        config: Shape of the decoder.
    """

    def __init__(self, config: ImageConcatConfig) -> None:
        super().__init__()
        self.config = config
        dims, channels = config.spatial_dims, config.channels
        self.enter = Enter(dims, config.widths, [8 * channels])
        self.at_grid = double(dims, 8 * channels, 8 * channels)
        self.between = nn.ModuleList(
            [double(dims, 8 * channels, 4 * channels), double(dims, 4 * channels, 2 * channels)]
        )
        self.at_size = double(dims, 2 * channels + config.image_channels, channels)
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
        image = check_pixels(pixels, size, self.config.image_channels)
        x = self.at_grid(self.enter(maps)[0])
        *halfway, _ = sizes_between(x.shape[2:], size, len(self.between) + 1)
        for block, larger in zip(self.between, halfway, strict=True):
            x = block(resize(x, larger))
        return self.out(self.at_size(torch.cat([resize(x, size), image.to(x.dtype)], dim=1)))
