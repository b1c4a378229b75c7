"""From images to logits through whichever parts are there: image encoder, fusion, head."""

from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adaptmed.adaptor.features import EMBEDDING, image_features
from adaptmed.bank.layout import Layout, arrange_image
from adaptmed.fusion import Fusion
from adaptmed.lora import merge
from adaptmed.lora.settings import Tunable
from adaptmed.types import ImageEncoder, Tokens

Inputs = Tokens | Tensor
"""Pixels ``(batch, 3, height, width_px)``, Tokens, or features ``(batch, width)``: what the first part takes."""


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


def trainable_fusion(fusion: Fusion, tokens: Tokens, *, fused: bool = False) -> Fusion:
    """Copy a fusion; of the copy only the parameters that reading an image alone needs can be trained.

    Args:
        fusion: Never changed.
        tokens: Any image Tokens it takes.
        fused: Whether its fused Tokens are what is read (by a decoder), instead of its embedding.
    """
    copy = deepcopy(fusion).requires_grad_(True).eval()
    tokens = tokens.to(next(copy.parameters()).device)
    image = copy(tokens).image if fused else None
    train_used(copy, image_features(copy, tokens, EMBEDDING) if image is None else image.values)
    return copy


def trainable_encoder(encoder: ImageEncoder, pixels: Float[Tensor, "batch 3 height width_px"]) -> ImageEncoder:
    """Copy a whole image encoder; of the copy the parameters that its Tokens depend on can be trained.

    It stays in evaluation mode: dropout is off, and BatchNorm keeps the statistics of its pretraining. LoRA is merged
    into the weights of the copy first.

    Args:
        encoder: Never changed.
        pixels: Any pixels it takes.
    """
    copy = deepcopy(encoder)
    if isinstance(copy, Tunable):
        merge(copy)
    copy.module.requires_grad_(requires_grad=True)
    train_used(copy.module, copy(pixels.to(next(copy.module.parameters()).device)).values)
    return copy


def train_used(module: nn.Module, output: Tensor) -> None:
    """Let exactly the parameters be trained that an output depends on.

    Args:
        module: All of whose parameters can be trained when the output is computed.
        output: Of the module.
    """
    parameters = list(module.parameters())
    gradients = torch.autograd.grad(output.sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
