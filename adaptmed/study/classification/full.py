"""The arm ``full``: a copy of the whole image encoder, tuned on the fraction; a costly reference, not a contender."""

import torch

from adaptmed.bank import Bank
from adaptmed.study.classification.arms import Arm
from adaptmed.study.classification.encoder_arm import encoder_arm
from adaptmed.study.classification.rows import StudyRows
from adaptmed.training.settings import FinetuneSettings
from adaptmed.training.trainable import trainable_encoder
from adaptmed.types import ImageEncoder

FULL = FinetuneSettings(epochs=5, batch_size=16, encoder_learning_rate=3e-5, encoder_weight_decay=0.01)
"""Fixed beforehand and not searched: a small rate, few epochs, the head's own rate as in the other tuned arms."""


def full_arm(
    rows: StudyRows, bank: Bank, encoder: ImageEncoder, *, settings: FinetuneSettings = FULL, device: str = "auto"
) -> Arm:
    """Tune a whole image encoder, as ``encoder_arm`` does. LoRA that is inside it is merged into the copy first.

    Args:
        rows: The study's rows.
        bank: The Tokens of ``encoder``, and the way to the images.
        encoder: Never changed; every cell tunes a copy of its own.
        settings: How to tune.
        device: Lightning's accelerator: ``auto``, ``cpu``, ``cuda``.
    """
    example = torch.zeros(1, 3, *encoder.preprocessing.image_size_px)
    return encoder_arm(rows, bank, lambda _: trainable_encoder(encoder, example), settings=settings, device=device)
