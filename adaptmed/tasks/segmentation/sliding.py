"""Volumes of many slices: encode every slice once, decode windows of slices, blend them."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from monai.inferers import sliding_window_inference
from torch import Tensor

from adaptmed.errors import InputError, sentence

Decode = Callable[[list[Tensor], Sequence[int], Tensor], Tensor]


def decode_windows(
    decode: Decode,
    maps: Sequence[Float[Tensor, "batch _channel _slices _rows _columns"]],
    pixels: Float[Tensor, "batch image_channel slices height width_px"],
    *,
    window_slices: int,
    overlap: float = 0.5,
) -> Float[Tensor, "batch class slices height width_px"]:
    """Decode a volume window by window along its slices, and blend the logits by a Gaussian over each window.

    A 2-D encoder has seen every slice whole, so that windows are cut along the slices alone, from maps that are
    computed (or read from the bank) once. Give the decoder the window it was trained on: its GroupNorm averages over
    the window. A volume with fewer slices is decoded whole.

    Args:
        decode: A decoder.
        maps: Its feature maps of the whole volume, slice-wise, shallow to deep.
        pixels: Raw volume; decoders that do not read it take their size from it.
        window_slices: Slices per window.
        overlap: Share of a window that the next one covers again, in [0, 1).

    Returns:
        Logits of the whole volume.

    Raises:
        InputError: A map has another number of slices than the volume, or window or overlap is out of range.
    """
    depth = pixels.shape[2]
    _check([values.shape[2] for values in maps], depth, window_slices, overlap)

    def predict(window: Tensor, places: list[list[slice]]) -> Tensor:
        cut = [torch.cat([values[place[0], :, place[2]] for place in places]) for values in maps]
        return decode(cut, window.shape[2:], window)

    size = (min(window_slices, depth), pixels.shape[3], pixels.shape[4])
    return sliding_window_inference(
        pixels, size, sw_batch_size=1, predictor=predict, overlap=(overlap, 0.0, 0.0), mode="gaussian", with_coord=True
    )


def _check(depths: list[int], depth: int, window_slices: int, overlap: float) -> None:
    if set(depths) - {depth}:
        expected, fix = f"{depth} slices in every map", "Pass maps of the whole volume, one per slice."
        raise InputError(sentence("maps", expected=expected, got=depths, fix=fix))
    if window_slices < 1:
        raise InputError(sentence("window_slices", expected="at least 1", got=window_slices, fix="Try 32."))
    if not 0 <= overlap < 1:
        raise InputError(sentence("overlap", expected="a share in [0, 1)", got=overlap, fix="Try 0.5."))
