"""Several processes that embed or train together, as torchrun starts them, and a batch that is cut over them."""

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from adaptmed.errors import AdaptmedError, InputError, LostProcessError, sentence

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


def device_of(name: str) -> torch.device:
    """The device that a name means; ``auto`` takes CUDA where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
