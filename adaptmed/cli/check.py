"""``adaptmed check``: what is in a manifest and what is wrong with it."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from adaptmed.errors import InputError, sentence
from adaptmed.files import write_text_whole

if TYPE_CHECKING:
    from rich.console import Console

    from adaptmed.data.check import CheckReport
    from adaptmed.types import TextEncoder, TokenIds

_SHOWN_REJECTS = 20
_SHOWN_CHARACTERS = 60


def check(
    manifest: Path,
    *,
    labels: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=(), show_default=False)] = (),
    class_column: str | None = None,
    uncertain: Literal["ignore", "zero", "one"] | None = None,
    text_column: Literal["text", "question"] | None = None,
    mask_labels: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=(), show_default=False)] = (),
    text_encoder: str | None = None,
    read_images: bool = True,
    rejects: Path | None = None,
    strict: bool = False,
) -> None:
    """Read a table of images and reports and tell what would be used, what would not, and why.

    Shows the columns that are taken and left out, rows and patients per split, class balance, missing and unreadable
    images, masks and their labels, repeated and truncated texts, and patients that stand in two splits. Every image and
    mask is opened. Nothing is written without --rejects. No patient id is shown.

    Args:
        manifest: Table with one row per image or pair (csv, tsv, jsonl, parquet). Columns: image (path relative to
            the table's folder: PNG, JPEG, DICOM, NIfTI, or the folder of a DICOM series), text, patient, split (train,
            validate, test), mask (PNG or NIfTI), question, answer, answer_type (open, closed), id, and labels.
        labels: Label columns; by default all columns with only 0, 1 and blank.
        class_column: Column whose values are class names.
        uncertain: What a -1 in a label column means: ignore it, or read it as zero or one.
        text_column: What a text encoder reads, the text or the question; by default the text where there is one.
        mask_labels: Names of mask values, for example 1=effusion 2=nodule; masks with other values are then bad ones.
            Without, any value may stand in a mask. 0 is background.
        text_encoder: Count the distinct texts that `adaptmed embed` with this encoder would cut by default, for example
            bundled:minilm-l6.
        read_images: Open every image and mask; without it only missing files are found.
        rejects: Write the rows that would be left out, with their reasons, to this jsonl file.
        strict: Exit with code 1 when any row would be left out.
    """
    from rich.console import Console

    from adaptmed.data.check import check_manifest
    from adaptmed.data.manifest import Manifest
    from adaptmed.data.mask_labels import parse_labels

    console = Console()
    names = parse_labels(mask_labels) if mask_labels else None
    table = Manifest.read(
        manifest, labels=labels, class_column=class_column, uncertain=uncertain, text_column=text_column
    )
    cutter = None if text_encoder is None else _Cutter.of(text_encoder)
    with _progress(console) as progress:
        report = check_manifest(table, read_images=read_images, mask_labels=names, tokenize=cutter, progress=progress)
    _show_columns(console, report)
    _show_counts(console, report)
    _show_masks(console, report, names or {})
    _show_texts(console, report, cutter)
    _show_faults(console, report)
    if rejects is not None:
        _write(rejects, report)
    if strict and report.rejects:
        fix = "Mend or remove the rows listed above."
        raise InputError(sentence(str(manifest), expected="no rejects", got=len(report.rejects), fix=fix))


@dataclass
class _Cutter:
    """Tokenises distinct texts as ``adaptmed embed`` does by default, and counts those that lose their end."""

    encoder: "TextEncoder"
    limit: int
    cut: int = 0

    @classmethod
    def of(cls, name: str) -> "_Cutter":
        from adaptmed.adaptor.records import DEFAULT_MAX_TOKENS
        from adaptmed.encoders import load_text_encoder

        encoder = load_text_encoder(name)
        return cls(encoder, min(encoder.max_tokens, DEFAULT_MAX_TOKENS))

    def __call__(self, texts: list[str]) -> "TokenIds":
        ids = self.encoder.tokenize(texts, self.limit)
        self.cut += int(ids.truncated.sum())
        return ids


@contextmanager
def _progress(console: "Console") -> Iterator[Callable[[int, int], None]]:
    """Show a bar while images are opened."""
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("images", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _show_columns(console: "Console", report: "CheckReport") -> None:
    roles: dict[str, list[str]] = {}
    for column, role in report.taken.items():
        roles.setdefault(role, []).append(column)
    _table(console, "columns taken", ("as", "column"), [(role, ", ".join(names)) for role, names in roles.items()])
    _table(console, "columns left out", ("column", "because"), list(report.left_out.items()))


def _show_counts(console: "Console", report: "CheckReport") -> None:
    rows = [(part.split, part.rows, part.patients, part.images, part.texts) for part in report.splits]
    _table(console, "rows", ("split", "rows", "patients", "images", "texts"), rows)
    counts = [(part.label, part.split, part.positive, part.negative, part.not_labelled) for part in report.balance]
    _table(console, "balance", ("label", "split", "positive", "negative", "not labelled"), counts)


def _show_masks(console: "Console", report: "CheckReport", names: Mapping[int, str]) -> None:
    rows = [(part.split, part.masks, part.good, part.empty) for part in report.masks]
    _table(console, "masks", ("split", "rows with a mask", "opened and good", "empty"), rows)
    values = {value for part in report.masks for value in part.values}
    counts = [
        (value, names.get(value, ""), part.split, part.values.get(value, 0))
        for value in sorted(values | (set(names) - {0}))
        for part in report.masks
        if part.good
    ]
    _table(console, "labels in masks", ("value", "name", "split", "masks that hold it"), counts)


def _show_texts(console: "Console", report: "CheckReport", cutter: _Cutter | None) -> None:
    rows = []
    if report.texts:
        rows.append(("texts", f"{report.texts}, {report.distinct_texts} of them distinct"))
    if report.most_frequent_text:
        text = report.most_frequent_text
        short = text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"
        rows.append(("most frequent", f"{report.most_frequent_count} times: {short}"))
    if cutter is not None and report.distinct_texts:
        share = cutter.cut / report.distinct_texts
        rows.append(("truncated", f"{share:.1%} of the distinct texts lose their end at {cutter.limit} tokens"))
    _table(console, "texts", ("", ""), rows)


def _show_faults(console: "Console", report: "CheckReport") -> None:
    from rich.text import Text

    shown = report.rejects[:_SHOWN_REJECTS]
    rows = [
        (reject["row"], Path(reject.get("image") or reject.get("mask", "")).name, reject["reason"]) for reject in shown
    ]
    _table(console, "rows that would be left out", ("row", "file", "because"), rows)
    if len(report.rejects) > len(shown):
        console.print(f"… and {len(report.rejects) - len(shown)} more; --rejects FILE writes them all.")
    for note in report.notes:
        console.print(Text(f"Note: {note}"))
    for splits, count in report.overlapping.items():
        console.print(f"[bold red]{count} patients stand in {' and '.join(splits)}[/]: training refuses such a split.")
    kinds = f"{len(report.unusable)} unusable, {len(report.missing)} missing, {len(report.unreadable)} unreadable"
    if report.masks:
        kinds += f", {len(report.bad_masks)} with a bad mask"
    console.print(
        f"{report.images_read} image files opened; rows that would be left out: {len(report.rejects)} ({kinds})."
    )


def _table(console: "Console", title: str, header: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> None:
    """Print a table, cells as they are; nothing when there are no rows."""
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    table = Table(*header, title=title, title_justify="left", show_edge=False, show_header=any(header))
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console.print(table, end="\n\n")


def _write(path: Path, report: "CheckReport") -> None:
    """Write the rejects, whole or not at all."""
    lines = [json.dumps(reject, ensure_ascii=False) + "\n" for reject in report.rejects]
    try:
        write_text_whole(path, "".join(lines))
    except OSError as error:
        fix = "Choose another --rejects."
        raise InputError(sentence(str(path), expected="a file that can be written", got=error, fix=fix)) from error
