"""Pairs from a bank: Tokens of both sides, pixels for an image encoder in the loop, images of other patients."""

from dataclasses import dataclass, replace
from os import cpu_count

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from adaptmed.adaptor.features import frozen_variants
from adaptmed.bank import Bank
from adaptmed.training.batches import LabelledImages
from adaptmed.training.pixels import PixelReader
from adaptmed.types import Batch

Rows = Int[np.ndarray, " n"]


@dataclass(frozen=True)
class PairReading:
    """How pairs are read.

    Attributes:
        bank: Tokens of both sides, word ids.
        pixels: Whether images are read again from their files.
    """

    bank: Bank
    pixels: bool = False

    def pairs(
        self, rows: Rows, targets: Tensor | None = None, *, seed: int | None = None, images: Rows | None = None
    ) -> LabelledImages:
        """Return what a model reads of rows.

        Args:
            rows: Row numbers.
            targets: As the loss wants them; ``None`` to predict.
            seed: Of the random changes to images that are read again; ``None`` leaves them as they are.
            images: Row numbers whose images are put in the place of the rows' own.
        """
        bank, images, reader = self.bank, rows if images is None else images, self._reader(seed)

        def read(places: Int[np.ndarray, " k"], epoch: int) -> Batch:
            batch = bank.batch(rows[places], torch.float32)
            if reader is not None:
                return replace(batch, image=None, pixels=reader(images[places], epoch))
            return replace(batch, image=bank.image_tokens(images[places], torch.float32))

        return LabelledImages(read, len(rows), targets, ahead=0 if reader is None else 2)

    def _reader(self, seed: int | None) -> PixelReader | None:
        if not self.pixels:
            return None
        return PixelReader(self.bank, self.bank.images.preprocessing, seed=seed, workers=min(8, cpu_count() or 1))


def frozen_features(bank: Bank, rows: Rows, *, image: bool) -> Tensor:
    """What frozen encoders say of pairs: pooled text Tokens, and before them CLS and mean of the image.

    Args:
        bank: Tokens.
        rows: Row numbers.
        image: Whether the image is read too.

    Returns:
        ``(n, features)`` in fp32.
    """
    parts = np.array_split(rows, max(1, len(rows) // 512))
    text = torch.cat([bank.text_tokens(part, torch.float32).pooled for part in parts])
    if not image:
        return text
    return torch.cat([torch.from_numpy(frozen_variants(bank, rows)["CLS + mean"]), text], dim=1)


def exchanged(patients: Shaped[np.ndarray, " n"], *, seed: int) -> Int[np.ndarray, " n"] | None:
    """Draw for every item an item of another patient.

    Args:
        patients: Of each item.
        seed: Of the draw.

    Returns:
        The place of the other item; ``None`` when all are of one patient.

    Example:
        >>> exchanged(np.array(["a", "a", "b"]), seed=0)[:2].tolist()
        [2, 2]
    """
    codes, counts = np.unique(np.asarray(patients, dtype=str), return_inverse=True, return_counts=True)[1:]
    if len(counts) < 2:
        return None
    order, start = np.argsort(codes, kind="stable"), np.cumsum(counts) - counts
    place = np.random.default_rng([seed, 1]).integers(len(codes) - counts[codes])  # among the items of all others
    return order[np.where(place < start[codes], place, place + counts[codes])]
