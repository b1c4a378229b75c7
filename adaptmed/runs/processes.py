"""Several processes that embed or train together, as torchrun starts them, and a batch that is cut over them."""

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, distributed
from torch.nn import functional

from adaptmed.errors import AdaptmedError, InputError, LostProcessError, sentence
from adaptmed.types import Tokens

Result = TypeVar("Result")
_STARTED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE = timedelta(days=2)
"""How long one process waits for another that lives: its images may take hours longer to read."""


@dataclass(frozen=True)
class Processes:
    """Who this process is among those that work together.

    Attributes:
        rank: Number of this process, from 0.
        world: How many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes what is written once."""
        return self.rank == 0

    @property
    def part(self) -> slice:
        """Which items of a list are this process's own."""
        return slice(self.rank, None, self.world)

    def agreed(self, function: Callable[[], Result]) -> Result:
        """Wait for every process, let the first one run a function, and give all of them its result or its error."""
        if self.world == 1:
            return function()
        distributed.barrier()
        said: list[Any] = [None, None]
        if self.first:
            try:
                said[0] = function()
            except AdaptmedError as error:
                said[1] = error
        distributed.broadcast_object_list(said, src=0)
        if said[1] is not None:
            raise said[1]
        return said[0]

    def shared_batch(self, batch_size: int, pairs: int) -> int:
        """Return the pairs of a batch: as many as asked, or all there are; each process takes its share of them.

        Raises:
            InputError: The size asked for is no multiple of the number of processes, or one would have no pair.
        """
        if batch_size % self.world:
            near = max(1, round(batch_size / self.world)) * self.world
            expected, fix = f"a multiple of the {self.world} processes", f"Pass {near}, or start other processes."
            raise InputError(sentence("batch_size", expected=expected, got=batch_size, fix=fix))
        if pairs < self.world:
            expected, fix = f"a training pair for each of the {self.world} processes", "Start fewer processes."
            raise InputError(sentence("pairs", expected=expected, got=pairs, fix=fix))
        return min(batch_size, pairs)


def join(device: str = "auto") -> Processes:
    """Join the processes that torchrun has started with this one; a process alone is the only one.

    The first call sets the process group up: NCCL on CUDA devices, one per process, else gloo.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
    """
    if not distributed.is_available() or not distributed.is_initialized():
        if any(name not in os.environ for name in _STARTED) or os.environ["WORLD_SIZE"] == "1":
            return Processes()
        cuda = device != "cpu" and torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl" if cuda else "gloo", timeout=_PATIENCE)
        atexit.register(_leave)
    return Processes(distributed.get_rank(), distributed.get_world_size())


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def together(processes: Processes) -> Iterator[None]:
    """Say in words that another process has ended, instead of what the network makes of it.

    Raises:
        LostProcessError: A collective operation failed inside the block.
    """
    try:
        yield
    except RuntimeError as error:
        if processes.world == 1 or not _is_lost(error):
            raise
        who = f"process {processes.rank} of {processes.world}"
        fix = "Its own message says why; run the same command again to go on."
        got = "the end of another process"
        raise LostProcessError(sentence(who, expected=f"{processes.world} processes", got=got, fix=fix)) from error


def _is_lost(error: RuntimeError) -> bool:
    said = str(error).lower()
    return isinstance(error, distributed.DistError) or any(word in said for word in ("gloo", "nccl", "closed by peer"))


@dataclass(frozen=True)
class CutBatch:
    """A batch that is cut over processes: item ``i`` lies on process ``i % world`` at place ``i // world``.

    Losses of the whole batch are computed by every process from the gathered values, so that all have the same loss;
    gradients flow back to where a value came from, and the mean over processes that DDP takes is exact.

    Attributes:
        processes: Who cut it.
        all_gather: From an equally shaped tensor of each process to all of them, stacked; keeps gradients.
    """

    processes: Processes
    all_gather: Callable[[Tensor], Tensor]

    def total(self, mine: int) -> int:
        """Count the items of the batch from those of this process."""
        return mine if self.processes.world == 1 else sum(self._all(mine))

    def largest(self, mine: int) -> int:
        """Find the largest of one number per process."""
        return mine if self.processes.world == 1 else max(self._all(mine))

    def mean_of(self, mine: Float[Tensor, ""], count: Int[Tensor, ""]) -> Float[Tensor, ""]:
        """Take the mean over the whole batch from a mean over ``count`` entries of this process, with gradients."""
        if self.processes.world == 1:
            return mine
        total, entries = self._gather(torch.stack([mine * count, count.to(mine)])).sum(0)
        return total / entries.clamp(min=1)

    def whole(self, part: Shaped[Tensor, "mine *any"]) -> Shaped[Tensor, "batch *any"]:
        """Gather one value per item, in the order of the batch."""
        if self.processes.world == 1:
            return part
        counts = self._all(len(part))
        stacked = self._gather(_padded(part, 0, max(counts)))
        return stacked.transpose(0, 1).flatten(0, 1)[: sum(counts)]

    def tokens_of(self, tokens: Tokens, items: Int[Tensor, " k"]) -> Tokens:
        """Fetch the Tokens of items, wherever they lie.

        Args:
            tokens: Of this process's own items.
            items: Numbers in the whole batch, the same on every process.
        """
        if self.processes.world == 1:
            return tokens.select(items)
        owner = items % self.processes.world
        mine = tokens.select(items[owner == self.processes.rank] // self.processes.world)
        counts = owner.bincount(minlength=self.processes.world)
        longest, most = self.largest(mine.values.shape[1]), int(counts.max())
        place = torch.empty_like(items)
        order = owner.argsort(stable=True)
        place[order] = torch.arange(len(items), device=items.device) - (counts.cumsum(0) - counts)[owner[order]]

        def fetched(part: Tensor) -> Tensor:
            return self._gather(_padded(part, 0, most))[owner, place]

        values, valid = _padded(mine.values, 1, longest), _padded(mine.valid, 1, longest)
        valid = fetched(valid.to(torch.uint8)).bool()
        values, pooled = fetched(values).to(values.dtype), fetched(mine.pooled).to(mine.pooled.dtype)
        return Tokens(values, valid, pooled, mine.grid, mine.prefix)

    def _gather(self, part: Tensor) -> Tensor:
        """Gather numbers as float32 and outside autocast.

        Every process must send the same dtype, but one without items has values that no autocast has touched; and
        autocast to bf16 on the CPU cannot stack float16, which is how a bank stores Tokens.
        """
        with torch.autocast(part.device.type, enabled=False):
            return self.all_gather(part.float() if part.is_floating_point() else part)

    def _all(self, count: int) -> list[int]:
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        counts = [torch.zeros((), dtype=torch.int64, device=device) for _ in range(self.processes.world)]
        distributed.all_gather(counts, torch.tensor(count, device=device))
        return [int(found) for found in counts]


def _padded(part: Shaped[Tensor, "*any"], dimension: int, length: int) -> Shaped[Tensor, "*any"]:
    missing = length - part.shape[dimension]
    behind = [0, 0] * (part.ndim - dimension - 1) + [0, missing]
    return functional.pad(part, behind) if missing else part


def device_of(name: str) -> torch.device:
    """The device that a name means; ``auto`` takes CUDA where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
