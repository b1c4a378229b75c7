"""Gathering items from memory-mapped shards: one vectorised selection per shard touched, never a loop over items.

Where a shard holds codes of features with scales beside them, the items that are asked are turned into numbers again;
what is mapped stays as it is.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from adaptmed.bank.quantised import dequantise, scale_name
from adaptmed.bank.shards import Shard

Items = NDArray[np.int64]


class MappedShards:
    """The tensors of one modality over all its shards, numbered through from 0; pages are read when they are touched.

    Args:
        folder: Of the bank.
        shards: In order.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self._paths = [folder / f"{shard.file}.safetensors" for shard in shards]
        self._starts = np.cumsum([0] + [shard.count for shard in shards])
        self._open: dict[int, dict[str, Tensor]] = {}

    def shard_of(self, items: Items) -> Items:
        """Return the shard number of each item; -1 for the item -1."""
        return np.searchsorted(self._starts, items, side="right") - 1

    def features(self, name: str, items: Items, views: Items | None = None) -> Float[Tensor, "n *shape"]:
        """Select items of a tensor of features as ``gather`` does; float32 where codes with scales are stored."""
        values = self.gather(name, items, views)
        if self._holds(scale_name(name)):
            return dequantise(values, self.gather(scale_name(name), items, views))
        return values

    def ragged_features(
        self, name: str, offsets: str, items: Items
    ) -> tuple[Float[Tensor, "n longest *shape"], Bool[Tensor, "n longest"]]:
        """Select items of a ragged tensor of features as ``gather_ragged`` does; float32 where codes are stored."""
        values, valid = self.gather_ragged(name, offsets, items)
        if self._holds(scale_name(name)):
            values = dequantise(values, self.gather(scale_name(name), items)).masked_fill_(~valid[..., None], 0)
        return values, valid

    def gather(self, name: str, items: Items, views: Items | None = None) -> Shaped[Tensor, "n *shape"]:
        """Select items of a tensor with one entry per item, in the order asked; the item -1 gives zeros.

        With ``views`` an entry holds several views, and of each item the one that is named is selected. The result is a
        fresh tensor in the stored dtype.
        """
        groups = self._groups(items)
        if len(groups) == 1 and len(groups[0][1]) == len(items):
            return self._chosen(name, groups[0][0], groups[0][1], items, views)
        result = self._zeros(name, len(items), 1 if views is None else 2)
        for number, places in groups:
            result.index_copy_(0, torch.from_numpy(places), self._chosen(name, number, places, items, views))
        return result

    def _chosen(self, name: str, number: int, places: Items, items: Items, views: Items | None) -> Tensor:
        """Return what one shard serves."""
        tensor, local = self._tensors(number)[name], self._local(number, items[places])
        if views is not None:
            tensor, local = tensor.flatten(0, 1), local * tensor.shape[1] + views[places]
        return tensor.index_select(0, torch.from_numpy(local))

    def gather_ragged(
        self, name: str, offsets: str, items: Items
    ) -> tuple[Shaped[Tensor, "n longest *shape"], Bool[Tensor, "n longest"]]:
        """Select items of a tensor with ``offsets`` many entries each, zero-padded to the longest of those asked.

        Returns:
            The padded values and where they are valid; at least one place wide. The item -1 is all padding.
        """
        groups = self._groups(items)
        starts, lengths = np.zeros(len(items), dtype=np.int64), np.zeros(len(items), dtype=np.int64)
        for number, places in groups:
            edges, local = self._tensors(number)[offsets].numpy(), self._local(number, items[places])
            starts[places], lengths[places] = edges[local], edges[local + 1] - edges[local]
        longest = max(1, int(lengths.max(initial=0)))
        values = self._zeros(name, len(items) * longest)
        for number, places in groups:
            count = lengths[places]
            within = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count)
            source = torch.from_numpy(np.repeat(starts[places], count) + within)
            target = torch.from_numpy(np.repeat(places * longest, count) + within)
            values.index_copy_(0, target, self._tensors(number)[name].index_select(0, source))
        valid = torch.from_numpy(np.arange(longest) < lengths[:, None])
        return values.unflatten(0, (len(items), longest)), valid

    def _groups(self, items: Items) -> list[tuple[int, Items]]:
        """Return each shard that is touched with the places in ``items`` that it serves."""
        if not len(items):
            return []
        shard = self.shard_of(items)
        order = np.argsort(shard, kind="stable")
        numbers, first = np.unique(shard[order], return_index=True)
        groups = zip(numbers.tolist(), np.split(order, first[1:]), strict=True)
        return [(number, places) for number, places in groups if number >= 0]

    def _local(self, number: int, items: Items) -> Items:
        return items - self._starts[number]

    def _holds(self, name: str) -> bool:
        return name in self._tensors(self._filled_shard())

    def _zeros(self, name: str, count: int, axes: int = 1) -> Tensor:
        example = self._tensors(self._filled_shard())[name]
        return torch.zeros(count, *example.shape[axes:], dtype=example.dtype)

    def _filled_shard(self) -> int:
        return int(np.argmax(np.diff(self._starts) > 0))

    def _tensors(self, number: int) -> dict[str, Tensor]:
        if number not in self._open:
            with safe_open(self._paths[number], framework="pt") as file:
                self._open[number] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return self._open[number]
