"""Lightning's Trainer as a run folder needs it: exact checkpoints, metrics lines, one process or several."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import Callback, Timer, TQDMProgressBar
from lightning.pytorch.strategies import DDPStrategy, Strategy

from adaptmed.errors import TerminatedError
from adaptmed.runs.folder import LAST
from adaptmed.runs.precision import Precision
from adaptmed.runs.processes import Processes, together
from adaptmed.training.callbacks import KeepCheckpoints, MetricsLines, StopEarly, StopOnSigterm
from adaptmed.training.checkpoint import SafetensorsCheckpointIO


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long a run trains and how its steps are made.

    Attributes:
        epochs: Most passes over the data.
        monitor: Logged value that decides when to stop and what to keep; ``None`` keeps the last epoch.
        patience: Epochs without a lower value before training stops.
        clip: Largest gradient norm.
        accumulate: Batches whose gradients make one step.
        steps: Most steps, where training ends within an epoch; -1 leaves it to the epochs.
        minutes: Most minutes, those before a run was stopped and resumed included; its epoch is finished first.
            ``None`` for no bound.
    """

    epochs: int
    monitor: str | None
    patience: int
    clip: float
    accumulate: int = 1
    steps: int = -1
    minutes: float | None = None

    def ends(self) -> list[Callback]:
        """What ends a training early; it stands before what writes checkpoints, which keep how far it has come."""
        early: list[Callback] = [StopEarly(self.monitor, patience=self.patience)] if self.monitor else []
        if self.minutes is not None:
            early.append(Timer(timedelta(minutes=self.minutes), interval="epoch", verbose=False))
        return early


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a run trains and what it shows; none of it decides the result.

    Attributes:
        device: Lightning's accelerator: ``auto``, ``cpu``, ``cuda``.
        checkpoint_every: Steps between two checkpoints.
        progress: Show a progress bar.
        callbacks: More of Lightning's callbacks.
        strategy: Lightning's name of the way several processes share the work.
    """

    device: str = "auto"
    checkpoint_every: int = 50
    progress: bool = False
    callbacks: tuple[Callback, ...] = ()
    strategy: str = "ddp"


def run_trainer(
    out: Path, length: Length, processes: Processes, *, precision: Precision, options: RunOptions
) -> lightning.Trainer:
    """Build the Trainer of one run.

    Args:
        out: Run folder.
        length: How long it trains.
        processes: Who trains together.
        precision: Of the forward pass; weights stay in fp32.
        options: Device, checkpoints, progress.
    """
    kept: list[Callback] = [MetricsLines(out), *length.ends()]
    checkpoints = KeepCheckpoints(out, every=options.checkpoint_every, monitor=length.monitor)
    kept += [checkpoints, *options.callbacks, StopOnSigterm(checkpoints)]
    if options.progress:
        kept.append(TQDMProgressBar(leave=False))
    with quiet_lightning():
        return lightning.Trainer(
            accelerator=options.device,
            precision="bf16-mixed" if precision == "bf16" else "32-true",
            max_epochs=length.epochs,
            max_steps=length.steps,
            gradient_clip_val=length.clip,
            accumulate_grad_batches=length.accumulate,
            callbacks=kept,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=options.progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=out,
            **_sharing(processes, options.strategy),
        )


def _sharing(processes: Processes, strategy: str) -> dict[str, Any]:
    """Devices, nodes and strategy; buffers are frozen, so that replicas need not send them in every step."""
    if processes.world == 1:
        return {"devices": 1, "plugins": [SafetensorsCheckpointIO()]}
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes.world))
    ddp: Strategy | str = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    return {
        "devices": local,
        "num_nodes": processes.world // local,
        "strategy": ddp if strategy == "ddp" else strategy,
        "plugins": [TorchElasticEnvironment(), SafetensorsCheckpointIO()],
    }


def fit_or_resume(
    trainer: lightning.Trainer,
    task: lightning.LightningModule,
    loaders: Callable[[lightning.Trainer], tuple[Any, Any]],
    out: Path,
    processes: Processes,
) -> None:
    """Train from the last checkpoint of a run folder, or from the start.

    Args:
        trainer: Of ``run_trainer``.
        task: What is trained.
        loaders: From the trainer, whose step says where the run stands, to training and validation batches.
        out: Run folder.
        processes: Who trains together.

    Raises:
        KeyboardInterrupt: The user stopped it.
        TerminatedError: SIGTERM stopped it, after a checkpoint.
        LostProcessError: Another process has ended.
    """
    resume = out / LAST if (out / LAST).exists() else None
    train, judged = loaders(trainer)
    with quiet_lightning(), together(processes):
        try:
            trainer.fit(task, train, judged, ckpt_path=resume, weights_only=False)
        except SystemExit as stop:  # what Lightning makes of Ctrl-C
            raise _reason(trainer) from stop
    if not trainer.state.finished:
        raise KeyboardInterrupt


def _reason(trainer: lightning.Trainer) -> KeyboardInterrupt:
    asked = [callback.asked for callback in trainer.callbacks if isinstance(callback, StopOnSigterm)]  # type: ignore[attr-defined]
    return TerminatedError() if any(asked) else KeyboardInterrupt()


def bare_trainer(device: str, precision: Precision, length: Length, *callbacks: Callback) -> lightning.Trainer:
    """Build a Trainer that writes and shows nothing, for short trainings without a run folder.

    Args:
        device: Lightning's accelerator.
        precision: Of the forward pass; weights stay in fp32.
        length: How long it trains.
        callbacks: Lightning's callbacks.
    """
    with quiet_lightning():
        return lightning.Trainer(
            accelerator=device,
            devices=1,
            precision="bf16-mixed" if precision == "bf16" else "32-true",
            max_epochs=length.epochs,
            max_steps=length.steps,
            gradient_clip_val=length.clip,
            accumulate_grad_batches=length.accumulate,
            callbacks=list(callbacks),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )


def run_to_end(trainer: lightning.Trainer, work: Callable[[], Any]) -> Any:
    """Run a trainer's work to its end; Ctrl-C comes out as itself, not as what Lightning makes of it.

    Raises:
        KeyboardInterrupt: The user stopped it.
    """
    with quiet_lightning():
        try:
            done = work()
        except SystemExit as stop:
            raise KeyboardInterrupt from stop
    if not trainer.state.finished:
        raise KeyboardInterrupt
    return done


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's own hints and warnings inside the block; errors stay errors."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        logger.setLevel(level)
