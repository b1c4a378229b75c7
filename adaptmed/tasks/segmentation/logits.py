"""From a trained model to masks in the geometry of the images: pictures in batches, volumes window by window."""

from collections.abc import Generator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from adaptmed.bank import prefetched
from adaptmed.cohort.planes import depth_of
from adaptmed.data.fitting import logits_to_source
from adaptmed.runs.processes import device_of
from adaptmed.tasks.segmentation.model import Segmenter, Windows
from adaptmed.tasks.segmentation.reading import WindowReader
from adaptmed.tasks.segmentation.settings import SegmentationSettings
from adaptmed.tasks.segmentation.sliding import decode_windows
from adaptmed.types import Preprocessing


def predict_rows(
    model: Segmenter, reader: WindowReader, rows: Sequence[int], settings: SegmentationSettings, *, device: str = "auto"
) -> Generator[Float[Tensor, "class *size"], None, None]:
    """Yield logits of each row's picture or volume, at the size that it is shown at, on the CPU.

    Args:
        model: In evaluation mode.
        reader: Of the rows.
        rows: Row numbers.
        settings: Batch size, window and precision of training.
        device: ``auto``, ``cpu`` or ``cuda``.
    """
    if reader.bank.holds_volumes:
        for row in rows:
            offsets = np.arange(depth_of(reader.bank, row))[None]
            yield predict_volume(model, reader(np.array([row]), offsets), settings, device=device)
        return
    size = settings.pictures_per_batch
    parts = [np.array(rows[at : at + size]) for at in range(0, len(rows), size)]
    for windows in prefetched(reader, parts, workers=1, ahead=2):
        yield from predict_pictures(model, windows, settings, device=device)


def predict_pictures(
    model: Segmenter, windows: Windows, settings: SegmentationSettings, *, device: str = "auto"
) -> Float[Tensor, "batch class height width_px"]:
    """Return logits of a batch of pictures, on the CPU."""
    where = device_of(device)
    with torch.inference_mode(), torch.autocast(where.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        return model.to(where)(windows.to(where)).float().cpu()


def predict_volume(
    model: Segmenter, windows: Windows, settings: SegmentationSettings, *, device: str = "auto"
) -> Float[Tensor, "class depth height width_px"]:
    """Return logits of one whole volume on the CPU: maps once, then windows of slices, blended by a Gaussian.

    Args:
        model: In evaluation mode.
        windows: All slices of one volume.
        settings: Window and overlap.
        device: ``auto``, ``cpu`` or ``cuda``.
    """
    where, depth = device_of(device), windows.depth
    assert depth is not None
    windows = windows.to(where)
    with torch.inference_mode(), torch.autocast(where.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        maps = model.to(where).maps(windows)
        pixels = torch.zeros(1, 1, depth, *windows.size, device=where)
        if windows.pixels is not None:
            pixels = windows.pixels.transpose(0, 1)[None]
        logits = decode_windows(
            lambda cut, sides, part: model.decoder(cut, sides, part).float(),
            maps,
            pixels,
            window_slices=settings.window_slices,
            overlap=settings.overlap,
        )
    return logits[0].float().cpu()


def classes_in_source(
    logits: Float[Tensor, "class *size"], size_px: tuple[int, int], preprocessing: Preprocessing
) -> Integer[np.ndarray, "*sides"]:
    """Return class numbers in the geometry of the picture or volume that was read.

    Args:
        logits: At the size that the decoder saw.
        size_px: ``(height, width)`` of the source.
        preprocessing: How it became what the decoder saw.
    """
    return logits_to_source(logits, size_px, preprocessing).max(0).indices.to(torch.int16).numpy()
