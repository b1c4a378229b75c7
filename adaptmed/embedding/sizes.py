"""What a bank will take on disk, said before anything is encoded."""

from dataclasses import dataclass

import torch

from adaptmed.adaptor.masked import kept_cells
from adaptmed.bank import Plan
from adaptmed.bank.layout import DTYPES, arrange_image, vector_dtype
from adaptmed.bank.quantised import stored_bytes
from adaptmed.data.manifest import Manifest
from adaptmed.data.volumes.grids import planes_in
from adaptmed.data.volumes.reading import slices_shape
from adaptmed.data.volumes.stored import stored_pixels
from adaptmed.embedding.forward import forward_image
from adaptmed.embedding.options import EmbedOptions
from adaptmed.embedding.plan import Items, plan_of
from adaptmed.types import ImageEncoder, TextEncoder, Tokens

_PER_SLICE = 2 * torch.int32.itemsize + torch.int64.itemsize  # its size, and where its pixels end


@dataclass(frozen=True)
class SizeEstimate:
    """What a bank will take on disk; the length of texts is estimated from a sample.

    Attributes:
        images: Distinct images: pictures or volumes.
        texts: Distinct texts.
        total_bytes: Of all shards.
        slices: Of the volumes, as their headers say; ``None`` where images are pictures.
    """

    images: int
    texts: int
    total_bytes: int
    slices: int | None = None


def estimate_size(
    manifest: Manifest,
    image_encoder: ImageEncoder | None,
    text_encoder: TextEncoder | None,
    *,
    options: EmbedOptions | None = None,
) -> SizeEstimate:
    """Estimate a bank's size from one blank image, the headers of volumes and at most 256 of the texts.

    Raises:
        InputError: As of ``embed``.
    """
    options = options or EmbedOptions()
    items = Items.of(manifest, image_encoder, text_encoder)
    plan = plan_of(manifest, items, image_encoder, text_encoder, options)
    return size_of(items, image_encoder, text_encoder, plan, options)


def size_of(
    items: Items,
    image_encoder: ImageEncoder | None,
    text_encoder: TextEncoder | None,
    plan: Plan,
    options: EmbedOptions,
) -> SizeEstimate:
    """Estimate the size of the bank of a plan."""
    total, slices = 0, None
    if image_encoder is not None:
        planes = planes_in(options.plane) if items.volumes else ()
        shapes = [slices_shape(path, plane) for path in items.images for plane in planes]
        slices = sum(depth for depth, _, _ in shapes) if items.volumes else None
        count = len(items.images) if slices is None else slices
        total += count * _features_bytes(image_encoder, plan, options)
        total += _pixels_bytes(shapes, count, image_encoder, plan)
    if text_encoder is not None:
        total += round(len(items.texts) * _text_bytes(items, text_encoder, options))
    return SizeEstimate(len(items.images), len(items.texts), total, slices)


def _features_bytes(encoder: ImageEncoder, plan: Plan, options: EmbedOptions) -> int:
    """Return what the features of a picture or slice take."""
    blank = torch.zeros(1, 3, *encoder.preprocessing.image_size_px)
    tokens, maps = forward_image(encoder, blank, plan.taps, options)
    tokens = arrange_image(tokens, options.layout)
    size = stored_bytes(tokens.values, options.dtype, over=(1,))
    size += sum(stored_bytes(tap, options.dtype, over=(2, 3)) for tap in maps[:-1])
    vector = tokens.pooled.numel() * DTYPES[vector_dtype(options.dtype)].itemsize
    return size + vector + (_view_bytes(encoder, tokens, vector, options) if options.masked_views else 0)


def _view_bytes(encoder: ImageEncoder, tokens: Tokens, vector_bytes: int, options: EmbedOptions) -> int:
    """Return what the masked views of a picture take."""
    kept = kept_cells(encoder, options.layout, ratio=options.mask_ratio)
    seen = stored_bytes(tokens.values[:, : tokens.prefix + kept], options.dtype, over=(1,))
    return options.masked_views * (seen + vector_bytes + kept * torch.int32.itemsize)


def _pixels_bytes(shapes: list[tuple[int, int, int]], count: int, encoder: ImageEncoder, plan: Plan) -> int:
    """Return what the pixels of all pictures or slices take."""
    facts = encoder.preprocessing
    if plan.own_size:
        return sum(depth * (stored_pixels((height, width), facts) + _PER_SLICE) for depth, height, width in shapes)
    return count * 3 * facts.image_size_px[0] * facts.image_size_px[1] if plan.pixels else 0


def _text_bytes(items: Items, encoder: TextEncoder, options: EmbedOptions) -> float:
    """Return what a text takes on average."""
    sample = items.texts[:: -(-len(items.texts) // 256)]
    mean_ids = encoder.tokenize(sample, options.max_tokens_of(encoder)).valid.sum().item() / len(sample)
    mean_tokens = 1.0 if options.layout.kind == "pooled" else mean_ids
    vector = encoder.width * DTYPES[vector_dtype(options.dtype)].itemsize
    one, two = (stored_bytes(torch.zeros(1, count, encoder.width), options.dtype, over=(1,)) for count in (1, 2))
    return one + (mean_tokens - 1) * (two - one) + vector + 4 * mean_ids + 16
