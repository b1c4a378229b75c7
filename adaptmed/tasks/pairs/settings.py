"""What is tuned for pairs, and on what."""

from dataclasses import dataclass, field
from typing import Literal

from adaptmed.coordination.gradient import ALPHA
from adaptmed.errors import InputError, sentence
from adaptmed.lora import LoRA
from adaptmed.training.settings import FinetuneSettings

PairTask = Literal["answering", "image-text-classification"]
ANSWERING: PairTask = "answering"
CLASSIFICATION: PairTask = "image-text-classification"
EPOCHS = 20
"""Passes over the fraction when no other number is asked for."""
DROPOUT = 0.6
"""Before the last layer of the head: 1,600 questions are few."""


@dataclass(frozen=True, kw_only=True)
class Coordination:
    """How the gradients of image and text wait for each other (GM-Coord, UMD, arXiv:2404.06057).

    Attributes:
        noise: Add noise of each gradient's own deviation, as published.
        scores: What says how well a modality answers alone: the whole ``head`` with the other half of the joint vector
            set to zero, or its ``last-linear`` layer alone, as the released code has it.
        alpha: How much the stronger is held back.
    """

    noise: bool = True
    scores: Literal["head", "last-linear"] = "head"
    alpha: float = ALPHA


@dataclass(frozen=True, kw_only=True)
class PairChoices:
    """What is tuned for pairs, and on what.

    Attributes:
        task: What is learnt.
        settings: How. The papers (M3AE, UMD) tune whole encoders, at ``paper`` rates: 5e-6 inside the encoders, 5 times
            that in the fusion and 50 times that in the head, for 15 to 60 epochs of batches of 32 or 64.
        image_lora: Fresh LoRA inside the image encoder; images are then read again and encoded in every step.
        text_lora: Fresh LoRA inside the text encoder, which then reads the word ids of the bank in every step.
        train_fusion: Whether the fusion learns too.
        frozen_beside: Show the head beside the joint vector what the encoders say of the whole image and text; the
            papers show the joint vector alone.
        loss: Of answers: ``cross-entropy`` over all of them, or ``binary``, that of every answer on its own, as in the
            papers.
        label_smoothing: Of the cross-entropy: share of each target that is spread over all answers or classes.
        dropout: Share of the values before the last layer of the head that is dropped in training.
        keep: The validated epoch that is kept: that with the highest ``accuracy``, of equal ones that with the lowest
            loss, or that with the lowest ``loss``. ``None`` is the accuracy of answers, the loss of labels and classes.
        kinds: Learn from the fraction which answers a question of its kind (open, closed) can have, and give no other.
        class_weights: ``balanced`` weighs classes by the inverse of how often they come in the fraction.
        answers_from: Whose answers can be given: those of ``train`` (the fraction alone), or of ``all`` splits, as in
            the papers, which tells the model what is answered in the test split.
        coordination: How gradients wait for each other; ``None`` leaves them alone.
        fraction: Share of the training patients.
        seed: Of the fraction, fresh weights, order, augmentation, dropout, noise and exchanged images.
        allow_overlap: Go on although test patients were seen; the results say so.

    Raises:
        InputError: An option says nothing for this task, or coordination has no fusion to work on.
    """

    task: PairTask
    settings: FinetuneSettings = field(default_factory=lambda: FinetuneSettings(epochs=EPOCHS))
    image_lora: LoRA | None = None
    text_lora: LoRA | None = None
    train_fusion: bool = True
    frozen_beside: bool = True
    loss: Literal["cross-entropy", "binary"] = "cross-entropy"
    label_smoothing: float = 0.0
    dropout: float = DROPOUT
    keep: Literal["accuracy", "loss"] | None = None
    kinds: bool = True
    class_weights: Literal["none", "balanced"] = "none"
    answers_from: Literal["train", "all"] = "train"
    coordination: Coordination | None = None
    fraction: float = 1.0
    seed: int = 0
    allow_overlap: bool = False

    def __post_init__(self) -> None:
        foreign = {"loss": "cross-entropy", "answers_from": "train", "kinds": True, "keep": None}
        if self.task == ANSWERING:
            foreign = {"class_weights": "none"}
        for name, usual in foreign.items():
            if getattr(self, name) != usual:
                expected, fix = f"an option that the task {self.task} has", "Leave it out."
                raise InputError(sentence(name, expected=expected, got=getattr(self, name), fix=fix))
        for name in ("label_smoothing", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                got = getattr(self, name)
                raise InputError(sentence(name, expected="a share in [0, 1)", got=got, fix="Try 0.1."))
        if self.coordination is not None and not self.train_fusion:
            fix = "Train the fusion, or leave --coordinate-gradients out."
            raise InputError(sentence("train_fusion", expected="a fusion that is trained", got="a frozen one", fix=fix))

    @property
    def keeps_accuracy(self) -> bool:
        """Whether the epoch is chosen by accuracy."""
        return self.task == ANSWERING if self.keep is None else self.keep == "accuracy"

    @property
    def tunes_encoders(self) -> bool:
        """Whether an encoder runs in the loop."""
        return self.image_lora is not None or self.text_lora is not None
