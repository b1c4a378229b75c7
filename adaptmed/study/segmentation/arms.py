"""The contenders: each turns a fraction of the masks into scores of the test images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int

from adaptmed.adaptor.fresh import fresh_fusion
from adaptmed.adaptor.model import trainable_parameters
from adaptmed.bank import Bank
from adaptmed.cohort.rows import rows_with_sides
from adaptmed.data.splits import fraction_rows
from adaptmed.fusion import Fusion
from adaptmed.heads.decoders import NEEDS, ScratchUnet, build_decoder
from adaptmed.layers.draws import step_seed
from adaptmed.metrics.segmentation import METRICS
from adaptmed.study.checks import lora_parameters
from adaptmed.study.segmentation.settings import TUNED, SegmentationStudy
from adaptmed.study.segmentation.subject import Subject
from adaptmed.tasks.segmentation.judging import score_model, score_nothing
from adaptmed.tasks.segmentation.logits import predict_rows
from adaptmed.tasks.segmentation.model import Segmenter
from adaptmed.tasks.segmentation.reading import Examples, Wanted, WindowReader
from adaptmed.tasks.segmentation.settings import SegmentationSettings
from adaptmed.tasks.segmentation.shapes import shape_for
from adaptmed.tasks.segmentation.training import work_of
from adaptmed.training.trainable import trainable_fusion
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
        shown: Predicted classes of the images that the report shows, at the size of the encoder's input.
    """

    scores: Float[np.ndarray, "m label metric"]
    reasons: Mapping[str, str]
    trainable_parameters: int
    learning_rate: float | None
    shown: tuple[np.ndarray, ...]


Arm = Callable[[Places, int], Outcome]
"""From places in ``Subject.train`` and a seed to an outcome."""


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


def arms_of(
    subject: Subject, settings: SegmentationStudy, shown: Int[np.ndarray, " s"], *, device: str
) -> dict[str, Arm]:
    """The arms of the settings that can run on a subject.

    Args:
        subject: Bank, masks and adaptors.
        settings: The study's.
        shown: Rows whose predictions are kept for pictures.
        device: Lightning's accelerator.

    Raises:
        InputError: An arm needs an adaptor or a tuned bank, and there is none.
    """
    names = settings.chosen(adaptor=subject.adaptor is not None, tuned=subject.tuned is not None)
    arms: dict[str, Arm] = {}
    for name in names:
        if name == "empty":
            arms[name] = partial(_nothing, subject, shown)
        else:
            contender = _contender(name, subject, settings.training)
            arms[name] = partial(_trained, subject, settings, contender, shown, device)
    return arms


def _contender(name: str, subject: Subject, training: SegmentationSettings) -> Contender:
    bank, needs = subject.bank, NEEDS[training.decoder]
    wanted = Wanted(tokens=True, taps=needs.taps > 0, pixels=needs.pixels)
    if name == "unet":
        dims = 3 if bank.holds_volumes else 2
        build = partial(_scratch, classes=len(subject.masks.labels), dims=dims, channels=training.channels)
        return Contender(bank, Wanted(tokens=False, taps=False, pixels=True), build)
    if name == "frozen":
        return Contender(bank, wanted, partial(_decoding, bank, subject, training, None))
    bank, adaptor = subject.adaptor_of(name)
    fusion: Fusion = adaptor.fusion
    if name == "adaptor-untrained":
        rows = rows_with_sides(bank, "train", texts=fusion.reads_texts and bank.holds_texts)
        return Contender(
            bank,
            wanted,
            lambda seed: _decoding(bank, subject, training, fresh_fusion(adaptor, bank, rows, seed=seed), seed),
        )
    tuned = name == "adaptor-trained"
    build = partial(_decoding, bank, subject, training, fusion, train_fusion=tuned)
    pretrained = 0 if tuned else sum(parameter.numel() for parameter in fusion.parameters())
    pretrained += lora_parameters(adaptor) if name == TUNED else 0
    return Contender(bank, wanted, build, pretrained=pretrained)


