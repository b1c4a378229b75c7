"""The images of a bank: pictures in batches, volumes slice by slice, through the frozen encoder into shards."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from adaptmed.adaptor.masked import masked_image_tokens
from adaptmed.bank import Plan, prefetched
from adaptmed.bank.format import Kind
from adaptmed.bank.layout import arrange_image, to_stored, vector_dtype
from adaptmed.bank.quantised import stored_features
from adaptmed.bank.shards import Shard, tap_names
from adaptmed.bank.write import pending_shards, rejected_images, write_image_shard
from adaptmed.data.images import prepare, read_image, to_bytes
from adaptmed.data.volumes.grids import Plane, planes_in
from adaptmed.data.volumes.reading import as_grey, read_volume, slices_to_input
from adaptmed.data.volumes.stored import slices_to_store
from adaptmed.embedding.forward import encoding, forward_image
from adaptmed.embedding.options import EmbedOptions
from adaptmed.embedding.plan import Items
from adaptmed.errors import InputError
from adaptmed.layers.places import token_places
from adaptmed.runs.processes import Processes
from adaptmed.types import ImageEncoder, Preprocessing, Tokens

Progress = Callable[[Kind, int, int], None]
_VOLUMES_AT_ONCE = 4


@dataclass(frozen=True)
class _Shown:
    """What the encoder is shown of a picture (one) or a volume (its slices), and what is stored of that."""

    inputs: Float[Tensor, "n 3 height width_px"]
    stored: dict[str, Tensor]


@dataclass
class _Contents:
    """What one shard of images is going to hold."""

    pieces: list[dict[str, Tensor]] = field(default_factory=list)
    rejects: list[tuple[int, str]] = field(default_factory=list)
    slices: list[int] = field(default_factory=list)
    tokens: Tokens | None = None

    def facts(self) -> Shard:
        """Return what the shard is to say of itself; the last Tokens tell how all of them lie."""
        facts = Shard(rejects=tuple(self.rejects), slices=tuple(self.slices))
        return facts if self.tokens is None else replace(facts, grid=self.tokens.grid, prefix=self.tokens.prefix)


@dataclass(frozen=True)
class _Reader:
    """Reads the images of a bank, each for itself."""

    items: Items
    preprocessing: Preprocessing
    options: EmbedOptions
    plan: Plan

    def __call__(self, number: int) -> list[_Shown] | InputError:
        """Return what the encoder is shown of an image, plane by plane of a volume, or why it cannot be read.

        Raises:
            InputError: It cannot be read, with ``strict``.
        """
        try:
            path = self.items.images[number]
            if self.items.volumes:
                return [self._volume(path, plane) for plane in planes_in(self.options.plane)]
            return [self._picture(path)]
        except InputError as error:
            if self.options.strict:
                raise
            return error

    def _picture(self, path: Path) -> _Shown:
        inputs = prepare(read_image(path), self.preprocessing)[None]
        return self._shown(inputs)

    def _volume(self, path: Path, plane: Plane) -> _Shown:
        grey = as_grey(read_volume(path, plane), self.options.window)
        inputs = slices_to_input(grey, self.preprocessing)
        if not self.plan.own_size:
            return self._shown(inputs)
        pixels = slices_to_store(grey, inputs, self.preprocessing)
        sizes = torch.tensor(grey.shape[1:], dtype=torch.int32).repeat(len(grey), 1)
        lengths = torch.full((len(grey),), pixels.shape[1])
        return _Shown(inputs, {"pixels": pixels, "pixel_sizes": sizes, "pixel_lengths": lengths})

    def _shown(self, inputs: Float[Tensor, "n 3 height width_px"]) -> _Shown:
        return _Shown(inputs, {"pixels": to_bytes(inputs, self.preprocessing)} if self.plan.pixels else {})


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
    pending, total = own_shards(out, "image", len(items.images), plan, processes)
    numbers = (number for _, span in pending for number in span)
    inputs = options.preprocessing_of(encoder, volumes=items.volumes)
    with closing(_shown_ahead(_Reader(items, inputs, options, plan), numbers)) as shown:
        done = total - sum(len(span) for _, span in pending)
        for number, span in pending:
            contents = _Contents()
            chunk_size = 1 if items.volumes else options.batch_size
            for start in range(0, len(span), chunk_size):
                chunk = span[start : start + chunk_size]
                _encode_chunk(chunk, list(islice(shown, len(chunk))), encoder, plan, options, contents)
                done += len(chunk)
                progress("image", done, total)
            write_image_shard(out, number, contents.pieces, contents.facts())


def mended_shards(items: Items, encoder: ImageEncoder, out: Path, plan: Plan, options: EmbedOptions) -> list[int]:
    """Return the whole shards that left out an image which can be read by now."""
    read = _Reader(items, options.preprocessing_of(encoder, volumes=items.volumes), options, plan)
    found = {number: map(read, rejected) for number, rejected in rejected_images(out).items()}
    return [number for number, again in found.items() if any(isinstance(shown, list) for shown in again)]


def own_shards(
    out: Path, kind: Kind, count: int, plan: Plan, processes: Processes
) -> tuple[list[tuple[int, range]], int]:
    """List this process's shards that are not whole, and count the items of all its shards."""
    size = plan.shard_size_of(kind)
    pending = pending_shards(out, kind, count=count, shard_size=size)
    total = sum(min(size, count - start) for start in range(count)[::size][processes.part])
    return [(number, span) for number, span in pending if number % processes.world == processes.rank], total


