"""One bank under study: its masks, its rows, and the adaptors that were trained on its encoder's Tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, Shaped

from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank
from adaptmed.cohort.division import SPLITS, overlap_of, require_apart
from adaptmed.cohort.rows import patients_of, with_mask
from adaptmed.data.splits import fraction_rows
from adaptmed.errors import InputError, sentence
from adaptmed.runs.folder import read_seen
from adaptmed.runs.same_tokens import check_tokens
from adaptmed.study.checks import check_labels, check_tuned, identity_of, place_of, weights_of
from adaptmed.study.scoring import Truth
from adaptmed.study.segmentation.settings import TUNED, SegmentationStudy
from adaptmed.tasks.segmentation.masks import Masks, Progress, find_masks
from adaptmed.tasks.segmentation.shapes import check_bank, shown_in

Run = tuple[Bank, Path]
"""A bank with the run that was trained on Tokens of its encoders."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a study of segmentation is about.

    Attributes:
        bank: Tokens and splits.
        masks: Usable masks of its rows.
        adaptor: Without encoders in memory; ``None`` leaves its arms out.
        tuned: The bank that tuned encoders wrote, and their adaptor.
        train: Row numbers with a mask in ``train``.
        validate: The same of ``validate``; none where the table has no such split.
        test: Row numbers with a mask in ``test``.
        patients: Of ``train``.
        present: Which labels stand in the masks of ``train``.
        truth: What cells are judged by.
        identity: What no other bank, table or adaptor has.
        overlap: Test patients that a run has seen.
        seen_known: Whether every run's folder says which patients it was trained on.
    """

    bank: Bank
    masks: Masks
    adaptor: Adaptor | None
    tuned: tuple[Bank, Adaptor] | None
    train: Int[np.ndarray, " n"]
    validate: Int[np.ndarray, " v"]
    test: Int[np.ndarray, " m"]
    patients: Shaped[np.ndarray, " n"]
    present: Bool[np.ndarray, "n label"]
    truth: Truth
    identity: str
    overlap: int
    seen_known: bool

    def fraction(self, share: float, seed: int) -> Int[np.ndarray, " k"]:
        """Places in ``train`` of the patients in a fraction: nested, stratified by what masks hold, for every arm."""
        return np.flatnonzero(fraction_rows(self.patients, self.present.astype(float), share, seed=seed))

    def looked_at(self, share: float, seed: int) -> Int[np.ndarray, " w"]:
        """Row numbers in ``validate`` of the same share of its patients: their masks say when training ends."""
        if not len(self.validate):
            return self.validate
        strata = self.masks.present(self.validate).astype(float)
        return self.validate[fraction_rows(patients_of(self.bank, self.validate), strata, share, seed=seed)]

    def adaptor_of(self, arm: str) -> tuple[Bank, Adaptor]:
        """Return the adaptor that an arm stands on, and the bank of its Tokens.

        Raises:
            InputError: There is none.
        """
        if arm == TUNED and self.tuned is not None:
            return self.tuned
        if arm != TUNED and self.adaptor is not None:
            return self.bank, self.adaptor
        fix = "Pass --tuned-bank and --tuned-adaptor." if arm == TUNED else "Pass --adaptor."
        raise InputError(sentence("arms", expected=f"an adaptor for the arm {arm}", got="none", fix=fix))


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A bank with its adaptors, which belong together, before a mask was read.

    Attributes:
        bank: Tokens and splits.
        adaptor: See `Subject`.
        tuned: See `Subject`.
        identity: See `Subject`.
        seen: Digests of the patients that its runs have read.
        seen_known: See `Subject`.
    """

    bank: Bank
    adaptor: Adaptor | None
    tuned: tuple[Bank, Adaptor] | None
    identity: str
    seen: frozenset[str]
    seen_known: bool


def open_subject(bank: Bank, run: Path | None, settings: SegmentationStudy, *, tuned: Run | None = None) -> Opened:
    """Check that runs and banks belong together, that every arm can run and that no test patient was seen.

    Nothing is written, so that a study that is refused leaves its folder free for another try.

    Args:
        bank: With image Tokens, and rows with masks.
        run: Run folder of ``adaptmed pretrain``, or a saved adaptor; ``None`` leaves its arms out.
        settings: The study's.
        tuned: The bank of the same rows that tuned encoders wrote, and the run that tuned them.

    Raises:
        InputError: The decoder does not fit the bank, an arm cannot run, a run was trained on Tokens of other encoders,
            or labels outside a fraction were read.
        OverlapError: A test patient was seen by a run, or stands in another split.
    """
    check_bank(bank, settings.training.decoder)
    _check_arms(bank, settings.chosen(adaptor=run is not None, tuned=tuned is not None))
    adaptor = None if run is None else _adaptor(bank, run, settings)
    beside = None if tuned is None else _tuned(bank, *tuned, settings)
    said = [read_seen(path) for path in _runs(run, tuned)]
    seen = frozenset().union(*(digests or () for digests in said))
    sides = [with_mask(bank, split) for split in SPLITS]
    require_apart(bank, (sides[0], sides[1], sides[2]), before=seen, allow_overlap=settings.allow_overlap)
    return Opened(
        bank=bank,
        adaptor=adaptor,
        tuned=beside,
        identity=identity(bank, run, tuned),
        seen=seen,
        seen_known=all(digests is not None for digests in said),
    )


