"""Verifying a bank: every hash and every shape again. Nothing is deleted or repaired."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adaptmed.bank.format import INFO, ROWS, BankInfo, StoredImages, StoredTexts
from adaptmed.bank.layout import DTYPES, DType, vector_dtype
from adaptmed.bank.quantised import LARGEST, scale_name, stored_shape
from adaptmed.bank.shards import Shard, tap_names
from adaptmed.errors import BankError, sentence
from adaptmed.files import sha256_of

_OWN_DTYPES = {
    "pixels": torch.uint8,
    "pixel_sizes": torch.int32,
    "pixel_offsets": torch.int64,
    "masked_kept": torch.int32,
    "offsets": torch.int64,
    "input_ids": torch.int32,
    "id_offsets": torch.int64,
}


def verify(folder: str | Path) -> list[str]:
    """Compare every shard and the rows with what ``bank.json`` says, if that can be read.

    Returns:
        One line per damaged file, beginning with its path inside the bank; empty when the bank is sound.

    Raises:
        BankError: There is no whole bank to verify.
    """
    folder = Path(folder)
    if not (folder / INFO).exists():
        fix = "Run `adaptmed embed` first, or again to finish."
        raise BankError(sentence(str(folder), expected="a whole bank", got="no bank.json", fix=fix))
    try:
        info = BankInfo.read(folder / INFO)
    except BankError as error:
        return [str(error).replace(f"`{folder / INFO}`", INFO, 1).rstrip(".")]
    return list(_damages(folder, info))


def _damages(folder: Path, info: BankInfo) -> Iterator[str]:
    files = [(f"{shard.file}.safetensors", shard.sha256, shard) for shard in info.shards]
    for file, expected, shard in [(ROWS, info.rows_file_sha256, None), *files]:
        if not (folder / file).exists():
            yield f"{file}: missing"
        elif (got := sha256_of(folder / file)) != expected:
            yield f"{file}: expected sha256 {expected}, but got {got}"
        elif shard is not None and (fault := _fault(folder / file, shard, info)):
            yield f"{file}: {fault}"


def _fault(path: Path, shard: Shard, info: BankInfo) -> str | None:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        return f"not readable: {error}"
    if shard.count == 0:
        return None
    for name, tensor in tensors.items():
        dtype = _dtype_of(name, info)
        if tensor.dtype != dtype:
            return f"expected {str(dtype).removeprefix('torch.')}, but got {tensor.dtype} in {name}"
    if path.name.startswith("image") and info.images is not None:
        expected = _image_shapes(shard, info.images, tensors)
    elif path.name.startswith("text") and info.texts is not None:
        expected = _text_shapes(shard, info.texts, tensors)
    else:
        return f"expected a shard of what {INFO} describes, but got another"
    if info.dtype in LARGEST:
        expected = _coded(expected, info.dtype, shard.count)
    got = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return None if got == expected else f"expected shapes {expected}, but got {got}"


def _dtype_of(name: str, info: BankInfo) -> torch.dtype:
    if name.endswith(scale_name("")):
        return torch.bfloat16
    features = cast(DType, info.dtype)
    return _OWN_DTYPES.get(name, DTYPES[vector_dtype(features) if name.endswith("pooled") else features])


def _image_shapes(shard: Shard, images: StoredImages, tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    count = shard.count if images.plane is None else sum(shard.slices)
    tokens = images.prefix + math.prod(images.grid)
    shapes: dict[str, tuple[int, ...]] = {"values": (count, tokens, images.width), "pooled": (count, images.width)}
    for name, tap in zip(tap_names(len(images.taps)), images.taps, strict=True):
        shapes[name] = (count, tap.width, *tap.grid)
    if images.masked_views:
        views, kept = (count, images.masked_views), tensors["masked_kept"].shape[-1] if "masked_kept" in tensors else 0
        shapes["masked_values"] = (*views, images.prefix + kept, images.width)
        shapes |= {"masked_pooled": (*views, images.width), "masked_kept": (*views, kept)}
    if images.own_size:
        flat = {"pixels": (_last(tensors, "pixel_offsets"),), "pixel_offsets": (count + 1,), "pixel_sizes": (count, 2)}
        return shapes | flat
    return shapes | ({"pixels": (count, 3, *images.preprocessing.image_size_px)} if images.pixels else {})


def _coded(shapes: Mapping[str, tuple[int, ...]], dtype: str, count: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes with codes, and scales: one per channel of every picture, slice, masked view or text."""
    found = dict(shapes)
    for name, shape in shapes.items():
        if name in ("values", "masked_values"):
            items = (count,) if "offsets" in shapes else shape[:-2]
            found |= {name: stored_shape(shape, dtype, -1), scale_name(name): (*items, 1, shape[-1])}
        elif name.startswith("tap"):
            found |= {name: stored_shape(shape, dtype, 1), scale_name(name): (*shape[:2], 1, 1)}
    return found


def _text_shapes(shard: Shard, texts: StoredTexts, tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    edges = (shard.count + 1,)
    return {
        "values": (_last(tensors, "offsets"), texts.width),
        "offsets": edges,
        "pooled": (shard.count, texts.width),
        "input_ids": (_last(tensors, "id_offsets"),),
        "id_offsets": edges,
    }


def _last(tensors: Mapping[str, Tensor], name: str) -> int:
    """Where the last item ends; -1 without offsets."""
    return int(tensors[name][-1]) if name in tensors else -1
