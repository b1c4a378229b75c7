"""Embedding: a manifest through the frozen encoders into a bank."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from adaptmed.bank import Bank, BankInfo, Plan, prefetched
from adaptmed.bank.format import SHARDS, Kind
from adaptmed.bank.layout import DTYPES, arrange_image, arrange_text, to_stored
from adaptmed.bank.seal import seal
from adaptmed.bank.write import (
    begin,
    is_whole,
    pending_shards,
    rejected_images,
    reopen,
    require_space,
    write_image_shard,
    write_text_shard,
)
from adaptmed.data.images import prepare, read_image
from adaptmed.data.manifest import Manifest
from adaptmed.errors import InputError
from adaptmed.records import keep_lora
from adaptmed.tasks.embed_options import EmbedOptions
from adaptmed.tasks.embed_plan import Items, plan_of
from adaptmed.tasks.processes import Processes, join, together
from adaptmed.types import ImageEncoder, Preprocessing, TextEncoder, TokenIds, Tokens

__all__ = ["EmbedOptions", "SizeEstimate", "embed", "estimate_size"]

Progress = Callable[[Kind, int, int], None]


@dataclass(frozen=True)
class SizeEstimate:
    """What a bank will take on disk; the length of texts is estimated from a sample.

    Attributes:
        images: Distinct images.
        texts: Distinct texts.
        total_bytes: Of all shards.
    """

    images: int
    texts: int
    total_bytes: int


def embed(
    manifest: Manifest,
    image_encoder: ImageEncoder | None,
    text_encoder: TextEncoder | None,
    out: Path,
    *,
    options: EmbedOptions | None = None,
    progress: Progress | None = None,
) -> Bank:
    """Compute the Tokens of every distinct image and text once and write them as a bank.

    A run that was killed goes on at the first shard that is not whole; a whole bank is opened and returned. An
    unreadable image leaves out its rows, with the reason in ``rejects.jsonl``; a later run tries it again, and computes
    its shard anew when it can be read by then. Started by torchrun, every process writes its own shards and the first
    one seals the bank, which is byte for byte that of one process.

    Args:
        manifest: What to embed.
        image_encoder: For its images; ``None`` stores no image Tokens.
        text_encoder: For its texts; ``None`` stores no text Tokens.
        out: Folder of the bank.
        options: How.
        progress: Called with the kind, the items done and all items after every batch.

    Raises:
        InputError: Both encoders are missing, or one has nothing to encode, or with ``strict`` an unreadable image.
        BankError: ``out`` holds another bank, the disk is too small, no row is left, or a value does not fit the dtype.
        LostProcessError: Another process has ended; what is whole stays, and the same call goes on from there.
    """
    options = options or EmbedOptions()
    processes = join(options.device)
    items = Items.of(manifest, image_encoder, text_encoder)
    plan = plan_of(manifest, items, image_encoder, text_encoder, options)

    def is_left() -> bool:
        return _begin(manifest, items, plan, image_encoder, text_encoder, out, options)

    with together(processes):
        if processes.agreed(is_left):
            report = progress or (lambda *_: None)
            if image_encoder is not None:
                _write_images(items.images, image_encoder, out, options, report, processes)
            if text_encoder is not None:
                _write_texts(items.texts, text_encoder, out, options, report, processes)
            processes.agreed(lambda: _seal(manifest, items, plan, out))
    return Bank.open(out)


def _begin(
    manifest: Manifest,
    items: Items,
    plan: Plan,
    image_encoder: ImageEncoder | None,
    text_encoder: TextEncoder | None,
    out: Path,
    options: EmbedOptions,
) -> bool:
    """Open the folder for writing and tell whether anything is left to write."""
    whole = is_whole(out, plan)
    mended = [] if image_encoder is None else _mended(items.images, image_encoder, out, options)
    if whole and not mended:
        return False
    written = sum(file.stat().st_size for file in (out / SHARDS).glob("*.safetensors"))
    size = estimate_size(manifest, image_encoder, text_encoder, options=options)
    require_space(out, size.total_bytes - written)
    begin(out, plan)
    reopen(out, mended)
    keep_lora(image_encoder, out / "image_lora")
    keep_lora(text_encoder, out / "text_lora")
    return True


def estimate_size(
    manifest: Manifest,
    image_encoder: ImageEncoder | None,
    text_encoder: TextEncoder | None,
    *,
    options: EmbedOptions | None = None,
) -> SizeEstimate:
    """Estimate a bank's size from one blank image and at most 256 of the texts."""
    options = options or EmbedOptions()
    items = Items.of(manifest, image_encoder, text_encoder)
    itemsize = DTYPES[options.dtype].itemsize
    total = 0
    if image_encoder is not None:
        blank = torch.zeros(1, 3, *image_encoder.preprocessing.image_size_px)
        tokens = arrange_image(_forward(image_encoder, blank, options=options), options.layout)
        total += len(items.images) * (tokens.values[0].numel() + tokens.pooled[0].numel()) * itemsize
    if text_encoder is not None:
        sample = items.texts[:: -(-len(items.texts) // 256)]
        mean_ids = text_encoder.tokenize(sample, options.max_tokens_of(text_encoder)).valid.sum().item() / len(sample)
        mean_tokens = 1.0 if options.layout.kind == "pooled" else mean_ids
        per_text = (mean_tokens + 1) * text_encoder.width * itemsize + 4 * mean_ids + 16
        total += round(len(items.texts) * per_text)
    return SizeEstimate(len(items.images), len(items.texts), total)


def _forward(encoder: ImageEncoder | TextEncoder, *inputs: Tensor, options: EmbedOptions) -> Tokens:
    device = options.torch_device
    (encoder if isinstance(encoder, nn.Module) else encoder.module).to(device)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
        return encoder(*(tensor.to(device, non_blocking=True) for tensor in inputs))


def _load(path: Path, preprocessing: Preprocessing, *, strict: bool) -> Tensor | InputError:
    """Return what the encoder is given of an image, or without ``strict`` why it cannot be read."""
    try:
        return prepare(read_image(path), preprocessing)
    except InputError as error:
        if strict:
            raise
        return error


def _mended(paths: Sequence[Path], encoder: ImageEncoder, out: Path, options: EmbedOptions) -> list[int]:
    """Return the whole shards that left out an image which can be read by now."""
    preprocessing = options.preprocessing_of(encoder)
    found: dict[int, list[bool]] = {}
    for number, rejected in rejected_images(out).items():
        again = [_load(paths[item], preprocessing, strict=options.strict) for item in rejected]
        found[number] = [isinstance(pixels, Tensor) for pixels in again]
    return [number for number, readable in found.items() if any(readable)]


def _write_images(
    paths: Sequence[Path],
    encoder: ImageEncoder,
    out: Path,
    options: EmbedOptions,
    progress: Progress,
    processes: Processes,
) -> None:
    preprocessing = options.preprocessing_of(encoder)

    def load(number: int) -> Tensor | InputError:
        return _load(paths[number], preprocessing, strict=options.strict)

    pending, total = _own_shards(out, "image", len(paths), options, processes)
    numbers = (number for _, span in pending for number in span)
    with closing(prefetched(load, numbers, workers=options.workers, ahead=2 * options.batch_size)) as loaded:
        done = total - sum(len(span) for _, span in pending)
        for number, span in pending:
            pieces: list[Tokens] = []
            rejects: list[tuple[int, str]] = []
            for start in range(0, len(span), options.batch_size):
                chunk = span[start : start + options.batch_size]
                read = list(zip(chunk, islice(loaded, len(chunk)), strict=True))
                rejects += [(item, str(pixels)) for item, pixels in read if isinstance(pixels, InputError)]
                whole = [pixels for _, pixels in read if isinstance(pixels, Tensor)]
                if whole:
                    pieces.append(_image_tokens(torch.stack(whole), encoder, options))
                done += len(chunk)
                progress("image", done, total)
            write_image_shard(out, number, pieces, rejects)


def _image_tokens(pixels: Tensor, encoder: ImageEncoder, options: EmbedOptions) -> Tokens:
    tokens = arrange_image(_forward(encoder, pixels, options=options), options.layout)
    values, pooled = to_stored(tokens.values, options.dtype).cpu(), to_stored(tokens.pooled, options.dtype).cpu()
    return replace(tokens, values=values, pooled=pooled)


def _own_shards(
    out: Path, kind: Kind, count: int, options: EmbedOptions, processes: Processes
) -> tuple[list[tuple[int, range]], int]:
    """List this process's shards that are not whole, and count the items of all its shards."""
    pending = pending_shards(out, kind, count=count, shard_size=options.shard_size)
    own = range(count)[:: options.shard_size][processes.part]
    total = sum(min(options.shard_size, count - start) for start in own)
    return [(number, span) for number, span in pending if number % processes.world == processes.rank], total


def _write_texts(
    texts: Sequence[str],
    encoder: TextEncoder,
    out: Path,
    options: EmbedOptions,
    progress: Progress,
    processes: Processes,
) -> None:
    limit = options.max_tokens_of(encoder)
    pending, total = _own_shards(out, "text", len(texts), options, processes)
    done = total - sum(len(span) for _, span in pending)
    for number, span in pending:
        ids = encoder.tokenize([texts[item] for item in span], limit)
        values, pooled = _text_tokens(ids, encoder, options)
        write_text_shard(out, number, values, pooled, ids)
        done += len(span)
        progress("text", done, total)


def _text_tokens(ids: TokenIds, encoder: TextEncoder, options: EmbedOptions) -> tuple[list[Tensor], list[Tensor]]:
    """Encode one shard's texts, those of one length together so that little padding is computed."""
    lengths = ids.valid.sum(dim=1)
    order = lengths.argsort(stable=True)
    values: list[Tensor] = []
    pooled: list[Tensor] = []
    for chunk in order.split(options.batch_size):
        longest = int(lengths[chunk].max())
        inputs = ids.input_ids[chunk, :longest], ids.valid[chunk, :longest]
        tokens = arrange_text(_forward(encoder, *inputs, options=options), options.layout)
        stored = to_stored(tokens.values[tokens.valid], options.dtype).cpu()
        values += stored.split(tokens.valid.sum(dim=1).tolist())
        pooled += to_stored(tokens.pooled, options.dtype).cpu()
    back = order.argsort().tolist()
    return [values[place] for place in back], [pooled[place] for place in back]


def _seal(manifest: Manifest, items: Items, plan: Plan, out: Path) -> None:
    info = BankInfo(
        manifest=str(manifest.path.resolve()),
        manifest_sha256=manifest.sha256,
        labels=tuple(manifest.labels),
        class_column=manifest.class_column,
        classes=tuple(manifest.classes or ()),
        has_patients=manifest.has_patients,
        notes=tuple(manifest.notes),
    )
    rows = manifest.frame.assign(image_index=items.image_index, text_index=items.text_index)
    seal(out, plan, info, rows, rejects=manifest.rejects)
