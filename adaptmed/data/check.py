"""What a manifest holds and what is wrong with it, before anything is computed."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from adaptmed.data.manifest import Manifest
from adaptmed.data.splits import SPLITS
from adaptmed.data.survey import Progress, Survey, survey_files
from adaptmed.data.tables.reading import Rejects
from adaptmed.types import TokenIds

_TEXTS_AT_ONCE = 256


@dataclass(frozen=True)
class SplitCount:
    """How much stands in one split: rows, patients, rows with an image, rows with a text."""

    split: str
    rows: int
    patients: int
    images: int
    texts: int


@dataclass(frozen=True)
class LabelCount:
    """Rows of one label or class in one split: positive (above 0, or of this class), negative, not labelled."""

    label: str
    split: str
    positive: int
    negative: int
    not_labelled: int


@dataclass(frozen=True)
class MaskCount:
    """The masks of one split.

    Attributes:
        split: Its name.
        masks: Rows with a mask in the table.
        good: Those whose mask was opened and lies on its image.
        empty: Those among ``good`` that hold nothing but background.
        values: Label value → in how many of ``good`` it stands.
    """

    split: str
    masks: int
    good: int
    empty: int
    values: dict[int, int]


@dataclass(frozen=True)
class CheckReport:
    """What ``check_manifest`` found.

    Attributes:
        taken: Column → what it is taken for.
        left_out: Column → why it is not.
        notes: What else should be known, in sentences.
        splits: Counts of the splits that have rows.
        balance: Counts per label or class and split.
        unusable: Rows of the table that cannot be used: ``row``, ``reason``.
        missing: Rows whose image file does not exist: ``row``, ``image``, ``reason``.
        unreadable: Rows whose image file cannot be read, in the same form; empty when images were not read.
        masks: Counts of the splits that have masks.
        bad_masks: Rows whose mask cannot be used, where the image can: ``row``, ``mask``, ``reason``.
        images_read: Distinct image files that were opened.
        texts: Rows with a text.
        distinct_texts: Distinct texts.
        most_frequent_text: The text that stands in most rows; blank when no text stands in two.
        most_frequent_count: In how many rows it stands.
        truncated: Share of the rows with a text whose text is longer than the encoder allows; ``None``: not counted.
        overlapping: Splits → how many patients stand in all of them and nowhere else.
    """

    taken: dict[str, str]
    left_out: dict[str, str]
    notes: tuple[str, ...]
    splits: tuple[SplitCount, ...]
    balance: tuple[LabelCount, ...]
    unusable: Rejects
    missing: Rejects
    unreadable: Rejects
    masks: tuple[MaskCount, ...]
    bad_masks: Rejects
    images_read: int
    texts: int
    distinct_texts: int
    most_frequent_text: str
    most_frequent_count: int
    truncated: float | None
    overlapping: dict[tuple[str, ...], int]

    @property
    def rejects(self) -> Rejects:
        """Every row that a run would leave out, with its reason; those of ``bad_masks`` only a run that reads masks."""
        return [*self.unusable, *self.missing, *self.unreadable, *self.bad_masks]


def check_manifest(
    manifest: Manifest,
    *,
    read_images: bool = True,
    mask_labels: Mapping[int, str] | None = None,
    tokenize: Callable[[list[str]], TokenIds] | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Look at everything a manifest names: each distinct image and mask is opened once, each text tokenised once.

    Args:
        manifest: What to check.
        read_images: Open the images and masks; without it only missing files are found.
        mask_labels: Value → name of what may stand in masks; ``None``: anything.
        tokenize: A text encoder's own, to count the texts that it would cut.
        progress: Called with the images that are done and all images.
    """
    texts = Counter(text for text in manifest.frame["text"] if text)
    frequent, count = texts.most_common(1)[0] if texts else ("", 0)
    survey = survey_files(manifest, read=read_images, mask_labels=mask_labels, progress=progress)
    return CheckReport(
        taken=manifest.taken,
        left_out=manifest.left_out,
        notes=(*manifest.notes, *_volumes(survey)),
        splits=_splits(manifest),
        balance=_balance(manifest),
        unusable=manifest.rejects,
        missing=survey.missing,
        unreadable=survey.unreadable,
        masks=_masks(manifest, survey),
        bad_masks=survey.bad_masks,
        images_read=survey.images_read,
        texts=texts.total(),
        distinct_texts=len(texts),
        most_frequent_text=frequent if count > 1 else "",
        most_frequent_count=count,
        truncated=_truncated_share(texts, tokenize) if tokenize and texts else None,
        overlapping=dict(Counter(manifest.overlap().values())),
    )


def _volumes(survey: Survey) -> tuple[str, ...]:
    if not survey.volumes:
        return ()
    if survey.pictures:
        mixed = f"{survey.volumes} volumes and {survey.pictures} pictures were read; `adaptmed embed` takes one kind"
        return (f"{mixed}: make a table of each.",)
    return (f"{survey.volumes} volumes were read; `adaptmed embed` encodes them slice by slice.",)


def _splits(manifest: Manifest) -> tuple[SplitCount, ...]:
    parts = ((split, manifest.frame[manifest.frame["split"] == split]) for split in SPLITS)
    return tuple(
        SplitCount(
            split,
            len(part),
            part["patient"].nunique(),
            int((part["image"] != "").sum()),
            int((part["text"] != "").sum()),
        )
        for split, part in parts
        if len(part)
    )


def _masks(manifest: Manifest, survey: Survey) -> tuple[MaskCount, ...]:
    frame = manifest.frame[manifest.frame["mask"] != ""]
    counts = []
    for split in SPLITS:
        rows = frame["row"][frame["split"] == split].tolist()
        found = [set(survey.mask_values[row]) - {0} for row in rows if row in survey.mask_values]
        if rows:
            values = Counter(value for values in found for value in values)
            counts.append(MaskCount(split, len(rows), len(found), found.count(set()), dict(sorted(values.items()))))
    return tuple(counts)


def _balance(manifest: Manifest) -> tuple[LabelCount, ...]:
    counts = []
    for split in SPLITS:
        part = manifest.frame[manifest.frame["split"] == split]
        if part.empty:
            continue
        for name in manifest.labels:
            positive, missing = int((part[name] > 0).sum()), int(part[name].isna().sum())
            counts.append(LabelCount(name, split, positive, len(part) - positive - missing, missing))
        for k, name in enumerate(manifest.classes):
            positive, missing = (int((part[manifest.class_column] == value).sum()) for value in (k, -1))
            counts.append(
                LabelCount(
                    f"{manifest.class_column} = {name}", split, positive, len(part) - positive - missing, missing
                )
            )
    return tuple(counts)


def _truncated_share(texts: Counter[str], tokenize: Callable[[list[str]], TokenIds]) -> float:
    distinct = list(texts)
    cut = 0
    for start in range(0, len(distinct), _TEXTS_AT_ONCE):
        some = distinct[start : start + _TEXTS_AT_ONCE]
        flags = tokenize(some).truncated.tolist()
        cut += sum(texts[text] for text, flag in zip(some, flags, strict=True) if flag)
    return cut / texts.total()
