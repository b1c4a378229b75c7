"""The honest outsider: a U-Net that learns everything from the images themselves, about as large as a decoder."""

from collections.abc import Sequence

from jaxtyping import Float
from monai.networks.nets import DynUNet
from torch import Tensor, nn
from torch.nn import functional

from adaptmed.heads.decoders.blocks import ACTIVATION, NORM, check_pixels

LEVELS = 5
FACTOR = 2 ** (LEVELS - 1)


class ScratchUnet(nn.Module):
    """MONAI's nnU-Net architecture with the decoders' GroupNorm; it reads pixels alone and is called as they are.

    Sides are padded to a multiple of 16 by repeating the edge. Along the depth of a volume nothing is pooled, because
    windows have few slices; the kernels of side 3 mix the slices.

    Args:
        classes: Logits per pixel.
        spatial_dims: 2 for images, 3 for volumes.
        channels: At the input's size, one more times as many per level; a multiple of 4. The defaults give 0.47 M
            parameters in 2-D and 1.3 M in 3-D, about as many as the decoder image-concat has.
        image_channels: Channels of the image.
    """

    def __init__(self, classes: int, *, spatial_dims: int = 2, channels: int = 16, image_channels: int = 3) -> None:
        super().__init__()
        self.image_channels = image_channels
        halved = (2,) * spatial_dims if spatial_dims == 2 else (1, 2, 2)
        strides = [(1,) * spatial_dims] + [halved] * (LEVELS - 1)
        kernels = [(3,) * spatial_dims] * LEVELS
        self.net = DynUNet(
            spatial_dims,
            image_channels,
            classes,
            kernel_size=kernels,
            strides=strides,
            upsample_kernel_size=strides[1:],
            filters=[channels * factor for factor in (1, 2, 3, 4, 5)],
            norm_name=NORM,
            act_name=ACTIVATION,
        )

    def forward(
        self,
        maps: Sequence[Tensor],
        size: Sequence[int],
        pixels: Float[Tensor, "batch image_channel *_size"] | None = None,
    ) -> Float[Tensor, "batch class *_size"]:
        """Return logits of the input's size.

        Args:
            maps: Not read.
            size: Sides of the input in pixels.
            pixels: Images of that size.

        Raises:
            InputError: The images are missing, or of another size or number of channels.
        """
        del maps
        image = check_pixels(pixels, size, self.image_channels)
        missing = [-side % FACTOR for side in size[-2:]]
        still = [0, 0] * (len(size) - 2)
        padded = functional.pad(image, [0, missing[1], 0, missing[0], *still], mode="replicate")
        return self.net(padded)[..., : size[-2], : size[-1]]
