"""How a decoder is trained: by one rule for when training ends, so that every arm of a study gets the same."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from adaptmed.errors import InputError, sentence
from adaptmed.heads.decoders import NEEDS
from adaptmed.heads.decoders.config import Kind
from adaptmed.lora import LoRA
from adaptmed.objectives.overlap import dice_cross_entropy, dice_focal, paper_dice_focal

Loss = Literal["dice-cross-entropy", "dice-focal", "paper"]
LOSSES: Mapping[Loss, Callable[[Tensor, Tensor], Tensor]] = {
    "dice-cross-entropy": lambda logits, mask: dice_cross_entropy(logits, mask, pooled=True, present=True, balance=0.5),
    "dice-focal": lambda logits, mask: dice_focal(logits, mask, pooled=True, present=True, balance=0.5),
    "paper": paper_dice_focal,
}
"""Dice over the whole batch and the labels in it, pixels balanced by the root of how rare their label is.

On a development phantom (45 masks, 300 steps at rate 0.003) plain Dice with cross-entropy left three or four of five
labels unfound; with these two changes all five were learnt on the training masks, by the U-Net from scratch too.
"""

PICTURES, WINDOWS = 8, 2
"""Of a step."""


@dataclass(frozen=True, kw_only=True)
class SegmentationSettings:
    """How a decoder is trained, and what is trained under it.

    Attributes:
        decoder: Which decoder, see ``adaptmed.heads.decoders``.
        channels: Its channels at the input's size; ``None`` is its default.
        loss: Dice with cross-entropy, Dice with focal loss, or the Adaptor paper's 10 focal − log Dice.
        steps: Most optimiser steps, the same for every fraction; rounded up to a multiple of ``validations``.
        minutes: Most minutes of one training, which end it after a look at the validate split; ``None`` for no bound.
            What a slow machine then gives is another result than a fast one's.
        validations: How often the validate split is looked at, evenly spread over ``steps``.
        patience: Looks without a higher Dice on the validate split that end the training before ``steps``; the best
            look is kept. Without validated masks all the steps are made.
        batch_size: Pictures per step, or slices of volumes; ``None`` is 8 pictures or two windows. Fewer where the
            fraction has fewer.
        window_slices: Slices of a window of a volume, in training and in prediction.
        shown_px: Shorter side at which a decoder sees slices or pictures, at most the encoder's input; ``None``
            is that input, or for small volumes the next multiple of 16 that their slices fit in, at their own voxels.
        augment: Change images and masks at random in training: with the encoder in the loop before it, from a bank
            behind it, where the maps of its features are moved with them.
        overlap: Share of a window that the next one covers again in prediction.
        learning_rate: Peak rate of the decoder.
        fusion_learning_rate: Peak rate of the fusion, where it is trained.
        encoder_learning_rate: Peak rate of LoRA, where the encoder is in the loop.
        weight_decay: On matrices and kernels of decoder and fusion.
        warmup_share: Share of the steps over which the rates rise; they then fall as a cosine to 0.
        clip: Largest gradient norm.
        precision: Of the forward pass; weights stay in fp32, the loss is computed in fp32.

    Raises:
        InputError: A value is unknown or out of range.
    """

    decoder: Kind = "image-concat"
    channels: int | None = None
    loss: Loss = "dice-cross-entropy"
    steps: int = 600
    minutes: float | None = None
    validations: int = 12
    patience: int = 4
    batch_size: int | None = None
    window_slices: int = 16
    shown_px: int | None = None
    augment: bool = True
    overlap: float = 0.5
    learning_rate: float = 3e-3
    fusion_learning_rate: float = 3e-4
    encoder_learning_rate: float = 3e-4
    weight_decay: float = 0.01
    warmup_share: float = 0.1
    clip: float = 1.0
    precision: Literal["fp32", "bf16"] = "bf16"

    def __post_init__(self) -> None:
        for name, known in (("decoder", NEEDS), ("loss", LOSSES)):
            value = getattr(self, name)
            if value not in known:
                expected = f"one of {', '.join(known)}"
                raise InputError(sentence(name, expected=expected, got=repr(value), fix="Check the spelling."))
        for name in ("steps", "validations", "patience", "batch_size", "window_slices", "shown_px"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise InputError(sentence(name, expected="at least 1", got=count, fix="Raise it."))
        if self.minutes is not None and not self.minutes > 0:
            fix = "Raise it, or leave it out."
            raise InputError(sentence("minutes", expected="a time above 0", got=self.minutes, fix=fix))
        for name in ("learning_rate", "fusion_learning_rate", "encoder_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                got, fix = getattr(self, name), "Try 3e-3."
                raise InputError(sentence(name, expected="a finite number above 0", got=got, fix=fix))
        if not 0 <= self.warmup_share <= 1:
            got, fix = self.warmup_share, "Try 0.1."
            raise InputError(sentence("warmup_share", expected="a share in [0, 1]", got=got, fix=fix))
        if not 0 <= self.overlap < 1:
            raise InputError(sentence("overlap", expected="a share in [0, 1)", got=self.overlap, fix="Try 0.5."))

    @property
    def rounds(self) -> int:
        """Looks at the validate split, at most one per step."""
        return min(self.validations, self.steps)

    @property
    def steps_per_round(self) -> int:
        """Steps between two looks at the validate split."""
        return -(-self.steps // self.rounds)

    @property
    def pictures_per_batch(self) -> int:
        """Pictures per step."""
        return PICTURES if self.batch_size is None else self.batch_size

    @property
    def windows_per_batch(self) -> int:
        """Windows of volumes per step."""
        return WINDOWS if self.batch_size is None else max(1, self.batch_size // self.window_slices)


@dataclass(frozen=True, kw_only=True)
class MaskChoices:
    """What is tuned for masks, and on what.

    Attributes:
        settings: How the decoder is trained.
        lora: Fresh LoRA inside the image encoder, which then runs in the loop on pictures that are changed at random
            with their masks; ``None`` leaves the encoder alone and reads the bank.
        train_fusion: Whether the fusion learns too.
        labels: Value → name of what may stand in masks; ``None`` takes all that stand in those of ``train``.
        fraction: Share of the training patients with masks, chosen as in a study.
        seed: Of the fraction, fresh weights, the order and random changes.
        allow_overlap: Go on although test patients were seen in pre-training; the results say so.

    Raises:
        InputError: With LoRA, another size to show than that of the encoder's input.
    """

    settings: SegmentationSettings
    lora: LoRA | None = None
    train_fusion: bool = False
    labels: Mapping[int, str] | None = None
    fraction: float = 1.0
    seed: int = 0
    allow_overlap: bool = False

    def __post_init__(self) -> None:
        shown = self.settings.shown_px
        if self.lora is not None and shown is not None:
            expected, fix = "the encoder's input with LoRA inside the encoder", "Leave shown_px out."
            raise InputError(sentence("shown_px", expected=expected, got=shown, fix=fix))
