"""One training as a plan: what is trained, on which batches and for how long; in a run folder or without one."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from jaxtyping import Float
from torch import Tensor

from adaptmed.runs.folder import BEST
from adaptmed.runs.precision import Precision
from adaptmed.runs.processes import Processes
from adaptmed.training.batches import Batches, LabelledImages
from adaptmed.training.callbacks import KeepBest
from adaptmed.training.checkpoint import SafetensorsCheckpointIO
from adaptmed.training.settings import FinetuneSettings
from adaptmed.training.trainer import (
    Length,
    RunOptions,
    bare_trainer,
    fit_or_resume,
    run_to_end,
    run_trainer,
)
from adaptmed.training.tuning import Tuning


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
    judged, monitor = None if work.judged is None else work.judged(every), work.length.monitor
    kept = [] if judged is None or monitor is None else [*work.length.ends(), KeepBest(monitor)]
    trainer = bare_trainer(device, work.precision, work.length, *kept)
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
        settings: Batches, steps, precision.
    """
    number, accumulate, seed = settings.batches_of(train.count), settings.accumulate, tuning.objective.seed

    def shuffled(step: Callable[[], int], part: slice) -> Batches:
        return Batches(train, number, seed=seed, accumulate=accumulate, step=step, part=part)

    steps, per_epoch = settings.steps_of(train.count), settings.steps_per_epoch(train.count)
    length = Length(
        epochs=-(-steps // per_epoch),
        monitor=None if judged is None else tuning.objective.monitor,
        patience=settings.epochs,
        clip=settings.clip,
        accumulate=accumulate,
        steps=steps if steps % per_epoch else -1,
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