def _shown_ahead(read: _Reader, numbers: Iterator[int]) -> Generator[list[_Shown] | InputError, None, None]:
    """Read images in background threads, in order; a volume is large, so few of them wait."""
    options = read.options
    ahead = min(options.workers, _VOLUMES_AT_ONCE) - 1 if read.items.volumes else 2 * options.batch_size
    return prefetched(read, numbers, workers=options.workers, ahead=ahead)


def _encode_chunk(
    numbers: Sequence[int],
    found: Sequence[list[_Shown] | InputError],
    encoder: ImageEncoder,
    plan: Plan,
    options: EmbedOptions,
    contents: _Contents,
) -> None:
    """Encode some pictures, or the planes of one volume, into the contents of a shard."""
    contents.rejects += [
        (n, str(error)) for n, error in zip(numbers, found, strict=True) if isinstance(error, InputError)
    ]
    read = [(number, parts) for number, parts in zip(numbers, found, strict=True) if isinstance(parts, list)]
    contents.slices += [sum(len(part.inputs) for part in parts) for _, parts in read] if plan.volumes else []
    owners = torch.tensor([number for number, _ in read])
    for parts in zip(*(parts for _, parts in read), strict=True):  # pictures together, of a volume plane by plane
        _encode_together(parts, owners, encoder, plan, options, contents)


def _encode_together(
    parts: Sequence[_Shown],
    owners: Int[Tensor, " n"],
    encoder: ImageEncoder,
    plan: Plan,
    options: EmbedOptions,
    contents: _Contents,
) -> None:
    inputs = torch.cat([part.inputs for part in parts])
    stored = {name: torch.cat([part.stored[name] for part in parts]) for name in parts[0].stored}
    for start in range(0, len(inputs), options.batch_size):
        batch = slice(start, start + options.batch_size)
        piece, contents.tokens = _encode(inputs[batch], encoder, plan, options)
        if options.masked_views:
            piece |= _encode_masked(inputs[batch], owners, encoder, options)
        piece |= {name: tensor[batch] for name, tensor in stored.items()}
        contents.pieces.append(piece | {"pixels": piece["pixels"].flatten()} if plan.own_size else piece)


def _encode(
    pixels: Tensor, encoder: ImageEncoder, plan: Plan, options: EmbedOptions
) -> tuple[dict[str, Tensor], Tokens]:
    """Return the features of some inputs as they are stored, and their Tokens."""
    tokens, maps = forward_image(encoder, pixels, plan.taps, options)
    tokens = arrange_image(tokens, options.layout)
    piece = stored_features("values", tokens.values, options.dtype, over=(1,))
    piece["pooled"] = to_stored(tokens.pooled, vector_dtype(options.dtype)).cpu()
    shallow = maps[:-1]
    for name, tap in zip(tap_names(len(shallow)), shallow, strict=True):
        piece |= stored_features(name, tap, options.dtype, over=(2, 3))
    return piece, tokens


def _encode_masked(
    pixels: Float[Tensor, "n 3 height width_px"],
    numbers: Int[Tensor, " n"],
    encoder: ImageEncoder,
    options: EmbedOptions,
) -> dict[str, Tensor]:
    """Return the masked views of some pictures as they are stored, of hidden cells nothing; ``(n, view, …)``."""
    found: list[dict[str, Tensor]] = []
    for seed in range(options.masked_views):
        with encoding(encoder, options) as device:
            shown = pixels.to(device, non_blocking=True)
            tokens, kept = masked_image_tokens(
                encoder, shown, options.layout, items=numbers, seed=seed, ratio=options.mask_ratio
            )
            places = token_places(kept, tokens.prefix)[..., None]
            seen = tokens.values.gather(1, places.expand(-1, -1, tokens.values.shape[2]))
        view = stored_features("masked_values", seen, options.dtype, over=(1,))
        view["masked_pooled"] = to_stored(tokens.pooled, vector_dtype(options.dtype)).cpu()
        found.append(view | {"masked_kept": kept.to("cpu", torch.int32)})
    return {name: torch.stack([view[name] for view in found], dim=1) for name in found[0]}
