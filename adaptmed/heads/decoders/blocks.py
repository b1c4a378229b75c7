"""What every decoder is built from: the way in, convolution blocks of MONAI with GroupNorm, the checks of what comes.

GroupNorm judges every item alone, at any batch size. InstanceNorm does so too, but takes from every channel how strong
it is, which is what tells an empty image from one with a small finding.
"""

from collections.abc import Sequence

from jaxtyping import Float
from monai.networks.blocks import Convolution, UnetrBasicBlock
from torch import Tensor, nn

from adaptmed.errors import InputError, sentence
from adaptmed.heads.decoders.config import GROUPS, DecoderConfig
from adaptmed.layers.standardise import Standardise

NORM = ("group", {"num_groups": GROUPS})
ACTIVATION = ("leakyrelu", {"negative_slope": 0.01})


class Enter(nn.Module):
    """Standardise feature maps per channel and project each to its own number of channels.

    Args:
        spatial_dims: 2 or 3.
        widths: Channels of each map as it comes.
        channels: Channels of each map as it goes on.
    """

    def __init__(self, spatial_dims: int, widths: Sequence[int], channels: Sequence[int]) -> None:
        super().__init__()
        self.standardise = nn.ModuleList(Standardise(width) for width in widths)
        self.project = nn.ModuleList(
            Convolution(spatial_dims, a, b, kernel_size=1, conv_only=True)
            for a, b in zip(widths, channels, strict=True)
        )

    def fit(self, statistics: Sequence[tuple[Float[Tensor, " _width"], Float[Tensor, " _width"]]]) -> None:
        """Set mean and standard deviation per channel of each map, taken over training rows."""
        for standardise, (mean, std) in zip(self.standardise, statistics, strict=True):
            standardise.fit(mean, std)  # type: ignore[operator]

    def forward(
        self, maps: Sequence[Float[Tensor, "batch _width *_grid"]]
    ) -> list[Float[Tensor, "batch _channel *_grid"]]:
        """Return the projected maps."""
        return [
            project(standardise(values.movedim(1, -1)).movedim(-1, 1))
            for values, standardise, project in zip(maps, self.standardise, self.project, strict=True)
        ]


def initialise(decoder: nn.Module) -> None:
    """Draw fresh kernels by He's rule, for the leaky ReLU behind them, and set biases to 0.

    PyTorch's own rule draws them 2.4 times smaller: before a norm that means steps which are that much larger, and
    labels of few pixels are then often not found at all within a few hundred steps.

    Args:
        decoder: Changed in place.
    """
    for part in decoder.modules():
        if isinstance(part, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(part.weight, a=0.01)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def single(spatial_dims: int, inside: int, outside: int) -> nn.Module:
    """One convolution of side 3, GroupNorm, leaky ReLU."""
    return Convolution(spatial_dims, inside, outside, kernel_size=3, norm=NORM, act=ACTIVATION, bias=False)


def double(spatial_dims: int, inside: int, outside: int) -> nn.Module:
    """Two convolutions of side 3, each with GroupNorm and leaky ReLU: nnU-Net's block."""
    return UnetrBasicBlock(spatial_dims, inside, outside, kernel_size=3, stride=1, norm_name=NORM)


def residual(spatial_dims: int, inside: int, outside: int) -> nn.Module:
    """Two convolutions of side 3 beside a short cut: UNETR's block."""
    return UnetrBasicBlock(spatial_dims, inside, outside, kernel_size=3, stride=1, norm_name=NORM, res_block=True)


def doubled(channels: int, levels: int, *, most: int) -> list[int]:
    """Return channels per level, doubled at each up to ``most`` times the first.

    Example:
        >>> doubled(16, 5, most=4)
        [16, 32, 64, 64, 64]
    """
    return [channels * min(2**level, most) for level in range(levels)]


def check_maps(
    maps: Sequence[Float[Tensor, "batch _width *_grid"]], size: Sequence[int], config: DecoderConfig
) -> None:
    """Refuse maps that a decoder was not built for.

    Raises:
        InputError: Another number of maps, of channels or of sides.
    """
    fix = "Pass the maps this decoder was built for, shallow to deep."
    if [values.shape[1] for values in maps] != list(config.widths):
        expected = f"{len(config.widths)} map(s) of {', '.join(map(str, config.widths))} channels"
        got = ", ".join(str(values.shape[1]) for values in maps)
        raise InputError(sentence("maps", expected=expected, got=got, fix=fix))
    sides = [len(size), *(values.ndim - 2 for values in maps)]
    if set(sides) != {config.spatial_dims}:
        expected = f"a size and maps of {config.spatial_dims} sides"
        raise InputError(sentence("size, maps", expected=expected, got=f"{sides}", fix=fix))


def check_pixels(
    pixels: Float[Tensor, "batch image_channel *_size"] | None, size: Sequence[int], image_channels: int
) -> Float[Tensor, "batch image_channel *_size"]:
    """Return the raw images, or refuse them.

    Raises:
        InputError: They are missing, or of another size or number of channels.
    """
    expected = f"raw images of {image_channels} channel(s) and {' x '.join(map(str, size))} pixels"
    fix = "Store them with `adaptmed embed --pixels` or read them again, at the encoder's input size."
    if pixels is None:
        raise InputError(sentence("pixels", expected=expected, got="none", fix=fix))
    if tuple(pixels.shape[1:]) != (image_channels, *size):
        raise InputError(sentence("pixels", expected=expected, got=tuple(pixels.shape[1:]), fix=fix))
    return pixels
