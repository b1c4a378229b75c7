"""How good masks are: scores of every image in its own geometry, and of the prediction of nothing."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from os import cpu_count

import numpy as np
from jaxtyping import Float, Integer
from torch import Tensor

from adaptmed.data.mask_labels import as_classes
from adaptmed.data.masks import Mask
from adaptmed.data.volumes.grids import spacing_of
from adaptmed.metrics.segmentation import METRICS, Scores, image_scores, quiet_surfaces
from adaptmed.tasks.segmentation.logits import classes_in_source, predict_rows
from adaptmed.tasks.segmentation.masks import Masks
from adaptmed.tasks.segmentation.model import Segmenter
from adaptmed.tasks.segmentation.reading import WindowReader
from adaptmed.tasks.segmentation.settings import SegmentationSettings


def score_model(
    model: Segmenter,
    reader: WindowReader,
    masks: Masks,
    rows: Sequence[int],
    settings: SegmentationSettings,
    *,
    device: str = "auto",
) -> Float[np.ndarray, "n label metric"]:
    """Score what a model predicts for rows.

    Args:
        model: In evaluation mode.
        reader: Of the rows.
        masks: Their truth.
        rows: Row numbers.
        settings: Of training.
        device: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        Scores per image, label and metric, in the order of ``METRICS``; NaN where undefined.
    """
    facts = reader.shown

    def score(row: int, logits: Tensor) -> Float[np.ndarray, "label metric"]:
        mask = masks.source(row)
        height, width = mask.values.shape[-2:]
        return _scores(classes_in_source(logits, (height, width), facts), mask, masks)

    found: list[Float[np.ndarray, "label metric"]] = []
    with quiet_surfaces(), ThreadPoolExecutor(min(4, cpu_count() or 1)) as pool:
        with closing(predict_rows(model, reader, rows, settings, device=device)) as predicted:
            waiting = []
            for row, logits in zip(rows, predicted, strict=True):
                waiting.append(pool.submit(score, row, logits))
                if len(waiting) > 2 * settings.pictures_per_batch:  # no more logits in memory than this
                    found.append(waiting.pop(0).result())
        found += [task.result() for task in waiting]
    return np.stack(found) if found else np.zeros((0, len(masks.names), len(METRICS)))


def score_nothing(masks: Masks, rows: Sequence[int]) -> Float[np.ndarray, "n label metric"]:
    """Score the prediction of nothing at all: its Dice is the share of images that are empty, exactly."""
    present = masks.present(np.array(rows, dtype=np.int64))
    table = np.full((*present.shape, len(METRICS)), np.nan)
    table[..., list(METRICS).index("dice")] = np.where(present, 0.0, 1.0)
    table[..., list(METRICS).index("dice_positives")] = np.where(present, 0.0, np.nan)
    return table


def as_scores(table: Float[np.ndarray, "n label metric"]) -> list[Scores]:
    """Take a table of scores apart, image by image."""
    return [{metric: image[:, number] for number, metric in enumerate(METRICS)} for image in table]


def _scores(predicted: Integer[np.ndarray, "*size"], mask: Mask, masks: Masks) -> Float[np.ndarray, "label metric"]:
    truth = as_classes(mask.values, masks.labels, name=str(mask.source))
    spacing_mm = None if mask.affine is None else spacing_of(mask.affine)
    found = image_scores(predicted, truth, labels=range(1, len(masks.labels)), spacing_mm=spacing_mm)
    return np.stack([found[metric] for metric in METRICS], axis=1)
