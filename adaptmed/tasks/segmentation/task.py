"""Fine-tuning for masks: a decoder on the adaptor's fused grid, judged in the geometry of the images."""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int
from torch import nn

from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank
from adaptmed.cohort.division import SPLITS, Division, Share, divide, require_apart
from adaptmed.cohort.rows import Reject, patients_of, with_mask
from adaptmed.errors import InputError, sentence
from adaptmed.heads.decoders import NEEDS, build_decoder
from adaptmed.layers.draws import step_seed
from adaptmed.lora import LoRA
from adaptmed.metrics.segmentation import over_patients
from adaptmed.tasks.segmentation.decoder_file import DecoderFacts, load_decoder, save_decoder
from adaptmed.tasks.segmentation.judging import as_scores, score_model, score_nothing
from adaptmed.tasks.segmentation.masks import Masks, find_masks
from adaptmed.tasks.segmentation.model import Segmenter
from adaptmed.tasks.segmentation.reading import Examples, Place, Wanted, WindowReader
from adaptmed.tasks.segmentation.settings import MaskChoices, SegmentationSettings
from adaptmed.tasks.segmentation.shapes import check_bank, shape_for, shown_in, taps_of
from adaptmed.tasks.segmentation.training import channels_last, work_of
from adaptmed.tasks.task import Before, How, Noun, Reading
from adaptmed.training.trainable import trainable_fusion
from adaptmed.training.work import Work
from adaptmed.types import Side


@dataclass(frozen=True)
class Segmentation:
    """What is tuned for masks; see :class:`adaptmed.tasks.segmentation.settings.MaskChoices`.

    Attributes:
        choices: How the decoder is trained, and on what.
    """

    choices: MaskChoices
    task: ClassVar[str] = "segmentation"
    noun: ClassVar[Noun] = "images"
    reads_texts: ClassVar[bool] = False
    shares_batches: ClassVar[bool] = False

    @property
    def fraction(self) -> float:
        """Share of the training patients with masks."""
        return self.choices.fraction

    @property
    def loras(self) -> Mapping[str, tuple[Side, LoRA | None]]:
        """LoRA goes to the image encoder."""
        return {"lora": ("image", self.choices.lora)}

    def config(self) -> dict[str, Any]:
        """Its choices as JSON values."""
        labels = self.choices.labels
        named = None if labels is None else {str(value): name for value, name in labels.items()}
        return {"task": self.task, **asdict(self.choices), "labels": named}

    def job(self, bank: Bank, adaptor: Adaptor, before: Before) -> "MaskJob":
        """Refuse what cannot be tuned; masks are opened once the run folder is.

        Raises:
            InputError: The decoder does not fit the bank, or LoRA was asked for volumes.
            OverlapError: A patient is in train and validate, or a test patient was seen.
        """
        choices = self.choices
        check_bank(bank, choices.settings.decoder)
        if choices.lora is not None and bank.holds_volumes:
            fix = "Leave --lora out, or embed the slices as pictures."
            raise InputError(sentence("lora", expected="a bank of pictures", got="volumes", fix=fix))
        train, validate, test = (with_mask(bank, split) for split in SPLITS)
        require_apart(bank, (train, validate, test), before=before.seen, allow_overlap=choices.allow_overlap)
        return MaskJob(bank, adaptor, choices, before)

    @staticmethod
    def card(test: Mapping[str, Any]) -> dict[str, float | int | None]:
        """The mean Dice over labels, beside that of predicting nothing."""
        labels = {row["label"] for row in test["tuned"]}
        mean = "macro" if "macro" in labels else next(iter(labels))
        return {
            f"test {row['metric']}, {arm}": row["value"]
            for arm in ("tuned", "empty")
            for row in test[arm]
            if row["label"] == mean and row["metric"] in ("dice", "dice_positives")
        }

    @staticmethod
    def test_rows(bank: Bank, name: str) -> Int[np.ndarray, " n"]:
        """Test images that name a mask, usable or not."""
        del name
        return with_mask(bank, "test")

    @staticmethod
    def judge_run(run: Path, adaptor: Adaptor, bank: Bank, rows: Int[np.ndarray, " n"], how: How) -> dict[str, Any]:
        """Score the decoder of a finished run on the usable masks among the test rows.

        Raises:
            InputError: The decoder does not fit the bank, or no mask is usable.
        """
        decoder, facts = load_decoder(run)
        check_bank(bank, facts.settings.decoder)
        settings = replace(facts.settings, precision=how.precision)
        model = channels_last(Segmenter(decoder, fusion=adaptor.fusion, layout=bank.info.layout).eval())
        needs = NEEDS[settings.decoder]
        shown = facts.shown(bank.images.preprocessing)
        reader = WindowReader(bank, Wanted(tokens=True, taps=needs.taps > 0, pixels=needs.pixels), shown)
        with tempfile.TemporaryDirectory() as folder:
            masks = find_masks(bank, Path(folder), labels=facts.labels, splits=(), shown=shown)
            usable = rows[np.isin(rows, masks.rows("test"))]
            if not len(usable):
                got, fix = f"none among {len(rows)}", "Check the table with `adaptmed check`."
                raise InputError(sentence(f"{bank.folder}: test", expected="usable masks", got=got, fix=fix))
            scores = _scores(model, reader, masks, usable, settings, how.device)
        return {"images": len(usable), "rejected_masks": len(masks.rejects), **scores}


