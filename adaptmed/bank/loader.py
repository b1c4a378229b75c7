"""Shuffled reading for training: which rows make which batch is a pure function of (seed, epoch)."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaptmed.bank.read import Bank, Rows
from adaptmed.errors import InputError, sentence
from adaptmed.types import Batch

Item = TypeVar("Item")
Result = TypeVar("Result")


def epoch_batches(
    rows: Rows,
    shards: NDArray[np.int64],
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    window_rows: int = 8192,
    drop_last: bool = False,
) -> list[Rows]:
    """Cut shuffled rows into batches so that few shards are in use at a time.

    The order of the shards is shuffled, consecutive shards are joined into windows, and the rows are shuffled inside
    their window; a dataset that fits into one window is shuffled without restriction.

    Args:
        rows: Row numbers, each once.
        shards: Shard number of each row.
        batch_size: Rows per batch; the last one may be smaller.
        seed: Of the run.
        epoch: From 0.
        window_rows: Most rows of a window; a shard with more is a window of its own.
        drop_last: Leave out a last batch that is not full.

    Returns:
        Every row exactly once (without ``drop_last``); the same for the same arguments.

    Example:
        >>> batches = epoch_batches(np.arange(5), np.array([0, 0, 1, 1, 1]), batch_size=2, seed=0, epoch=0)
        >>> sorted(np.concatenate(batches).tolist()), [len(batch) for batch in batches]
        ([0, 1, 2, 3, 4], [2, 2, 1])
    """
    generator = np.random.default_rng([seed, epoch])
    _, shard, counts = np.unique(shards, return_inverse=True, return_counts=True)
    place = np.empty_like(counts)
    order = generator.permutation(len(counts))
    place[order] = _windows(counts[order], window_rows)
    shuffled = generator.permutation(len(rows))
    shuffled = shuffled[np.argsort(place[shard[shuffled]], kind="stable")]
    whole = len(rows) // batch_size * batch_size if drop_last else len(rows)
    return [rows[shuffled[start : start + batch_size]] for start in range(0, whole, batch_size)]


def _windows(counts: NDArray[np.int64], window_rows: int) -> list[int]:
    window, filled, numbers = 0, 0, []
    for count in counts:
        if filled and filled + count > window_rows:
            window, filled = window + 1, 0
        filled += count
        numbers.append(window)
    return numbers


def prefetched(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ahead: int
) -> Generator[Result, None, None]:
    """Map in background threads, in order, at most ``ahead`` results before the one being used.

    An exception of the function is raised where its result would have come. Dropping the iterator ends the threads.

    Example:
        >>> list(prefetched(lambda number: number**2, range(4), workers=2, ahead=2))
        [0, 1, 4, 9]
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="adaptmed-read") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class BankLoader:
    """Batches of a bank for a training or evaluation loop; beside a GPU a background thread reads ahead.

    With ``shuffle`` the loader starts where the run stands: ``position()`` is the number of batches that the run has
    consumed in total, over all epochs, so that a run stopped at any step goes on with the very next batch.

    Args:
        bank: To read from.
        rows: Row numbers to go through, for example ``bank.subset("train")``.
        batch_size: Rows per batch.
        seed: Of the order.
        shuffle: False goes through the rows in the given order, always from the start.
        drop_last: Leave out a last batch that is not full.
        position: Batches consumed so far; asked once when an iteration begins.
        window_rows: As in `epoch_batches`.
        dtype: Of the values; the stored dtype when ``None``.
        pixels: From rows and the number of the epoch to normalised images, for encoders in the training loop.
        more: Adds to a batch what else a method needs, given the number of the epoch.
        part: Which rows of every batch are read here, where several processes share it; may leave none of a last batch.

    Raises:
        InputError: There are no rows, or ``drop_last`` leaves no batch.
    """

    def __init__(
        self,
        bank: Bank,
        rows: Rows,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        position: Callable[[], int] = lambda: 0,
        window_rows: int = 8192,
        dtype: torch.dtype | None = None,
        pixels: Callable[[Rows, int], Tensor] | None = None,
        more: Callable[[Batch, int], Batch] | None = None,
        part: slice = slice(None),
    ) -> None:
        self.bank, self.rows, self.batch_size, self.seed = bank, np.asarray(rows, dtype=np.int64), batch_size, seed
        self.shuffle, self.drop_last, self.window_rows, self.dtype = shuffle, drop_last, window_rows, dtype
        self._position, self._pixels, self._more, self._part = position, pixels, more, part
        if len(self) == 0:
            expected = f"at least {batch_size if drop_last else 1} rows"
            fix = "Choose another split, a smaller batch_size, or drop_last=False."
            raise InputError(sentence("rows", expected=expected, got=len(self.rows), fix=fix))

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(self.rows) // self.batch_size if self.drop_last else -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield what is left of the epoch that the run stands in."""
        epoch, offset = divmod(self._position(), len(self)) if self.shuffle else (0, 0)
        batches = [rows[self._part] for rows in self.epoch(epoch)[offset:]]

        def read(rows: Rows) -> Batch:
            batch = self.bank.batch(rows, self.dtype)
            batch = batch if self._pixels is None else replace(batch, pixels=self._pixels(rows, epoch))
            return batch if self._more is None else self._more(batch, epoch)

        if (
            not torch.cuda.is_available() and self._pixels is None
        ):  # on the CPU a second thread's kernels fight the step for the same cores
            return map(read, batches)
        return prefetched(read, batches, workers=1, ahead=2)

    def epoch(self, number: int) -> list[Rows]:
        """Return the row numbers of every batch of one epoch."""
        if not self.shuffle:
            return [self.rows[at * self.batch_size : (at + 1) * self.batch_size] for at in range(len(self))]
        return epoch_batches(
            self.rows,
            self.bank.shard_of(self.rows),
            batch_size=self.batch_size,
            seed=self.seed,
            epoch=number,
            window_rows=self.window_rows,
            drop_last=self.drop_last,
        )
