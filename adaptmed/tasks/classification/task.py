"""What a fine-tuning works on: the images it reads, the probe it starts at, the classifier it trains."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from adaptmed.adaptor.features import adaptor_variants
from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank
from adaptmed.cohort.division import Division
from adaptmed.cohort.rows import labels_of, patients_of
from adaptmed.heads.outputs import Outputs
from adaptmed.heads.probe import Probe
from adaptmed.layers.draws import step_seed
from adaptmed.lora import LoRA
from adaptmed.tasks.classification.head import head_at, starting_probe
from adaptmed.tasks.classification.model import ImageClassifier
from adaptmed.training.batches import LabelledImages, Rows, images_again, tokens_of
from adaptmed.training.encoders import checkpoint_blocks
from adaptmed.training.settings import FinetuneSettings
from adaptmed.training.trainable import trainable_fusion


@dataclass(frozen=True)
class Start:
    """Where tuning begins.

    Attributes:
        probe: Fitted on the fraction.
        variant: Which features it reads.
        features: Of the fraction.
        test: Its probabilities for the test images.
    """

    probe: Probe
    variant: str
    features: Float[Tensor, "n width"]
    test: Float[np.ndarray, "m output"]

    @property
    def outputs(self) -> Outputs:
        """The labels or classes it tells apart."""
        return Outputs.of(self.probe)


@dataclass(frozen=True)
class Job:
    """One fine-tuning.

    Attributes:
        bank: Labels, and Tokens of the adaptor's image encoder.
        adaptor: Without encoders in memory; ``model`` puts what is tuned into it.
        rows: Whom it reads.
        settings: How it tunes.
        lora: LoRA inside the image encoder, or ``None``.
        train_fusion: Whether the fusion learns too.
        seed: Of everything random.
    """

    bank: Bank
    adaptor: Adaptor
    rows: Division
    settings: FinetuneSettings
    lora: LoRA | None
    train_fusion: bool
    seed: int

    def start(self) -> Start:
        """Fit the best linear probe on what the adaptor, as it came, says of the fraction."""
        bank, rows = self.bank, self.rows
        variants = adaptor_variants(self.adaptor.fusion, bank, rows.train)
        probe, variant = starting_probe(
            variants,
            labels_of(bank, rows.train),
            patients_of(bank, rows.train),
            self.settings,
            classes=None if bank.info.class_column is None else len(bank.classes),
            seed=self.seed,
        )
        test = np.zeros((0, len(probe.bias)))
        if len(rows.test):
            test = probe.predict(adaptor_variants(self.adaptor.fusion, bank, rows.test)[variant])
        return Start(probe, variant, torch.from_numpy(variants[variant]), test)

    def model(self, start: Start) -> ImageClassifier:
        """Put the head on the adaptor's parts, of which those to be tuned can be trained."""
        adaptor, bank = self.adaptor, self.bank
        if self.train_fusion:
            example = bank.image_tokens(self.rows.train[:2], dtype=torch.float32)
            adaptor.fusion = trainable_fusion(adaptor.fusion, example)
        else:
            adaptor.fusion.requires_grad_(requires_grad=False)
        if self.lora is not None:
            adaptor.encoders.load_image().attach_lora("image", self.lora, seed=step_seed(self.seed, -3))
        encoder = adaptor.encoders.image
        if encoder is not None and self.settings.checkpointing:
            checkpoint_blocks(encoder.blocks)
        head = head_at(start.probe, start.features, self.settings)
        return ImageClassifier(head, start.variant, fusion=adaptor.fusion, encoder=encoder, layout=bank.info.layout)

    def images(self, rows: Rows, labels: Tensor | None = None, *, seed: int | None = None) -> LabelledImages:
        """The inputs of rows: their images read again where there is LoRA, changed by ``seed``, else the bank's Tokens.

        Args:
            rows: Row numbers.
            labels: As the loss wants them.
            seed: Of the random changes; ``None`` reads images as they are.
        """
        if self.lora is None:
            return tokens_of(self.bank, rows, labels)
        return images_again(self.bank, rows, labels, seed=seed)
