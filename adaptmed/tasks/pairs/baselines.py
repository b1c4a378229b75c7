"""What stands beside a tuned model of pairs: its own answers to exchanged images, and heads on frozen features."""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from adaptmed.bank import Bank
from adaptmed.cohort.rows import patients_of
from adaptmed.layers.draws import step_seed
from adaptmed.tasks.pairs.goal import Goal
from adaptmed.tasks.pairs.model import FeatureClassifier
from adaptmed.tasks.pairs.reading import PairReading, exchanged, frozen_features
from adaptmed.tasks.pairs.settings import ANSWERING, PairChoices
from adaptmed.tasks.pairs.training import PairTuning, fit, predict
from adaptmed.training.batches import features_of

Rows = Int[np.ndarray, " n"]


def shuffled_image(task: PairTuning, reading: PairReading, rows: Rows, *, seed: int, device: str) -> Tensor | None:
    """Logits of a model that is shown the image of another patient beside every text.

    Args:
        task: With the model.
        reading: How pairs are read.
        rows: Row numbers.
        seed: Of the exchange.
        device: Lightning's accelerator.

    Returns:
        Logits; ``None`` when all rows are of one patient.
    """
    places = exchanged(patients_of(reading.bank, rows), seed=seed)
    return None if places is None else predict(task, reading.pairs(rows, images=rows[places]), device)


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
            task = PairTuning(model, choices.settings, goal.loss, seed=choices.seed, items=len(rows.train))
            held_out = None
            if len(judged):
                held_out = features_of(frozen_features(bank, judged, image=image), goal.targets(judged))
            fit(task, features_of(features[0], goal.targets(rows.train)), held_out, device)
            found[name] = predict(task, features_of(features[1]), device)
    return found


def known(targets: Tensor) -> Tensor:
    """Which items have a target: a class or an answer that there is, or any label."""
    return targets >= 0 if targets.ndim == 1 else (targets >= 0).any(dim=1)  # NaN compares as False
