"""The arm ``full``: a copy of the whole image encoder, tuned on the fraction; a costly reference, not a contender."""

import numpy as np
import torch
from jaxtyping import Int

from adaptmed.adaptor.features import frozen_variants
from adaptmed.adaptor.model import trainable_parameters
from adaptmed.bank import Bank
from adaptmed.heads.outputs import Outputs
from adaptmed.layers.draws import step_seed
from adaptmed.study.classification.arms import Arm, Outcome, best_probe
from adaptmed.study.classification.rows import StudyRows
from adaptmed.tasks.classification.head import head_at
from adaptmed.tasks.classification.model import ImageClassifier, tuning_of
from adaptmed.training.batches import images_again
from adaptmed.training.settings import FinetuneSettings
from adaptmed.training.trainable import trainable_encoder
from adaptmed.training.work import fit, predict_images, work_on
from adaptmed.types import ImageEncoder

FULL = FinetuneSettings(epochs=5, batch_size=16, encoder_learning_rate=3e-5, encoder_weight_decay=0.01)
"""Fixed beforehand and not searched: a small rate, few epochs, the head's own rate as in the other tuned arms."""


def full_arm(
    rows: StudyRows, bank: Bank, encoder: ImageEncoder, *, settings: FinetuneSettings = FULL, device: str = "auto"
) -> Arm:
    """Tune a whole image encoder with a linear head on its own Tokens, from the images, without any text.

    It starts at the frozen probe (the best of CLS, mean and both), as the tuned adaptor starts at its own. Images are
    read again from the manifest and encoded in every step, and so are the test images in every cell: an encoder's time
    for each. LoRA that is inside the encoder is merged into the copy first.

    Args:
        rows: The study's rows.
        bank: The Tokens of ``encoder``, and the way to the images.
        encoder: Never changed; every cell tunes a copy of its own.
        settings: How to tune.
        device: Lightning's accelerator: ``auto``, ``cpu``, ``cuda``.
    """
    train, test = frozen_variants(bank, rows.train), frozen_variants(bank, rows.test)
    probe_of = best_probe(rows, train)

    def arm(places: Int[np.ndarray, " k"], seed: int) -> Outcome:
        probe, variant = probe_of(places)
        outputs = Outputs.of(probe)
        if not outputs.usable:
            return Outcome(probe.predict(test[variant]), probe.reasons, 0)
        targets = outputs.targets(rows.labels[places])
        images = images_again(bank, rows.train[places], targets, seed=seed if settings.augment else None)
        with torch.random.fork_rng():
            torch.manual_seed(step_seed(seed, -1))
            head = head_at(probe, torch.from_numpy(train[variant][places]), settings)
            tuned = trainable_encoder(encoder, torch.zeros(1, 3, *encoder.preprocessing.image_size_px))
            model = ImageClassifier(head, variant, encoder=tuned, layout=bank.info.layout)
            tuning = tuning_of(model, settings, seed=seed, images=len(places))
            fit(work_on(tuning, images, None, settings), device)
            logits = predict_images(tuning, images_again(bank, rows.test, seed=None), settings, device)
        probabilities = outputs.probabilities(logits).double().numpy()
        return Outcome(probabilities, probe.reasons, trainable_parameters(model))

    return arm
