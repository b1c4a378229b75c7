"""``adaptmed embed``: images and texts through the frozen encoders into a bank."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from adaptmed.errors import BankError, InputError, sentence

if TYPE_CHECKING:
    from adaptmed.adaptor.frozen import FrozenEncoders
    from adaptmed.bank import Bank, BankInfo
    from adaptmed.data.manifest import Manifest
    from adaptmed.embedding.embed import EmbedOptions
    from adaptmed.types import ImageEncoder, TextEncoder


def embed(
    manifest: Path | None = None,
    *,
    out: Path,
    image_encoder: str | None = None,
    text_encoder: str | None = None,
    adaptor: Path | None = None,
    image_size_px: int | None = None,
    fit: Literal["crop", "pad", "squash"] | None = None,
    max_tokens: int | None = None,
    layout: Literal["grid", "all", "pooled"] | None = None,
    grid: int | None = None,
    dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    precision: Literal["bf16", "fp32"] = "bf16",
    batch_size: int = 64,
    shard_size: int | None = None,
    taps: int = 0,
    pixels: bool | None = None,
    masked_views: int = 0,
    mask_ratio: float = 0.75,
    plane: Literal["axial", "coronal", "sagittal"] = "axial",
    window: tuple[float, float] | None = None,
    workers: int | None = None,
    device: str = "auto",
    labels: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    class_column: str | None = None,
    uncertain: Literal["ignore", "zero", "one"] | None = None,
    text_column: Literal["text", "question"] | None = None,
    strict: bool = False,
    verify: bool = False,
) -> None:
    """Compute every distinct image and text once with frozen encoders and store the tokens as a bank.

    Run the same command again after an interruption: it goes on where it stopped. Several processes share the work when
    torchrun starts it: `torchrun --nproc-per-node 2 -m adaptmed embed ...`. The size is printed before it
    starts, and the run is refused when the disk is too small. Unreadable images are listed in rejects.jsonl; run the
    same command again to take them in when they are mended.

    Args:
        manifest: Table with one row per image or pair (csv, jsonl, parquet); columns image, text, patient, split,
            question, answer, ... Its images are pictures (PNG, JPEG, DICOM), or volumes (NIfTI, or the folder of a
            DICOM series), whose slices are encoded one by one. Not needed with --verify.
        out: Folder of the bank.
        image_encoder: For example bundled:dinov2-small or timm:vit_small_patch14_dinov2.lvd142m. Without it no image
            tokens are stored.
        text_encoder: For example bundled:minilm-l6 or hf:emilyalsentzer/Bio_ClinicalBERT. Without it no text tokens
            are stored.
        adaptor: Run folder or saved adaptor: take its encoders with the LoRA inside, instead of naming them, and its
            fit, longest text and layout where they are not given here.
        image_size_px: Side of the encoder's input in pixels; the encoder's own by default.
        fit: How an image becomes square: crop its longer side, pad its shorter side, or squash; the encoder's own way
            by default.
        max_tokens: Where texts are cut; the encoder's limit or 256 by default, whichever is smaller.
        layout: Which image tokens are kept: a small grid of means and the prefix tokens (the default), all of them, or
            only the pooled vector (of texts too).
        grid: Side of that small grid, 8 by default. An encoder with a smaller grid keeps its own. With --masked-views
            the default is the largest side up to 8 whose cells are whole blocks of the encoder's patches: 7 of a grid
            of 14, 8 of 16 and of 24.
        dtype: Number format on disk.
        precision: Of the computation: bf16 mixed precision, or exact fp32.
        batch_size: Items per forward pass.
        shard_size: Images or texts per file; what an interruption can lose at most. 256 by default, or 4 volumes.
        taps: Feature maps for the decoders of segmentation: 4 stores the three shallow ones, at their full resolution;
            the fused grid takes the place of the deepest. 0 stores none.
        pixels: Store what the encoder sees of each image in 8 bits, for decoders that read it and for masked
            pre-training that predicts it; by default of volumes and with --masked-views, not of other pictures.
        masked_views: For masked pre-training: passes of every picture of which the encoder sees a part only; 4 stores
            four, each with other cells hidden. Vision transformers can do so, CNNs cannot.
        mask_ratio: Share of the cells that a masked view hides.
        plane: Of the slices that are encoded of volumes.
        window: Level and width that volumes are shown with, in their own units: 40 400 shows soft tissue of CT,
            -600 1500 the lung. By default from the 0.5th to the 99.5th percentile of each volume.
        workers: Threads that read images; one per core up to 8 by default.
        device: auto, cpu, cuda, cuda:1, ... or mps.
        labels: Label columns; by default all columns with only 0, 1 and blank.
        class_column: Column whose values are class names.
        uncertain: What a -1 in a label column means: ignore it, or read it as zero or one.
        text_column: What the text encoder reads: the text, or the question of a table for answering questions. By
            default the text where the table has one.
        strict: Stop at the first unreadable image instead of leaving it out, or at one that was left out before.
        verify: Compute nothing, only check every file of the bank in --out against its hash.
    """
    if verify:
        _verify(out)
        return
    if manifest is None:
        fix = "Pass it as the first argument, or --verify to check the bank in --out."
        raise InputError(sentence("manifest", expected="the path of a table", got="none", fix=fix))
    from adaptmed.adaptor.masked import whole_cells
    from adaptmed.bank import Layout
    from adaptmed.data.manifest import Manifest
    from adaptmed.embedding.embed import EmbedOptions
    from adaptmed.encoders import load_image_encoder, load_text_encoder, patch_grid
    from adaptmed.runs.lineage import Lineage
    from adaptmed.runs.processes import join

    kept = Layout()
    if adaptor is not None:
        encoders = _encoders_of(adaptor, named=image_encoder or text_encoder or image_size_px)
        images, texts, kept = encoders.image, encoders.text, Layout.parse(encoders.layout)
        inputs = encoders.image_record.preprocessing
        fit = inputs.fit if fit is None and inputs is not None else fit
        max_tokens = max_tokens or encoders.text_record.max_tokens
    else:
        images = None if image_encoder is None else load_image_encoder(image_encoder, image_size_px=image_size_px)
        texts = None if text_encoder is None else load_text_encoder(text_encoder)
    stored = Layout(layout or kept.kind, kept.size if grid is None else grid)
    if masked_views and images is not None and stored.kind == "grid" and grid is None and adaptor is None:
        stored = whole_cells(patch_grid(images, images.preprocessing.image_size_px))
    options = EmbedOptions(
        layout=stored,
        dtype=dtype,
        precision=precision,
        max_tokens=max_tokens,
        fit=fit,
        batch_size=batch_size,
        shard_size=shard_size,
        device=device,
        strict=strict,
        taps=taps,
        pixels=pixels,
        masked_views=masked_views,
        mask_ratio=mask_ratio,
        plane=plane,
        window=window,
    )
    options = options if workers is None else replace(options, workers=workers)
    table = Manifest.read(
        manifest, labels=tuple(labels), class_column=class_column, uncertain=uncertain, text_column=text_column
    )
    _run(table, images, texts, out, options)
    if adaptor is not None:
        join(device).agreed(lambda: Lineage.of_run(adaptor).keep(out))


def _encoders_of(adaptor: Path, *, named: object) -> "FrozenEncoders":
    if named:
        fix = "Leave --image-encoder, --text-encoder and --image-size-px out: the adaptor knows its encoders."
        raise InputError(sentence("adaptor", expected="no encoder beside it", got=named, fix=fix))
    from adaptmed.adaptor.model import Adaptor

    return Adaptor.from_pretrained(adaptor).encoders


def _run(
    table: "Manifest",
    images: "ImageEncoder | None",
    texts: "TextEncoder | None",
    out: Path,
    options: "EmbedOptions",
) -> None:
    from rich.console import Console

    from adaptmed.bank.format import INFO
    from adaptmed.embedding.embed import embed, estimate_size
    from adaptmed.runs.processes import join

    first = join(options.device).first
    console = Console(soft_wrap=True, highlight=False, markup=False, quiet=not first)
    as_text = {table.text_column: f"{table.text_column} (read as text)"} if table.text_column != "text" else {}
    taken = ", ".join(as_text.get(name, name) for name in table.taken)
    console.print(f"Columns taken: {taken or 'none'}; left out: {', '.join(table.left_out) or 'none'}.")
    whole = (out / INFO).exists()
    if not whole:
        size = estimate_size(table, images, texts, options=options)
        megabytes = f"about {size.total_bytes / 1e6:.1f} MB in {out}"
        images_of = "images" if size.slices is None else f"volumes of {size.slices:,} slices"
        console.print(f"{size.images} distinct {images_of} and {size.texts} distinct texts: {megabytes}.")
    with _ProgressBars() as bars:
        bank = embed(table, images, texts, out, options=options, progress=bars if first else None)
    console.print(f"{out}{' is whole already' if whole and not bars.shown else ''}: {_summary(bank)}")
    for note in bank.info.notes:
        console.print(f"Note: {note}")


def _summary(bank: "Bank") -> str:
    info = bank.info
    parts = [f"{info.rows} rows", *_image_parts(info), f"{info.rejected} rows rejected"]
    if info.texts is not None:
        cut = f"{info.texts.truncated_share:.1%} cut at {info.texts.max_tokens} tokens"
        parts.insert(-1, f"{info.texts.count} texts ({cut})")
    return ", ".join(parts) + "."


def _image_parts(info: "BankInfo") -> list[str]:
    images = info.images
    if images is None:
        return ["0 images"]
    volumes = sum(len(shard.slices) for shard in info.shards)
    parts = [f"{images.count} images" if images.plane is None else f"{volumes} volumes of {images.count:,} slices"]
    parts += [f"taps {len(images.taps)}"] if images.taps else []
    parts += [f"masked views {images.masked_views}"] if images.masked_views else []
    return [*parts, "pixels"] if images.pixels else parts


def _verify(out: Path) -> None:
    from rich.console import Console

    from adaptmed.bank import verify

    damaged = verify(out)
    if damaged:
        fix = "Delete these files and bank.json, then run the same `adaptmed embed` again: it writes what is missing."
        raise BankError(sentence(str(out), expected="whole files", got="; ".join(damaged), fix=fix))
    Console(soft_wrap=True, highlight=False, markup=False).print(f"{out} is sound.")


class _ProgressBars:
    """One bar for images, one for texts, with items per second; nothing is shown before there is progress."""

    def __enter__(self) -> "_ProgressBars":
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

        speed = TextColumn("{task.fields[speed]}")
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn()
        )
        self._tasks: dict[str, TaskID] = {}
        return self

    def __exit__(self, *_: object) -> None:
        if self.shown:
            self._progress.stop()

    @property
    def shown(self) -> bool:
        """Whether anything was computed."""
        return bool(self._tasks)

    def __call__(self, kind: str, done: int, total: int) -> None:
        if not self.shown:
            self._progress.start()
        if kind not in self._tasks:
            self._tasks[kind] = self._progress.add_task(f"{kind}s", total=total, speed="")
        task = self._tasks[kind]
        self._progress.update(task, completed=done)
        speed = self._progress.tasks[task].speed
        self._progress.update(task, speed="" if speed is None else f"{speed:.1f}/s")
