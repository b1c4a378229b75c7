"""Frozen pretrained encoders by name: one door per library, and bundled ones that need no network."""

import torch

from adaptmed.encoders._masked import drops_patches, masked_tokens, patch_grid
from adaptmed.encoders.base import tokens_and_taps
from adaptmed.encoders.words import Words, words_of
from adaptmed.errors import InputError, sentence
from adaptmed.types import ImageEncoder, TextEncoder

__all__ = [
    "Words",
    "drops_patches",
    "load_image_encoder",
    "load_text_encoder",
    "masked_tokens",
    "patch_grid",
    "tokens_and_taps",
    "words_of",
]


def load_image_encoder(name: str, *, image_size_px: int | None = None) -> ImageEncoder:
    """Load a frozen image encoder with its preprocessing facts. The random-number state stays as it was.

    Args:
        name: ``timm:NAME[@revision]``, ``timm:hf-hub:ORG/NAME``, ``open_clip:ARCH/PRETRAINED``,
            ``open_clip:hf-hub:ORG/NAME``, ``hf:ORG/NAME[@revision]``, ``hf:./folder``, ``bundled:dinov2-small`` or
            ``bundled:efficientnet-lite0``. Without network only ``bundled:`` and local folders work.
        image_size_px: Side of the square input; default the model's own (bundled DINOv2: 224). Position embeddings
            are interpolated in the forward pass.

    Raises:
        InputError: Unknown source or model, weights that cannot be had, a size that does not fit.
        FingerprintError: A bundled file is not the one this version was made with.
        MissingExtraError: The package that carries a bundled encoder is not installed.

    Example:
        >>> encoder = load_image_encoder("bundled:efficientnet-lite0")
        >>> encoder(torch.zeros(1, 3, 224, 224)).values.shape
        torch.Size([1, 49, 1280])
    """
    source, model = _split(name, ("timm", "open_clip", "hf", "bundled"))
    with torch.random.fork_rng(devices=[]):
        if source == "timm":
            from adaptmed.encoders import _timm

            return _timm.load_image_encoder(model, image_size_px)
        if source == "open_clip":
            from adaptmed.encoders import _open_clip

            return _open_clip.load_image_encoder(model, image_size_px)
        if source == "hf":
            from adaptmed.encoders import _transformers

            return _transformers.load_image_encoder(model, image_size_px)
        from adaptmed.encoders import bundled

        return bundled.load_image_encoder(model, image_size_px)


def load_text_encoder(name: str) -> TextEncoder:
    """Load a frozen text encoder with its tokenizer. The random-number state stays as it was.

    Args:
        name: ``open_clip:ARCH/PRETRAINED``, ``open_clip:hf-hub:ORG/NAME``, ``hf:ORG/NAME[@revision]``,
            ``hf:./folder`` or ``bundled:minilm-l6``. Without network only ``bundled:`` and local folders work.

    Raises:
        InputError: Unknown source or model, or weights that cannot be had.
        FingerprintError: A bundled file is not the one this version was made with.
        MissingExtraError: The package that carries a bundled encoder is not installed.

    Example:
        >>> encoder = load_text_encoder("bundled:minilm-l6")
        >>> ids = encoder.tokenize(["small left effusion"])
        >>> encoder(ids.input_ids, ids.valid).pooled.shape
        torch.Size([1, 384])
    """
    source, model = _split(name, ("open_clip", "hf", "bundled"))
    with torch.random.fork_rng(devices=[]):
        if source == "open_clip":
            from adaptmed.encoders import _open_clip

            return _open_clip.load_text_encoder(model)
        if source == "hf":
            from adaptmed.encoders import _transformers

            return _transformers.load_text_encoder(model)
        from adaptmed.encoders import bundled

        return bundled.load_text_encoder(model)


def _split(name: str, sources: tuple[str, ...]) -> tuple[str, str]:
    source, _, model = name.partition(":")
    if source not in sources or not model:
        expected = f"source:model with a source of {', '.join(sources)}"
        fix = "For example bundled:dinov2-small (images) or bundled:minilm-l6 (texts)."
        raise InputError(sentence("name", expected=expected, got=repr(name), fix=fix))
    return source, model
