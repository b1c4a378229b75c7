"""What a masked step reads: words and patches hidden before their encoders, and where the masked images come from."""

import warnings
from collections.abc import Callable
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
from adaptmed.layers.draws import item_draws, step_seed
from adaptmed.methods import Masking
from adaptmed.pretext.masking import Vocabulary, hidden_patches, mask_words
from adaptmed.pretraining.contrastive import both_sides
from adaptmed.types import Batch, Tokens

Source = Literal["bank", "encoder", "outputs"]
"""Where masked images come from: stored masked views, the encoder on kept patches, or a CNN's outputs."""
_LEAK = (
    "{name} cannot leave patches out: its outputs are hidden instead. What is hidden is in part read from its "
    "neighbours, so losses look better than they are; results with a vision transformer are not comparable."
)


@dataclass(frozen=True)
class Masked:
    """A batch of pairs with words and cells hidden.

    Attributes:
        image: Image Tokens of the kept cells in their places; hidden cells are not valid.
        kept: Places of the kept cells, in rising order.
        text: Text Tokens of the masked words' ids.
        targets: Ids to predict; -1 where no word is hidden.
    """

    image: Tokens
    kept: Int[Tensor, "batch kept"]
    text: Tokens
    targets: Int[Tensor, "batch token"]

    @property
    def hidden(self) -> Bool[Tensor, "batch cell"]:
        """True at hidden cells."""
        return hidden_patches(self.kept, self.image.valid.shape[1] - self.image.prefix)

    @property
    def hidden_words(self) -> Bool[Tensor, "batch token"]:
        """True at words to predict."""
        return self.targets >= 0


def masked_source(bank: Bank, encoders: FrozenEncoders, masking: Masking, *, tuned: bool) -> Source:
    """Say where masked images come from; load the image encoder where it is needed.

    Args:
        bank: Image Tokens, with or without masked views.
        encoders: Of the adaptor.
        masking: Of the method.
        tuned: Whether the image encoder is trained in the loop: then no stored view is of any use.

    Raises:
        InputError: If the bank's views hide another share than the method does, or cells are no whole patches.

    Warns:
        UserWarning: If outputs are hidden.
    """
    images = bank.info.images
    assert images is not None  # the bank holds pairs
    if images.masked_views and not tuned:
        if images.mask_ratio != masking.patch_ratio:
            expected, fix = f"masked views that hide {masking.patch_ratio}", "Embed with that --mask-ratio."
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
    images = bank.info.images
    assert images is not None  # the bank holds pairs
    height, width = images.preprocessing.image_size_px
    rows, columns = images.grid[-2:]
    if height % rows or width % columns or height // rows != width // columns or bank.info.layout == "pooled":
        expected, got = "a layout of square cells of whole pixels", f"{bank.info.layout} of {height} x {width} px"
        fix = "Embed with --grid and --image-size-px so that the one divides the other, or with --layout all."
        raise InputError(sentence(str(bank.folder), expected=expected, got=got, fix=fix))
    return height // rows


def stored_views(bank: Bank, *, seed: int) -> Callable[[Batch, int], Batch]:
    """Return what adds a stored masked view to each batch: every image goes through all its views, one per epoch."""
    images = bank.info.images
    assert images is not None  # the bank holds pairs

    def add(batch: Batch, epoch: int) -> Batch:
        first = (item_draws(batch.rows, 1, seed=seed)[:, 0] * images.masked_views).long()
        views = ((first + epoch) % images.masked_views).numpy()
        return replace(batch, masked_image=bank.masked_tokens(batch.rows.numpy().astype(np.int64), views))

    return add


class Masker(nn.Module):
    """Hides words and cells of a batch and encodes what is left.

    Words are hidden among the ids, which the text encoder reads in every step. Cells are hidden in the pixels, of which
    the image encoder sees the rest, or the bank has stored that. Only of a CNN are outputs hidden: then what is hidden
    is in part read from its neighbours, whose receptive fields reach into it, and no figure of ours rests on it.

    Args:
        encoders: With the text encoder in memory, and the image encoder where masked images come from it.
        masking: Shares of words and cells.
        source: Where masked images come from.

    Raises:
        InputError: If the text encoder has no mask token, or its texts are stored as one pooled vector.
    """

    def __init__(self, encoders: FrozenEncoders, masking: Masking, source: Source) -> None:
        super().__init__()
        self.encoders, self.masking, self.source = encoders, masking, source
        self.layout = Layout.parse(encoders.layout)
        if self.layout.kind == "pooled":
            fix = "Embed with --layout grid or all."
            raise InputError(sentence("layout", expected="all tokens of a text", got="pooled", fix=fix))
        assert encoders.text is not None  # whoever builds this has loaded it
        words = words_of(encoders.text)
        self.vocabulary = Vocabulary.of(
            words.entries, special_ids=words.special_ids, mask_id=words.mask_id, whole_words=masking.whole_words
        )

    def forward(self, batch: Batch, seed: int) -> Masked:
        """Hide and encode.

        Args:
            batch: Pairs with word ids; with pixels or a masked view where the source needs them.
            seed: Of this step.
        """
        if not len(batch):
            return _nothing(batch)
        text, targets = self._text(batch, step_seed(seed, 3))
        image, kept = self._image(batch, step_seed(seed, 4))
        return Masked(image, kept, text, targets)

    def _text(self, batch: Batch, seed: int) -> tuple[Tokens, Int[Tensor, "batch token"]]:
        assert self.encoders.text is not None
        assert batch.input_ids is not None
        assert batch.ids_valid is not None
        ids, targets = mask_words(
            batch.input_ids,
            batch.ids_valid,
            self.vocabulary,
            items=batch.rows,
            seed=seed,
            share=self.masking.word_share,
        )
        return arrange_text(self.encoders.text(ids, batch.ids_valid), self.layout), targets

    def _image(self, batch: Batch, seed: int) -> tuple[Tokens, Int[Tensor, "batch kept"]]:
        if self.source == "bank":
            assert batch.masked_image is not None
            return batch.masked_image, _kept(batch.masked_image)
        how: dict[str, Any] = {"items": batch.rows, "seed": seed, "ratio": self.masking.patch_ratio}
        if self.source == "outputs":
            return masked_outputs(both_sides(batch)[0], **how)
        assert self.encoders.image is not None
        assert batch.pixels is not None
        return masked_image_tokens(self.encoders.image, batch.pixels, self.layout, **how)


def _kept(image: Tokens) -> Int[Tensor, "batch kept"]:
    return image.valid[:, image.prefix :].nonzero()[:, 1].view(len(image), -1)


def _nothing(batch: Batch) -> Masked:
    """What becomes of a last batch whose items all lie on other processes: no encoder takes an empty one."""
    image, text = both_sides(batch)
    assert batch.input_ids is not None
    return Masked(image, batch.rows.new_zeros(0, 0), text, batch.input_ids)