def _decoding(
    bank: Bank,
    subject: Subject,
    training: SegmentationSettings,
    fusion: Fusion | None,
    seed: int,
    *,
    train_fusion: bool = False,
) -> Segmenter:
    """A fresh decoder on a fusion, or on the frozen Tokens where there is none."""
    width = None if fusion is None else fusion.width
    shape = shape_for(bank, training, fused_width=width, classes=len(subject.masks.labels))
    if fusion is not None:
        if train_fusion:
            example = bank.item_tokens(np.array([0]), dtype=torch.float32)
            fusion = trainable_fusion(fusion, example, fused=True)
        else:
            fusion.requires_grad_(requires_grad=False)
    with torch.random.fork_rng():
        torch.manual_seed(step_seed(seed, -1))
        return Segmenter(build_decoder(shape), fusion=fusion)


def _scratch(seed: int, *, classes: int, dims: int, channels: int | None) -> Segmenter:
    chosen = {} if channels is None else {"channels": channels}
    with torch.random.fork_rng():
        torch.manual_seed(step_seed(seed, -1))
        return Segmenter(ScratchUnet(classes, spatial_dims=dims, **chosen))


def _nothing(subject: Subject, shown: Int[np.ndarray, " s"], places: Places, seed: int) -> Outcome:
    """Predict nothing at all."""
    del places, seed
    blank = [np.zeros(subject.bank.images.preprocessing.image_size_px, dtype=np.uint8) for _ in shown]
    return Outcome(score_nothing(subject.masks, subject.test.tolist()), {}, 0, None, tuple(blank))


def _trained(
    subject: Subject,
    settings: SegmentationStudy,
    contender: Contender,
    shown: Int[np.ndarray, " s"],
    device: str,
    places: Places,
    seed: int,
) -> Outcome:
    """Train on the fraction and score the test images."""
    reader = WindowReader(contender.bank, contender.wanted)
    reasons = {
        name: "no training mask of the fraction holds it"
        for name, there in zip(subject.masks.names, subject.present[places].any(axis=0), strict=True)
        if not there
    }
    if len(reasons) == len(subject.masks.names):
        blank = np.full((len(subject.test), len(reasons), len(METRICS)), np.nan)
        return Outcome(blank, reasons, 0, None, ())
    rate = _best_rate(subject, settings, contender, reader, device, places, seed)
    training = replace(settings.training, learning_rate=rate)
    model = contender.build(seed)
    fit(work_of(model, _examples(subject, reader, places, training, seed), None, training, seed=seed), device)
    scores = score_model(model, reader, subject.masks, subject.test.tolist(), training, device=device)
    pictures = [_plane(logits) for logits in predict_rows(model, reader, shown.tolist(), training, device=device)]
    return Outcome(scores, reasons, trainable_parameters(model) + contender.pretrained, rate, tuple(pictures))


def _best_rate(
    subject: Subject,
    settings: SegmentationStudy,
    contender: Contender,
    reader: WindowReader,
    device: str,
    places: Places,
    seed: int,
) -> float:
    """Choose the learning rate inside the fraction; the first one where a third of its patients cannot tell."""
    rates = settings.learning_rates
    held = fraction_rows(subject.patients[places], subject.present[places].astype(float), HELD_OUT, seed=seed)
    kept = ~held
    if len(rates) == 1 or not (subject.present[places[held]].any() and subject.present[places[kept]].any()):
        return rates[0]
    rows = subject.train[places[held]].tolist()
    found = []
    for rate in rates:
        training = replace(settings.training, learning_rate=rate)
        model = contender.build(seed)
        fit(work_of(model, _examples(subject, reader, places[kept], training, seed), None, training, seed=seed), device)
        scores = score_model(model, reader, subject.masks, rows, training, device=device)
        positives = scores[..., list(METRICS).index("dice_positives")]
        defined = positives[:, ~np.isnan(positives).all(axis=0)]
        found.append(float(np.nanmean(defined, axis=0).mean()))
    return rates[int(np.argmax(found))]


def _examples(
    subject: Subject, reader: WindowReader, places: Places, training: SegmentationSettings, seed: int
) -> Examples:
    return Examples(reader, subject.masks, subject.train[places], training.window_slices, seed)


def _plane(logits: torch.Tensor) -> np.ndarray:
    """Classes of a picture, or of the middle slice of a volume."""
    classes = logits.max(0).indices.to(torch.uint8).numpy()
    return classes if classes.ndim == 2 else classes[len(classes) // 2]
