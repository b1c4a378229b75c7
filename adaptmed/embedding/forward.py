"""Encoders at work while a bank is made: on their device, in the precision of the options, without gradients."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adaptmed.embedding.options import EmbedOptions
from adaptmed.encoders import tokens_and_taps
from adaptmed.types import ImageEncoder, TextEncoder, Tokens


def place_on_device(encoder: ImageEncoder | TextEncoder, options: EmbedOptions) -> torch.device:
    """Bring an encoder to the device of the options and return that."""
    device = options.torch_device
    (encoder if isinstance(encoder, nn.Module) else encoder.module).to(device)
    return device


def forward_image(
    encoder: ImageEncoder, pixels: Float[Tensor, "n 3 height width_px"], taps: int, options: EmbedOptions
) -> tuple[Tokens, list[Tensor]]:
    """Return the Tokens of pixels and ``taps`` feature maps, on the device."""
    with encoding(encoder, options) as device:
        return tokens_and_taps(encoder, pixels.to(device, non_blocking=True), taps)


@contextmanager
def encoding(encoder: ImageEncoder, options: EmbedOptions) -> Iterator[torch.device]:
    """Bring an encoder to its device and compute there, without gradients, in the precision of the options."""
    device = place_on_device(encoder, options)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
        yield device
