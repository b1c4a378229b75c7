"""What a method is made of: its fusion, what it hides, its objectives and how it is optimised."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

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
class Masking:
    """What a method hides before the encoders, and what it learns from it.

    Attributes:
        joint: Hide words and patches of a pair in one pass (UMD), or each in a pass of its own beside the other
            modality whole (M3AE).
        word_share: Share of a text's words that are hidden.
        whole_words: Hide all pieces of a word together.
        patch_ratio: Share of an image's patches (of the cells of the bank's layout) that are hidden.
        patch_layer: Layer of the fusion that the patch decoder reads; ``None`` is the last.
        decoder_width: Width of the patch decoder.
        decoder_blocks: Its blocks.
        decoder_heads: Its attention heads.
        tied_words: Compare with the text encoder's own frozen word embeddings, instead of a decoder of its own.
        weight_words: Of the cross-entropy of hidden words.
        weight_patches: Of the squared error of hidden patches.
        weight_text_features: Of the distance to the teacher's text features; 0 leaves out what only that needs.
        weight_image_features: Of the distance to the teacher's image features; likewise.
        teacher_decay: Per step, of the teacher's average.
        faithful: Compare features as the released code does (see ``adaptmed.pretext.feature``).

    Raises:
        InputError: If a number lies outside its range.
    """

    joint: bool = False
    word_share: float = 0.15
    whole_words: bool = True
    patch_ratio: float = 0.75
    patch_layer: int | None = None
    decoder_width: int = 192
    decoder_blocks: int = 4
    decoder_heads: int = 6
    tied_words: bool = True
    weight_words: float = 1.0
    weight_patches: float = 1.0
    weight_text_features: float = 0.0
    weight_image_features: float = 0.0
    teacher_decay: float = 0.995
    faithful: bool = False

    def __post_init__(self) -> None:
        for name in ("word_share", "patch_ratio"):
            if not 0 < getattr(self, name) < 1:
                got = getattr(self, name)
                raise InputError(sentence(name, expected="a share above 0 and below 1", got=got, fix="Try 0.15."))
        for name in ("weight_words", "weight_patches"):
            if not getattr(self, name) > 0:
                raise InputError(sentence(name, expected="above 0", got=getattr(self, name), fix="Raise it."))
        for name in ("weight_text_features", "weight_image_features"):
            if not getattr(self, name) >= 0:
                raise InputError(sentence(name, expected="0 or more", got=getattr(self, name), fix="Raise it."))
        if self.teaches and not self.joint:
            expected, fix = "joint masking beside feature reconstruction", "Set joint=True, or these weights to 0."
            raise InputError(sentence("joint", expected=expected, got=self.joint, fix=fix))
        if not 0 <= self.teacher_decay < 1:
            got = self.teacher_decay
            raise InputError(sentence("teacher_decay", expected="a decay in [0, 1)", got=got, fix="Try 0.995."))

    @property
    def teaches(self) -> bool:
        """Whether there is a teacher."""
        return self.weight_text_features > 0 or self.weight_image_features > 0


@dataclass(frozen=True, kw_only=True)
class Method:
    """One paper on frozen encoders.

    Attributes:
        name: Name on the command line.
        size: ``light`` (default) or ``paper``.
        fusion: Kind of fusion: ``cross`` or ``co``.
        width: Width of the fusion.
        layers: Layers of the fusion.
        heads: Attention heads.
        dropout: Dropout inside the fusion.
        token_dropout: Share of tokens left out when a modality is read alone in training.
        faithful: Arrange the fusion as the released code does.
        weight_contrastive: Weight of InfoNCE; 0 leaves it out.
        weight_image_to_text: Share of the image → text term in InfoNCE.
        weight_matching: Weight of image-text matching; 0 leaves it and its head out.
        matching_share: Share of a batch that is matched; it is the costly part of a step.
        negatives: The texts of mismatched pairs are drawn evenly (``random``), or rather those that resemble the
            item's own text in the frozen text encoder (``hard``).
        negatives_by_label: Mismatched pairs also differ in a label where labels are known. Off by default: labels that
            pre-training has read are labels that no low-data study may withhold.
        masking: What is hidden and reconstructed; ``None`` hides nothing.
        positives: ``identical-text`` takes equal reports in a batch as positives of each other, ``pair`` does not.
        schedule: Optimiser settings.

    Raises:
        InputError: If a number lies outside its range.
    """

    name: str
    size: Literal["light", "paper"] = "light"
    fusion: Literal["cross", "co"] = "cross"
    width: int = 256
    layers: int = 2
    heads: int = 4
    dropout: float = 0.0
    token_dropout: float = 0.25
    faithful: bool = False
    weight_contrastive: float = 1.0
    weight_image_to_text: float = 0.25
    weight_matching: float = 0.3
    matching_share: float = 0.125
    negatives: Literal["random", "hard"] = "random"
    negatives_by_label: bool = False
    masking: Masking | None = None
    positives: Literal["identical-text", "pair"] = "identical-text"
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        _check_share("weight_image_to_text", self.weight_image_to_text)
        _check_share("matching_share", self.matching_share)
        if not 0 <= self.token_dropout < 1:
            got = self.token_dropout
            raise InputError(sentence("token_dropout", expected="a share in [0, 1)", got=got, fix="Try 0.25."))
        for name in ("weight_matching", "weight_contrastive"):
            if not getattr(self, name) >= 0:
                got, fix = getattr(self, name), "Pass 0 to leave it out."
                raise InputError(sentence(name, expected="0 or more", got=got, fix=fix))
        if self.masking is not None and self.fusion != "co":
            expected, fix = "'co' where words and patches are hidden", "Choose fusion='co'."
            raise InputError(sentence("fusion", expected=expected, got=repr(self.fusion), fix=fix))
        layer = None if self.masking is None else self.masking.patch_layer
        if layer is not None and not 0 <= layer <= self.layers:
            fix = "Leave it out for the last layer."
            raise InputError(sentence("patch_layer", expected=f"a layer from 0 to {self.layers}", got=layer, fix=fix))

    @property
    def weights(self) -> dict[str, float]:
        """Weight of every loss by its name."""
        found = {"contrastive": self.weight_contrastive, "matching": self.weight_matching}
        if self.masking is not None:
            names = ("words", "patches", "text_features", "image_features")
            found |= {name: getattr(self.masking, f"weight_{name}") for name in names}
        return found


def from_json(found: Mapping[str, Any]) -> Method:
    """Build a method from what ``dataclasses.asdict`` and a JSON file made of it.

    Raises:
        InputError: A field is unknown.

    Example:
        >>> from dataclasses import asdict
        >>> from adaptmed.methods import umd
        >>> from_json(asdict(umd())) == umd()
        True
    """
    masking = found.get("masking")
    try:
        parts = {"schedule": Schedule(**found["schedule"]), "masking": None if masking is None else Masking(**masking)}
        return Method(**{**found, **parts})
    except (KeyError, TypeError) as error:
        fix = "Use the version of adaptmed that wrote it, or pre-train again."
        raise InputError(sentence("method", expected="the fields of a method", got=str(error), fix=fix)) from error


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InputError(sentence(name, expected="a share in [0, 1]", got=value, fix="Try 0.25."))
