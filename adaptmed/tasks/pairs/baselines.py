"""What stands beside a tuned model of pairs: its own answers to exchanged images, and heads on frozen features."""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from adaptmed.bank import Bank
from adaptmed.cohort.rows import patients_of
from adaptmed.layers.draws import step_seed
from adaptmed.tasks.pairs.goal import Goal
from adaptmed.tasks.pairs.model import FeatureClassifier, tuning_of
from adaptmed.tasks.pairs.reading import PairReading, exchanged, frozen_features
from adaptmed.tasks.pairs.settings import ANSWERING, PairChoices
from adaptmed.training.batches import features_of
from adaptmed.training.settings import FinetuneSettings
from adaptmed.training.tuning import Tuning
from adaptmed.training.work import fit, predict_images, work_on

Rows = Int[np.ndarray, " n"]


def shuffled_image(
    tuning: Tuning, reading: PairReading, rows: Rows, settings: FinetuneSettings, *, seed: int, device: str
) -> Tensor | None:
    """Logits of a model that is shown the image of another patient beside every text.

    Args:
        tuning: With the model.
        reading: How pairs are read.
        rows: Row numbers.
        settings: Batch size and precision.
        seed: Of the exchange.
        device: Lightning's accelerator.

    Returns:
        Logits; ``None`` when all rows are of one patient.
    """
    places = exchanged(patients_of(reading.bank, rows), seed=seed)
    if places is None:
        return None
    return predict_images(tuning, reading.pairs(rows, images=rows[places]), settings, device)


def frozen_heads(bank: Bank, goal: Goal, choices: PairChoices, *, hidden: int, device: str) -> dict[str, Tensor]:
    """Train the same head with the same settings on what frozen encoders say, and give its logits of the test pairs.

    ``frozen`` reads CLS and mean of the image and the pooled text, the other one the pooled text alone.

    Args:
        bank: Tokens.
        goal: What is learnt, by whom.
        choices: With the settings.
        hidden: Width between the layers of the head.
        device: Lightning's accelerator.
    """
    alone = "question_only" if choices.task == ANSWERING else "text_only"
    rows = goal.rows
    judged, found = rows.validate[known(goal.targets(rows.validate)).numpy()], {}
    for name, image in (("frozen", True), (alone, False)):
        features = [frozen_features(bank, some, image=image) for some in (rows.train, rows.test)]
        with torch.random.fork_rng():
            torch.manual_seed(step_seed(choices.seed, -5))
            model = FeatureClassifier(features[0], len(goal.names), hidden=hidden)
            tuning = tuning_of(model, choices.settings, goal.loss, seed=choices.seed, items=len(rows.train))
            held_out = None
            if len(judged):
                held_out = features_of(frozen_features(bank, judged, image=image), goal.targets(judged))
            train = features_of(features[0], goal.targets(rows.train))
            fit(work_on(tuning, train, held_out, choices.settings), device)
            found[name] = predict_images(tuning, features_of(features[1]), choices.settings, device)
    return found


def known(targets: Tensor) -> Tensor:
    """Which items have a target: a class or an answer that there is, or any label."""
    return targets >= 0 if targets.ndim == 1 else (targets >= 0).any(dim=1)  # NaN compares as False