def prepare(
    opened: Opened, folder: Path, settings: SegmentationStudy, *, progress: Progress = lambda *_: None
) -> Subject:
    """Open the masks.

    Args:
        opened: Bank and adaptors.
        folder: Where what is found in the masks is kept.
        settings: The study's.
        progress: Called with what is being done, what is done of it and the whole.

    Raises:
        InputError: There are no usable masks.
    """
    bank = opened.bank
    shown = shown_in(bank, settings.training)
    masks = find_masks(bank, folder, labels=settings.labels, shown=shown, progress=progress)
    train, validate, test = (masks.rows(split) for split in SPLITS)
    if not len(test):
        fix = "Check the split column and the masks with `adaptmed check`."
        raise InputError(sentence(str(bank.folder), expected="usable masks in the split test", got="none", fix=fix))
    return Subject(
        bank=bank,
        masks=masks,
        adaptor=opened.adaptor,
        tuned=opened.tuned,
        train=train,
        validate=validate,
        test=test,
        patients=patients_of(bank, train),
        present=masks.present(train),
        truth=_truth(bank, masks, test),
        identity=opened.identity,
        overlap=overlap_of(bank, test, opened.seen),
        seen_known=opened.seen_known,
    )


def identity(bank: Bank, run: Path | None, tuned: Run | None) -> str:
    """What no other bank, table or adaptor has: part of the place of its cells."""
    return identity_of(bank, " ".join(weights_of(path) for path in _runs(run, tuned)))


def _runs(run: Path | None, tuned: Run | None) -> list[Path]:
    return [path for path in (run, None if tuned is None else tuned[1]) if path is not None]


def _adaptor(bank: Bank, run: Path, settings: SegmentationStudy) -> Adaptor:
    adaptor = Adaptor.from_pretrained(run, load_encoders=False)
    check_tokens(bank, adaptor, run, texts=False)
    check_labels(run, settings.fractions)
    return adaptor


def _tuned(plain: Bank, bank: Bank, run: Path, settings: SegmentationStudy) -> tuple[Bank, Adaptor]:
    check_tuned(plain, bank)
    check_bank(bank, settings.training.decoder)
    return bank, _adaptor(bank, run, settings)


def _check_arms(bank: Bank, arms: Sequence[str]) -> None:
    if "unet" in arms and not has_pixels(bank):
        expected, fix = "the pixels of its volumes, which the arm unet reads", "Embed with --pixels, or leave unet out."
        raise InputError(sentence(str(bank.folder), expected=expected, got="none", fix=fix))


def _truth(bank: Bank, masks: Masks, test: Int[np.ndarray, " m"]) -> Truth:
    names, (dataset, encoder) = masks.names, place_of(bank)
    taken = sorted({"macro", "all"} & set(names))
    if taken:
        expected, fix = "other label names than macro and all, which name the means", "Rename it in --mask-labels."
        raise InputError(sentence("mask_labels", expected=expected, got=", ".join(taken), fix=fix))
    return Truth(
        kind="segmentation",
        names=names,
        labels=masks.present(test).astype(float),
        patients=patients_of(bank, test),
        dataset=dataset,
        encoder=encoder,
    )


def has_pixels(bank: Bank) -> bool:
    """Whether images can be read: those of volumes only from the bank, pictures from their files too."""
    return bank.images.pixels or not bank.holds_volumes


def shown_rows(subject: Subject, count: int) -> Sequence[int]:
    """Pick test rows for pictures: for each label in turn one that holds it, then an empty one; no favours."""
    present, picked = subject.truth.labels > 0, []
    groups = [np.flatnonzero(present[:, label]) for label in range(present.shape[1])]
    groups.append(np.flatnonzero(~present.any(axis=1)))
    for group in groups:
        free = [place for place in group.tolist() if place not in picked]
        if free:
            picked.append(free[len(free) // 2])
    return [int(subject.test[place]) for place in picked[:count]]
