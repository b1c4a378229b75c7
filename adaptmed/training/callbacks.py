"""What happens around training steps: checkpoints that resume exactly, and one line of metrics per epoch."""

import math
import signal
import threading
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from adaptmed.errors import NonFiniteLossError, TerminatedError
from adaptmed.files import link_whole
from adaptmed.runs.folder import BEST, LAST, PREVIOUS, append_metrics

LEAST_GAIN = 1e-5


class StopEarly(Callback):
    """Ends training after ``patience`` epochs without a lower value.

    Lightning's own ``EarlyStopping`` runs after every other callback, so that a checkpoint written at the end of an
    epoch never knows of that epoch, and a resumed run stops elsewhere. This one must come before ``KeepCheckpoints``.

    Args:
        monitor: Logged value to minimise.
        patience: Epochs.
    """

    def __init__(self, monitor: str, *, patience: int) -> None:
        self.monitor = monitor
        self.patience = patience
        self.lowest = float("inf")
        self.waited = 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """End a resumed run that had ended already."""
        del pl_module
        trainer.should_stop = trainer.should_stop or self.waited >= self.patience

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Count the epochs without a lower value."""
        del pl_module
        value = float(trainer.callback_metrics[self.monitor])
        better = value < self.lowest - LEAST_GAIN
        self.lowest, self.waited = (value, 0) if better else (self.lowest, self.waited + 1)
        enough = trainer.strategy.reduce_boolean_decision(self.waited >= self.patience, all=False)
        trainer.should_stop = trainer.should_stop or enough

    def state_dict(self) -> dict[str, Any]:
        """Return the lowest value so far and the epochs since."""
        return {"lowest": self.lowest, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the count of the run that is resumed."""
        self.lowest, self.waited = state_dict["lowest"], state_dict["waited"]


class KeepCheckpoints(Callback):
    """Writes ``checkpoints/last`` every few steps and after every epoch, ``checkpoints/best`` on a better epoch.

    Whether an update has broken the weights shows at the next loss only. When that loss is not finite, the checkpoint
    written in between is taken back for the one before it.

    Args:
        out: Run folder.
        every: Steps between two checkpoints.
        monitor: Logged value to minimise; ``None`` keeps the last epoch as the best.
    """

    def __init__(self, out: Path, *, every: int, monitor: str | None) -> None:
        self.out = out
        self.every = every
        self.monitor = monitor
        self.lowest = float("inf")
        self.written: int | None = None

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write ``last`` inside an epoch; its last step is followed by validation and the epoch's own checkpoint."""
        del pl_module, outputs, batch
        whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0  # gathered gradients are in no checkpoint
        if whole and trainer.global_step % self.every == 0 and batch_idx + 1 < trainer.num_training_batches:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write ``best`` and ``last``, in this order, so that ``last`` never knows of a best that is not there."""
        del pl_module
        value = self.lowest if self.monitor is None else float(trainer.callback_metrics[self.monitor])
        if self.monitor is None or value < self.lowest:
            self.lowest = value
            trainer.save_checkpoint(self.out / BEST, weights_only=True)
        self.save(trainer)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Take back a checkpoint of weights whose very first loss was not finite."""
        del pl_module
        broken = isinstance(exception, NonFiniteLossError) and self.written == trainer.global_step
        if broken and trainer.is_global_zero:
            (self.out / LAST).unlink()
            if (self.out / PREVIOUS).exists():
                (self.out / PREVIOUS).replace(self.out / LAST)

    def save(self, trainer: lightning.Trainer) -> None:
        """Write ``last``, and keep the one before it as ``previous``."""
        if trainer.is_global_zero and (self.out / LAST).exists():
            link_whole(self.out / LAST, self.out / PREVIOUS)
        trainer.save_checkpoint(self.out / LAST)
        self.written = trainer.global_step

    def state_dict(self) -> dict[str, Any]:
        """Return the lowest value so far."""
        return {"lowest": self.lowest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the lowest value of the run that is resumed."""
        self.lowest = state_dict["lowest"]


class MetricsLines(Callback):
    """Appends one line per epoch to ``metrics.jsonl``: means of the training losses, and what validation logged.

    The sums so far are part of the checkpoint, so that a resumed epoch has the same means. Must come before
    ``KeepCheckpoints`` among the callbacks.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.started = time.monotonic()
        self.sums: dict[str, float] = {}
        self.steps = 0

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Add this step's losses, as ``training_step`` returned them: Lightning divides the one it trains by."""
        del pl_module, batch, batch_idx
        self.steps += 1
        for name, value in outputs.items():
            share = trainer.accumulate_grad_batches if name == "loss" else 1
            self.sums[name] = self.sums.get(name, 0.0) + share * float(value)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write one line: step, epoch, means, learning rate, seconds since this process began to train."""
        del pl_module
        means = {f"train/{name}": total / self.steps for name, total in self.sums.items()}
        judged = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        line = {"step": trainer.global_step, "epoch": trainer.current_epoch, **means, **judged, "learning_rate": rate}
        if trainer.is_global_zero:
            append_metrics(self.out, {**line, "seconds": round(time.monotonic() - self.started, 1)})
        self.sums, self.steps = {}, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of the epoch so far."""
        return {"sums": dict(self.sums), "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the sums of the epoch that is resumed."""
        self.sums, self.steps = state_dict["sums"], state_dict["steps"]


class StopOnSigterm(Callback):
    """Ends training at the first whole step after SIGTERM, with a checkpoint; clusters send it before they preempt.

    Lightning's own handling ends without a checkpoint, and among several processes talks to the others from inside the
    signal handler. Every process stops at the same step, whichever of them the signal has reached. During validation
    the signal waits for its end; the last checkpoint stands meanwhile. Must come last among the callbacks.

    Args:
        checkpoints: Writes the checkpoint.
    """

    def __init__(self, checkpoints: KeepCheckpoints) -> None:
        self.checkpoints = checkpoints
        self.asked = False
        self.step = 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take the signal over from Lightning, which gives it back when training ends."""
        del pl_module
        self.step, self.asked = trainer.global_step, trainer.received_sigterm
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: setattr(self, "asked", True))

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop after a whole step; the epoch's last one is followed by validation and the epoch's own checkpoint."""
        del pl_module, outputs, batch
        if trainer.global_step > self.step and batch_idx + 1 < trainer.num_training_batches:
            self.step = trainer.global_step
            self._stop(trainer, save=self.checkpoints.written != trainer.global_step)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stop after the epoch's checkpoint."""
        del pl_module
        self.step = trainer.global_step
        self._stop(trainer, save=False)

    def _stop(self, trainer: lightning.Trainer, *, save: bool) -> None:
        if not trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            return
        self.asked = True
        if save:
            self.checkpoints.save(trainer)
        raise TerminatedError


class KeepBest(Callback):
    """Keeps the weights of the best validated epoch in memory, for what is trained in a moment.

    Args:
        monitor: Logged value to minimise.
    """

    def __init__(self, monitor: str) -> None:
        self.monitor, self.lowest = monitor, math.inf
        self.best: dict[str, Any] | None = None

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Compare an epoch with the best before it."""
        value = float(trainer.callback_metrics[self.monitor])
        if value < self.lowest:
            self.lowest, self.best = value, deepcopy(pl_module.state_dict())

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take up the best epoch."""
        del trainer
        if self.best is not None:
            pl_module.load_state_dict(self.best)
