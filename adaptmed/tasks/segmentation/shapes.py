"""Which decoder a bank can feed, the shape it then has, and the size that it sees images at."""

from dataclasses import replace

import numpy as np

from adaptmed.bank import Bank
from adaptmed.data.volumes.grids import planes_in
from adaptmed.errors import InputError, sentence
from adaptmed.heads.decoders import NEEDS, DecoderConfig, check_decoder, decoder_config, encoder_kind
from adaptmed.tasks.segmentation.settings import SegmentationSettings
from adaptmed.types import Preprocessing

MULTIPLE = 16
"""Of the side that a decoder sees: it is halved four times."""


def check_bank(bank: Bank, decoder: str) -> None:
    """Refuse a decoder that a bank cannot feed; pictures that it does not hold can be read again.

    Raises:
        BankError: The bank holds no images, or its volumes without the pixels that the decoder reads.
        InputError: The decoder is unknown, is not made for such an encoder, or reads taps that are not there; or the
            bank keeps no grid of tokens.
    """
    images, where = bank.images, str(bank.folder)
    if bank.info.layout == "pooled":
        fix = "Run `adaptmed embed` with --layout grid or all into another --out."
        raise InputError(sentence(where, expected="a grid of tokens", got="pooled vectors", fix=fix))
    grids = [tap.grid for tap in images.taps]
    needs = {str(name): need for name, need in NEEDS.items()}.get(decoder)
    first = "transformer" if needs is None else needs.encoders[0]
    kind = encoder_kind(grids) if len(grids) > 1 else first
    at_hand = images.pixels or not bank.holds_volumes
    if len(planes_in(images.plane or "axial")) > 1 and decoder != "image-concat":
        fix = "Choose image-concat, or embed slices of one plane."
        raise InputError(sentence("decoder", expected="image-concat on slices of three planes", got=decoder, fix=fix))
    check_decoder(decoder, encoder=kind, taps=len(grids) + bool(grids), pixels=at_hand)


def shape_for(bank: Bank, settings: SegmentationSettings, *, fused_width: int | None, classes: int) -> DecoderConfig:
    """Return the shape of a decoder on a bank's taps and the fused grid.

    Args:
        bank: What it reads.
        settings: Its kind and channels.
        fused_width: Width of the fusion; ``None`` decodes the encoder's own tokens.
        classes: Background counted.
    """
    images = bank.images
    planes = len(planes_in(images.plane or "axial"))
    return decoder_config(
        settings.decoder,
        tap_widths=[tap.width for tap in images.taps],
        fused_width=planes * (images.width if fused_width is None else fused_width),
        classes=classes,
        spatial_dims=3 if bank.holds_volumes else 2,
        channels=settings.channels,
    )


def shown_in(bank: Bank, settings: SegmentationSettings) -> Preprocessing:
    """Return how a decoder sees the images of a bank: laid as the encoder's input is, but at a size of its own.

    Slices that are smaller than the input are shown at about their own voxels: an input of 224 px made of 35 × 50
    voxels holds nothing more, and takes twelve times as long.

    Raises:
        InputError: ``shown_px`` is larger than the encoder's input.
    """
    images = bank.images
    full = images.preprocessing.image_size_px
    side = settings.shown_px
    if side is None and images.own_size:
        longest = int(bank.slice_sizes(np.arange(images.count)).max())
        side = min(min(full), -(-longest // MULTIPLE) * MULTIPLE)
    if side is not None and side > min(full):
        got, fix = side, "Lower it, or embed with a larger --image-size-px."
        raise InputError(sentence("shown_px", expected=f"at most {min(full)}, the input", got=got, fix=fix))
    if side is None or side == min(full):
        return images.preprocessing
    # The ratio of the sides stays, or pixels would lie elsewhere than the grid of tokens says.
    height, width = (round(edge * side / min(full)) for edge in full)
    return replace(images.preprocessing, image_size_px=(height, width))


def taps_of(bank: Bank, settings: SegmentationSettings) -> int:
    """Taps to ask an encoder for, the deepest counted, to get those that a decoder reads of a bank; 0 for none."""
    taps = bank.images.taps
    return len(taps) + 1 if taps and NEEDS[settings.decoder].taps else 0
