"""Pixels of a bank's rows, read again from the files it was made of."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from adaptmed.bank import Bank
from adaptmed.bank.source_files import ManifestFiles
from adaptmed.data.augment import augment
from adaptmed.data.images import prepare, read_image
from adaptmed.types import Preprocessing


class PixelReader:
    """Reads the images of a bank's rows from the files it was made of, each step anew.

    Args:
        bank: Its manifest must still stand where it was, with the same content.
        preprocessing: How an image becomes the encoder's input.
        seed: Of the random changes; ``None`` changes nothing.
        workers: Threads.

    Raises:
        InputError: The manifest is gone or another one now.
    """

    def __init__(self, bank: Bank, preprocessing: Preprocessing, *, seed: int | None, workers: int) -> None:
        self.files, self.preprocessing, self.seed = ManifestFiles.of(bank), preprocessing, seed
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="adaptmed-pixels")

    def __call__(self, rows: NDArray[np.int64], epoch: int) -> Float[Tensor, "batch 3 height width_px"]:
        """Read and prepare the images of these rows, changed by a draw of their own for this epoch."""
        found = list(self.pool.map(partial(self._one, epoch=epoch), rows.tolist()))
        return torch.stack(found) if found else torch.zeros(0, 3, *self.preprocessing.image_size_px)

    def _one(self, row: int, *, epoch: int) -> Float[Tensor, "3 height width_px"]:
        pixels = prepare(read_image(self.files.image(row)), self.preprocessing)
        if self.seed is None:
            return pixels
        draw = np.random.SeedSequence([self.seed, epoch, row]).generate_state(1)[0]
        return augment(pixels, seed=int(draw))
