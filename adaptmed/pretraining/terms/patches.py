"""Patch term: cells of an image that were hidden before the image encoder, rebuilt from the fusion."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from adaptmed.errors import InputError, sentence
from adaptmed.objectives.masked import masked_patch_loss, patchify
from adaptmed.pretext.patch import PatchDecoder
from adaptmed.pretraining.beside import hidden_beside, require_streams
from adaptmed.pretraining.cells import cell_grid, decoded_cells, masked_cells, patch_decoder
from adaptmed.pretraining.method import Method
from adaptmed.pretraining.step import Step
from adaptmed.pretraining.views import Hidden, Needs, Seen, Sizes, View, check_share, check_weight


@dataclass(frozen=True, kw_only=True)
class HiddenPatches:
    """Squared error of the standardised pixels of hidden cells.

    Attributes:
        weight: Weight of its loss; 0 leaves it and its decoder out.
        ratio: Share of an image's patches (of the cells of the bank's layout) that are hidden.
        layer: Layer of the fusion that the decoder reads; ``None`` is the last. Layers behind it are trained by other
            terms, or stay as they were.
        decoder_width: Width of the decoder.
        decoder_blocks: Its blocks.
        decoder_heads: Its attention heads.
        beside: What the image is read beside: the ``whole`` text (M3AE), the ``hidden`` one of the word term, in one
            pass with it (UMD), or ``none``, which an image encoder alone is enough for.

    Raises:
        InputError: If a number lies outside its range.
    """

    name: ClassVar[str] = "patches"
    weight: float = 1.0
    ratio: float = 0.75
    layer: int | None = None
    decoder_width: int = 192
    decoder_blocks: int = 4
    decoder_heads: int = 6
    beside: Literal["whole", "hidden", "none"] = "whole"

    def __post_init__(self) -> None:
        check_weight("patches.weight", self.weight)
        check_share("patches.ratio", self.ratio, fix="Try 0.75.")
        for name in ("decoder_width", "decoder_blocks", "decoder_heads"):
            if getattr(self, name) < 1:
                expected, got = "at least 1", getattr(self, name)
                raise InputError(sentence(f"patches.{name}", expected=expected, got=got, fix="Raise it."))

    @property
    def hides(self) -> Hidden:
        """Cells of the image."""
        return Hidden("image", self.ratio)

    def needs(self, method: Method) -> Needs:
        """The image's stream after a layer, in which cells are hidden."""
        require_streams(method, self.name)
        if self.layer is not None and not 0 <= self.layer <= method.fusion.layers:
            expected, fix = f"a layer from 0 to {method.fusion.layers}", "Leave it out for the last layer."
            raise InputError(sentence("patches.layer", expected=expected, got=self.layer, fix=fix))
        text: Seen = "whole"
        if self.beside != "whole":
            text = hidden_beside(method, self.name, "text") if self.beside == "hidden" else None
        return Needs(views=(View("image", self.hides, text, self.layer),), texts=text is not None)

    def pretext(self, method: Method, sizes: Sizes) -> PatchDecoder:
        """Build the decoder from what is left of an image to the pixels of all cells."""
        del method
        assert sizes.cell_values is not None  # whoever hides cells knows their size
        inside = {"decoder_width": self.decoder_width, "blocks": self.decoder_blocks, "heads": self.decoder_heads}
        return PatchDecoder(sizes.width, sizes.cell_values, **inside)

    def losses(self, step: Step) -> dict[str, Float[Tensor, ""]]:
        """Return ``patches``."""
        [view] = step.views[self.name]
        decoded, hidden = decoded_cells(step, view), masked_cells(step, view).hidden
        assert step.batch.pixels is not None  # the loader reads them
        cells = patchify(step.batch.pixels, step.batch.pixels.shape[-1] // cell_grid(step.stream(view))[1])
        loss = masked_patch_loss(patch_decoder(step).out(decoded), cells, hidden)
        return {"patches": step.cut.mean_of(loss, hidden.sum())}
