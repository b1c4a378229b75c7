"""What a step reads: windows from a bank with their masks, or images read again and changed together with them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from os import cpu_count
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from adaptmed.bank import Bank, prefetched
from adaptmed.bank.source_files import ManifestFiles
from adaptmed.cohort.planes import depth_of, slices_by_plane
from adaptmed.data.augment import augment_with_mask
from adaptmed.data.images import at_size, from_bytes, prepare, read_image
from adaptmed.data.volumes.grids import Plane, planes_in
from adaptmed.data.volumes.stored import slices_from_store
from adaptmed.errors import BankError, sentence
from adaptmed.tasks.segmentation.masks import Masks
from adaptmed.tasks.segmentation.model import Windows
from adaptmed.tasks.segmentation.windows.across import Across, places_across
from adaptmed.tasks.segmentation.windows.changes import Changes
from adaptmed.types import Preprocessing

Places = Int[np.ndarray, " n"]
Item = TypeVar("Item")
Example = tuple[Windows, Int[Tensor, "batch *size"]]


@dataclass(frozen=True)
class Wanted:
    """What a model reads of a bank.

    Attributes:
        tokens: The encoder's Tokens.
        taps: Its taps.
        pixels: The images, normalised.
    """

    tokens: bool = True
    taps: bool = False
    pixels: bool = True


Place = Literal["before the encoder", "behind the encoder"]
"""Where images are changed at random."""


class WindowReader:
    """Reads windows of a bank's rows: pictures whole, of volumes some slices.

    Args:
        bank: Tokens, and taps and pixels where it holds them; pixels of pictures that it does not hold are read again.
        wanted: What is read.
        shown: How the decoder sees the images; ``None``: as the encoder does.

    Raises:
        BankError: The bank holds no images, no taps, or volumes without pixels, and they are wanted.
        InputError: The images are to be read again, and the manifest is gone or another one now.
    """

    def __init__(self, bank: Bank, wanted: Wanted, shown: Preprocessing | None = None) -> None:
        self.bank, self.wanted, self.images = bank, wanted, bank.images
        self.shown = shown or self.images.preprocessing
        self.size = self.shown.image_size_px
        if wanted.pixels and not self.images.pixels:
            self._require_pictures()
            self._files = ManifestFiles.of(bank)
            self._pool = ThreadPoolExecutor(min(8, cpu_count() or 1), thread_name_prefix="adaptmed-pixels")

    def __call__(self, rows: Places, offsets: Int[np.ndarray, "n slice"] | None = None) -> Windows:
        """Read windows of rows.

        Args:
            rows: Row numbers.
            offsets: Slices of each, counted in its volume; ``None`` for pictures.
        """
        first = np.array([self.bank.items_of(row).start for row in rows.tolist()], dtype=np.int64)
        items = first if offsets is None else (first[:, None] + offsets).ravel()
        return Windows(
            size=self.size,
            depth=None if offsets is None else offsets.shape[1],
            tokens=self.bank.item_tokens(items, dtype=torch.float32) if self.wanted.tokens else None,
            taps=tuple(self.bank.item_taps(items, dtype=torch.float32)) if self.wanted.taps else (),
            pixels=self._pixels(rows, items) if self.wanted.pixels else None,
            across=self._across(rows, offsets) if offsets is not None and self.wanted.tokens else (),
        )

    def _across(self, rows: Places, offsets: Int[np.ndarray, "n slice"]) -> tuple[tuple[Across, ...], ...]:
        """Read the other planes of each row, if there are any."""
        other = planes_in(self.images.plane or "axial")[1:]
        return tuple(self._across_of(row, own, other) for row, own in zip(rows.tolist(), offsets, strict=True) if other)

    def _across_of(self, row: int, offsets: Int[np.ndarray, " slice"], planes: Sequence[Plane]) -> tuple[Across, ...]:
        slices, *others = slices_by_plane(self.bank, row)
        shape = tuple(map(len, (slices, *others)))
        images = self.images
        return tuple(
            Across(
                self.bank.item_tokens(items, dtype=torch.float32),
                places_across(shape, offsets, plane, images.preprocessing, images.grid),
            )
            for plane, items in zip(planes, others, strict=True)
        )

    def ahead(self, read: Callable[[Item], Example], items: Iterable[Item]) -> Iterator[Example]:
        """Read in the background where that helps: beside a GPU, and images from their files.

        On the CPU a second thread's kernels fight the step for the same cores, and a bank is read in no time.
        """
        if torch.cuda.is_available() or (self.wanted.pixels and not self.images.pixels):
            return prefetched(read, items, workers=1, ahead=2)
        return map(read, items)

    def picture(self, row: int) -> Float[Tensor, "3 height width_px"]:
        """The picture of a row as the decoder sees it: from the bank, or from its file."""
        if self.images.pixels:
            return self._stored(np.array([self.bank.items_of(row).start]))[0]
        return prepare(read_image(self._files.image(row)), self.shown)

    def _pixels(self, rows: Places, items: Int[np.ndarray, " item"]) -> Float[Tensor, "item 3 height width_px"]:
        if self.images.pixels:
            return self._stored(items)
        return torch.stack(list(self._pool.map(self.picture, rows.tolist())))

    def _stored(self, items: Places) -> Float[Tensor, "n 3 height width_px"]:
        facts = self.images.preprocessing
        if self.images.own_size:
            return slices_from_store(*self.bank.item_slices(items), facts, shown_px=self.size)
        return at_size(from_bytes(self.bank.item_pixels(items), facts), self.size)

    def _require_pictures(self) -> None:
        if self.bank.holds_volumes:
            fix = "Run `adaptmed embed` with --pixels into another --out."
            expected = "the pixels of its volumes, which the decoder reads"
            raise BankError(sentence(str(self.bank.folder), expected=expected, got="none", fix=fix))


@dataclass(frozen=True)
class Examples:
    """Windows with their masks.

    Attributes:
        reader: Of the windows.
        masks: Of the rows.
        rows: Row numbers.
        window_slices: Slices of a window of a volume.
        seed: Of the order, the windows and the random changes.
        changed: Where images are changed at random with their masks, if they are; Tokens of a bank cannot follow a
            change before the encoder.
    """

    reader: WindowReader
    masks: Masks
    rows: Places
    window_slices: int
    seed: int
    changed: Place | None = None

    def batch(self, places: Places, draw: int) -> Example:
        """Read one batch; of volumes and of changes everything is drawn from (seed, draw, row)."""
        rows = self.rows[places]
        if self.changed == "before the encoder":
            changed = [self._changed(row, draw) for row in rows.tolist()]
            pixels, masks = (torch.stack(side) for side in zip(*changed, strict=True))
            return Windows(self.reader.size, pixels=pixels), masks
        windows, masks = self._unchanged(rows, draw)
        if self.changed is None:
            return windows, masks
        changes = Changes.draw([(self.seed, draw, row) for row in rows.tolist()], self.reader.size)
        return replace(windows, changes=changes), changes.of_mask(masks)

    def _unchanged(self, rows: Places, draw: int) -> Example:
        if not self.reader.bank.holds_volumes:
            planes = [self.masks.planes(row, np.zeros(1, dtype=np.int64))[0] for row in rows.tolist()]
            return self.reader(rows), torch.stack(planes)
        offsets, inside = self._offsets(rows, draw)
        masks = torch.stack([self.masks.planes(row, own) for row, own in zip(rows.tolist(), offsets, strict=True)])
        masks[~torch.from_numpy(inside)] = -1  # a volume of fewer slices repeats its last one
        return self.reader(rows, offsets), masks

    def _offsets(self, rows: Places, draw: int) -> tuple[Int[np.ndarray, "n slice"], np.ndarray]:
        depths = np.array([depth_of(self.reader.bank, row) for row in rows.tolist()])
        length = min(self.window_slices, int(depths.max()))
        starts = [
            int(np.random.default_rng([self.seed, draw, row]).integers(max(1, depth - length + 1)))
            for row, depth in zip(rows.tolist(), depths.tolist(), strict=True)
        ]
        offsets = np.array(starts)[:, None] + np.arange(length)
        return np.minimum(offsets, depths[:, None] - 1), offsets < depths[:, None]

    def _changed(self, row: int, draw: int) -> tuple[Tensor, Tensor]:
        seed = np.random.SeedSequence([self.seed, draw, row]).generate_state(1)[0]
        mask = self.masks.planes(row, np.zeros(1, dtype=np.int64))[0]
        return augment_with_mask(self.reader.picture(row), mask, seed=int(seed))


def places_at(count: int, size: int, *, seed: int, step: int) -> Places:
    """Return the places of one step: shuffled passes over all of them, one behind another, cut into equal batches.

    Example:
        >>> passes = np.concatenate([places_at(5, 2, seed=0, step=step) for step in range(5)])
        >>> sorted(passes[:5].tolist()), sorted(passes[5:].tolist())
        ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    """
    start = step * size
    passes = range(start // count, (start + size - 1) // count + 1)
    order = np.concatenate([np.random.default_rng([seed, number]).permutation(count) for number in passes])
    return order[start - passes.start * count :][:size]


class Steps:
    """The batches of one round of training, from the place where the run stands.

    Args:
        examples: What is read.
        size: Windows per batch, unless there are fewer.
        steps: Of a round.
        step: Steps the run has made so far; asked when a round begins.
    """

    def __init__(self, examples: Examples, *, size: int, steps: int, step: Callable[[], int]) -> None:
        self.examples, self.steps, self.step = examples, steps, step
        self.size = min(size, len(examples.rows))

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Example]:
        """Yield what is left of the round."""
        now = self.step()
        left = range(now, (now // self.steps + 1) * self.steps)
        return self.examples.reader.ahead(self._read, left)

    def _read(self, step: int) -> Example:
        examples = self.examples
        places = places_at(len(examples.rows), self.size, seed=examples.seed, step=step)
        return examples.batch(places, step)


class InOrder:
    """Batches that a model is judged by, the same in every pass.

    Args:
        examples: What is read.
        size: Windows per batch.
    """

    def __init__(self, examples: Examples, *, size: int) -> None:
        self.examples, self.size = examples, size

    def __len__(self) -> int:
        return -(-len(self.examples.rows) // self.size)

    def __iter__(self) -> Iterator[Example]:
        every = np.arange(len(self.examples.rows))
        parts: Sequence[Places] = [every[start : start + self.size] for start in range(0, len(every), self.size)]
        return self.examples.reader.ahead(partial(self.examples.batch, draw=0), parts)
