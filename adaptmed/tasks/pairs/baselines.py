"""What stands beside a tuned model of pairs: its own answers to exchanged images, and heads on frozen features."""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from adaptmed.bank import Bank
from adaptmed.cohort.rows import patients_of
from adaptmed.layers.draws import step_seed
from adaptmed.tasks.pairs.goal import Goal
from adaptmed.tasks.pairs.model import FeatureClassifier, start_at_frequencies, tuning_of
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


def frozen_heads(bank: Bank, goal: Goal, choices: PairChoices, *, device: str) -> dict[str, Tensor]:
    """Train the same head with the same settings on what frozen encoders say, and give its logits of the test pairs.

    ``frozen`` reads CLS and mean of the image and the pooled text, the other one the pooled text alone.

    Args:
        bank: Tokens.
        goal: What is learnt, by whom.
        choices: With the settings.
        device: Lightning's accelerator.
    """
    alone = "question_only" if choices.task == ANSWERING else "text_only"
    found = {}
    for name, image in (("frozen", True), (alone, False)):
        tuning = frozen_head(bank, goal, choices, device=device, image=image)
        features = features_of(frozen_features(bank, goal.rows.test, image=image))
        found[name] = predict_images(tuning, features, choices.settings, device)
    return found


def frozen_head(bank: Bank, goal: Goal, choices: PairChoices, *, device: str, image: bool) -> Tuning:
    """Train one head on what frozen encoders say of the training pairs.

    Args:
        bank: Tokens.
        goal: What is learnt, by whom.
        choices: With the settings.
        device: Lightning's accelerator.
        image: Whether CLS and mean of the image are read before the pooled text.
    """
    rows, settings = goal.rows, choices.settings
    features, targets = frozen_features(bank, rows.train, image=image), goal.targets(rows.train)
    judged = rows.validate[known(goal.targets(rows.validate)).numpy()]
    held_out = features_of(frozen_features(bank, judged, image=image), goal.targets(judged)) if len(judged) else None
    with torch.random.fork_rng():
        torch.manual_seed(step_seed(choices.seed, -5))
        model = FeatureClassifier(features, _widths(bank, image=image), len(goal.names), dropout=choices.dropout)
        if goal.exclusive:
            start_at_frequencies(model.head, targets, binary=choices.loss == "binary")
        tuning = tuning_of(model, settings, goal.loss, seed=choices.seed, items=len(targets), right=goal.right)
        fit(work_on(tuning, features_of(features, targets), held_out, settings), device)
    return tuning


def _widths(bank: Bank, *, image: bool) -> list[int]:
    """Widths of the sides behind each other in ``frozen_features``."""
    text = bank.text_tokens(np.array([0]), torch.float32).pooled.shape[1]
    return [2 * bank.image_tokens(np.array([0]), torch.float32).values.shape[2], text] if image else [text]


def known(targets: Tensor) -> Tensor:
    """Which items have a target: a class or an answer that there is, or any label."""
    return targets >= 0 if targets.ndim == 1 else (targets >= 0).any(dim=1)  # NaN compares as False
