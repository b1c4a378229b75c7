"""The one training behind every fine-tuning: a model that reads and answers, a loss, and how it is optimised."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning
import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from adaptmed.errors import NonFiniteLossError, sentence
from adaptmed.layers.draws import step_seed
from adaptmed.runs.folder import BEST
from adaptmed.runs.processes import Processes
from adaptmed.training.batches import Batches, LabelledImages
from adaptmed.training.callbacks import KeepBest
from adaptmed.training.checkpoint import SafetensorsCheckpointIO
from adaptmed.training.cut_batch import CutBatch
from adaptmed.training.optimiser import Group, scheduled_adamw
from adaptmed.training.settings import FinetuneSettings
from adaptmed.training.trainer import (
    Length,
    Precision,
    RunOptions,
    bare_trainer,
    fit_or_resume,
    run_to_end,
    run_trainer,
)

Loss = Callable[[Tensor, Tensor], Float[Tensor, ""]]
"""Of logits and targets."""
_KEPT = ("model.head.", "model.decoder.")  # in a checkpoint whole, with what is fitted there and not trained


@runtime_checkable
class Coordinates(Protocol):
    """What changes gradients before a step, from what the head makes of each modality alone."""

    def add(self, head: nn.Module, read: Tensor, targets: Tensor, gather: Callable[[Tensor], Tensor]) -> None:
        """Take one batch of the step into account."""
        ...

    def apply(self, step: int, *, seed: int) -> None:
        """Change the gradients, once per step."""
        ...


def labelled(targets: Tensor) -> int:
    """Count what is labelled in targets: -1 and NaN are not."""
    return int((targets >= 0).sum())  # NaN compares as False


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a model is trained for.

    Attributes:
        loss: Of logits and targets.
        groups: What is optimised, with its rates.
        steps: Of the whole training.
        warmup_share: Share of the steps over which the rates rise; they then fall as a cosine to 0.
        seed: Of dropout and noise; the order of the items comes with the batches.
        count: Weight of a batch in the mean over the validate split.
    """

    loss: Loss
    groups: Sequence[Group]
    steps: int
    warmup_share: float
    seed: int
    count: Callable[[Tensor], int] = labelled


