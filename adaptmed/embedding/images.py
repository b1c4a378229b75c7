"""The images of a bank: pictures in batches, volumes slice by slice, through the frozen encoder into shards."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from adaptmed.adaptor.masked import kept_cells, masked_image_tokens
from adaptmed.bank import Plan, prefetched
from adaptmed.bank.format import Kind
from adaptmed.bank.layout import DTYPES, arrange_image, to_stored
from adaptmed.bank.shards import tap_names
from adaptmed.bank.write import pending_shards, rejected_images, write_image_shard
from adaptmed.data.images import prepare, read_image, to_bytes
from adaptmed.data.volumes.reading import as_grey, count_slices, read_volume, slices_to_input
from adaptmed.embedding.options import EmbedOptions
from adaptmed.embedding.plan import Items
from adaptmed.encoders import tokens_and_taps
from adaptmed.errors import InputError
from adaptmed.layers.places import token_places
from adaptmed.runs.processes import Processes
from adaptmed.types import ImageEncoder, Preprocessing, TextEncoder, Tokens

Progress = Callable[[Kind, int, int], None]
_VOLUMES_AT_ONCE = 4


@dataclass
class _Contents:
    """What one shard of images is going to hold."""

    pieces: list[Tokens] = field(default_factory=list)
    beside: list[dict[str, Tensor]] = field(default_factory=list)
    rejects: list[tuple[int, str]] = field(default_factory=list)
    slices: list[int] = field(default_factory=list)


def write_images(
    items: Items,
    encoder: ImageEncoder,
    out: Path,
    plan: Plan,
    options: EmbedOptions,
    progress: Progress,
    processes: Processes,
) -> None:
    """Write this process's shards of images that are not whole yet."""
    preprocessing = options.preprocessing_of(encoder)
    pending, total = own_shards(out, "image", len(items.images), plan, processes)
    numbers = (number for _, span in pending for number in span)
    with closing(_inputs(items, numbers, preprocessing, options)) as inputs:
        done = total - sum(len(span) for _, span in pending)
        for number, span in pending:
            contents = _Contents()
            chunk_size = 1 if items.volumes else options.batch_size
            for start in range(0, len(span), chunk_size):
                chunk = span[start : start + chunk_size]
                _encode_chunk(chunk, list(islice(inputs, len(chunk))), encoder, plan, options, contents)
                done += len(chunk)
                progress("image", done, total)
            slices = contents.slices if items.volumes else ()
            write_image_shard(out, number, contents.pieces, contents.rejects, beside=contents.beside, slices=slices)


def mended_shards(items: Items, encoder: ImageEncoder, out: Path, options: EmbedOptions) -> list[int]:
    """Return the whole shards that left out an image which can be read by now."""
    preprocessing = options.preprocessing_of(encoder)
    found: dict[int, list[bool]] = {}
    for number, rejected in rejected_images(out).items():
        again = [_input(items, item, preprocessing, options) for item in rejected]
        found[number] = [isinstance(pixels, Tensor) for pixels in again]
    return [number for number, readable in found.items() if any(readable)]


def own_shards(
    out: Path, kind: Kind, count: int, plan: Plan, processes: Processes
) -> tuple[list[tuple[int, range]], int]:
    """List this process's shards that are not whole, and count the items of all its shards."""
    size = plan.shard_size_of(kind)
    pending = pending_shards(out, kind, count=count, shard_size=size)
    total = sum(min(size, count - start) for start in range(count)[::size][processes.part])
    return [(number, span) for number, span in pending if number % processes.world == processes.rank], total


def image_sizes(items: Items, encoder: ImageEncoder, plan: Plan, options: EmbedOptions) -> tuple[int, int]:
    """Return how many pictures or slices there are, and the bytes that each will take, from one blank image."""
    count = sum(count_slices(path, options.plane) for path in items.images) if items.volumes else len(items.images)
    blank = torch.zeros(1, 3, *encoder.preprocessing.image_size_px)
    tokens, maps = forward_image(encoder, blank, plan.taps, options)
    tokens = arrange_image(tokens, options.layout)
    features = sum(tensor.numel() for tensor in (tokens.values, tokens.pooled, *maps[:-1]))
    other_bytes = blank.numel() if plan.pixels else 0
    if options.masked_views:
        kept = kept_cells(encoder, options.layout, ratio=options.mask_ratio)
        features += options.masked_views * (tokens.prefix + kept + 1) * tokens.values.shape[2]
        other_bytes += options.masked_views * kept * torch.int32.itemsize
    return count, features * DTYPES[options.dtype].itemsize + other_bytes


def place_on_device(encoder: ImageEncoder | TextEncoder, options: EmbedOptions) -> torch.device:
    """Bring an encoder to the device of the options and return that."""
    device = options.torch_device
    (encoder if isinstance(encoder, nn.Module) else encoder.module).to(device)
    return device


