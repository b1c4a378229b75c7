"""Which decoder goes with which encoder, and what of it the bank must hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from adaptmed.errors import InputError, sentence
from adaptmed.heads.decoders.config import Kind

EncoderKind = Literal["transformer", "pyramid"]
"""``transformer``: all taps are of one grid (ViT). ``pyramid``: each tap is smaller than the one before (CNN, Swin)."""
SHAPES: Mapping[EncoderKind, str] = {
    "transformer": "a transformer whose taps are all of one grid",
    "pyramid": "a CNN or a hierarchical transformer, whose taps shrink",
}


@dataclass(frozen=True)
class Needs:
    """What a decoder needs.

    Attributes:
        taps: Fewest taps it works with, the fused grid counted; 0 where the fused grid is all it reads.
        pixels: Whether it reads the raw image.
        encoders: Kinds of encoder whose taps it is made for.
    """

    taps: int
    pixels: bool
    encoders: tuple[EncoderKind, ...]


NEEDS: Mapping[Kind, Needs] = {
    "image-concat": Needs(taps=0, pixels=True, encoders=("transformer", "pyramid")),
    "dpt": Needs(taps=2, pixels=False, encoders=("transformer",)),
    "unetr": Needs(taps=2, pixels=True, encoders=("transformer",)),
    "unet": Needs(taps=2, pixels=False, encoders=("pyramid",)),
}


def encoder_kind(grids: Sequence[Sequence[int]]) -> EncoderKind:
    """Tell the kind of an encoder from the grids of its taps.

    Args:
        grids: Grid of each tap, shallow to deep; two or more, of the encoder itself, without the fused grid.

    Raises:
        InputError: Fewer than two taps, or their grids neither stay nor shrink.

    Example:
        >>> encoder_kind([(16, 16), (16, 16)]), encoder_kind([(56, 56), (28, 28), (14, 14)])
        ('transformer', 'pyramid')
    """
    steps = list(pairwise(grids))
    if steps and all(tuple(a) == tuple(b) for a, b in steps):
        return "transformer"
    if steps and all(tuple(a) != tuple(b) and all(y <= x for x, y in zip(a, b, strict=True)) for a, b in steps):
        return "pyramid"
    expected, fix = "two or more taps, all of one grid or each smaller than the one before", "Ask for 4 taps."
    raise InputError(sentence("taps", expected=expected, got=[tuple(grid) for grid in grids], fix=fix))


def check_decoder(kind: str, *, encoder: EncoderKind, taps: int, pixels: bool) -> None:
    """Refuse a decoder that an encoder or a bank cannot feed.

    Args:
        kind: Kind of the decoder.
        encoder: Kind of the encoder.
        taps: How many taps there are, the fused grid counted.
        pixels: Whether raw images are at hand, from the bank or read again.

    Raises:
        InputError: The kind is unknown, is not made for such an encoder, or what it reads is missing.

    Example:
        >>> check_decoder("image-concat", encoder="transformer", taps=0, pixels=True)
        >>> check_decoder("unet", encoder="transformer", taps=4, pixels=True)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        adaptmed.errors.InputError: `decoder`: expected image-concat, dpt or unetr for a transformer whose taps ...
    """
    needs = {str(name): need for name, need in NEEDS.items()}.get(kind)
    fitting = [name for name, need in NEEDS.items() if encoder in need.encoders]
    choice = f"{', '.join(fitting[:-1])} or {fitting[-1]}"
    if needs is None or encoder not in needs.encoders:
        expected, fix = f"{choice} for {SHAPES[encoder]}", f"Choose {choice}."
        raise InputError(sentence("decoder", expected=expected, got=kind, fix=fix))
    if taps < needs.taps:
        expected, fix = f"at least {needs.taps} for the decoder {kind}", "Run `adaptmed embed` with --taps 4."
        raise InputError(sentence("taps", expected=expected, got=taps, fix=fix))
    if needs.pixels and not pixels:
        expected = f"the raw images, which the decoder {kind} reads"
        fix = "Run `adaptmed embed` with --pixels, or keep the image files where the manifest says."
        raise InputError(sentence("pixels", expected=expected, got="none", fix=fix))
