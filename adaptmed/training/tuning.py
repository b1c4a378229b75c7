"""The one training behind every fine-tuning: a model that reads and answers, a loss, and how it is optimised."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import lightning
import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from adaptmed.errors import NonFiniteLossError, sentence
from adaptmed.layers.draws import step_seed
from adaptmed.runs.processes import Processes
from adaptmed.training.cut_batch import CutBatch
from adaptmed.training.optimiser import Group, scheduled_adamw

Loss = Callable[[Tensor, Tensor], Float[Tensor, ""]]
"""Of logits and targets."""
ERRORS_THEN_LOSS = "validate/errors_then_loss"
_TIE_BREAK = 1e-6
"""Weight of the loss beside the share of errors: less than one error of a hundred thousand decides."""
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
        judged: The same over the validate split, where that is another number than the loss; low is good.
        count: Weight of a batch in the mean over the validate split.
        right: Of logits and targets: how many are answered rightly. The epoch with the most of them is kept, and of
            equal ones that with the lowest loss; ``None`` keeps the lowest loss.
    """

    loss: Loss
    groups: Sequence[Group]
    steps: int
    warmup_share: float
    seed: int
    judged: Loss | None = None
    count: Callable[[Tensor], int] = labelled
    right: Callable[[Tensor, Tensor], int] | None = None

    @property
    def monitor(self) -> str:
        """The logged value whose lowest epoch is kept."""
        return "validate/loss" if self.right is None else ERRORS_THEN_LOSS


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
        logits, wanted = self._logits(self.model.read(inputs), targets)
        loss = self._checked("validation loss", (self.objective.judged or self.objective.loss)(logits, wanted))
        self.log("validate/loss", loss, batch_size=count)
        if self.objective.right is not None and count:
            accuracy = self.objective.right(logits, wanted) / count
            self.log("validate/accuracy", accuracy, batch_size=count)
            self.log(ERRORS_THEN_LOSS, 1 - accuracy + _TIE_BREAK * float(loss), batch_size=count)

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
        return self._checked(name, self.objective.loss(*self._logits(read, targets)))

    def _logits(self, read: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and targets of the whole batch, whoever has read them."""
        cut = self._cut()
        return cut.whole(self.model.logits(read)), cut.whole(targets)

    def _checked(self, name: str, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
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
