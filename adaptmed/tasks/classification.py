"""Fine-tuned classification on a bank's image Tokens: a head on a frozen fusion, or head and fusion together."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from adaptmed.bank import Bank
from adaptmed.fusion import Fusion
from adaptmed.heads.linear import LinearHead, paper_head
from adaptmed.heads.probe import Probe, fit_best_probe
from adaptmed.tasks.features import EMBEDDING, adaptor_variants, image_features
from adaptmed.tasks.finetuning import FinetuneSettings, Finetuning, LabelledBatches, fit
from adaptmed.tasks.pretraining import step_seed
from adaptmed.types import Tokens


@dataclass(frozen=True)
class FinetunedClassifier:
    """A fusion with its head.

    Attributes:
        fusion: The one that was given, or its tuned copy.
        head: From features to the logits of the outputs without a reason; ``None`` when every output has one.
        variant: The features the head reads, as in ``image_features``.
        outputs: Number of labels or classes.
        multiclass: Whether the outputs are classes that exclude each other.
        reasons: As in ``Probe``: why a label has no prediction, or a class the probability 0.
        trainable_parameters: How many numbers were trained.
    """

    fusion: Fusion
    head: nn.Module | None
    variant: str
    outputs: int
    multiclass: bool
    reasons: Mapping[int, str]
    trainable_parameters: int

    def predict(self, bank: Bank, rows: Int[np.ndarray, " n"]) -> Float[Tensor, "n output"]:
        """Return probabilities for rows of a bank: NaN for labels with a reason, 0 for missing classes."""
        missing = 0.0 if self.multiclass and self.head is not None else torch.nan
        probabilities = torch.full((len(rows), self.outputs), missing)
        if self.head is None:
            return probabilities
        features = torch.from_numpy(adaptor_variants(self.fusion, bank, rows)[self.variant])
        with torch.inference_mode():
            logits = self.head.eval()(features)
            fitted = logits.softmax(dim=1) if self.multiclass else logits.sigmoid()
        probabilities[:, _usable(self.outputs, self.reasons)] = fitted
        return probabilities


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
    if start is None:
        offered = variants if settings.hidden is None else {EMBEDDING: variants[EMBEDDING]}
        start = fit_best_probe(offered, labels, groups, classes=classes, seed=seed)
    probe, variant = start
    if len(probe.reasons) == len(probe.bias):
        return FinetunedClassifier(fusion, None, variant, len(probe.bias), probe.multiclass, probe.reasons, 0)
    features = torch.from_numpy(variants[variant])
    with torch.random.fork_rng():
        torch.manual_seed(step_seed(seed, -1))
        head = _head(probe, features, settings)
        tuned = _trainable_copy(fusion, bank.image_tokens(rows[:2], dtype=torch.float32)) if train_fusion else None
        if tuned is not None or settings.hidden is not None:
            source = bank if tuned is not None else features
            targets = _targets(probe, labels)
            batches = LabelledBatches(source, rows, targets, batch_size=settings.batch_size, seed=seed)
            fit(
                Finetuning(tuned, head, variant, settings, seed=seed, steps=settings.epochs * len(batches)),
                batches,
                device,
            )
    trained = [*head.parameters(), *(tuned.parameters() if tuned is not None else ())]
    count = sum(parameter.numel() for parameter in trained if parameter.requires_grad)
    return FinetunedClassifier(tuned or fusion, head, variant, len(probe.bias), probe.multiclass, probe.reasons, count)


def _usable(outputs: int, reasons: Mapping[int, str]) -> list[int]:
    return [index for index in range(outputs) if index not in reasons]


def _head(probe: Probe, features: Float[Tensor, "n width"], settings: FinetuneSettings) -> nn.Module:
    usable = _usable(len(probe.bias), probe.reasons)
    if settings.hidden is not None:
        return paper_head(features.shape[1], len(usable), hidden=settings.hidden)
    weight, bias = probe.linear()
    return LinearHead.of_probe(weight[usable], bias[usable], features)


def _targets(probe: Probe, labels: Shaped[np.ndarray, "n *label"]) -> Tensor:
    """Labels in the head's own numbering, which leaves out labels and classes with a reason."""
    usable = _usable(len(probe.bias), probe.reasons)
    if not probe.multiclass:
        return torch.as_tensor(labels[:, usable], dtype=torch.float32)
    return torch.as_tensor(np.where(labels >= 0, np.searchsorted(usable, labels), -1))


def _trainable_copy(fusion: Fusion, tokens: Tokens) -> Fusion:
    """Copy a fusion; of the copy only the parameters that embedding an image reads can be trained."""
    copy = deepcopy(fusion).requires_grad_(True).eval()
    parameters = list(copy.parameters())
    embedding = image_features(copy, tokens.to(parameters[0].device), EMBEDDING)
    gradients = torch.autograd.grad(embedding.sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    return copy
