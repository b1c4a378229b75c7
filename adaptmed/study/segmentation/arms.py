"""The contenders: each turns a fraction of the masks into scores of the test images."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from jaxtyping import Int

from adaptmed.adaptor.fresh import fresh_fusion
from adaptmed.bank import Bank
from adaptmed.cohort.rows import rows_with_sides
from adaptmed.fusion import Fusion
from adaptmed.heads.decoders import NEEDS, ScratchUnet, build_decoder
from adaptmed.layers.draws import step_seed
from adaptmed.study.checks import lora_parameters
from adaptmed.study.segmentation.contender import Contender, Outcome, Part, outcome_of
from adaptmed.study.segmentation.settings import TUNED, SegmentationStudy
from adaptmed.study.segmentation.subject import Subject
from adaptmed.tasks.segmentation.judging import score_nothing
from adaptmed.tasks.segmentation.model import Segmenter
from adaptmed.tasks.segmentation.reading import Wanted
from adaptmed.tasks.segmentation.settings import SegmentationSettings
from adaptmed.tasks.segmentation.shapes import shape_for
from adaptmed.training.trainable import trainable_fusion

Arm = Callable[[float, int], Outcome]
"""From a fraction and a seed to an outcome."""


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


def _nothing(subject: Subject, shown: Int[np.ndarray, " s"], fraction: float, seed: int) -> Outcome:
    """Predict nothing at all."""
    del fraction, seed
    blank = [np.zeros(subject.masks.shown.image_size_px, dtype=np.uint8) for _ in shown]
    return Outcome(score_nothing(subject.masks, subject.test.tolist()), {}, 0, None, tuple(blank))


def _trained(
    subject: Subject,
    settings: SegmentationStudy,
    contender: Contender,
    shown: Int[np.ndarray, " s"],
    device: str,
    fraction: float,
    seed: int,
) -> Outcome:
    """Train on the fraction and score the test images."""
    return outcome_of(contender, Part.of(subject, fraction, seed), settings, shown, device)
