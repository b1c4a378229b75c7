"""Copies of a fusion or an encoder in which exactly the parameters train that an output depends on, or LoRA alone."""

from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adaptmed.adaptor.features import EMBEDDING, image_features
from adaptmed.errors import InputError, sentence
from adaptmed.fusion import Fusion
from adaptmed.lora import LoRA, attach, merge
from adaptmed.lora.settings import Tunable
from adaptmed.types import ImageEncoder, Tokens


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


def trainable_lora(encoder: ImageEncoder, lora: LoRA, *, seed: int) -> ImageEncoder:
    """Copy an image encoder and put fresh LoRA inside the copy, where nothing else can be trained.

    LoRA that is inside the encoder is merged into the weights of the copy first.

    Args:
        encoder: Never changed.
        lora: What is tuned.
        seed: Of the fresh weights; the global generator is left alone.

    Raises:
        InputError: The encoder has no layers that take it.
    """
    copy = deepcopy(encoder)
    if not isinstance(copy, Tunable):
        fix = "Load it by its name with load_image_encoder."
        raise InputError(sentence(encoder.name, expected="an encoder that takes LoRA", got="another", fix=fix))
    merge(copy)
    copy.lora = None
    attach(copy, lora, seed=seed)
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


def trainable_pair_fusion(fusion: Fusion, image: Tokens, text: Tokens) -> Fusion:
    """Copy a fusion; of the copy only the parameters that the joint vector depends on can be trained.

    Args:
        fusion: Never changed.
        image: Any image Tokens it takes.
        text: Text Tokens of the same items.
    """
    copy = deepcopy(fusion).requires_grad_(True).eval()
    device = next(copy.parameters()).device
    train_used(copy, copy.fuse(image.to(device), text.to(device))[2])
    return copy
