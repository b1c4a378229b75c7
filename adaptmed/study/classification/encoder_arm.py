"""Arms that train inside a copy of the image encoder: from the frozen probe, on images that are read again."""

from collections.abc import Callable

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
from adaptmed.training.work import fit, predict_images, work_on
from adaptmed.types import ImageEncoder

Copies = Callable[[int], ImageEncoder]
"""From a seed to a fresh copy of an encoder, of which what is to be tuned can be trained."""


def encoder_arm(
    rows: StudyRows, bank: Bank, copies: Copies, *, settings: FinetuneSettings, device: str = "auto"
) -> Arm:
    """Tune a copy of an image encoder with a linear head on its own Tokens, from the images, without any text.

    It starts at the frozen probe (the best of CLS, mean and both), as the tuned adaptor starts at its own. Images are
    read again from the manifest and encoded in every step, and so are the test images in every cell. A fraction in
    which nothing can be told apart trains nothing.

    Args:
        rows: The study's rows.
        bank: The Tokens of the encoder, and the way to the images.
        copies: Every cell tunes one of its own.
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
            model = ImageClassifier(head, variant, encoder=copies(seed), layout=bank.info.layout)
            tuning = tuning_of(model, settings, seed=seed, images=len(places))
            fit(work_on(tuning, images, None, settings), device)
            logits = predict_images(tuning, images_again(bank, rows.test, seed=None), settings, device)
        probabilities = outputs.probabilities(logits).double().numpy()
        return Outcome(probabilities, probe.reasons, trainable_parameters(model))

    return arm
