"""The training of a decoder: its entrance fitted, its batches, its rates."""

from collections.abc import Callable

import numpy as np
import torch

from adaptmed.objectives.overlap import overlap_error
from adaptmed.tasks.segmentation.model import Segmenter, fit_entrance
from adaptmed.tasks.segmentation.reading import Examples, InOrder, Steps
from adaptmed.tasks.segmentation.settings import LOSSES, SegmentationSettings
from adaptmed.training.optimiser import Group, at_rate, kernel_groups
from adaptmed.training.trainer import Length
from adaptmed.training.tuning import Objective, Tuning
from adaptmed.training.work import Work

MOST_FOR_STATISTICS = 256


def start(model: Segmenter, examples: Examples, settings: SegmentationSettings) -> None:
    """Fit the decoder's entrance on at most 256 training windows, evenly picked."""
    count = len(examples.rows)
    picked = np.unique(np.linspace(0, count - 1, min(count, MOST_FOR_STATISTICS)).astype(np.int64))
    parts = np.array_split(picked, -(-len(picked) // size_of(examples, settings)))
    fit_entrance(model.eval(), (examples.batch(part, 0)[0] for part in parts))


def size_of(examples: Examples, settings: SegmentationSettings) -> int:
    """Windows per batch."""
    return settings.windows_per_batch if examples.reader.bank.holds_volumes else settings.pictures_per_batch


def work_of(
    model: Segmenter,
    train: Examples,
    judged: Examples | None,
    settings: SegmentationSettings,
    *,
    seed: int,
) -> Work:
    """Plan the training of a decoder and of what can be trained under it; its entrance is fitted first.

    Args:
        model: From windows to logits.
        train: Its data.
        judged: Of the validate split, whose Dice says when training ends; ``None`` keeps the last round.
        settings: Optimiser settings.
        seed: Of what is random in a step.
    """
    start(model, train, settings)
    objective = Objective(
        loss=LOSSES[settings.loss],
        judged=overlap_error,
        groups=_groups(model, settings),
        steps=settings.rounds * settings.steps_per_round,
        warmup_share=settings.warmup_share,
        seed=seed,
        count=len,
    )
    size = size_of(train, settings)

    def rounds(step: Callable[[], int], _: slice) -> Steps:
        return Steps(train, size=size, steps=settings.steps_per_round, step=step)

    return Work(
        tuning=Tuning(channels_last(model), objective),
        train=rounds,
        judged=None if judged is None else lambda _: InOrder(judged, size=size_of(judged, settings)),
        length=_length(settings, monitor=None if judged is None else objective.monitor),
        precision=settings.precision,
    )


def _length(settings: SegmentationSettings, *, monitor: str | None) -> Length:
    return Length(
        epochs=settings.rounds,
        monitor=monitor,
        patience=settings.patience,
        clip=settings.clip,
        minutes=settings.minutes,
    )


def channels_last(model: Segmenter) -> Segmenter:
    """Lay the kernels of convolutions out channels last, which is faster everywhere; the numbers stay.

    2-D and 3-D kernels have layouts of their own, so that ``Module.to`` refuses a model that holds both.
    """
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in model.parameters():
        if parameter.ndim in layouts:
            parameter.data = parameter.data.contiguous(memory_format=layouts[parameter.ndim])
    return model


def _groups(model: Segmenter, settings: SegmentationSettings) -> list[Group]:
    groups = at_rate(kernel_groups(model.decoder, settings.weight_decay), settings.learning_rate)
    if model.fusion is not None:
        groups += at_rate(kernel_groups(model.fusion, settings.weight_decay), settings.fusion_learning_rate)
    if model.encoder is not None:
        groups += at_rate(kernel_groups(model.encoder.module, 0.0), settings.encoder_learning_rate)
    return groups