def forward_image(
    encoder: ImageEncoder, pixels: Float[Tensor, "n 3 height width_px"], taps: int, options: EmbedOptions
) -> tuple[Tokens, list[Tensor]]:
    """Return the Tokens of pixels and ``taps`` feature maps, on the device."""
    with _encoding(encoder, options) as device:
        return tokens_and_taps(encoder, pixels.to(device, non_blocking=True), taps)


@contextmanager
def _encoding(encoder: ImageEncoder, options: EmbedOptions) -> Iterator[torch.device]:
    """Bring an encoder to its device and compute there, without gradients, in the precision of the options."""
    device = place_on_device(encoder, options)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
        yield device


def _inputs(
    items: Items, numbers: Iterator[int], preprocessing: Preprocessing, options: EmbedOptions
) -> Generator[Tensor | InputError, None, None]:
    """Read images in background threads, in order; a volume is large, so few of them wait."""

    def load(number: int) -> Tensor | InputError:
        return _input(items, number, preprocessing, options)

    ahead = min(options.workers, _VOLUMES_AT_ONCE) - 1 if items.volumes else 2 * options.batch_size
    return prefetched(load, numbers, workers=options.workers, ahead=ahead)


def _input(
    items: Items, number: int, preprocessing: Preprocessing, options: EmbedOptions
) -> Float[Tensor, "n 3 height width_px"] | InputError:
    """Return what the encoder is given of a picture (one) or a volume (its slices), or why it cannot be read.

    Raises:
        InputError: It cannot be read, with ``strict``.
    """
    path = items.images[number]
    try:
        if items.volumes:
            return slices_to_input(as_grey(read_volume(path, options.plane), options.window), preprocessing)
        return prepare(read_image(path), preprocessing)[None]
    except InputError as error:
        if options.strict:
            raise
        return error


def _encode_chunk(
    numbers: Sequence[int],
    inputs: Sequence[Tensor | InputError],
    encoder: ImageEncoder,
    plan: Plan,
    options: EmbedOptions,
    contents: _Contents,
) -> None:
    """Encode some pictures, or one volume, into the contents of a shard."""
    contents.rejects += [
        (number, str(pixels)) for number, pixels in zip(numbers, inputs, strict=True) if isinstance(pixels, InputError)
    ]
    read = [(number, pixels) for number, pixels in zip(numbers, inputs, strict=True) if isinstance(pixels, Tensor)]
    whole, owners = [pixels for _, pixels in read], torch.tensor([number for number, _ in read])
    contents.slices += [len(pixels) for pixels in whole]
    for pixels in torch.cat(whole).split(options.batch_size) if whole else ():
        tokens, beside = _encode(pixels, encoder, plan, options)
        if options.masked_views:
            beside |= _encode_masked(pixels, owners, encoder, options)
        contents.pieces.append(tokens)
        if beside:
            contents.beside.append(beside)


def _encode(
    pixels: Tensor, encoder: ImageEncoder, plan: Plan, options: EmbedOptions
) -> tuple[Tokens, dict[str, Tensor]]:
    """Return the Tokens of some inputs as they are stored, and what is stored beside them."""
    tokens, maps = forward_image(encoder, pixels, plan.taps, options)
    tokens = arrange_image(tokens, options.layout)
    values, pooled = to_stored(tokens.values, options.dtype).cpu(), to_stored(tokens.pooled, options.dtype).cpu()
    shallow = maps[:-1]
    beside = {
        name: to_stored(tap, options.dtype).cpu() for name, tap in zip(tap_names(len(shallow)), shallow, strict=True)
    }
    if plan.pixels:
        beside["pixels"] = to_bytes(pixels, options.preprocessing_of(encoder))
    return replace(tokens, values=values, pooled=pooled), beside


def _encode_masked(
    pixels: Float[Tensor, "n 3 height width_px"],
    numbers: Int[Tensor, " n"],
    encoder: ImageEncoder,
    options: EmbedOptions,
) -> dict[str, Tensor]:
    """Return the masked views of some pictures as they are stored, of hidden cells nothing; ``(n, view, …)``."""
    found: dict[str, list[Tensor]] = {"masked_values": [], "masked_pooled": [], "masked_kept": []}
    for seed in range(options.masked_views):
        with _encoding(encoder, options) as device:
            shown = pixels.to(device, non_blocking=True)
            tokens, kept = masked_image_tokens(
                encoder, shown, options.layout, items=numbers, seed=seed, ratio=options.mask_ratio
            )
            places = token_places(kept, tokens.prefix)[..., None]
            seen = tokens.values.gather(1, places.expand(-1, -1, tokens.values.shape[2]))
        found["masked_values"].append(to_stored(seen, options.dtype).cpu())
        found["masked_pooled"].append(to_stored(tokens.pooled, options.dtype).cpu())
        found["masked_kept"].append(kept.to("cpu", torch.int32))
    return {name: torch.stack(views, dim=1) for name, views in found.items()}
