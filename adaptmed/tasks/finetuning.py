"""The training inside fine-tuned classification: settings and the Lightning module."""

from typing import Any

import lightning
import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from adaptmed.errors import NonFiniteLossError, sentence
from adaptmed.layers.draws import step_seed
from adaptmed.objectives.supervised import masked_bce, masked_cross_entropy
from adaptmed.tasks.classification.model import ImageClassifier
from adaptmed.training.batches import Batches, Inputs, LabelledImages
from adaptmed.training.optimiser import learning_rate_factor, parameter_groups
from adaptmed.training.settings import FinetuneSettings
from adaptmed.training.trainer import bare_trainer, whole


class Finetuning(lightning.LightningModule):
    """Trains what can be trained of a classifier on labelled images.

    Everything random in a step is drawn from (seed, global step), so that a run that was stopped and resumed is bit
    for bit the run that was not.

    Args:
        model: From inputs to logits.
        settings: Optimiser settings.
        seed: Of dropout and of the order of the images.
        images: How many images it is trained on.
    """

    strict_loading = False

    def __init__(self, model: ImageClassifier, settings: FinetuneSettings, *, seed: int, images: int) -> None:
        super().__init__()
        self.model, self.settings, self.seed, self.images = model, settings, seed, images

    def training_step(self, batch: tuple[Inputs, Tensor], batch_idx: int) -> Float[Tensor, ""]:
        """Return the loss of one batch.

        Raises:
            NonFiniteLossError: If the loss is NaN or infinite; nothing was updated from it.
        """
        accumulate = self.settings.accumulate
        torch.manual_seed(step_seed(self.seed, self.global_step * accumulate + batch_idx % accumulate))
        return self._loss(batch, "loss")

    def validation_step(self, batch: tuple[Inputs, Tensor], batch_idx: int) -> None:
        """Log the loss of one batch; over all of them it is the mean over what is labelled.

        Raises:
            NonFiniteLossError: If the loss is NaN or infinite.
        """
        del batch_idx
        labels = batch[1]
        labelled = int((labels >= 0).sum())  # NaN compares as False
        self.log("validate/loss", self._loss(batch, "validation loss"), batch_size=labelled)

    def predict_step(self, inputs: Inputs, batch_idx: int) -> Float[Tensor, "batch output"]:
        """Return logits."""
        del batch_idx
        return self.model(inputs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained and all of the head; what stays as it was pretrained never enters a checkpoint."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if k in trained or k.startswith("model.head.")}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with one rate for each part, linear warm-up and cosine decay."""
        settings, model = self.settings, self.model
        groups = _groups(model.head, settings.learning_rate, settings.weight_decay)
        groups += _groups(model.fusion, settings.fusion_learning_rate, settings.weight_decay)
        inside = None if model.encoder is None else model.encoder.module
        groups += _groups(inside, settings.encoder_learning_rate, settings.encoder_weight_decay)
        steps, share = settings.steps_of(self.images), settings.warmup_share
        optimiser = torch.optim.AdamW(groups)
        rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate_factor(step, steps, share))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    def _loss(self, batch: tuple[Inputs, Tensor], name: str) -> Float[Tensor, ""]:
        inputs, labels = batch
        logits = self.model(inputs)
        loss = masked_bce(logits, labels) if labels.ndim == 2 else masked_cross_entropy(logits, labels)
        if not torch.isfinite(loss):
            where, fix = f"{name} at step {self.global_step}", "Lower the learning rates, and check the bank's values."
            raise NonFiniteLossError(sentence(where, expected="a finite number", got=loss.item(), fix=fix))
        return loss


def _groups(part: nn.Module | None, rate: float, weight_decay: float) -> list[dict[str, Any]]:
    if part is None:
        return []
    return [group | {"lr": rate} for group in parameter_groups(part, weight_decay) if group["params"]]


def fit(task: Finetuning, images: LabelledImages, device: str) -> None:
    """Train for the epochs of the task's settings; writes nothing and leaves the task in evaluation mode on the CPU.

    Args:
        task: What is trained.
        images: Its data, with labels.
        device: Lightning's accelerator.

    Raises:
        KeyboardInterrupt: The user stopped it.
        NonFiniteLossError: A loss became NaN or infinite.
    """
    trainer = _trainer(task.settings, device)
    whole(trainer, lambda: trainer.fit(task.train(), shuffled(task, images, trainer)))
    task.cpu().eval()


def shuffled(task: Finetuning, images: LabelledImages, trainer: lightning.Trainer) -> Batches:
    """The batches a task is trained on, from the place where its trainer stands."""
    settings = task.settings
    number, accumulate = settings.batches_of(images.count), settings.accumulate
    return Batches(images, number, seed=task.seed, accumulate=accumulate, step=lambda: trainer.global_step)


def in_order(task: Finetuning, images: LabelledImages) -> Batches:
    """The batches a task judges or predicts."""
    return Batches(images, -(-images.count // task.settings.batch_size))


def predict(task: Finetuning, images: LabelledImages, device: str) -> Float[Tensor, "n output"]:
    """Logits of images in their order, none of none; they and the task come back to the CPU.

    Args:
        task: What predicts.
        images: What is predicted, without labels.
        device: Lightning's accelerator.

    Raises:
        KeyboardInterrupt: The user stopped it.
    """
    if not images.count:
        return torch.zeros(0, 0)
    trainer = _trainer(task.settings, device)
    found = whole(trainer, lambda: trainer.predict(task.eval(), in_order(task, images)))
    task.cpu()
    return torch.cat(found)


def _trainer(settings: FinetuneSettings, device: str) -> lightning.Trainer:
    epochs, clip, accumulate = settings.epochs, settings.clip, settings.accumulate
    return bare_trainer(device, settings.precision, epochs=epochs, clip=clip, accumulate=accumulate)