@dataclass
class MaskJob:
    """One fine-tuning for masks.

    Attributes:
        bank: Tokens of the adaptor's image encoder; its rows name masks.
        adaptor: Without encoders in memory; ``work`` puts what is tuned into it.
        choices: What is tuned.
        before: Patients that were seen.
        masks: The usable masks, once the run folder is open.
    """

    bank: Bank
    adaptor: Adaptor
    choices: MaskChoices
    before: Before
    masks: Masks = field(init=False)
    rejects: ClassVar[list[Reject] | None] = None

    def label_names(self) -> tuple[str, ...]:
        """Names of the labels in the masks."""
        return self.masks.names

    def division(self) -> Division:
        """Train, validation and test rows."""
        return self.rows

    def network(self) -> nn.Module:
        """The model that is tuned."""
        return self.model

    def open(self, out: Path, reading: Reading) -> None:
        """Open every mask once, and lay out those that training reads."""
        choices = self.choices
        shown = shown_in(self.bank, choices.settings) if choices.lora is None else None
        self.masks = find_masks(self.bank, out / "masks", labels=choices.labels, shown=shown, progress=reading)

    @cached_property
    def rows(self) -> Division:
        """Rows with usable masks.

        Raises:
            InputError: No mask of the fraction holds a label.
            OverlapError: A patient is in train and validate, or a test patient was seen.
        """
        choices, masks = self.choices, self.masks
        train, validate, test = (masks.rows(split) for split in SPLITS)
        share = Share(fraction=choices.fraction, seed=choices.seed, allow_overlap=choices.allow_overlap)
        strata = masks.present(train).astype(float)
        sides = (train, validate, test)
        rows = divide(self.bank, sides, strata, share, before=self.before.seen, judged=test)
        if not masks.present(rows.train).any():
            got = f"none among {len(rows.train)} of the fraction {choices.fraction:g}"
            fix = "Take a larger --fraction."
            raise InputError(sentence("fraction", expected="a mask that is not empty", got=got, fix=fix))
        return rows

    @cached_property
    def model(self) -> Segmenter:
        """A fresh decoder on the adaptor's parts, of which those to be tuned can be trained."""
        adaptor, bank, choices = self.adaptor, self.bank, self.choices
        if choices.train_fusion:
            example = bank.item_tokens(np.array([0]), dtype=torch.float32)
            adaptor.fusion = trainable_fusion(adaptor.fusion, example, fused=True)
        else:
            adaptor.fusion.requires_grad_(requires_grad=False)
        if choices.lora is not None:
            adaptor.encoders.attach_lora("image", choices.lora, seed=step_seed(choices.seed, -3))
        shape = shape_for(bank, choices.settings, fused_width=adaptor.fusion.width, classes=len(self.masks.labels))
        with torch.random.fork_rng():
            torch.manual_seed(step_seed(choices.seed, -1))
            decoder = build_decoder(shape)
        encoder, taps = adaptor.encoders.image, taps_of(bank, choices.settings)
        model = Segmenter(decoder, fusion=adaptor.fusion, encoder=encoder, taps=taps, layout=bank.info.layout)
        return channels_last(model)

    @cached_property
    def reader(self) -> WindowReader:
        """What the model reads of the bank."""
        return WindowReader(self.bank, wanted_by(self.choices), self.masks.shown)

    def work(self, log_folder: Path | None) -> Work:
        """Plan the training; pictures are changed at random where the encoder is in the loop."""
        del log_folder
        choices, rows, settings = self.choices, self.rows, self.choices.settings
        place: Place = "behind the encoder" if choices.lora is None else "before the encoder"
        changed = place if settings.augment else None
        train = Examples(self.reader, self.masks, rows.train, settings.window_slices, choices.seed, changed=changed)
        judged = None
        if len(rows.validate):
            judged = Examples(self.reader, self.masks, rows.validate, settings.window_slices, 0)
        return work_of(self.model, train, judged, settings, seed=choices.seed)

    def judge(self, out: Path, device: str) -> dict[str, Any]:
        """Score the decoder, and the prediction of nothing."""
        del out
        return _scores(self.model, self.reader, self.masks, self.rows.test, self.choices.settings, device)

    def facts(self) -> dict[str, Any]:
        """The labels, and how many masks cannot be used."""
        return {"labels": list(self.masks.names), "rejected_masks": len(self.masks.rejects)}

    def save_head(self, out: Path) -> None:
        """Write the decoder with what it reads and predicts."""
        images, settings = self.bank.images, self.choices.settings
        width = self.adaptor.fusion.width
        facts = DecoderFacts(
            config=shape_for(self.bank, settings, fused_width=width, classes=len(self.masks.labels)),
            labels=self.masks.labels,
            settings=settings,
            taps=self.model.taps,
            plane=images.plane,
            window=images.window,
            fit=images.preprocessing.fit,
            shown_px=self.masks.shown.image_size_px,
        )
        save_decoder(out, self.model.decoder, facts)


def wanted_by(choices: MaskChoices) -> Wanted:
    """What the model reads: an encoder in the loop makes Tokens and taps itself, from pixels."""
    needs = NEEDS[choices.settings.decoder]
    if choices.lora is not None:
        return Wanted(tokens=False, taps=False, pixels=True)
    return Wanted(tokens=True, taps=needs.taps > 0, pixels=needs.pixels)


def _scores(
    model: Segmenter,
    reader: WindowReader,
    masks: Masks,
    rows: Int[np.ndarray, " n"],
    settings: SegmentationSettings,
    device: str,
) -> dict[str, Any]:
    patients, places = patients_of(masks.bank, rows), rows.tolist()
    tables = {
        "tuned": score_model(model, reader, masks, places, settings, device=device),
        "empty": score_nothing(masks, places),
    }
    return {arm: over_patients(as_scores(table), patients, names=masks.names) for arm, table in tables.items()}
