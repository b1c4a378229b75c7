"""The training of a decoder: one Lightning module, and a trainer that writes nothing for the cells of a study."""

from typing import Any

import lightning
import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from adaptmed.errors import NonFiniteLossError, sentence
from adaptmed.layers.draws import step_seed
from adaptmed.tasks.segmentation.model import Segmenter, fit_entrance
from adaptmed.tasks.segmentation.reading import Example, Examples, InOrder, Steps
from adaptmed.tasks.segmentation.settings import LOSSES, SegmentationSettings
from adaptmed.training.optimiser import learning_rate_factor
from adaptmed.training.trainer import bare_trainer, whole

MOST_FOR_STATISTICS = 256


class SegmentationTask(lightning.LightningModule):
    """Trains a decoder and what can be trained under it.

    Args:
        model: From windows to logits.
        settings: Optimiser settings.
        seed: Of what is random in a step.
    """

    strict_loading = False

    def __init__(self, model: Segmenter, settings: SegmentationSettings, *, seed: int) -> None:
        super().__init__()
        self.model, self.settings, self.seed = model, settings, seed

    def training_step(self, batch: Example, batch_idx: int) -> Float[Tensor, ""]:
        """Return the loss of one batch.

        Raises:
            NonFiniteLossError: If the loss is NaN or infinite; nothing was updated from it.
        """
        del batch_idx
        torch.manual_seed(step_seed(self.seed, self.global_step))
        return self._loss(batch, "loss")

    def validation_step(self, batch: Example, batch_idx: int) -> None:
        """Log the loss of one batch; over all of them it is the mean over windows."""
        del batch_idx
        self.log("validate/loss", self._loss(batch, "validation loss"), batch_size=len(batch[1]))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained and all of the decoder; what stays as it was pretrained never enters a checkpoint."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if k in trained or k.startswith("model.decoder.")}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with one rate for each part, linear warm-up and cosine decay."""
        settings, model = self.settings, self.model
        groups = _groups(model.decoder, settings.learning_rate, settings.weight_decay)
        groups += _groups(model.fusion, settings.fusion_learning_rate, settings.weight_decay)
        inside = None if model.encoder is None else model.encoder.module
        groups += _groups(inside, settings.encoder_learning_rate, 0.0)
        steps, share = settings.rounds * settings.steps_per_round, settings.warmup_share
        optimiser = torch.optim.AdamW(groups)
        rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate_factor(step, steps, share))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    def _loss(self, batch: Example, name: str) -> Float[Tensor, ""]:
        windows, masks = batch
        loss = LOSSES[self.settings.loss](self.model(windows), masks)
        if not torch.isfinite(loss):
            where, fix = f"{name} at step {self.global_step}", "Lower the learning rates, and check the bank's values."
            raise NonFiniteLossError(sentence(where, expected="a finite number", got=loss.item(), fix=fix))
        return loss


def start(model: Segmenter, examples: Examples, settings: SegmentationSettings) -> None:
    """Fit the decoder's entrance on at most 256 training windows, evenly picked."""
    count = len(examples.rows)
    picked = np.unique(np.linspace(0, count - 1, min(count, MOST_FOR_STATISTICS)).astype(np.int64))
    parts = np.array_split(picked, -(-len(picked) // size_of(examples, settings)))
    fit_entrance(model.eval(), (examples.batch(part, 0)[0] for part in parts))


def size_of(examples: Examples, settings: SegmentationSettings) -> int:
    """Windows per batch."""
    return settings.windows_per_batch if examples.reader.bank.holds_volumes else settings.batch_size


def steps_of(examples: Examples, settings: SegmentationSettings, trainer: lightning.Trainer) -> Steps:
    """The batches of a round, from the place where the trainer stands."""
    size = size_of(examples, settings)
    return Steps(examples, size=size, steps=settings.steps_per_round, step=lambda: trainer.global_step)


def in_order(examples: Examples, settings: SegmentationSettings) -> InOrder:
    """The batches of a look at the validate split."""
    return InOrder(examples, size=size_of(examples, settings))


def train(model: Segmenter, examples: Examples, settings: SegmentationSettings, *, seed: int, device: str) -> None:
    """Train for the steps of the settings; writes nothing and leaves the model in evaluation mode on the CPU.

    Args:
        model: Trained in place; its entrance is fitted first.
        examples: Its data.
        settings: How.
        seed: Of the order and of what is random in a step.
        device: Lightning's accelerator.

    Raises:
        KeyboardInterrupt: The user stopped it.
        NonFiniteLossError: A loss became NaN or infinite.
    """
    start(model, examples, settings)
    trainer = bare_trainer(device, settings.precision, epochs=settings.rounds, clip=settings.clip)
    task = SegmentationTask(channels_last(model), settings, seed=seed)
    whole(trainer, lambda: trainer.fit(task.train(), steps_of(examples, settings, trainer)))
    task.cpu().eval()


def channels_last(model: Segmenter) -> Segmenter:
    """Lay the kernels of 2-D convolutions out channels last, which is faster everywhere; the numbers stay.

    Kernels of 3-D convolutions have another such layout, so that ``Module.to`` refuses a model that holds both.
    """
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def _groups(part: nn.Module | None, rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Kernels and matrices decay; norms and biases do not."""
    if part is None:
        return []
    trained = [parameter for parameter in part.parameters() if parameter.requires_grad]
    several = [parameter for parameter in trained if parameter.ndim > 1]
    single = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = [{"params": several, "weight_decay": weight_decay}, {"params": single, "weight_decay": 0.0}]
    return [group | {"lr": rate} for group in groups if group["params"]]
