"""Settings of optimisers: the schedule of a pre-training, and how a fine-tuning is run."""

import math
from dataclasses import dataclass
from typing import Literal

from adaptmed.errors import InputError, sentence


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a method is optimised.

    Attributes:
        epochs: Passes over the training pairs.
        least_steps: Few pairs make few steps per epoch: ``epochs`` is raised until there are this many steps.
        batch_size: Pairs per step; contrastive learning needs many.
        learning_rate: Peak rate of AdamW.
        weight_decay: On matrices only; norms, biases, positions and the temperature have none.
        warmup_share: Share of all steps over which the rate rises linearly; it then falls as a cosine to 0.
        clip: Largest gradient norm.
        patience: Epochs without a better validation loss before training stops.
        ema: Decay per step of the exponential moving average of all trained weights, which is then validated and kept;
            0 keeps the weights themselves.

    Raises:
        InputError: If a number lies outside its range.
    """

    epochs: int = 12
    least_steps: int = 0
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup_share: float = 0.1
    clip: float = 1.0
    patience: int = 10
    ema: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("least_steps", 0), ("batch_size", 2), ("patience", 1)):
            if getattr(self, name) < least:
                got = getattr(self, name)
                raise InputError(sentence(name, expected=f"at least {least}", got=got, fix="Raise it."))
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise InputError(sentence(name, expected="above 0", got=getattr(self, name), fix="Raise it."))
        if not self.weight_decay >= 0:
            raise InputError(sentence("weight_decay", expected="0 or more", got=self.weight_decay, fix="Try 0.1."))
        if not 0 <= self.warmup_share <= 1:
            got = self.warmup_share
            raise InputError(sentence("warmup_share", expected="a share in [0, 1]", got=got, fix="Try 0.1."))
        if not 0 <= self.ema < 1:
            raise InputError(sentence("ema", expected="a decay in [0, 1)", got=self.ema, fix="Try 0.99."))

    def epochs_of(self, steps_per_epoch: int) -> int:
        """Epochs for a training set that makes this many steps per epoch.

        Example:
            >>> Schedule(epochs=12, least_steps=120).epochs_of(5), Schedule(epochs=12, least_steps=120).epochs_of(15)
            (24, 12)
        """
        return max(self.epochs, -(-self.least_steps // steps_per_epoch))


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """How a head is tuned, and what stands under it; in a study fixed beforehand, since nothing may be selected there.

    Attributes:
        hidden: Width of the paper's hidden layer (512 there); ``None`` is a linear head that starts at the probe.
        epochs: Passes over the fraction, so that a small fraction gets few steps and stays near the probe.
        batch_size: Least number of items per batch, unless the fraction is smaller.
        accumulate: Batches whose gradients make one step.
        learning_rate: Peak rate of the head, whose inputs are standardised.
        fusion_learning_rate: Peak rate of the fusion.
        encoder_learning_rate: Peak rate inside the image encoder: of LoRA; a whole encoder wants 1e-5 to 5e-5.
        weight_decay: On matrices of head and fusion only.
        encoder_weight_decay: On matrices inside the image encoder; LoRA wants none.
        warmup_share: Share of the steps over which the rates rise; they then fall as a cosine to 0.
        clip: Largest gradient norm.
        augment: Change images that are read again at random (small turns, shifts, scales, contrast; no flip).
        checkpointing: Compute the encoder's activations again in the backward pass instead of keeping them.
        precision: Of the forward pass; weights stay in fp32.

    Raises:
        InputError: If a number is out of range.
    """

    hidden: int | None = None
    epochs: int = 4
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 1e-3
    fusion_learning_rate: float = 3e-4
    encoder_learning_rate: float = 3e-4
    weight_decay: float = 0.01
    encoder_weight_decay: float = 0.0
    warmup_share: float = 0.1
    clip: float = 1.0
    augment: bool = True
    checkpointing: bool = False
    precision: Literal["fp32", "bf16"] = "bf16"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise InputError(sentence(name, expected="at least 1", got=getattr(self, name), fix="Raise it."))
        for name in ("learning_rate", "fusion_learning_rate", "encoder_learning_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                got, fix = getattr(self, name), "Try 3e-4."
                raise InputError(sentence(name, expected="a finite number, 0 or more", got=got, fix=fix))
        if not 0 <= self.warmup_share <= 1:
            got, fix = self.warmup_share, "Try 0.1."
            raise InputError(sentence("warmup_share", expected="a share in [0, 1]", got=got, fix=fix))

    def batches_of(self, images: int) -> int:
        """Batches of an epoch over this many images: a whole number of steps, unless there are too few images.

        Example:
            >>> FinetuneSettings(batch_size=4, accumulate=2).batches_of(30)
            6
        """
        steps = max(1, images // (self.batch_size * self.accumulate))
        return min(images, steps * self.accumulate)

    def steps_of(self, images: int) -> int:
        """Steps of a whole training on this many images."""
        return self.epochs * self.steps_per_epoch(images)

    def steps_per_epoch(self, images: int) -> int:
        """Steps of one pass over this many images."""
        return -(-self.batches_of(images) // self.accumulate)

    def passes_of(self, images: int) -> int:
        """How many images a whole training on this many images reads, every one as often as it is read.

        Example:
            >>> FinetuneSettings(epochs=4).passes_of(70)
            280
        """
        batches = self.batches_of(images)
        epochs, steps = divmod(self.steps_of(images), self.steps_per_epoch(images))
        begun = steps * self.accumulate  # batches of an epoch that is not ended; the first ones hold one image more
        return epochs * images + begun * (images // batches) + min(begun, images % batches)


@dataclass(frozen=True, kw_only=True)
class BoundedSettings(FinetuneSettings):
    """How something is tuned for a bounded number of steps, however many items there are.

    Attributes:
        least_steps: Few items make few steps in ``epochs`` passes: they are then read more often.
        most_steps: Many items make many steps: the training then ends before the last pass does.

    Raises:
        InputError: If a number is out of range.
    """

    least_steps: int = 1
    most_steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.least_steps <= self.most_steps:
            expected, got = "at least 1, and at most most_steps", f"{self.least_steps}, with {self.most_steps}"
            raise InputError(sentence("least_steps", expected=expected, got=got, fix="Lower it, or raise the other."))

    def steps_of(self, images: int) -> int:
        """Steps of a whole training on this many images.

        Example:
            >>> bounded = BoundedSettings(epochs=4, batch_size=10, least_steps=20, most_steps=100)
            >>> [bounded.steps_of(images) for images in (10, 100, 1000)]
            [20, 40, 100]
        """
        return min(max(super().steps_of(images), self.least_steps), self.most_steps)
