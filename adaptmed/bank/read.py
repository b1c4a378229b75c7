"""Reading a bank: Tokens of any rows, from memory-mapped shards."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from adaptmed.bank.files import read_rows, require_shards
from adaptmed.bank.format import INFO, PLAN, ROWS, BankInfo, Kind, StoredImages, StoredTexts
from adaptmed.bank.lacking import lacks, require_pictures, require_pixels
from adaptmed.bank.mapped import MappedShards
from adaptmed.bank.shards import tap_names
from adaptmed.errors import BankError, sentence
from adaptmed.layers.places import put_back
from adaptmed.types import Batch, Tokens

if TYPE_CHECKING:
    import pandas as pd

Rows = NDArray[np.int64]
Items = NDArray[np.int64] | Sequence[int]


class Bank:
    """Tokens of a dataset on disk. Open one with `Bank.open`.

    Rows are numbered from 0 in the order of ``rows``. Image items are numbered from 0 too: distinct pictures, or the
    slices of distinct volumes, those of one volume behind each other. Values come in the stored dtype unless another is
    asked, and in float32 where int8 is stored.

    Attributes:
        folder: Where it stands.
        info: Its facts.
        rows: One line per kept manifest row, with ``image_index`` and ``text_index`` (-1: none). In a bank of volumes
            ``image_index`` is the item of the first slice, and ``slices`` says how many there are.
    """

    def __init__(self, folder: Path, info: BankInfo, rows: "pd.DataFrame") -> None:
        self.folder, self.info, self.rows = folder, info, rows
        self._shards = {kind: MappedShards(folder, info.shards_of(kind)) for kind in ("image", "text")}

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open a whole bank; only its json and its rows are read.

        Raises:
            BankError: There is no bank, it is not whole, a file of it is missing or cut, or it has another schema.
        """
        folder = Path(folder)
        if not (folder / INFO).exists():
            got = "one that was not finished" if (folder / PLAN).exists() else "no bank.json"
            fix = "Run the same `adaptmed embed` again to finish it." if got != "no bank.json" else "Check the path."
            raise BankError(sentence(str(folder), expected="a whole bank", got=got, fix=fix))
        info = BankInfo.read(folder / INFO)
        fix = f"Delete {folder / INFO} and run the same `adaptmed embed` again: it writes what is missing."
        sizes = {folder / f"{shard.file}.safetensors": shard.size_bytes for shard in info.shards}
        require_shards(sizes, fix=fix)
        return cls(folder, info, read_rows(folder / ROWS, fix=fix))

    def __len__(self) -> int:
        return self.info.rows

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the class numbers; empty without a class column."""
        return self.info.classes

    @property
    def images(self) -> StoredImages:
        """The facts of its image Tokens.

        Raises:
            BankError: The bank holds no images.
        """
        if self.info.images is None:
            raise lacks(self.folder, "images", "--image-encoder")
        return self.info.images

    @property
    def texts(self) -> StoredTexts:
        """The facts of its text Tokens.

        Raises:
            BankError: The bank holds no texts.
        """
        if self.info.texts is None:
            raise lacks(self.folder, "texts", "--text-encoder")
        return self.info.texts

    @property
    def holds_texts(self) -> bool:
        """Whether it has Tokens of texts."""
        return self.info.texts is not None

    def of_images(self) -> Self:
        """Return the same bank as one that holds no texts, for whatever reads images alone."""
        return type(self)(self.folder, replace(self.info, texts=None), self.rows)

    def subset(self, split: str | None) -> Rows:
        """Return the row numbers of one split (``train``, ``validate``, ``test``); ``None`` gives all rows.

        Raises:
            BankError: The rows have no split column.
        """
        if split is None:
            return np.arange(len(self))
        if "split" not in self.rows:
            fix = "Add a split column to the manifest and run `adaptmed embed` again."
            raise BankError(sentence("split", expected=f"a column with {split} rows", got="no such column", fix=fix))
        return np.flatnonzero((self.rows["split"] == split).to_numpy(dtype=bool))

    def image_tokens(self, rows: Rows, dtype: torch.dtype | None = None) -> Tokens:
        """Return the image Tokens of these rows; a row without image has zeros and no valid token.

        Raises:
            BankError: The bank holds no images, or volumes.
        """
        require_pictures(self.folder, self.info.images)
        return self.item_tokens(self._index("image", rows), dtype)

    @property
    def holds_volumes(self) -> bool:
        """Whether its images are volumes, whose slices are its image items; False where they are pictures."""
        return self.info.images is not None and self.info.images.plane is not None

    def items_of(self, row: int) -> range:
        """Return the image items of one row: its picture, or the slices of its volume in order; none without image."""
        first = int(self._indices["image"][row])
        count = int(self.rows["slices"].iloc[row]) if self.holds_volumes else 1
        return range(first, first + count) if first >= 0 else range(0)

    def item_tokens(self, items: Items, dtype: torch.dtype | None = None) -> Tokens:
        """Return the Tokens of pictures or slices by their item numbers; -1 gives zeros and no valid token.

        Raises:
            BankError: The bank holds no images.
        """
        images, items = self.images, np.asarray(items, dtype=np.int64)
        values = self._shards["image"].features("values", items)
        valid = torch.from_numpy(items >= 0)[:, None].repeat(1, values.shape[1])
        pooled = self._shards["image"].gather("pooled", items)
        return Tokens(values.to(dtype), valid, pooled.to(dtype or values.dtype), images.grid, images.prefix)

    def item_taps(
        self, items: Items, dtype: torch.dtype | None = None
    ) -> list[Float[Tensor, "n _channel _row _column"]]:
        """Return the stored feature maps of pictures or slices, shallow to deep, without the deepest; -1 gives zeros.

        Raises:
            BankError: The bank holds no taps.
        """
        names = tap_names(len(self.images.taps))
        if not names:
            raise lacks(self.folder, "taps", "--taps 4")
        items = np.asarray(items, dtype=np.int64)
        return [self._shards["image"].features(name, items).to(dtype) for name in names]

    def item_pixels(self, items: Items) -> UInt8[Tensor, "n 3 height width_px"]:
        """Return what the encoder was given of pictures or slices, in 256 steps from black to white; -1 gives zeros.

        ``data.images.from_bytes`` makes the encoder's input of them again.

        Raises:
            BankError: The bank holds no pixels, or slices at their own size.
        """
        require_pixels(self.folder, self.images, own_size=False)
        return self._shards["image"].gather("pixels", np.asarray(items, dtype=np.int64))

    def item_slices(self, items: Items) -> tuple[UInt8[Tensor, "n longest"], Int[Tensor, "n 2"]]:
        """Return slices as they are stored, row behind row in one channel, and the size ``(height, width)`` of each.

        ``data.volumes.stored.slices_from_store`` makes the encoder's input of them. -1 gives zeros of size (0, 0).

        Raises:
            BankError: The bank holds no pixels, or pixels at the size of the encoder's input.
        """
        sizes = self.slice_sizes(items)
        planes, _ = self._shards["image"].gather_ragged("pixels", "pixel_offsets", np.asarray(items, dtype=np.int64))
        return planes, sizes

    def slice_sizes(self, items: Items) -> Int[Tensor, "n 2"]:
        """Return the size ``(height, width)`` of slices that are stored at their own; as ``item_slices`` else."""
        require_pixels(self.folder, self.images, own_size=True)
        return self._shards["image"].gather("pixel_sizes", np.asarray(items, dtype=np.int64)).long()

    def masked_tokens(self, rows: Rows, views: Items, dtype: torch.dtype | None = None) -> Tokens:
        """Return what the image encoder gave of these rows when it saw a part of their cells.

        Args:
            rows: Row numbers.
            views: Which of the masked views of each row, from 0.
            dtype: Of the values; the stored dtype when ``None``.

        Returns:
            Tokens of the whole grid; hidden cells, and every token of a row without image, are zero and not valid.

        Raises:
            BankError: The bank holds no masked views, or fewer.
        """
        images, items, views = self.images, self._index("image", rows), np.asarray(views, dtype=np.int64)
        if images.masked_views == 0:
            raise lacks(self.folder, "masked views", "--masked-views 4")
        if len(views) and not (views.min() >= 0 and views.max() < images.masked_views):
            expected, fix = f"numbers from 0 to {images.masked_views - 1}", "Ask for these views."
            raise BankError(sentence("views", expected=expected, got=[int(view) for view in views[:9]], fix=fix))
        shards = self._shards["image"]
        seen = shards.features("masked_values", items, views)
        kept, pooled = (shards.gather(f"masked_{name}", items, views) for name in ("kept", "pooled"))
        values, valid = put_back(seen, kept, prefix=images.prefix, cells=math.prod(images.grid))
        valid &= torch.from_numpy(items >= 0)[:, None]
        return Tokens(values.to(dtype), valid, pooled.to(dtype or values.dtype), images.grid, images.prefix)

    def text_tokens(self, rows: Rows, dtype: torch.dtype | None = None) -> Tokens:
        """Return the text Tokens of these rows, zero-padded to the longest of them; no valid token without text.

        Raises:
            BankError: The bank holds no texts.
        """
        if not self.holds_texts:
            raise lacks(self.folder, "texts", "--text-encoder")
        index = self._index("text", rows)
        values, valid = self._shards["text"].ragged_features("values", "offsets", index)
        pooled = self._shards["text"].gather("pooled", index)
        return Tokens(values.to(dtype), valid, pooled.to(dtype or values.dtype))

    def input_ids(self, rows: Rows) -> tuple[Int[Tensor, "batch token"], Bool[Tensor, "batch token"]]:
        """Return the word ids of these rows' texts, padded on the right with 0, and where they are valid.

        Raises:
            BankError: The bank holds no texts.
        """
        if not self.holds_texts:
            raise lacks(self.folder, "word ids", "--text-encoder")
        ids, valid = self._shards["text"].gather_ragged("input_ids", "id_offsets", self._index("text", rows))
        return ids.long(), valid

    def batch(self, rows: Rows, dtype: torch.dtype | None = None) -> Batch:
        """Return everything the bank holds of these rows."""
        rows = np.asarray(rows, dtype=np.int64)
        texts = self.holds_texts
        ids, ids_valid = self.input_ids(rows) if texts else (None, None)
        return Batch(
            rows=torch.from_numpy(rows),
            ids=tuple(self._ids[rows]),
            image=None if self.info.images is None else self.image_tokens(rows, dtype),
            text=self.text_tokens(rows, dtype) if texts else None,
            text_group=torch.from_numpy(self._index("text", rows)),
            input_ids=ids,
            ids_valid=ids_valid,
        )

    def labels(self, rows: Rows) -> Float[Tensor, "n label"]:
        """Return the label columns of these rows in the order of ``info.labels``; NaN is not labelled."""
        return torch.from_numpy(self._labels[rows])

    def class_numbers(self, rows: Rows) -> Int[Tensor, " n"]:
        """Return the class number of each of these rows; -1 is not labelled.

        Raises:
            BankError: The bank was made without a class column.
        """
        column = self.info.class_column
        if column is None:
            raise lacks(self.folder, "classes", "--class-column")
        return torch.from_numpy(self.rows[column].to_numpy(np.int64)[rows])

    def shard_of(self, rows: Rows) -> Rows:
        """Return the shard each row is read from: its image's, or its text's when the bank holds no images.

        Raises:
            BankError: The bank holds volumes.
        """
        require_pictures(self.folder, self.info.images)
        kind: Kind = "text" if self.info.images is None else "image"
        return self._shards[kind].shard_of(self._index(kind, rows))

    def _index(self, kind: Kind, rows: Rows) -> Rows:
        return self._indices[kind][rows]

    @cached_property
    def _indices(self) -> dict[str, Rows]:
        return {kind: self.rows[f"{kind}_index"].to_numpy(np.int64) for kind in ("image", "text")}

    @cached_property
    def _ids(self) -> NDArray[np.object_]:
        return self.rows["row"].astype(str).to_numpy(object)

    @cached_property
    def _labels(self) -> NDArray[np.float32]:
        return self.rows[list(self.info.labels)].to_numpy(np.float32)
