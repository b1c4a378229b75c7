"""Fine-tuned classification on a bank's image Tokens: a head on a frozen fusion, or head and fusion together."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import lightning
import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from adaptmed.bank import Bank
from adaptmed.errors import NonFiniteLossError, sentence
from adaptmed.fusion import Fusion
from adaptmed.heads.linear import LinearHead, classification_head
from adaptmed.heads.probe import Probe, fit_probe
from adaptmed.methods import Schedule
from adaptmed.objectives.supervised import masked_bce, masked_cross_entropy
from adaptmed.tasks.pretraining import learning_rate_factor, parameter_groups, step_seed
from adaptmed.tasks.quiet import quiet_lightning
from adaptmed.tasks.retrieval import embed_rows
from adaptmed.types import Tokens

Inputs = Tokens | Float[Tensor, "batch width"]


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """How a head is tuned; fixed beforehand, since nothing may be selected on labels outside the fraction.

    Attributes:
        hidden: Width of the paper's hidden layer (512 there); ``None`` is a linear head that starts at the probe.
        epochs: Passes over the fraction, so that a small fraction gets few steps and stays near the probe.
        batch_size: Least number of items per step, unless the fraction is smaller.
        learning_rate: Peak rate of the head.
        fusion_learning_rate: Peak rate of the fusion.
        weight_decay: On matrices only.
        warmup_share: Share of the steps over which the rates rise; they then fall as a cosine to 0.
        clip: Largest gradient norm.
    """

    hidden: int | None = None
    epochs: int = 8
    batch_size: int = 32
    learning_rate: float = 1e-3
    fusion_learning_rate: float = 3e-4
    weight_decay: float = 0.01
    warmup_share: float = 0.1
    clip: float = 1.0


@dataclass(frozen=True)
class FinetunedClassifier:
    """A fusion with its head.

    Attributes:
        fusion: The one that was given, or its tuned copy.
        head: Logits of the outputs without a reason; ``None`` when every output has one.
        outputs: Number of labels or classes.
        multiclass: Whether the outputs are classes that exclude each other.
        reasons: As in ``Probe``: why a label has no prediction, or a class the probability 0.
        trainable_parameters: How many numbers were trained.
    """

    fusion: Fusion
    head: nn.Module | None
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
        embeddings = embed_rows(self.fusion, bank, rows, modality="image")
        with torch.inference_mode():
            logits = self.head.eval()(embeddings)
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
    classes: int | None = None,
    seed: int = 0,
    settings: FinetuneSettings | None = None,
    device: str = "auto",
) -> FinetunedClassifier:
    """Tune a head on the embeddings of images alone, and with ``train_fusion`` the fusion with it.

    A linear head starts at the probe fitted on the frozen embeddings (probe, then tune: Kumar et al. 2022,
    arXiv 2202.10054). On a frozen fusion that probe is already the best linear head and is returned as it is; only
    the paper's head (``settings.hidden``) is trained there, on embeddings computed once. There is no validation set:
    the number of steps is fixed by ``settings`` and the size of the fraction.

    Args:
        fusion: Never changed; with ``train_fusion`` a copy is trained, without the parameters images do not use.
        bank: Holds the image Tokens.
        rows: Row numbers of the fraction.
        labels: Of these rows: ``(n, label)`` of 0, 1 and NaN, or ``(n,)`` integer classes with -1.
        groups: The patient of each row.
        train_fusion: Whether the fusion learns too (arm ``adaptor-trained``) or not (arm ``adaptor``).
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
    embeddings = embed_rows(fusion, bank, rows, modality="image")
    probe = fit_probe(embeddings.numpy(), labels, groups, classes=classes, seed=seed)
    if len(probe.reasons) == len(probe.bias):
        return FinetunedClassifier(fusion, None, len(probe.bias), probe.multiclass, probe.reasons, 0)
    with torch.random.fork_rng():
        torch.manual_seed(step_seed(seed, -1))
        head = _head(probe, settings)
        tuned = _trainable_copy(fusion, bank.image_tokens(rows[:2], dtype=torch.float32)) if train_fusion else None
        if tuned is not None or settings.hidden is not None:
            task = Finetuning(tuned, head, settings, seed=seed, steps=settings.epochs * _steps(len(rows), settings))
            source = bank if tuned is not None else embeddings
            _fit(task, _Batches(source, rows, _targets(probe, labels), settings, seed), device)
    trained = [*head.parameters(), *(tuned.parameters() if tuned is not None else ())]
    count = sum(parameter.numel() for parameter in trained if parameter.requires_grad)
    return FinetunedClassifier(tuned or fusion, head, len(probe.bias), probe.multiclass, probe.reasons, count)


