"""Features in whole numbers: int8 codes, and beside them one scale per channel of every item.

An item is a picture, a slice, a masked view of a picture, or a text. Its scales come from its own values alone, so that
its numbers are the same in whichever shard it stands, beside whichever other items, and whoever writes it. A scale is
the largest magnitude of the channel in the item, divided by 127 and rounded up to the next bfloat16: no code overflows,
and no value differs by more than half a scale.
"""

import math

import torch
from jaxtyping import BFloat16, Float, Float32, Int8
from torch import Tensor

from adaptmed.bank.layout import DTYPES, DType, to_stored

LARGEST = 127
_LOWER_HALF = 0xFFFF  # bits of a float32 that a bfloat16 lacks


def scale_name(name: str) -> str:
    """Return the name that the scales of a tensor have in a shard."""
    return f"{name}_scale"


def stored_features(
    name: str, values: Float[Tensor, "item *shape"], dtype: DType, over: tuple[int, ...]
) -> dict[str, Tensor]:
    """Return features as a shard holds them, on the CPU: one tensor, or with int8 codes and scales.

    Args:
        name: Of the tensor in the shard.
        values: As the encoder gave them.
        dtype: Of the bank.
        over: Axes of the places that share a scale: tokens, or rows and columns.

    Raises:
        BankError: A value is not finite, or does not fit the dtype.
    """
    if dtype != "int8":
        return {name: to_stored(values, dtype).cpu()}
    codes, scale = quantise(to_stored(values, "float32"), over)
    return {name: codes.cpu(), scale_name(name): scale.cpu()}


def stored_bytes(values: Float[Tensor, "item *shape"], dtype: DType, over: tuple[int, ...]) -> int:
    """Return the bytes that features take in a shard, their scales counted; see ``stored_features``."""
    scales = math.prod(side for axis, side in enumerate(values.shape) if axis not in over) if dtype == "int8" else 0
    return values.numel() * DTYPES[dtype].itemsize + scales * torch.bfloat16.itemsize


def quantise(
    values: Float[Tensor, "*shape"], over: tuple[int, ...]
) -> tuple[Int8[Tensor, "*shape"], BFloat16[Tensor, "*scales"]]:
    """Round finite values to whole multiples of a scale that the values along some axes share.

    Args:
        values: Features.
        over: Axes that share a scale.

    Returns:
        Codes from -127 to 127, and scales with sides of 1 along ``over``. Where all values are 0 both are 0.

    Example:
        >>> codes, scale = quantise(torch.tensor([[[127.0, 0.0], [-50.2, 0.0]]]), over=(1,))
        >>> codes.tolist(), scale.tolist()
        ([[[127, 0], [-50, 0]]], [[[1.0, 0.0]]])
    """
    values = values.float()
    largest = values.abs().amax(dim=over, keepdim=True)
    least = torch.finfo(torch.float32).tiny
    bits = (largest / LARGEST).clamp(min=least).view(torch.int32)
    scale = torch.where(largest > 0, ((bits + _LOWER_HALF) & ~_LOWER_HALF).view(torch.float32), 0.0)
    codes = (values / torch.where(scale > 0, scale, 1.0)).round().clamp(-LARGEST, LARGEST)
    return codes.to(torch.int8), scale.to(torch.bfloat16)


def dequantise(codes: Int8[Tensor, "*shape"], scale: BFloat16[Tensor, "*scales"]) -> Float32[Tensor, "*shape"]:
    """Return the values that codes stand for.

    Args:
        codes: From ``quantise``.
        scale: Of them.
    """
    return codes.float() * scale.float()
