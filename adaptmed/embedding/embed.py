"""Embedding: a manifest through the frozen encoders into a bank."""

from pathlib import Path

from adaptmed.adaptor.records import keep_lora
from adaptmed.bank import Bank, BankInfo, Plan
from adaptmed.bank.format import SHARDS
from adaptmed.bank.seal import seal
from adaptmed.bank.write import as_begun, begin, is_whole, reopen, require_space
from adaptmed.data.manifest import Manifest
from adaptmed.embedding.images import Progress, mended_shards, write_images
from adaptmed.embedding.options import EmbedOptions
from adaptmed.embedding.plan import Items, plan_of
from adaptmed.embedding.sizes import SizeEstimate, estimate_size, size_of
from adaptmed.embedding.texts import _write_texts
from adaptmed.runs.processes import join, together
from adaptmed.types import ImageEncoder, TextEncoder

__all__ = ["EmbedOptions", "SizeEstimate", "embed", "estimate_size"]


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

    Images are pictures, or volumes (NIfTI files and folders of DICOM series), of which every slice is encoded for
    itself; a table with both is refused.

    Args:
        manifest: What to embed.
        image_encoder: For its images; ``None`` stores no image Tokens.
        text_encoder: For its texts; ``None`` stores no text Tokens.
        out: Folder of the bank.
        options: How.
        progress: Called with the kind, the items done and all items after every batch.

    Raises:
        InputError: Both encoders are missing, or one has nothing to encode, or some images are pictures and others
            volumes, or with ``strict`` an unreadable image.
        BankError: ``out`` holds another bank, the disk is too small, no row is left, or a value does not fit the dtype.
        LostProcessError: Another process has ended; what is whole stays, and the same call goes on from there.
    """
    options = options or EmbedOptions()
    processes = join(options.device)
    items = Items.of(manifest, image_encoder, text_encoder)
    plan = as_begun(out, plan_of(manifest, items, image_encoder, text_encoder, options))

    def is_left() -> bool:
        return _begin(items, plan, image_encoder, text_encoder, out, options)

    with together(processes):
        if processes.agreed(is_left):
            report = progress or (lambda *_: None)
            if image_encoder is not None:
                write_images(items, image_encoder, out, plan, options, report, processes)
            if text_encoder is not None:
                _write_texts(items.texts, text_encoder, out, plan, options, report, processes)
            processes.agreed(lambda: _seal(manifest, items, plan, out))
    return Bank.open(out)


def _begin(
    items: Items,
    plan: Plan,
    image_encoder: ImageEncoder | None,
    text_encoder: TextEncoder | None,
    out: Path,
    options: EmbedOptions,
) -> bool:
    """Open the folder for writing and tell whether anything is left to write."""
    whole = is_whole(out, plan)
    mended = [] if image_encoder is None else mended_shards(items, image_encoder, out, plan, options)
    if whole and not mended:
        return False
    written = sum(file.stat().st_size for file in (out / SHARDS).glob("*.safetensors"))
    size = size_of(items, image_encoder, text_encoder, plan, options)
    require_space(out, size.total_bytes - written)
    begin(out, plan)
    reopen(out, mended)
    keep_lora(image_encoder, out / "image_lora")
    keep_lora(text_encoder, out / "text_lora")
    return True


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