class Finetuning(lightning.LightningModule):
    """Trains a head, and a fusion when there is one, on labelled image Tokens or embeddings.

    Args:
        fusion: Trained with the head; ``None`` when the inputs are embeddings already.
        head: Embedding to logits.
        settings: Optimiser settings.
        seed: Of dropout.
        steps: Steps of the whole run.
    """

    def __init__(
        self, fusion: Fusion | None, head: nn.Module, settings: FinetuneSettings, *, seed: int, steps: int
    ) -> None:
        super().__init__()
        self.fusion, self.head = fusion, head
        self.settings, self.seed, self.steps = settings, seed, steps

    def training_step(self, batch: tuple[Inputs, Tensor], batch_idx: int) -> Float[Tensor, ""]:
        """Return the loss of one batch.

        Raises:
            NonFiniteLossError: If the loss is NaN or infinite; nothing was updated from it.
        """
        del batch_idx
        torch.manual_seed(step_seed(self.seed, self.global_step))
        inputs, labels = batch
        if self.fusion is not None and isinstance(inputs, Tokens):
            inputs = self.fusion.embed_image(inputs)
        logits = self.head(inputs)
        loss = masked_bce(logits, labels) if labels.ndim == 2 else masked_cross_entropy(logits, labels)
        if not torch.isfinite(loss):
            name, fix = f"loss at step {self.global_step}", "Lower the learning rates, and check the bank's values."
            raise NonFiniteLossError(sentence(name, expected="a finite number", got=loss.item(), fix=fix))
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with one rate for the head and one for the fusion, linear warm-up and cosine decay."""
        groups = [g | {"lr": self.settings.learning_rate} for g in self._groups(self.head)]
        if self.fusion is not None:
            groups += [g | {"lr": self.settings.fusion_learning_rate} for g in self._groups(self.fusion)]
        schedule = Schedule(warmup_share=self.settings.warmup_share)
        optimiser = torch.optim.AdamW(groups)
        rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: learning_rate_factor(s, self.steps, schedule))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    def _groups(self, module: nn.Module) -> list[dict[str, Any]]:
        return [group for group in parameter_groups(module, self.settings.weight_decay) if group["params"]]


class _Batches:
    """Shuffled batches of a fraction, one order per (seed, epoch); none is smaller than the others' size minus one."""

    def __init__(
        self, source: Bank | Tensor, rows: Int[np.ndarray, " n"], labels: Tensor, settings: FinetuneSettings, seed: int
    ) -> None:
        self.source, self.rows, self.labels = source, rows, labels
        self.settings, self.seed, self.epoch = settings, seed, 0

    def __len__(self) -> int:
        return _steps(len(self.rows), self.settings)

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.rows))
        self.epoch += 1
        for items in np.array_split(order, len(self)):
            if isinstance(self.source, Tensor):
                yield self.source[items], self.labels[items]
            else:
                yield self.source.image_tokens(self.rows[items], dtype=torch.float32), self.labels[items]


def _steps(rows: int, settings: FinetuneSettings) -> int:
    return max(1, rows // settings.batch_size)


def _usable(outputs: int, reasons: Mapping[int, str]) -> list[int]:
    return [index for index in range(outputs) if index not in reasons]


def _head(probe: Probe, settings: FinetuneSettings) -> nn.Module:
    usable = _usable(len(probe.bias), probe.reasons)
    weight, bias = probe.linear()
    if settings.hidden is None:
        return LinearHead.from_weights(weight[usable], bias[usable])
    return classification_head(weight.shape[1], len(usable), hidden=settings.hidden)


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
    embedding = copy.embed_image(tokens.to(parameters[0].device))
    gradients = torch.autograd.grad(embedding.sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    return copy


def _fit(task: Finetuning, batches: _Batches, device: str) -> None:
    with quiet_lightning():
        trainer = lightning.Trainer(
            accelerator=device,
            devices=1,
            max_epochs=task.settings.epochs,
            gradient_clip_val=task.settings.clip,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(task.train(), batches)
    if not trainer.state.finished:
        raise KeyboardInterrupt
    task.cpu().eval()
