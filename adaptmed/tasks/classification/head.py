"""Fine-tuned classification on a bank's image Tokens: a head on a frozen fusion, or head and fusion together."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from adaptmed.adaptor.features import EMBEDDING, adaptor_variants
from adaptmed.adaptor.model import trainable_parameters
from adaptmed.bank import Bank
from adaptmed.fusion import Fusion
from adaptmed.heads.linear import LinearHead, paper_head
from adaptmed.heads.outputs import Outputs
from adaptmed.heads.probe import Probe, fit_best_probe
from adaptmed.layers.draws import step_seed
from adaptmed.tasks.classification.model import ImageClassifier, tuning_of
from adaptmed.training.batches import features_of, tokens_of
from adaptmed.training.settings import FinetuneSettings
from adaptmed.training.trainable import trainable_fusion
from adaptmed.training.work import fit, work_on


@dataclass(frozen=True)
class FinetunedClassifier:
    """A fusion with its head.

    Attributes:
        fusion: The one that was given, or its tuned copy.
        head: From features to the logits of the usable outputs; ``None`` when there is no such output.
        variant: The features the head reads, as in ``image_features``.
        outputs: The labels or classes.
        trainable_parameters: How many numbers were trained.
    """

    fusion: Fusion
    head: nn.Module | None
    variant: str
    outputs: Outputs
    trainable_parameters: int

    def predict(self, bank: Bank, rows: Int[np.ndarray, " n"]) -> Float[Tensor, "n output"]:
        """Return probabilities for rows of a bank: NaN for labels with a reason, 0 for missing classes."""
        if self.head is None:
            return self.outputs.probabilities(torch.zeros(len(rows), 0))
        features = torch.from_numpy(adaptor_variants(self.fusion, bank, rows)[self.variant])
        with torch.inference_mode():
            return self.outputs.probabilities(self.head.eval()(features))


def finetune_head(
    fusion: Fusion,
    bank: Bank,
    rows: Int[np.ndarray, " n"],
    labels: Shaped[np.ndarray, "n *label"],
    groups: Shaped[np.ndarray, " n"],
    *,
    train_fusion: bool,
    start: tuple[Probe, str] | None = None,
    classes: int | None = None,
    seed: int = 0,
    settings: FinetuneSettings | None = None,
    device: str = "auto",
) -> FinetunedClassifier:
    """Tune a head on images alone, and with ``train_fusion`` the fusion with it.

    A linear head starts at the probe: on the embedding, or on it beside CLS and mean of the frozen tokens,
    whichever predicts better inside the fraction (probe, then tune: Kumar et al. 2022, arXiv 2202.10054). On a
    frozen fusion that probe is already the best linear head and is returned as it is; only the paper's head
    (``settings.hidden``) is trained there, on embeddings computed once. There is no validation set: the number of
    steps is fixed by ``settings`` and the size of the fraction.

    Args:
        fusion: Never changed; with ``train_fusion`` a copy is trained, without the parameters images do not use.
        bank: Holds the image Tokens.
        rows: Row numbers of the fraction.
        labels: Of these rows: ``(n, label)`` of 0, 1 and NaN, or ``(n,)`` integer classes with -1.
        groups: The patient of each row.
        train_fusion: Whether the fusion learns too (arm ``adaptor-trained``) or not (arm ``adaptor``).
        start: The probe of exactly these rows and its variant, when they are at hand; ``None`` fits it.
        classes: Number of classes, as in ``fit_probe``.
        seed: Of the folds, the order of the rows, dropout and a fresh head.
        settings: How to tune.
        device: Lightning's accelerator: ``auto``, ``cpu``, ``cuda``.

    Returns:
        The classifier, on the CPU when anything was trained.

    Raises:
        InputError: The labels are not as described.
        NonFiniteLossError: A loss became NaN or infinite.
    """
    settings = settings or FinetuneSettings()
    labels = np.asarray(labels)
    variants = adaptor_variants(fusion, bank, rows)
    probe, variant = start or starting_probe(variants, labels, groups, settings, classes=classes, seed=seed)
    outputs = Outputs.of(probe)
    if not outputs.usable:
        return FinetunedClassifier(fusion, None, variant, outputs, 0)
    features = torch.from_numpy(variants[variant])
    with torch.random.fork_rng():
        torch.manual_seed(step_seed(seed, -1))
        head = head_at(probe, features, settings)
        tuned = trainable_fusion(fusion, bank.image_tokens(rows[:2], dtype=torch.float32)) if train_fusion else None
        model = ImageClassifier(head, variant, fusion=tuned)
        if tuned is not None or settings.hidden is not None:
            targets = outputs.targets(labels)
            images = features_of(features, targets) if tuned is None else tokens_of(bank, rows, targets)
            tuning = tuning_of(model, settings, seed=seed, images=len(rows))
            fit(work_on(tuning, images, None, settings), device)
    return FinetunedClassifier(tuned or fusion, head, variant, outputs, trainable_parameters(model))


def starting_probe(
    variants: Mapping[str, Float[np.ndarray, "n _"]],
    labels: Shaped[np.ndarray, "n *label"],
    groups: Shaped[np.ndarray, " n"],
    settings: FinetuneSettings,
    *,
    classes: int | None,
    seed: int,
) -> tuple[Probe, str]:
    """Fit the probe that tuning starts at, and say which features it reads; the paper's head reads the embedding."""
    offered = variants if settings.hidden is None else {EMBEDDING: variants[EMBEDDING]}
    return fit_best_probe(offered, labels, groups, classes=classes, seed=seed)


def head_at(probe: Probe, features: Float[Tensor, "n width"], settings: FinetuneSettings) -> nn.Module:
    """Build the head of the settings: a linear one at the probe, on the features it was fitted on, or a fresh one."""
    usable = Outputs.of(probe).usable
    if settings.hidden is not None:
        return paper_head(features.shape[1], len(usable), hidden=settings.hidden)
    weight, bias = probe.linear()
    return LinearHead.of_probe(weight[usable], bias[usable], features)
