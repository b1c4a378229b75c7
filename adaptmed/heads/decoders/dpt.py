"""The DPT-style decoder: taps of one grid become a pyramid, which is fused from deep to shallow."""

from collections.abc import Sequence

from jaxtyping import Float
from monai.networks.blocks import UnetOutBlock
from torch import Tensor, nn

from adaptmed.heads.decoders.blocks import Enter, check_maps, residual, single
from adaptmed.heads.decoders.config import DptConfig
from adaptmed.heads.decoders.maps import resize


class DptDecoder(nn.Module):
    """Reassemble taps at several sizes, add them up from deep to shallow, and upsample.

    After Ranftl et al. 2021, arXiv:2103.13413, with linear interpolation where DPT has transposed convolutions, one
    residual unit per level instead of two, and no readout of prefix tokens.

    Args:
        config: Shape of the decoder.
    """

    def __init__(self, config: DptConfig) -> None:
        super().__init__()
        self.config = config
        dims, channels = config.spatial_dims, 4 * config.channels
        levels = range(len(config.widths))
        self.enter = Enter(dims, config.widths, [channels for _ in levels])
        self.reassemble = nn.ModuleList(single(dims, channels, channels) for _ in levels)
        self.fuse = nn.ModuleList(residual(dims, channels, channels) for _ in levels)
        self.before = single(dims, channels, 2 * config.channels)
        self.at_size = single(dims, 2 * config.channels, config.channels)
        self.out = UnetOutBlock(dims, config.channels, config.classes)

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
            pixels: Not read.

        Raises:
            InputError: What comes is not what the decoder was built for.
        """
        del pixels
        check_maps(maps, size, self.config)
        sizes = level_sizes(maps[0].shape[2:], size, len(maps))
        levels = [
            reassemble(resize(values, level))
            for reassemble, values, level in zip(self.reassemble, self.enter(maps), sizes, strict=True)
        ]
        x = self.fuse[-1](levels[-1])
        for level, fuse in zip(levels[-2::-1], list(self.fuse)[-2::-1], strict=True):
            x = fuse(level + resize(x, level.shape[2:]))
        return self.out(self.at_size(resize(self.before(x), size)))


def level_sizes(grid: Sequence[int], size: Sequence[int], levels: int) -> list[tuple[int, ...]]:
    """Return the sizes of the levels, large to small: 4, 2, 1 and 1/2 times the grid where there are four.

    No side grows beyond that of the input, so that depth, which is whole from the start, is not upsampled.

    Example:
        >>> level_sizes((5, 14, 14), (5, 224, 224), 4)
        [(5, 56, 56), (5, 28, 28), (5, 14, 14), (2, 7, 7)]
    """
    factors = [2.0 ** (levels - 2 - level) for level in range(levels)]
    return [
        tuple(max(1, min(round(a * factor), max(a, b))) for a, b in zip(grid, size, strict=True)) for factor in factors
    ]
