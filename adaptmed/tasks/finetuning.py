"""The training inside fine-tuned classification: settings, batches and the Lightning module."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import lightning
import numpy as np
import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from adaptmed.bank import Bank
from adaptmed.errors import NonFiniteLossError, sentence
from adaptmed.fusion import Fusion
from adaptmed.methods import Schedule
from adaptmed.objectives.supervised import masked_bce, masked_cross_entropy
from adaptmed.tasks.features import image_features
from adaptmed.tasks.pretraining import learning_rate_factor, parameter_groups, step_seed
from adaptmed.tasks.quiet import quiet_lightning
from adaptmed.types import Tokens

Inputs = Tokens | Float[Tensor, "batch width"]


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """How a head is tuned; fixed beforehand, since nothing may be selected on labels outside the fraction.

    Attributes:
        hidden: Width of the paper's hidden layer (512 there); ``None`` is a linear head that starts at the probe.
        epochs: Passes over the fraction, so that a small fraction gets few steps and stays near the probe.
        batch_size: Least number of items per step, unless the fraction is smaller.
        learning_rate: Peak rate of the head, whose inputs are standardised.
        fusion_learning_rate: Peak rate of the fusion.
        weight_decay: On matrices only.
        warmup_share: Share of the steps over which the rates rise; they then fall as a cosine to 0.
        clip: Largest gradient norm.
        precision: Of the forward pass; weights stay in fp32.
    """

    hidden: int | None = None
    epochs: int = 4
    batch_size: int = 32
    learning_rate: float = 1e-3
    fusion_learning_rate: float = 3e-4
    weight_decay: float = 0.01
    warmup_share: float = 0.1
    clip: float = 1.0
    precision: Literal["fp32", "bf16"] = "bf16"


class Finetuning(lightning.LightningModule):
    """Trains a head, and a fusion when there is one, on labelled image Tokens or on features computed once.

    Args:
        fusion: Trained with the head; ``None`` when the inputs are features already.
        head: Features to logits.
        variant: Which features the head reads, as in ``image_features``.
        settings: Optimiser settings.
        seed: Of dropout.
        steps: Steps of the whole run.
    """

    def __init__(
        self, fusion: Fusion | None, head: nn.Module, variant: str, settings: FinetuneSettings, *, seed: int, steps: int
    ) -> None:
        super().__init__()
        self.fusion, self.head, self.variant = fusion, head, variant
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
            inputs = image_features(self.fusion, inputs, self.variant)
        logits = self.head(inputs).float()
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


class LabelledBatches:
    """Shuffled batches of a fraction, one order per (seed, epoch); their sizes differ by one at most.

    Args:
        source: A bank whose image Tokens are read, or features of ``rows``.
        rows: Row numbers in the bank.
        labels: Of these rows, as the loss wants them.
        batch_size: Least number of items per batch, unless there are fewer rows.
        seed: Of the order.
    """

    def __init__(
        self, source: Bank | Tensor, rows: Int[np.ndarray, " n"], labels: Tensor, *, batch_size: int, seed: int
    ) -> None:
        self.source, self.rows, self.labels = source, rows, labels
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0

    def __len__(self) -> int:
        return max(1, len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.rows))
        self.epoch += 1
        for items in np.array_split(order, len(self)):
            if isinstance(self.source, Tensor):
                yield self.source[items], self.labels[items]
            else:
                yield self.source.image_tokens(self.rows[items], dtype=torch.float32), self.labels[items]


def fit(task: Finetuning, batches: LabelledBatches, device: str) -> None:
    """Train for the epochs of the task's settings; writes nothing and leaves the task in evaluation mode on the CPU.

    Args:
        task: What is trained.
        batches: Its data.
        device: Lightning's accelerator.

    Raises:
        KeyboardInterrupt: The user stopped it.
        NonFiniteLossError: A loss became NaN or infinite.
    """
    with quiet_lightning():
        trainer = lightning.Trainer(
            accelerator=device,
            devices=1,
            precision="bf16-mixed" if task.settings.precision == "bf16" else "32-true",
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
