"""Cells of a masked image: the tokens that are left, and the features that the patch decoder makes of all of them."""

from jaxtyping import Float, Int
from torch import Tensor

from adaptmed.pretext.patch import PatchDecoder
from adaptmed.pretraining.masking import MaskedCells
from adaptmed.pretraining.step import Step
from adaptmed.pretraining.views import Hidden, View
from adaptmed.types import Tokens


def masked_cells(step: Step, view: View) -> MaskedCells:
    """Return the cells that a view of a masked image hides and keeps."""
    assert isinstance(view.image, Hidden)  # only such views are decoded
    return step.masked_cells(view.image)


def decoded_cells(step: Step, view: View) -> Float[Tensor, "batch cell decoder_width"]:
    """Decode the features of all cells from what is left of an image, once in a step."""
    stream, kept = step.stream(view), masked_cells(step, view).kept
    return step.once(
        ("decoded", view), lambda: patch_decoder(step).decode(visible_tokens(stream, kept), kept, cell_grid(stream))
    )


def patch_decoder(step: Step) -> PatchDecoder:
    """Return the decoder that the patch term trains."""
    decoder = step.pretext["patches"]
    assert isinstance(decoder, PatchDecoder)  # the patch term builds it
    return decoder


def visible_tokens(image: Tokens, kept: Int[Tensor, "batch kept"]) -> Float[Tensor, "batch seen width"]:
    """Return the prefix and the kept cells, equally many of every image."""
    return image.values[image.valid].view(len(image), image.prefix + kept.shape[1], image.values.shape[2])


def cell_grid(image: Tokens) -> tuple[int, int]:
    """Return ``(height, width)`` of an image's Tokens in cells."""
    assert image.grid is not None  # an image's Tokens have one
    return image.grid[-2], image.grid[-1]
