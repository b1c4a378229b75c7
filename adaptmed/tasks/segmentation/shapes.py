"""Which decoder a bank can feed, and the shape it then has."""

from adaptmed.bank import Bank
from adaptmed.errors import InputError, sentence
from adaptmed.heads.decoders import NEEDS, DecoderConfig, check_decoder, decoder_config, encoder_kind
from adaptmed.tasks.segmentation.settings import SegmentationSettings


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
    return decoder_config(
        settings.decoder,
        tap_widths=[tap.width for tap in images.taps],
        fused_width=images.width if fused_width is None else fused_width,
        classes=classes,
        spatial_dims=3 if bank.holds_volumes else 2,
        channels=settings.channels,
    )


def taps_of(bank: Bank, settings: SegmentationSettings) -> int:
    """Taps to ask an encoder for, the deepest counted, to get those that a decoder reads of a bank; 0 for none."""
    taps = bank.images.taps
    return len(taps) + 1 if taps and NEEDS[settings.decoder].taps else 0
