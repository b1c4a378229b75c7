"""The training inside fine-tuning on pairs."""

import math
from typing import Any

import lightning
import torch
from jaxtyping import Float
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from adaptmed.errors import NonFiniteLossError, sentence
from adaptmed.layers.draws import step_seed
from adaptmed.runs.processes import Processes
from adaptmed.tasks.pairs.coordination import Coordinator
from adaptmed.tasks.pairs.goal import Loss
from adaptmed.tasks.pairs.model import FeatureClassifier, PairClassifier
from adaptmed.training.batches import Batches, LabelledImages
from adaptmed.training.callbacks import KeepBest
from adaptmed.training.cut_batch import CutBatch
from adaptmed.training.optimiser import learning_rate_factor, parameter_groups
from adaptmed.training.settings import FinetuneSettings
from adaptmed.training.trainer import bare_trainer, whole
from adaptmed.types import Batch


class PairTuning(lightning.LightningModule):
    """Trains what can be trained of a model of pairs, or of a head on features.

    Everything random in a step is drawn from (seed, global step), so that a run that was stopped and resumed is bit
    for bit the run that was not. Several processes share every batch; loss and gradients are those of one (dropout
    inside layers aside, which every process draws for itself).

    Args:
        model: From inputs to a joint vector, and a head that reads it.
        settings: Optimiser settings.
        loss: Of logits and targets.
        seed: Of dropout, noise and the order of the pairs.
        items: How many pairs it is trained on.
        coordinator: Changes gradients before each step; ``None`` leaves them alone.
    """

    strict_loading = False

    def __init__(
        self,
        model: PairClassifier | FeatureClassifier,
        settings: FinetuneSettings,
        loss: Loss,
        *,
        seed: int,
        items: int,
        coordinator: Coordinator | None = None,
    ) -> None:
        super().__init__()
        self.model, self.settings, self.loss = model, settings, loss
        self.seed, self.items, self.coordinator = seed, items, coordinator

    def training_step(self, batch: tuple[Batch | Tensor, Tensor], batch_idx: int) -> Float[Tensor, ""]:
        """Return the loss of one batch.

        Raises:
            NonFiniteLossError: If the loss is NaN or infinite; nothing was updated from it.
        """
        accumulate = self.settings.accumulate
        draw = self.global_step * accumulate + batch_idx % accumulate
        torch.manual_seed(step_seed(self.seed, draw) + self.global_rank)
        inputs, targets = batch
        joint = self._joint(inputs)
        loss = self._loss(joint, targets, "loss")
        if self.coordinator is not None:
            self.coordinator.add(self.model.head, joint, targets, self._numbers)
        return loss

    def validation_step(self, batch: tuple[Batch | Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss of one batch; over all of them it is the mean over what is labelled.

        Raises:
            NonFiniteLossError: If the loss is NaN or infinite.
        """
        del batch_idx
        inputs, targets = batch
        labelled = self._cut().total(int((targets >= 0).sum()))  # NaN compares as False
        self.log("validate/loss", self._loss(self._joint(inputs), targets, "validation loss"), batch_size=labelled)

    def predict_step(self, inputs: Batch | Tensor, batch_idx: int) -> Float[Tensor, "batch output"]:
        """Return logits."""
        del batch_idx
        return self.model.head(self._joint(inputs)).float()

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Let the gradients wait for each other, once per step, then clip by the norm of all.

        Raises:
            NonFiniteLossError: If that norm is NaN or infinite; nothing was updated from it.
        """
        del optimizer, gradient_clip_algorithm
        if self.coordinator is not None:
            self.coordinator.apply(self.global_step + 1, seed=step_seed(self.seed, self.global_step))
        self._check_finite("gradient", nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val or math.inf))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained; what stays as it was never enters a checkpoint."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if name in trained}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with one rate for each part, linear warm-up and cosine decay."""
        settings, model = self.settings, self.model
        parts = [(model.head, settings.learning_rate, settings.weight_decay)]
        if isinstance(model, PairClassifier):
            parts.append((model.fusion, settings.fusion_learning_rate, settings.weight_decay))
            if model.beside is not None:
                parts.append((model.beside, settings.learning_rate, settings.weight_decay))
            if model.online is not None:
                parts.append((model.online, settings.encoder_learning_rate, settings.encoder_weight_decay))
        groups = [
            group | {"lr": rate}
            for part, rate, decay in parts
            for group in parameter_groups(part, decay)
            if group["params"]
        ]
        steps, share = settings.steps_of(self.items), settings.warmup_share
        optimiser = torch.optim.AdamW(groups)
        rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate_factor(step, steps, share))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    def _joint(self, inputs: Any) -> Float[Tensor, "batch width"]:
        return self.model.joint(inputs)  # each kind of model with its own kind of inputs

    def _loss(self, joint: Float[Tensor, "batch width"], targets: Tensor, name: str) -> Float[Tensor, ""]:
        cut = self._cut()
        loss = self.loss(cut.whole(self.model.head(joint).float()), cut.whole(targets))
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


def fit(task: PairTuning, train: LabelledImages, judged: LabelledImages | None, device: str) -> None:
    """Train for the epochs of the task's settings, keep the best validated one or the last; nothing is written.

    Args:
        task: What is trained; comes back in evaluation mode on the CPU.
        train: Its data, with targets.
        judged: Of the validate split; ``None`` keeps the last epoch.
        device: Lightning's accelerator.

    Raises:
        KeyboardInterrupt: The user stopped it.
        NonFiniteLossError: A loss became NaN or infinite.
    """
    trainer = _trainer(task.settings, device, *(() if judged is None else (KeepBest(),)))
    batches = shuffled(task, train, trainer), None if judged is None else in_order(task, judged)
    whole(trainer, lambda: trainer.fit(task.train(), *batches))
    task.cpu().eval()


def shuffled(
    task: PairTuning, pairs: LabelledImages, trainer: lightning.Trainer, *, part: slice = slice(None)
) -> Batches:
    """The batches a task is trained on, from the place where its trainer stands.

    Args:
        task: What is trained.
        pairs: Its data, with targets.
        trainer: Says where the run stands.
        part: Which items of a batch this process reads.
    """
    settings = task.settings
    number, accumulate = settings.batches_of(pairs.count), settings.accumulate
    where = {"step": lambda: trainer.global_step, "part": part}
    return Batches(pairs, number, seed=task.seed, accumulate=accumulate, **where)  # type: ignore[arg-type]


def in_order(task: PairTuning, pairs: LabelledImages, *, part: slice = slice(None)) -> Batches:
    """The batches a task judges or predicts."""
    return Batches(pairs, -(-pairs.count // task.settings.batch_size), part=part)


def predict(task: PairTuning, pairs: LabelledImages, device: str) -> Float[Tensor, "n output"]:
    """Logits of pairs in their order; they and the task come back to the CPU.

    Args:
        task: What predicts.
        pairs: What is predicted, without targets; at least one.
        device: Lightning's accelerator.

    Raises:
        KeyboardInterrupt: The user stopped it.
    """
    trainer = _trainer(task.settings, device)
    found = whole(trainer, lambda: trainer.predict(task.eval(), in_order(task, pairs)))
    task.cpu()
    return torch.cat(found)


def _trainer(settings: FinetuneSettings, device: str, *callbacks: Callback) -> lightning.Trainer:
    epochs, clip, accumulate = settings.epochs, settings.clip, settings.accumulate
    return bare_trainer(
        device, settings.precision, epochs=epochs, clip=clip, accumulate=accumulate, callbacks=callbacks
    )
