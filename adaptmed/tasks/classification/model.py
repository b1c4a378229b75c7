"""From images to logits through whichever parts are there: image encoder, fusion, head."""

from jaxtyping import Float
from torch import Tensor, nn

from adaptmed.adaptor.features import image_features
from adaptmed.bank.layout import Layout, arrange_image
from adaptmed.fusion import Fusion
from adaptmed.training.batches import Inputs
from adaptmed.types import ImageEncoder, Tokens


class ImageClassifier(nn.Module):
    """An image encoder, a fusion and a head, one behind the other; parts in which nothing trains stay as they are.

    Args:
        head: Features to logits.
        variant: Which features the head reads, as in ``image_features``.
        fusion: ``None`` when the head reads the encoder's Tokens, or when the inputs are features already.
        encoder: ``None`` when the inputs are Tokens or features.
        layout: How the encoder's Tokens are laid out: that of the bank the head was fitted on.
    """

    def __init__(
        self,
        head: nn.Module,
        variant: str,
        *,
        fusion: Fusion | None = None,
        encoder: ImageEncoder | None = None,
        layout: str = "all",
    ) -> None:
        super().__init__()
        self.head, self.variant, self.fusion, self.encoder = head, variant, fusion, encoder
        self.layout = Layout.parse(layout)

    def forward(self, inputs: Inputs) -> Float[Tensor, "batch output"]:
        """Return logits in fp32."""
        if self.encoder is not None:
            assert isinstance(inputs, Tensor)  # whoever gives an encoder reads pixels
            inputs = arrange_image(self.encoder(inputs), self.layout)
        if isinstance(inputs, Tokens):
            inputs = image_features(self.fusion, inputs, self.variant)
        return self.head(inputs).float()

    def train(self, mode: bool = True) -> "ImageClassifier":
        """Switch dropout on or off; a frozen fusion has none in training either."""
        super().train(mode)
        if self.fusion is not None and not any(parameter.requires_grad for parameter in self.fusion.parameters()):
            self.fusion.eval()
        return self
