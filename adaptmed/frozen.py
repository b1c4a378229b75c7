"""The frozen half of an Adaptor: two encoders, or the records of them, and how their Tokens are laid out."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from adaptmed.bank.layout import Layout, arrange_image, arrange_text
from adaptmed.encoders import load_image_encoder, load_text_encoder
from adaptmed.errors import FingerprintError, InputError, sentence
from adaptmed.records import EncoderRecord, record_image, record_text
from adaptmed.types import ImageEncoder, TextEncoder, Tokens

Images = Tokens | Float[Tensor, "batch 3 height width_px"] | Sequence[str | Path | np.ndarray]
Texts = Tokens | Sequence[str]
Encoder = TypeVar("Encoder", ImageEncoder, TextEncoder)


class FrozenEncoders(nn.Module):
    """Two frozen encoders that may be loaded later: without them only Tokens are taken, as a bank gives them.

    Args:
        image: Record of the image encoder.
        text: Record of the text encoder.
        layout: How image Tokens are laid out before the fusion: ``gridN``, ``all`` or ``pooled``.
    """

    def __init__(self, image: EncoderRecord, text: EncoderRecord, layout: str) -> None:
        super().__init__()
        self.image_record = image
        self.text_record = text
        self.layout = layout
        self.image: ImageEncoder | None = None
        self.text: TextEncoder | None = None

    @classmethod
    def of(cls, image: str | ImageEncoder, text: str | TextEncoder, layout: str) -> Self:
        """Load two encoders by name, or take them as they are, and record them."""
        image_encoder = load_image_encoder(image) if isinstance(image, str) else image
        text_encoder = load_text_encoder(text) if isinstance(text, str) else text
        frozen = cls(record_image(image_encoder), record_text(text_encoder), layout)
        frozen.image, frozen.text = image_encoder, text_encoder
        return frozen

    @property
    def parameters_count(self) -> int:
        """Frozen parameters of both encoders, loaded or not."""
        return self.image_record.parameters + self.text_record.parameters

    def load(self) -> Self:
        """Load both encoders by their recorded names, unless they are there, and check their fingerprints.

        Raises:
            FingerprintError: If the weights found are not those recorded; both values are named.
        """
        return self.load_image().load_text()

    def load_image(self) -> Self:
        """Load the image encoder alone, as :meth:`load` does."""
        if self.image is None:
            facts = self.image_record.preprocessing
            size = None if facts is None else facts.image_size_px[0]
            self.image = load_image_encoder(self.image_record.name, image_size_px=size)
        _check_fingerprint("image encoder", self.image_record, self.image.fingerprint())
        return self

    def load_text(self) -> Self:
        """Load the text encoder alone, as :meth:`load` does; embedding prompts needs no more."""
        if self.text is None:
            self.text = load_text_encoder(self.text_record.name)
        _check_fingerprint("text encoder", self.text_record, self.text.fingerprint())
        return self

    def image_tokens(self, images: Images, device: torch.device) -> Tokens:
        """Encode images and lay their Tokens out; Tokens pass as they are.

        Args:
            images: Tokens, normalised pixels, or a list of files or of arrays (height, width[, 3]).
            device: Where the encoder is.

        Raises:
            InputError: If an image cannot be read, or the encoder is not loaded.
        """
        if isinstance(images, Tokens):
            return images
        encoder = _loaded(self.image, "images")
        pixels = images if isinstance(images, Tensor) else self._pixels(images)
        with _without_graph(encoder):
            return arrange_image(encoder(pixels.to(device)), Layout.parse(self.layout))

    def text_tokens(self, texts: Texts, device: torch.device) -> Tokens:
        """Encode texts; Tokens pass as they are.

        Raises:
            InputError: If the encoder is not loaded.
        """
        if isinstance(texts, Tokens):
            return texts
        encoder = _loaded(self.text, "texts")
        found = encoder.tokenize(list(texts), self.text_record.max_tokens)
        with _without_graph(encoder):
            tokens = encoder(found.input_ids.to(device), found.valid.to(device))
        return arrange_text(tokens, Layout.parse(self.layout))

    def example_image_tokens(self) -> Tokens:
        """Tokens of one black image, to learn the grid and the number of prefix tokens."""
        facts = self.image_record.preprocessing
        assert facts is not None  # an image record always has them
        return self.image_tokens(torch.zeros(1, 3, *facts.image_size_px), torch.device("cpu"))

    def _pixels(self, images: Sequence[str | Path | np.ndarray]) -> Float[Tensor, "batch 3 height width_px"]:
        from adaptmed.data.images import prepare, read_image

        facts = self.image_record.preprocessing
        assert facts is not None  # an image record always has them
        arrays = (image if isinstance(image, np.ndarray) else read_image(Path(image)) for image in images)
        return torch.stack([prepare(array, facts) for array in arrays])


def _without_graph(encoder: ImageEncoder | TextEncoder) -> contextlib.AbstractContextManager[object]:
    """No graph through an encoder in which nothing trains."""
    trains = any(parameter.requires_grad for parameter in encoder.module.parameters())
    return contextlib.nullcontext() if trains else torch.no_grad()


def _loaded(encoder: Encoder | None, side: str) -> Encoder:
    if encoder is None:
        fix = "Call load_encoders() first."
        raise InputError(sentence(side, expected="Tokens", got="raw data and no encoder in memory", fix=fix))
    return encoder


def _check_fingerprint(which: str, record: EncoderRecord, found: str) -> None:
    if found != record.fingerprint:
        raise FingerprintError(
            sentence(
                which,
                expected=f"{record.name} with fingerprint {record.fingerprint}",
                got=f"weights with fingerprint {found}",
                fix="Load the encoder this adaptor was trained with (check its name and revision).",
            )
        )
