"""What a masked step reads: words and patches hidden before their encoders, and where the masked images come from."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor, nn

from adaptmed.adaptor.frozen import FrozenEncoders
from adaptmed.adaptor.masked import cell_grid, masked_image_tokens, masked_outputs
from adaptmed.bank import Bank
from adaptmed.bank.layout import Layout, arrange_text
from adaptmed.encoders import drops_patches, patch_grid, words_of
from adaptmed.errors import InputError, sentence
from adaptmed.layers.draws import item_draws
from adaptmed.pretext.masking import Vocabulary, hidden_patches, mask_words
from adaptmed.pretraining.views import Hidden
from adaptmed.types import Batch, Tokens

Source = Literal["bank", "encoder", "outputs"]
"""Where masked images come from: stored masked views, the encoder on kept patches, or a CNN's outputs."""
_LEAK = (
    "{name} cannot leave patches out: its outputs are hidden instead. What is hidden is in part read from its "
    "neighbours, so losses look better than they are; results with a vision transformer are not comparable."
)


@dataclass(frozen=True)
class MaskedCells:
    """Images with cells hidden.

    Attributes:
        image: Image Tokens of the kept cells in their places; hidden cells are not valid.
        kept: Places of the kept cells, in rising order.
    """

    image: Tokens
    kept: Int[Tensor, "batch kept"]

    @property
    def hidden(self) -> Bool[Tensor, "batch cell"]:
        """True at hidden cells."""
        return hidden_patches(self.kept, self.image.valid.shape[1] - self.image.prefix)


@dataclass(frozen=True)
class MaskedWords:
    """Texts with words hidden.

    Attributes:
        text: Text Tokens of the masked words' ids.
        targets: Ids to predict; -1 where no word is hidden.
    """

    text: Tokens
    targets: Int[Tensor, "batch token"]

    @property
    def hidden(self) -> Bool[Tensor, "batch token"]:
        """True at words to predict."""
        return self.targets >= 0


def masked_source(bank: Bank, encoders: FrozenEncoders, ratio: float, *, tuned: bool) -> Source:
    """Say where masked images come from; load the image encoder where it is needed.

    Args:
        bank: Image Tokens, with or without masked views.
        encoders: Of the adaptor.
        ratio: Share of the cells that is hidden.
        tuned: Whether the image encoder is trained in the loop: then no stored view is of any use.

    Raises:
        InputError: If the bank's views hide another share than the method does, or cells are no whole patches.

    Warns:
        UserWarning: If outputs are hidden.
    """
    images = bank.images
    if images.masked_views and not tuned:
        if images.mask_ratio != ratio:
            expected, fix = f"masked views that hide {ratio}", "Embed with that --mask-ratio."
            raise InputError(sentence(str(bank.folder), expected=expected, got=images.mask_ratio, fix=fix))
        return "bank"
    encoder = encoders.load_image()
    if not drops_patches(encoder):
        warnings.warn(_LEAK.format(name=encoder.name), stacklevel=2)
        return "outputs"
    cell_grid(patch_grid(encoder, images.preprocessing.image_size_px), Layout.parse(bank.info.layout))
    return "encoder"


def cell_px(bank: Bank) -> int:
    """Return the side of the cells of a bank's layout in pixels.

    Raises:
        InputError: If cells are not square, or no whole number of pixels.
    """
    images = bank.images
    height, width = images.preprocessing.image_size_px
    rows, columns = images.grid[-2:]
    if height % rows or width % columns or height // rows != width // columns or bank.info.layout == "pooled":
        expected, got = "a layout of square cells of whole pixels", f"{bank.info.layout} of {height} x {width} px"
        fix = "Embed with --grid and --image-size-px so that the one divides the other, or with --layout all."
        raise InputError(sentence(str(bank.folder), expected=expected, got=got, fix=fix))
    return height // rows


