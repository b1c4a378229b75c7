"""``adaptmed embed``: images and texts through the frozen encoders into a bank."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adaptmed.cli.options import ColumnOptions, EncoderOptions, StoredOptions, VolumeOptions
from adaptmed.errors import BankError, InputError, sentence

if TYPE_CHECKING:
    from adaptmed.adaptor.frozen import FrozenEncoders
    from adaptmed.bank import Bank, BankInfo, Layout
    from adaptmed.data.manifest import Manifest
    from adaptmed.embedding.embed import EmbedOptions
    from adaptmed.types import ImageEncoder, TextEncoder

_ENCODERS, _STORED, _VOLUMES, _COLUMNS = EncoderOptions(), StoredOptions(), VolumeOptions(), ColumnOptions()


def embed(
    manifest: Path | None = None,
    *,
    out: Path,
    encoders: EncoderOptions = _ENCODERS,
    stored: StoredOptions = _STORED,
    volumes: VolumeOptions = _VOLUMES,
    columns: ColumnOptions = _COLUMNS,
    precision: Literal["bf16", "fp32"] | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    device: str = "auto",
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
        encoders: Which frozen encoders, and how inputs are made to fit them.
        stored: What the bank keeps.
        volumes: How volumes become slices.
        columns: Which columns are read.
        precision: Of the computation: bf16 mixed precision, or exact fp32. By default bf16 where the device computes
            in it, else fp32, which is then faster; a bank that was begun goes on with its own.
        batch_size: Items per forward pass.
        workers: Threads that read images; one per core up to 8 by default.
        device: auto, cpu, cuda, cuda:1, ... or mps.
        strict: Stop at the first unreadable image instead of leaving it out, or at one that was left out before.
        verify: Compute nothing, only check every file of the bank in --out against its hash.
    """
    if verify:
        _verify(out)
        return
    if manifest is None:
        fix = "Pass it as the first argument, or --verify to check the bank in --out."
        raise InputError(sentence("manifest", expected="the path of a table", got="none", fix=fix))
    from adaptmed.data.manifest import Manifest
    from adaptmed.embedding.embed import EmbedOptions
    from adaptmed.runs.lineage import Lineage
    from adaptmed.runs.precision import usual_precision
    from adaptmed.runs.processes import join

    images, texts, layout, inputs = _loaded(encoders, stored)
    kept = {name: value for name, value in asdict(stored).items() if name not in ("layout", "grid")}
    precision = precision or usual_precision(device, out)
    computed = {"precision": precision, "batch_size": batch_size, "device": device, "strict": strict}
    computed |= {} if workers is None else {"workers": workers}
    options = EmbedOptions(layout=layout, **inputs, **kept, **asdict(volumes), **computed)  # type: ignore[arg-type]
    table = Manifest.read(manifest, **asdict(columns))
    _run(table, images, texts, out, options)
    if (adaptor := encoders.adaptor) is not None:
        join(device).agreed(lambda: Lineage.of_run(adaptor).keep(out))


def _loaded(
    asked: EncoderOptions, stored: StoredOptions
) -> "tuple[ImageEncoder | None, TextEncoder | None, Layout, dict[str, Any]]":
    """Load the encoders; return them with the layout of the bank, and how inputs are fitted and cut."""
    from adaptmed.adaptor.masked import whole_cells
    from adaptmed.bank import Layout
    from adaptmed.encoders import load_image_encoder, load_text_encoder, patch_grid

    if asked.adaptor is not None:
        named = asked.image_encoder or asked.text_encoder or asked.image_size_px
        frozen = _encoders_of(asked.adaptor, named=named)
        fit = frozen.image_record.inputs.fit if asked.fit is None else asked.fit
        longest = None if frozen.text_record is None else frozen.text_record.max_tokens
        inputs = {"fit": fit, "max_tokens": asked.max_tokens or longest}
        return frozen.image, frozen.text, _layout(stored, Layout.parse(frozen.layout)), inputs
    name, text, size_px = asked.image_encoder, asked.text_encoder, asked.image_size_px
    images = None if name is None else load_image_encoder(name, image_size_px=size_px)
    texts = None if text is None else load_text_encoder(text)
    layout = _layout(stored, Layout())
    if stored.masked_views and images is not None and layout.kind == "grid" and stored.grid is None:
        layout = whole_cells(patch_grid(images, images.preprocessing.image_size_px))
    return images, texts, layout, {"fit": asked.fit, "max_tokens": asked.max_tokens}


def _layout(stored: StoredOptions, kept: "Layout") -> "Layout":
    return replace(kept, kind=stored.layout or kept.kind, size=kept.size if stored.grid is None else stored.grid)


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
