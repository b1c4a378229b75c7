"""Pre-training of a fusion on a bank's pairs, by the losses of a method."""

import math
from functools import partial
from typing import Any

import lightning
import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from adaptmed.coordination.teacher import Teacher
from adaptmed.errors import NonFiniteLossError, sentence
from adaptmed.fusion import Fusion
from adaptmed.fusion.base import Streams
from adaptmed.fusion.config import MAX_LOG_SCALE
from adaptmed.layers.draws import step_seed
from adaptmed.pretraining.masking import Masker
from adaptmed.pretraining.method import Method
from adaptmed.pretraining.pretext import build_pretext
from adaptmed.pretraining.step import Step, Student
from adaptmed.pretraining.views import Sizes
from adaptmed.runs.processes import Processes
from adaptmed.training.average import WeightAverage
from adaptmed.training.cut_batch import CutBatch
from adaptmed.training.encoders import OnlineEncoders
from adaptmed.training.optimiser import learning_rate_factor, parameter_groups
from adaptmed.types import Batch

_VALIDATION_STEP = -10  # the seeds of validation's choices are those of no training step
_LOADED = ("online.", "masker.")  # what holds pretrained weights


class Pretraining(lightning.LightningModule):
    """Trains a fusion, and the pretext modules its method needs, on batches of pairs.

    Everything random in a step is drawn from (seed, global step), so that a run that was stopped and resumed is bit
    for bit the run that was not.

    Args:
        fusion: The trainable part.
        method: Losses and optimiser settings.
        seed: Of dropout, mismatched texts, and what is hidden.
        steps: Steps of the whole run, which the schedule needs.
        online: Encoders that are trained in the loop.
        pretext: Modules of the terms; fresh ones of a method that hides nothing when left out.
        masker: Hides words and cells, for a method that does.
    """

    strict_loading = False

    def __init__(
        self,
        fusion: Fusion,
        method: Method,
        *,
        seed: int,
        steps: int,
        online: OnlineEncoders | None = None,
        pretext: nn.ModuleDict | None = None,
        masker: Masker | None = None,
    ) -> None:
        super().__init__()
        self.online = online
        self.fusion = fusion
        self.method = method
        self.seed = seed
        self.steps = steps
        self.pretext = build_pretext(method, Sizes(fusion.width)) if pretext is None else pretext
        self.masker = masker
        self.views = {name: needs.views for name, needs in method.needs.items()}
        decay = method.teacher_decay
        self.teacher = None if decay is None else Teacher(self._student(), decay=decay)
        self.average = WeightAverage(self._trained(), decay=method.schedule.ema) if method.schedule.ema else None
        self._items: tuple[str, ...] = ()

    def _student(self) -> Student:
        assert isinstance(self.fusion, Streams)  # of a method that hides something
        return Student(self.fusion, self.online)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the weighted ``loss`` of one batch, and its parts by name.

        Raises:
            NonFiniteLossError: If the loss is NaN or infinite; nothing was updated from it.
        """
        accumulate = 1 if self.online is None else self.online.online.accumulate
        draw = self.global_step * accumulate + batch_idx % accumulate  # where the run stands, also after a resume
        torch.manual_seed(step_seed(self.seed, draw) + self.global_rank)  # of dropout inside layers
        losses = self._losses(batch, draw)
        loss = losses["loss"]
        self._items = batch.ids
        self._check_finite("loss", loss)
        self.log("loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        return {name: value if name == "loss" else value.detach() for name, value in losses.items()}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the losses on one batch of the validate split, with the same mismatched texts every epoch."""
        losses = self._losses(batch, _VALIDATION_STEP - batch_idx)
        self._items = batch.ids
        self._check_finite("validation loss", losses["loss"])
        count = self._cut().total(len(batch))
        for name, value in losses.items():
            self.log(f"validate/{name}", value, batch_size=count)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by the norm of all gradients.

        Raises:
            NonFiniteLossError: If that norm is NaN or infinite; nothing was updated from it.
        """
        del optimizer, gradient_clip_algorithm
        norm = nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val or math.inf)
        self._check_finite("gradient", norm)

    def optimizer_step(self, *given: Any, **named: Any) -> None:
        """Make a step; then, before any checkpoint of it, bound the temperature and let average and teacher follow.

        The temperature stays a hair below its limit: at the limit the clamp of the forward pass has no gradient.
        """
        super().optimizer_step(*given, **named)
        with torch.no_grad():
            self.fusion.log_scale.clamp_(max=MAX_LOG_SCALE - 1e-4)
        if self.average is not None:
            self.average.follow(self._trained(), step=self.global_step + 1)
        if self.teacher is not None:
            self.teacher.follow(self._student())

    def on_validation_start(self) -> None:
        """Judge the average, where there is one."""
        self.swap_average()

    def on_validation_end(self) -> None:
        """Train on with the weights themselves."""
        self.swap_average()

    def swap_average(self) -> None:
        """Exchange the trained weights and their average; nothing without one."""
        if self.average is not None:
            self.average.swap(self._trained())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained and the fusion's buffers; pretrained weights never enter a checkpoint."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if k in trained or not k.startswith(_LOADED)}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with linear warm-up and cosine decay."""
        groups = parameter_groups(nn.ModuleList([self.fusion, self.pretext]), self.method.schedule.weight_decay)
        if self.online is not None:
            groups.append(
                {
                    "params": self.online.encoders.lora_parameters(),
                    "lr": self.online.online.learning_rate,
                    "weight_decay": 0.0,
                }
            )
        optimiser = torch.optim.AdamW(groups, lr=self.method.schedule.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: learning_rate_factor(step, self.steps, self.method.schedule.warmup_share)
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def _check_finite(self, name: str, value: Tensor) -> None:
        if not torch.isfinite(value):
            raise NonFiniteLossError(
                sentence(
                    f"{name} at step {self.global_step}",
                    expected="a finite number",
                    got=f"{value.item()} on the items {', '.join(self._items)}",
                    fix="Look at these items, lower the learning rate, or use --precision fp32; "
                    "the last good checkpoint is kept.",
                )
            )

    def _cut(self) -> CutBatch:
        return CutBatch(Processes(self.global_rank, self.trainer.world_size), self._gathered)

    def _gathered(self, part: Tensor) -> Tensor:
        gathered = self.all_gather(part, sync_grads=True)
        assert isinstance(gathered, Tensor)  # as what was given
        return gathered

    def _losses(self, batch: Batch, step: int) -> dict[str, Float[Tensor, ""]]:
        """Compute the method's losses, and their weighted sum as ``loss``."""
        seen = batch if self.online is None else self.online(batch)
        taught = None if self.teacher is None else partial(self.teacher, batch)
        how: dict[str, Any] = {"views": self.views, "masker": self.masker, "teach": taught}
        made = Step(self.fusion, self.pretext, seen, step_seed(self.seed, step), self._cut(), **how)
        losses: dict[str, Float[Tensor, ""]] = {}
        for term in self.method.terms:
            losses |= term.losses(made)
        weights = self.method.weights
        return {**losses, "loss": sum(weights[name] * value for name, value in losses.items() if name in weights)}  # type: ignore[dict-item]
