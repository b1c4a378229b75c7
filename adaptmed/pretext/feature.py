"""From a student's features to its teacher's: the heads of UMD's feature reconstruction.

Each returns what ``adaptmed.objectives.reconstruction`` compares: the prediction and its target.
"""

from jaxtyping import Float, Int
from torch import Tensor, nn

from adaptmed.pretext.patch import PatchDecoder, unshuffle


class ImageFeatureHead(nn.Module):
    """A linear layer from the patch decoder's features to the teacher's width.

    Args:
        decoder_width: Width of what ``PatchDecoder.decode`` returns.
        width: Width of the teacher's tokens.
    """

    def __init__(self, decoder_width: int, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(decoder_width, width)

    def forward(
        self, decoded: Float[Tensor, "batch patch decoder_width"], teacher: Float[Tensor, "batch patch width"]
    ) -> tuple[Float[Tensor, "batch patch width"], Float[Tensor, "batch patch width"]]:
        """Return the prediction and its target, the teacher's grid tokens without gradient."""
        return self.out(decoded), teacher.detach()


class TextFeatureHead(nn.Module):
    """A linear layer from the student's text tokens to the teacher's.

    Args:
        width: Width of both.
        faithful: Pass the teacher's tokens through the same layer and let the gradient in, as the released code does:
            a layer of zeros then solves it. There is no bias then: it would cancel out, and never learn.
    """

    def __init__(self, width: int, *, faithful: bool = False) -> None:
        super().__init__()
        self.out = nn.Linear(width, width, bias=not faithful)
        self.faithful = faithful

    def forward(
        self, student: Float[Tensor, "batch token width"], teacher: Float[Tensor, "batch token width"]
    ) -> tuple[Float[Tensor, "batch token width"], Float[Tensor, "batch token width"]]:
        """Return the prediction and its target."""
        return self.out(student), self.out(teacher.detach()) if self.faithful else teacher.detach()


def released_image_features(
    decoder: PatchDecoder,
    visible: Float[Tensor, "batch kept width"],
    kept: Int[Tensor, "batch kept"],
    teacher: Float[Tensor, "batch patch width"],
) -> tuple[Float[Tensor, "batch patch decoder_width"], Float[Tensor, "batch patch decoder_width"]]:
    """Return prediction and target as UMD's released code makes them, without a head of their own.

    Both sides pass the decoder's first layer, none its blocks. At hidden patches, which alone are compared, the
    prediction is the bare mask token: only that token and the first layer learn, the student does not.

    Args:
        decoder: Of masked image modelling.
        visible: The student's grid tokens, of the kept patches.
        kept: Their places.
        teacher: The teacher's grid tokens.
    """
    predicted = unshuffle(decoder.embed(visible), kept, decoder.mask_token, patches=teacher.shape[1])
    return predicted, decoder.embed(teacher.detach())