class Tuning(lightning.LightningModule):
    """Trains what can be trained of a model.

    Everything random in a step is drawn from (seed, global step), so that a run that was stopped and resumed is bit
    for bit the run that was not. Several processes share every batch; loss and gradients are those of one (dropout
    inside layers aside, which every process draws for itself).

    Args:
        model: With ``read(inputs)``, what its head reads, and ``logits(read)``.
        objective: Loss, optimiser and seed.
        accumulate: Batches whose gradients make one step.
        coordinator: Changes gradients before each step; ``None`` leaves them alone.
    """

    strict_loading = False

    def __init__(
        self, model: nn.Module, objective: Objective, *, accumulate: int = 1, coordinator: Coordinates | None = None
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.objective, self.accumulate, self.coordinator = objective, accumulate, coordinator

    def training_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> Float[Tensor, ""]:
        """Return the loss of one batch.

        Raises:
            NonFiniteLossError: The loss is NaN or infinite; nothing was updated from it.
        """
        draw = self.global_step * self.accumulate + batch_idx % self.accumulate
        torch.manual_seed(step_seed(self.objective.seed, draw) + self.global_rank)
        inputs, targets = batch
        read = self.model.read(inputs)
        loss = self._loss(read, targets, "loss")
        if self.coordinator is not None:
            self.coordinator.add(self.model.head, read, targets, self._numbers)
        return loss

    def validation_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> None:
        """Log the loss of one batch; over all of them it is the mean over what is counted.

        Raises:
            NonFiniteLossError: The loss is NaN or infinite.
        """
        del batch_idx
        inputs, targets = batch
        count = self._cut().total(self.objective.count(targets))
        self.log("validate/loss", self._loss(self.model.read(inputs), targets, "validation loss"), batch_size=count)

    def predict_step(self, inputs: Any, batch_idx: int) -> Tensor:
        """Return logits in fp32."""
        del batch_idx
        return self.model.logits(self.model.read(inputs))

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Modulate the gradients of both modalities where that is asked for, then clip by the norm of all.

        Raises:
            NonFiniteLossError: That norm is NaN or infinite; nothing was updated from it.
        """
        del optimizer, gradient_clip_algorithm
        if self.coordinator is not None:
            self.coordinator.apply(self.global_step + 1, seed=step_seed(self.objective.seed, self.global_step))
        self._check_finite("gradient", nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val or math.inf))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained and all of the head; what stays as it was pretrained never enters a checkpoint."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if k in trained or k.startswith(_KEPT)}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with one rate for each part, linear warm-up and cosine decay."""
        objective = self.objective
        return scheduled_adamw(objective.groups, steps=objective.steps, warmup_share=objective.warmup_share)

    def _loss(self, read: Any, targets: Tensor, name: str) -> Float[Tensor, ""]:
        cut = self._cut()
        loss = self.objective.loss(cut.whole(self.model.logits(read)), cut.whole(targets))
        self._check_finite(name, loss)
        return loss

    def _check_finite(self, name: str, value: Tensor) -> None:
        if not torch.isfinite(value):
            where, fix = f"{name} at step {self.global_step}", "Lower the learning rates, and check the bank's values."
            raise NonFiniteLossError(sentence(where, expected="a finite number", got=value.item(), fix=fix))

    def _cut(self) -> CutBatch:
        return CutBatch(Processes(self.global_rank, self.trainer.world_size), self._gathered)

    def _gathered(self, part: Tensor) -> Tensor:
        gathered = self.all_gather(part, sync_grads=True)
        assert isinstance(gathered, Tensor)  # as what was given
        return gathered

    def _numbers(self, part: Tensor) -> Tensor:
        gathered = self.all_gather(part)
        assert isinstance(gathered, Tensor)  # as what was given
        return gathered


@dataclass(frozen=True, kw_only=True)
class Work:
    """One training: what is trained, on which batches, and for how long.

    Attributes:
        tuning: Model, loss and optimiser.
        train: From what tells the steps the run has made, and the part of every batch that this process reads, to the
            batches of an epoch.
        judged: From that part to the batches of the validate split; ``None`` keeps the last epoch.
        length: Epochs, and how steps are made.
        precision: Of the forward pass; weights stay in fp32.
    """

    tuning: Tuning
    train: Callable[[Callable[[], int], slice], Iterable[Any]]
    judged: Callable[[slice], Iterable[Any]] | None = None
    length: Length
    precision: Precision


def train_in_run(work: Work, out: Path, processes: Processes, options: RunOptions) -> None:
    """Train in a run folder, from its last checkpoint or from the start, and take up the epoch that is kept.

    Args:
        work: What is trained; comes back in evaluation mode on the CPU.
        out: Run folder.
        processes: Who trains together.
        options: Device, checkpoints, progress.
    """

    def loaders(trainer: lightning.Trainer) -> tuple[Any, Any]:
        judged = None if work.judged is None else work.judged(processes.part)
        return work.train(lambda: trainer.global_step, processes.part), judged

    trainer = run_trainer(out, work.length, processes, precision=work.precision, options=options)
    fit_or_resume(trainer, work.tuning.train(), loaders, out, processes)
    work.tuning.cpu().eval()
    work.tuning.load_state_dict(SafetensorsCheckpointIO().load_checkpoint(out / BEST)["state_dict"], strict=False)


def fit(work: Work, device: str) -> None:
    """Train without writing anything; the best validated epoch is kept, or the last.

    Args:
        work: What is trained; comes back in evaluation mode on the CPU.
        device: Lightning's accelerator.

    Raises:
        KeyboardInterrupt: The user stopped it.
        NonFiniteLossError: A loss became NaN or infinite.
    """
    every = slice(None)
    judged = None if work.judged is None else work.judged(every)
    trainer = bare_trainer(device, work.precision, work.length, *(() if judged is None else (KeepBest(),)))
    train = work.train(lambda: trainer.global_step, every)
    run_to_end(trainer, lambda: trainer.fit(work.tuning.train(), train, judged))
    work.tuning.cpu().eval()


def predict(tuning: Tuning, batches: Iterable[Any], *, precision: Precision, device: str) -> Float[Tensor, "n output"]:
    """Logits of batches in their order, none of none; they and the model come back to the CPU.

    Args:
        tuning: With the model.
        batches: Inputs without targets.
        precision: Of the forward pass.
        device: Lightning's accelerator.

    Raises:
        KeyboardInterrupt: The user stopped it.
    """
    trainer = bare_trainer(device, precision, Length(epochs=1, monitor=None, patience=1, clip=1.0))
    found = run_to_end(trainer, lambda: trainer.predict(tuning.eval(), batches))
    tuning.cpu()
    return torch.cat(found) if found else torch.zeros(0, 0)


def work_on(tuning: Tuning, train: LabelledImages, judged: LabelledImages | None, settings: FinetuneSettings) -> Work:
    """Plan the training of a model on labelled images, or on images with their texts.

    Args:
        tuning: What is trained.
        train: Its data, with labels.
        judged: Of the validate split, with labels; ``None`` keeps the last epoch.
        settings: Batches, epochs, precision.
    """
    number, accumulate, seed = settings.batches_of(train.count), settings.accumulate, tuning.objective.seed

    def shuffled(step: Callable[[], int], part: slice) -> Batches:
        return Batches(train, number, seed=seed, accumulate=accumulate, step=step, part=part)

    length = Length(
        epochs=settings.epochs,
        monitor=None if judged is None else "validate/loss",
        patience=settings.epochs,
        clip=settings.clip,
        accumulate=accumulate,
    )
    looked_at = None if judged is None else partial(_in_order, judged, settings)
    return Work(tuning=tuning, train=shuffled, judged=looked_at, length=length, precision=settings.precision)


def predict_images(
    tuning: Tuning, images: LabelledImages, settings: FinetuneSettings, device: str
) -> Float[Tensor, "n output"]:
    """Logits of images, or of images with their texts, in their order; none of none.

    Args:
        tuning: With the model.
        images: Without labels.
        settings: Batch size and precision.
        device: Lightning's accelerator.
    """
    if not images.count:
        return torch.zeros(0, 0)
    return predict(tuning, _in_order(images, settings), precision=settings.precision, device=device)


def _in_order(images: LabelledImages, settings: FinetuneSettings, part: slice = slice(None)) -> Batches:
    return Batches(images, -(-images.count // settings.batch_size), part=part)
