"""The published methods as presets: fusion, pretext, objectives and optimiser settings, nothing hidden."""

from dataclasses import dataclass, field
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
        _check_share("warmup_share", self.warmup_share)
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
class Method:
    """One paper on frozen encoders.

    Attributes:
        name: Name on the command line.
        size: ``light`` (default) or ``paper``.
        width: Width of the fusion.
        layers: Layers of the fusion.
        heads: Attention heads.
        dropout: Dropout inside the fusion.
        token_dropout: Share of tokens left out when a modality is read alone in training.
        faithful: Arrange the fusion as the released code does.
        weight_image_to_text: Share of the image → text term in InfoNCE.
        weight_matching: Weight of image-text matching; 0 leaves it and its head out.
        matching_share: Share of a batch that is matched; it is the costly part of a step.
        positives: ``identical-text`` takes equal reports in a batch as positives of each other, ``pair`` does not.
        schedule: Optimiser settings.

    Raises:
        InputError: If a number lies outside its range.
    """

    name: str
    size: Literal["light", "paper"] = "light"
    width: int = 256
    layers: int = 2
    heads: int = 4
    dropout: float = 0.0
    token_dropout: float = 0.25
    faithful: bool = False
    weight_image_to_text: float = 0.25
    weight_matching: float = 0.3
    matching_share: float = 0.125
    positives: Literal["identical-text", "pair"] = "identical-text"
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        _check_share("weight_image_to_text", self.weight_image_to_text)
        _check_share("matching_share", self.matching_share)
        if not 0 <= self.token_dropout < 1:
            got = self.token_dropout
            raise InputError(sentence("token_dropout", expected="a share in [0, 1)", got=got, fix="Try 0.25."))
        if not self.weight_matching >= 0:
            got, fix = self.weight_matching, "Pass 0 to leave matching out."
            raise InputError(sentence("weight_matching", expected="0 or more", got=got, fix=fix))


def adaptor(*, size: Literal["light", "paper"] = "light", faithful: bool = False) -> Method:
    """The Adaptor paper: InfoNCE between images alone and texts alone through a shared ``cross`` fusion.

    Qin, Liu, Cheng, Guo, Arcucci 2024, "Freeze the backbones", arXiv:2401.01179. Deviations: tokens instead of
    pooled vectors, identical reports are positives of each other, matching trains the cross mode, the temperature is
    clamped, and the optimiser settings and dropped tokens of ``light`` are our own (chosen on phantom seeds 7 and 101,
    which are no reported ones: there 1,500 pairs were memorised in 30 epochs without dropped tokens, and dropout inside
    the layers beside them changed no AUROC by more than 0.001). ``paper``
    and ``faithful`` take the released ones: batch 1024, 50 epochs, AdamW 2e-5 with weight decay 0.01, 2 % warm-up.
    The released schedule falls linearly; ours as a cosine.

    Args:
        size: ``light`` is 256 wide with 4 heads, ``paper`` 768 wide with 12.
        faithful: The released arrangement (one pooled token); implies ``size="paper"`` and no matching.

    Raises:
        InputError: If the size is neither of the two.
    """
    if size not in ("light", "paper"):
        raise InputError(sentence("size", expected="'light' or 'paper'", got=repr(size), fix="Choose one."))
    if size == "light" and not faithful:
        return Method(name="adaptor", schedule=Schedule(least_steps=60))
    released = Schedule(epochs=50, batch_size=1024, learning_rate=2e-5, weight_decay=0.01, warmup_share=0.02)
    return Method(
        name="adaptor",
        size="paper",
        width=768,
        heads=12,
        dropout=0.1,
        faithful=faithful,
        token_dropout=0.0,
        weight_matching=0.0 if faithful else 0.3,
        positives="pair" if faithful else "identical-text",
        schedule=released,
    )


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InputError(sentence(name, expected="a share in [0, 1]", got=value, fix="Try 0.25."))