def stored_views(bank: Bank, *, seed: int) -> Callable[[Batch, int], Batch]:
    """Return what adds a stored masked view to each batch: every image goes through all its views, one per epoch."""
    images = bank.images

    def add(batch: Batch, epoch: int) -> Batch:
        first = (item_draws(batch.rows, 1, seed=seed)[:, 0] * images.masked_views).long()
        views = ((first + epoch) % images.masked_views).numpy()
        return replace(batch, masked_image=bank.masked_tokens(batch.rows.numpy().astype(np.int64), views))

    return add


class Masker(nn.Module):
    """Hides words or cells of a batch and encodes what is left.

    Words are hidden among the ids, which the text encoder reads in every step. Cells are hidden in the pixels, of which
    the image encoder sees the rest, or the bank has stored that. Only of a CNN are outputs hidden: then what is hidden
    is in part read from its neighbours, whose receptive fields reach into it, and no figure of ours rests on it.

    Args:
        encoders: With the text encoder in memory where words are hidden, and the image encoder where masked images come
            from it.
        hidden: Everything that is hidden in some view.
        source: Where masked images come from; ``None`` where no cells are hidden.

    Raises:
        InputError: If words are hidden and the text encoder has no mask token, or its texts are stored as one vector.
    """

    def __init__(self, encoders: FrozenEncoders, hidden: Sequence[Hidden], source: Source | None) -> None:
        super().__init__()
        self.encoders, self.source = encoders, source
        self.layout = Layout.parse(encoders.layout)
        words = [some for some in hidden if some.side == "text"]
        if words and self.layout.kind == "pooled":
            fix = "Embed with --layout grid or all."
            raise InputError(sentence("layout", expected="all tokens of a text", got="pooled", fix=fix))
        self.vocabularies = {some: _vocabulary(encoders, whole=some.whole) for some in words}

    def words(self, batch: Batch, hidden: Hidden, seed: int) -> MaskedWords:
        """Hide words and encode the texts.

        Args:
            batch: Texts with word ids.
            hidden: Which share, and whether whole words.
            seed: Of this step.
        """
        assert batch.text is not None
        assert batch.input_ids is not None
        assert batch.ids_valid is not None
        assert self.encoders.text is not None
        if not len(batch):  # all items lie on other processes, and no encoder takes an empty batch
            return MaskedWords(batch.text, batch.input_ids)
        how: dict[str, Any] = {"items": batch.rows, "seed": seed, "share": hidden.share}
        ids, targets = mask_words(batch.input_ids, batch.ids_valid, self.vocabularies[hidden], **how)
        return MaskedWords(arrange_text(self.encoders.text(ids, batch.ids_valid), self.layout), targets)

    def cells(self, batch: Batch, hidden: Hidden, seed: int) -> MaskedCells:
        """Hide cells and encode what is left of the images.

        Args:
            batch: Images, with pixels or a masked view where the source needs them.
            hidden: Which share.
            seed: Of this step.
        """
        assert batch.image is not None
        if not len(batch):
            return MaskedCells(batch.image, batch.rows.new_zeros(0, 0))
        if self.source == "bank":
            assert batch.masked_image is not None
            return MaskedCells(batch.masked_image, _kept(batch.masked_image))
        how: dict[str, Any] = {"items": batch.rows, "seed": seed, "ratio": hidden.share}
        if self.source == "outputs":
            return MaskedCells(*masked_outputs(batch.image, **how))
        assert self.encoders.image is not None
        assert batch.pixels is not None
        return MaskedCells(*masked_image_tokens(self.encoders.image, batch.pixels, self.layout, **how))


def _vocabulary(encoders: FrozenEncoders, *, whole: bool) -> Vocabulary:
    assert encoders.text is not None  # whoever hides words has loaded it
    words = words_of(encoders.text)
    return Vocabulary.of(words.entries, special_ids=words.special_ids, mask_id=words.mask_id, whole_words=whole)


def _kept(image: Tokens) -> Int[Tensor, "batch kept"]:
    return image.valid[:, image.prefix :].nonzero()[:, 1].view(len(image), -1)
