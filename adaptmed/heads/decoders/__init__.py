"""Decoders: heads that give a mask from frozen features, built from MONAI's blocks, for images and for volumes.

| decoder | reads | `adaptmed embed` | encoder | parameters, 2-D and 3-D |
|---|---|---|---|---|
| ``image-concat`` (default) | fused grid, raw image | ``--pixels`` or images read again | any | 0.48 M, 1.43 M |
| ``dpt`` | taps, the last is the fused grid | ``--taps 4`` | transformer, taps of one grid | 0.53 M, 1.46 M |
| ``unetr`` | taps, the last is the fused grid; raw image | ``--taps 4 --pixels`` | transformer | 0.52 M, 1.39 M |
| ``unet`` | pyramid, the last is the fused grid | ``--taps 4`` | CNN or Swin, taps that shrink | 0.73 M, 1.99 M |

The parameters are those of the defaults with one class, on maps of 256 channels. `check_decoder` refuses other pairs.
All of them are called alike, ``decoder(maps, size, pixels)``, take grids and inputs of any size (patch 14, odd sides)
because sizes are matched by interpolation, and judge every item of a batch alone (GroupNorm, never BatchNorm).

A 2-D encoder sees a volume slice by slice; `stack_slices` arranges the maps as (depth, height, width), and the
convolutions of the decoder mix the slices.
"""

from adaptmed.heads.decoders.blocks import initialise
from adaptmed.heads.decoders.config import (
    DecoderConfig,
    DptConfig,
    ImageConcatConfig,
    UnetConfig,
    UnetrConfig,
    decoder_config,
    from_json,
    to_json,
)
from adaptmed.heads.decoders.dpt import DptDecoder
from adaptmed.heads.decoders.image_concat import ImageConcatDecoder
from adaptmed.heads.decoders.maps import grid_map, stack_slices
from adaptmed.heads.decoders.pairs import NEEDS, EncoderKind, check_decoder, encoder_kind
from adaptmed.heads.decoders.scratch import ScratchUnet
from adaptmed.heads.decoders.unet import UnetDecoder
from adaptmed.heads.decoders.unetr import UnetrDecoder

__all__ = ["NEEDS", "DecoderConfig", "DptConfig", "DptDecoder", "EncoderKind", "ImageConcatConfig"]
__all__ += [
    "ImageConcatDecoder",
    "ScratchUnet",
    "UnetConfig",
    "UnetDecoder",
    "UnetrConfig",
    "UnetrDecoder",
    "build_decoder",
]
__all__ += ["check_decoder", "decoder_config", "encoder_kind", "from_json", "grid_map", "stack_slices", "to_json"]

Decoder = ImageConcatDecoder | DptDecoder | UnetrDecoder | UnetDecoder | ScratchUnet


def build_decoder(config: DecoderConfig) -> Decoder:
    """Build the decoder of a configuration, with random weights.

    Example:
        >>> import torch
        >>> decoder = build_decoder(ImageConcatConfig(widths=(12,), classes=2, channels=4))
        >>> decoder([torch.zeros(1, 12, 2, 3)], (29, 41), torch.zeros(1, 3, 29, 41)).shape
        torch.Size([1, 2, 29, 41])
    """
    decoder: Decoder
    match config:
        case ImageConcatConfig():
            decoder = ImageConcatDecoder(config)
        case DptConfig():
            decoder = DptDecoder(config)
        case UnetrConfig():
            decoder = UnetrDecoder(config)
        case UnetConfig():
            decoder = UnetDecoder(config)
    initialise(decoder)
    return decoder
