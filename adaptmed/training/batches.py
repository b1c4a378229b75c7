"""Batches of labelled images: their order is a pure function of (seed, epoch), their place that of the run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from os import cpu_count

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from adaptmed.bank import Bank, prefetched
from adaptmed.training.pixels import PixelReader
from adaptmed.types import Batch, Tokens

Inputs = Tokens | Tensor
"""Pixels ``(batch, 3, height, width_px)``, Tokens, or features ``(batch, width)``: what the first part takes."""


Places = Int[np.ndarray, " k"]


Rows = Int[np.ndarray, " n"]


Read = Inputs | Batch
"""What a model takes: of images alone, or of pairs."""


@dataclass(frozen=True)
class LabelledImages:
    """What a classifier is trained on, judged by, or asked about: images, or images with their texts.

    Attributes:
        read: From places, counted from 0, and the number of the epoch to inputs.
        count: How many images there are.
        labels: As the loss wants them; ``None`` gives inputs alone, to predict.
        ahead: Batches that are read in the background, for images that come from files.
    """

    read: Callable[[Places, int], Read]
    count: int
    labels: Tensor | None = None
    ahead: int = 0

    def batch(self, places: Places, epoch: int) -> tuple[Read, Tensor] | Read:
        """Inputs with their labels, or alone where there are no labels."""
        inputs = self.read(places, epoch)
        return inputs if self.labels is None else (inputs, self.labels[places])


def features_of(features: Tensor, labels: Tensor | None = None) -> LabelledImages:
    """Features that were computed once."""
    return LabelledImages(lambda places, _: features[places], len(features), labels)


def tokens_of(bank: Bank, rows: Rows, labels: Tensor | None = None) -> LabelledImages:
    """The image Tokens of a bank's rows."""
    return LabelledImages(lambda places, _: bank.image_tokens(rows[places], dtype=torch.float32), len(rows), labels)


def images_again(bank: Bank, rows: Rows, labels: Tensor | None = None, *, seed: int | None) -> LabelledImages:
    """The images of a bank's rows, read again from their files, changed at random by ``seed`` unless it is ``None``.

    Raises:
        InputError: The manifest is gone or another one now.
    """
    reader = PixelReader(bank, bank.images.preprocessing, seed=seed, workers=min(8, cpu_count() or 1))
    return LabelledImages(lambda places, epoch: reader(rows[places], epoch), len(rows), labels, ahead=2)


class Batches:
    """Batches whose sizes differ by one at most; shuffled ones begin where the run stands.

    Args:
        images: What is read.
        number: Batches of an epoch.
        seed: Of the order; ``None`` keeps the order of the images, always from the start.
        accumulate: Batches that make one step; an epoch's last step may have fewer.
        step: Steps the run has made so far; asked when an epoch begins.
        part: Which items of every batch this process reads.
    """

    def __init__(
        self,
        images: LabelledImages,
        number: int,
        *,
        seed: int | None = None,
        accumulate: int = 1,
        step: Callable[[], int] = lambda: 0,
        part: slice = slice(None),
    ) -> None:
        self.images, self.number, self.seed = images, number, seed
        self.accumulate, self.step, self.part = accumulate, step, part

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[tuple[Read, Tensor] | Read]:
        epoch, steps = divmod(self.step(), -(-self.number // self.accumulate))
        order = np.arange(self.images.count)
        if self.seed is not None:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.images.count)
        batches = np.array_split(order, self.number)[steps * self.accumulate :]

        def read(places: Places) -> tuple[Read, Tensor] | Read:
            return self.images.batch(places[self.part], epoch)

        if self.images.ahead:
            return prefetched(read, batches, workers=1, ahead=self.images.ahead)
        return map(read, batches)
