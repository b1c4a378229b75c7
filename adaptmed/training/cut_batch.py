"""A batch that is cut over processes, and what is gathered of it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, distributed
from torch.nn import functional

from adaptmed.runs.processes import Processes
from adaptmed.types import Tokens


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


ALONE = CutBatch(Processes(), lambda part: part[None])
"""A batch that one process holds whole."""
