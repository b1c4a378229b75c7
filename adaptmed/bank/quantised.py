"""Features in whole numbers: codes of 8 or 4 bits, and beside them one scale per channel of every item.

An item is a picture, a slice, a masked view of a picture, or a text. Its scales come from its own values alone, so that
its numbers are the same in whichever shard it stands, beside whichever other items, and whoever writes it. A scale is
the largest magnitude of the channel in the item, divided by the largest code (127 or 7) and rounded up to the next
bfloat16: no code overflows, and no value differs by more than half a scale.

Codes of 4 bits stand in pairs in a byte: the first half of the channels in the lower bits, the second in the upper.
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import BFloat16, Float, Float32, Int8, Integer, UInt8
from torch import Tensor

from adaptmed.bank.layout import DTYPES, DType, to_stored

LARGEST: Mapping[str, int] = {"int8": 127, "int4": 7}
"""Largest code by the dtype of a bank."""
_LOWER_HALF = 0xFFFF  # bits of a float32 that a bfloat16 lacks


def scale_name(name: str) -> str:
    """Return the name that the scales of a tensor have in a shard."""
    return f"{name}_scale"


def stored_features(
    name: str, values: Float[Tensor, "item *shape"], dtype: DType, over: tuple[int, ...]
) -> dict[str, Tensor]:
    """Return features as a shard holds them, on the CPU: one tensor, or codes and scales.

    Args:
        name: Of the tensor in the shard.
        values: Tokens ``(item, token, channel)`` or maps ``(item, channel, row, column)``, as the encoder gave them.
        dtype: Of the bank.
        over: Axes of the places that share a scale: tokens, or rows and columns.

    Raises:
        BankError: A value is not finite, or does not fit the dtype.
    """
    if dtype not in LARGEST:
        return {name: to_stored(values, dtype).cpu()}
    codes, scale = quantise(to_stored(values, "float32"), over, largest=LARGEST[dtype])
    stored = pack(codes, _channels(codes)) if dtype == "int4" else codes
    return {name: stored.cpu(), scale_name(name): scale.cpu()}


def stored_bytes(values: Float[Tensor, "item *shape"], dtype: DType, over: tuple[int, ...]) -> int:
    """Return the bytes that features take in a shard, their scales counted; see ``stored_features``."""
    scales = math.prod(side for axis, side in enumerate(values.shape) if axis not in over)
    size = math.prod(stored_shape(tuple(values.shape), dtype, _channels(values))) * DTYPES[dtype].itemsize
    return size + (scales * torch.bfloat16.itemsize if dtype in LARGEST else 0)


def stored_shape(shape: tuple[int, ...], dtype: str, channels: int) -> tuple[int, ...]:
    """Return the shape that features have in a shard; ``channels`` is the axis of their channels."""
    if dtype != "int4":
        return shape
    return tuple(-(-side // 2) if axis == channels % len(shape) else side for axis, side in enumerate(shape))


def quantise(
    values: Float[Tensor, "*shape"], over: tuple[int, ...], *, largest: int = LARGEST["int8"]
) -> tuple[Int8[Tensor, "*shape"], BFloat16[Tensor, "*scales"]]:
    """Round finite values to whole multiples of a scale that the values along some axes share.

    Args:
        values: Features.
        over: Axes that share a scale.
        largest: Code.

    Returns:
        Codes of at most that magnitude, and scales with sides of 1 along ``over``. Where all values are 0 both are 0.

    Example:
        >>> codes, scale = quantise(torch.tensor([[[127.0, 0.0], [-50.2, 0.0]]]), over=(1,))
        >>> codes.tolist(), scale.tolist()
        ([[[127, 0], [-50, 0]]], [[[1.0, 0.0]]])
    """
    values = values.float()
    height = values.abs().amax(dim=over, keepdim=True)
    bits = (height / largest).clamp(min=torch.finfo(torch.float32).tiny).view(torch.int32)
    scale = torch.where(height > 0, ((bits + _LOWER_HALF) & ~_LOWER_HALF).view(torch.float32), 0.0)
    codes = (values / torch.where(scale > 0, scale, 1.0)).round().clamp(-largest, largest)
    return codes.to(torch.int8), scale.to(torch.bfloat16)


def dequantise(codes: Integer[Tensor, "*stored"], scale: BFloat16[Tensor, "*scales"]) -> Float32[Tensor, "*shape"]:
    """Return the values that stored codes stand for.

    Args:
        codes: From ``stored_features``.
        scale: Of them.
    """
    if codes.dtype == torch.uint8:
        axis = _channels(codes)
        codes = unpack(codes, axis, scale.shape[axis])
    return codes.float() * scale.float()


def pack(codes: Int8[Tensor, "*shape"], channels: int) -> UInt8[Tensor, "*stored"]:
    """Lay codes of 4 bits in pairs; an odd channel is alone."""
    above = codes.shape[channels] // 2
    raised = (codes + 8).to(torch.uint8)
    packed = raised.narrow(channels, 0, raised.shape[channels] - above).clone()
    packed.narrow(channels, 0, above).bitwise_or_(raised.narrow(channels, packed.shape[channels], above) << 4)
    return packed


def unpack(packed: UInt8[Tensor, "*stored"], channels: int, count: int) -> Int8[Tensor, "*shape"]:
    """Take pairs of codes apart: the way back of ``pack``.

    Example:
        >>> codes = torch.tensor([[[-7, 3, 0]]], dtype=torch.int8)
        >>> unpack(pack(codes, 2), 2, 3).tolist()
        [[[-7, 3, 0]]]
    """
    return torch.cat([packed & 15, packed >> 4], channels).narrow(channels, 0, count).to(torch.int8) - 8


def _channels(values: Tensor) -> int:
    """Return the axis of the channels: the first but the items of maps, the last of tokens."""
    return 1 if values.ndim == 4 else 2
