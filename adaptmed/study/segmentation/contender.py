"""One contender on a fraction of the masks: its rate is chosen, it is trained, and the test images are scored."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int

from adaptmed.adaptor.model import trainable_parameters
from adaptmed.bank import Bank
from adaptmed.data.splits import fraction_rows
from adaptmed.metrics.segmentation import METRICS
from adaptmed.study.segmentation.settings import SegmentationStudy
from adaptmed.study.segmentation.subject import Subject
from adaptmed.tasks.segmentation.judging import score_model
from adaptmed.tasks.segmentation.logits import predict_rows
from adaptmed.tasks.segmentation.model import Segmenter
from adaptmed.tasks.segmentation.reading import Examples, Place, Wanted, WindowReader
from adaptmed.tasks.segmentation.settings import SegmentationSettings
from adaptmed.tasks.segmentation.training import work_of
from adaptmed.training.work import fit

HELD_OUT = 1 / 3
Build = Callable[[int], Segmenter]
Places = Int[np.ndarray, " k"]


@dataclass(frozen=True)
class Outcome:
    """What an arm gives at one fraction.

    Attributes:
        scores: Of the test images, by label and metric.
        reasons: Label → why it is undefined.
        trainable_parameters: Everything trained for this arm, pre-training included.
        learning_rate: The rate that was taken; ``None`` where nothing was trained.
        shown: Predicted classes of the images that the report shows, at the size that decoders see.
    """

    scores: Float[np.ndarray, "m label metric"]
    reasons: Mapping[str, str]
    trainable_parameters: int
    learning_rate: float | None
    shown: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Contender:
    """An arm that trains: what it reads and how it is built.

    Attributes:
        bank: What it reads.
        wanted: What of it.
        build: From a seed to a model with fresh weights.
        pretrained: Parameters that were trained before.
    """

    bank: Bank
    wanted: Wanted
    build: Build
    pretrained: int = 0


@dataclass(frozen=True)
class Part:
    """What of the masks a contender may read.

    Attributes:
        subject: Bank and masks.
        places: Places in ``Subject.train``.
        looked_at: Row numbers in ``validate`` that say when training ends.
        seed: Of the fraction, fresh weights and everything drawn in training.
    """

    subject: Subject
    places: Places
    looked_at: Int[np.ndarray, " w"]
    seed: int

    @classmethod
    def of(cls, subject: Subject, fraction: float, seed: int) -> "Part":
        """The same share of the patients of ``train`` and of ``validate``."""
        return cls(subject, subject.fraction(fraction, seed), subject.looked_at(fraction, seed), seed)


def outcome_of(
    contender: Contender, part: Part, settings: SegmentationStudy, shown: Int[np.ndarray, " s"], device: str
) -> Outcome:
    """Train a contender on a part of the masks and score the test images.

    Args:
        contender: What is trained.
        part: What it may read.
        settings: The study's.
        shown: Rows whose predictions are kept for pictures.
        device: Lightning's accelerator.
    """
    subject = part.subject
    reasons = {
        name: "no training mask of the fraction holds it"
        for name, there in zip(subject.masks.names, subject.present[part.places].any(axis=0), strict=True)
        if not there
    }
    if len(reasons) == len(subject.masks.names):
        blank = np.full((len(subject.test), len(reasons), len(METRICS)), np.nan)
        return Outcome(blank, reasons, 0, None, ())
    rate = _best_rate(contender, part, settings, device)
    training = replace(settings.training, learning_rate=rate)
    model, reader = _fitted(contender, part, training, device)
    scores = score_model(model, reader, subject.masks, subject.test.tolist(), training, device=device)
    pictures = [_plane(logits) for logits in predict_rows(model, reader, shown.tolist(), training, device=device)]
    return Outcome(scores, reasons, trainable_parameters(model) + contender.pretrained, rate, tuple(pictures))


def _best_rate(contender: Contender, part: Part, settings: SegmentationStudy, device: str) -> float:
    """Choose the learning rate inside the fraction; the first one where a third of its patients cannot tell."""
    subject, places, rates = part.subject, part.places, settings.learning_rates
    held = fraction_rows(subject.patients[places], subject.present[places].astype(float), HELD_OUT, seed=part.seed)
    kept = replace(part, places=places[~held])
    if len(rates) == 1 or not (subject.present[places[held]].any() and subject.present[kept.places].any()):
        return rates[0]
    rows = subject.train[places[held]].tolist()
    found = []
    for rate in rates:
        training = replace(settings.training, learning_rate=rate)
        model, reader = _fitted(contender, kept, training, device)
        scores = score_model(model, reader, subject.masks, rows, training, device=device)
        positives = scores[..., list(METRICS).index("dice_positives")]
        defined = positives[:, ~np.isnan(positives).all(axis=0)]
        found.append(float(np.nanmean(defined, axis=0).mean()))
    return rates[int(np.argmax(found))]


def _fitted(
    contender: Contender, part: Part, training: SegmentationSettings, device: str
) -> tuple[Segmenter, WindowReader]:
    """Train fresh weights until the Dice of the validated part stops rising, or to the last step."""
    masks, seed = part.subject.masks, part.seed
    reader = WindowReader(contender.bank, contender.wanted, masks.shown)
    changed: Place | None = "behind the encoder" if training.augment else None
    rows = part.subject.train[part.places]
    train = Examples(reader, masks, rows, training.window_slices, seed, changed=changed)
    judged = Examples(reader, masks, part.looked_at, training.window_slices, 0) if len(part.looked_at) else None
    model = contender.build(seed)
    fit(work_of(model, train, judged, training, seed=seed), device)
    return model, reader


def _plane(logits: torch.Tensor) -> np.ndarray:
    """Classes of a picture, or of the middle slice of a volume."""
    classes = logits.max(0).indices.to(torch.uint8).numpy()
    return classes if classes.ndim == 2 else classes[len(classes) // 2]
