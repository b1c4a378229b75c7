"""The Adaptor: two frozen encoders and the trainable fusion between their Tokens."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from adaptmed.bank import Bank
from adaptmed.bank.layout import Layout, arrange_image, arrange_text
from adaptmed.card import model_card
from adaptmed.encoders import load_image_encoder, load_text_encoder
from adaptmed.errors import FingerprintError, InputError, sentence
from adaptmed.fusion import CrossConfig, CrossFusion, Fusion, build_fusion
from adaptmed.fusion.standardise import channel_statistics
from adaptmed.records import EncoderRecord, record_image, record_text, records_of
from adaptmed.saving import AdaptorConfig, library_versions, read_adaptor, write_adaptor
from adaptmed.types import Fused, ImageEncoder, TextEncoder, Tokens

Images = Tokens | Float[Tensor, "batch 3 height width_px"] | Sequence[str | Path | np.ndarray]
Texts = Tokens | Sequence[str]
Encoder = TypeVar("Encoder", ImageEncoder, TextEncoder)


class Adaptor(nn.Module):
    """Two frozen encoders, and the trainable fusion between their Tokens.

    Build one with :meth:`from_encoders` or :meth:`from_pretrained`. An Adaptor without its encoders in memory
    (``image_encoder=None``) works on Tokens, which is all that training from a bank needs; the records say which
    encoders the Tokens must come from.

    Args:
        fusion: The trainable part, as ``adaptmed.fusion.build_fusion`` makes it.
        image: Record of the image encoder.
        text: Record of the text encoder.
        layout: How image Tokens are laid out before the fusion: ``gridN``, ``all`` or ``pooled``.
        image_encoder: The frozen encoder itself, when raw images are to be read.
        text_encoder: The frozen encoder itself, when raw texts are to be read.

    Example:
        >>> adaptor = Adaptor.from_encoders("bundled:dinov2-small", "bundled:minilm-l6")  # doctest: +SKIP
        >>> fused = adaptor(images=["chest.png"], texts=["small left effusion"])  # doctest: +SKIP
    """

    def __init__(
        self,
        fusion: Fusion,
        *,
        image: EncoderRecord,
        text: EncoderRecord,
        layout: str = "grid8",
        image_encoder: ImageEncoder | None = None,
        text_encoder: TextEncoder | None = None,
    ) -> None:
        super().__init__()
        self.fusion = fusion
        self.image_record = image
        self.text_record = text
        self.layout = layout
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder

    @classmethod
    def from_encoders(
        cls,
        image: str | ImageEncoder,
        text: str | TextEncoder,
        *,
        fusion: str = "cross",
        width: int = 256,
        layers: int = 2,
        heads: int = 4,
        layout: str = "grid8",
        faithful: bool = False,
    ) -> Self:
        """Put a fresh fusion between two frozen encoders.

        Args:
            image: Name (``timm:…``, ``hf:…``, ``open_clip:…``, ``bundled:…``) or the encoder itself.
            text: Name or the encoder itself.
            fusion: Kind of fusion; ``cross``.
            width: Width of the fusion and of the embeddings.
            layers: Layers, shared between the modalities.
            heads: Attention heads.
            layout: How image Tokens are laid out before the fusion: ``gridN``, ``all`` or ``pooled``.
            faithful: Arrange the fusion as the paper's released code does: pooled vectors through 768-wide layers
                with 12 heads; then ``width``, ``layers`` and ``heads`` have no say.

        Raises:
            InputError: If a name, the kind of fusion or a size is not one there is.
        """
        if fusion != "cross":
            raise InputError(sentence("fusion", expected="'cross'", got=repr(fusion), fix="Pass fusion='cross'."))
        image_encoder = load_image_encoder(image) if isinstance(image, str) else image
        text_encoder = load_text_encoder(text) if isinstance(text, str) else text
        image_record, text_record = record_image(image_encoder), record_text(text_encoder)
        example = _example_tokens(image_encoder, image_record, layout)
        assert example.grid is not None  # images always have one
        shape = _shape(
            image_record, text_record, example.grid, example.prefix, (width, layers, heads, 0.1), faithful=faithful
        )
        return cls(
            build_fusion(shape),
            image=image_record,
            text=text_record,
            layout=layout,
            image_encoder=image_encoder,
            text_encoder=text_encoder,
        )

    @classmethod
    def from_bank(
        cls,
        bank: Bank,
        *,
        width: int = 256,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
        faithful: bool = False,
    ) -> Self:
        """Put a fresh fusion between the two encoders a bank was made with, without loading them.

        Args:
            bank: Holds Tokens of images and of texts.
            width: Width of the fusion and of the embeddings.
            layers: Layers, shared between the modalities.
            heads: Attention heads.
            dropout: Dropout inside the fusion during training.
            faithful: The released arrangement, as in :meth:`from_encoders`.

        Raises:
            BankError: If the bank lacks one of the modalities.
        """
        image, text = records_of(bank)
        assert bank.info.images is not None  # else there were no records
        grid, prefix = bank.info.images.grid, bank.info.images.prefix
        shape = _shape(image, text, grid, prefix, (width, layers, heads, dropout), faithful=faithful)
        return cls(build_fusion(shape), image=image, text=text, layout=bank.info.layout)

    def standardise(self, bank: Bank, rows: NDArray[np.int64], *, most: int = 2048) -> None:
        """Fit the fusion's input statistics per channel on rows of a bank; the released arrangement has none.

        Args:
            bank: The Tokens this adaptor will be trained on.
            rows: Training rows; at most ``most`` of them, evenly spread, are read.
            most: Rows that are read.
        """
        if not isinstance(self.fusion, CrossFusion):
            return
        rows = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]
        self.fusion.image_standardise.fit(*channel_statistics(bank.image_tokens, rows))
        self.fusion.text_standardise.fit(*channel_statistics(bank.text_tokens, rows))

    @property
    def width(self) -> int:
        """Width of both embeddings."""
        return self.fusion.width

    def forward(self, images: Images | None = None, texts: Texts | None = None) -> Fused:
        """Encode and fuse pairs; either side may be missing.

        Args:
            images: Tokens, normalised pixels, or a list of files or of arrays (height, width[, 3]).
            texts: Tokens or a list of strings.

        Raises:
            InputError: If both sides are missing, their lengths differ, or an encoder is needed and not loaded.
        """
        return self.fusion(
            None if images is None else self.image_tokens(images), None if texts is None else self.text_tokens(texts)
        )

    def embed_images(self, images: Images) -> Float[Tensor, "batch width"]:
        """Embed images alone: L2-normalised, comparable with :meth:`embed_texts`."""
        return self.fusion.embed_image(self.image_tokens(images))

    def embed_texts(self, texts: Texts) -> Float[Tensor, "batch width"]:
        """Embed texts alone: L2-normalised, comparable with :meth:`embed_images`."""
        return self.fusion.embed_text(self.text_tokens(texts))

    def image_tokens(self, images: Images) -> Tokens:
        """Encode images with the frozen encoder and lay their Tokens out; Tokens pass as they are."""
        if isinstance(images, Tokens):
            return images
        encoder = self._loaded(self.image_encoder, "images")
        if not isinstance(images, Tensor):
            from adaptmed.data.images import prepare, read_image

            facts = self.image_record.preprocessing
            assert facts is not None  # an image record always has them
            arrays = (image if isinstance(image, np.ndarray) else read_image(Path(image)) for image in images)
            images = torch.stack([prepare(array, facts) for array in arrays])
        with _frozen(encoder):
            return arrange_image(encoder(images.to(self._device())), Layout.parse(self.layout))

    def text_tokens(self, texts: Texts) -> Tokens:
        """Encode texts with the frozen encoder; Tokens pass as they are."""
        if isinstance(texts, Tokens):
            return texts
        encoder = self._loaded(self.text_encoder, "texts")
        found = encoder.tokenize(list(texts), self.text_record.max_tokens)
        with _frozen(encoder):
            tokens = encoder(found.input_ids.to(self._device()), found.valid.to(self._device()))
        return arrange_text(tokens, Layout.parse(self.layout))

    def load_encoders(self) -> Self:
        """Load both frozen encoders by their recorded names, unless they are there, and check their fingerprints.

        Raises:
            FingerprintError: If the weights found are not those this adaptor was trained with.
        """
        facts = self.image_record.preprocessing
        size = None if facts is None else facts.image_size_px[0]
        if self.image_encoder is None:
            self.image_encoder = load_image_encoder(self.image_record.name, image_size_px=size)
        if self.text_encoder is None:
            self.text_encoder = load_text_encoder(self.text_record.name)
        _check_fingerprint("image encoder", self.image_record, self.image_encoder.fingerprint())
        _check_fingerprint("text encoder", self.text_record, self.text_encoder.fingerprint())
        return self

    def print_trainable_parameters(self) -> None:
        """Print trainable and frozen parameter counts in PEFT's format."""
        trainable = trainable_parameters(self.fusion)
        every = trainable + self.image_record.parameters + self.text_record.parameters
        print(f"trainable params: {trainable:,} || all params: {every:,} || trainable%: {100 * trainable / every:.4f}")

    def config(self, labels: Sequence[str] = ()) -> AdaptorConfig:
        """Everything about this adaptor that is not a tensor."""
        shape = self.fusion.config
        return AdaptorConfig(
            versions=library_versions(),
            fusion={"kind": "cross", **asdict(shape)},
            image=self.image_record,
            text=self.text_record,
            layout=self.layout,
            labels=tuple(labels),
        )

    def save_pretrained(
        self, folder: str | Path, *, metrics: Mapping[str, Any] | None = None, labels: Sequence[str] = ()
    ) -> None:
        """Write the fusion, the records of the encoders and a card; never a frozen weight.

        Args:
            folder: Written whole or not at all; an earlier saved adaptor there is replaced.
            metrics: Written to ``metrics.json``.
            labels: Names of the labels it was judged on.
        """
        config = self.config(labels)
        trainable = trainable_parameters(self.fusion)
        card = model_card(config, trainable_parameters=trainable, metrics=metrics or {})
        write_adaptor(Path(folder), config, self.fusion.state_dict(), metrics=metrics or {}, card=card)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        image_encoder: ImageEncoder | None = None,
        text_encoder: TextEncoder | None = None,
        load_encoders: bool = True,
    ) -> Self:
        """Read a saved adaptor and the frozen encoders it belongs to.

        Args:
            folder: A saved adaptor, or a run folder that holds one.
            image_encoder: Use this one instead of loading it by name.
            text_encoder: Use this one instead of loading it by name.
            load_encoders: False leaves the encoders on disk; the adaptor then works on Tokens.

        Raises:
            InputError: If there is no saved adaptor or its configuration is not readable.
            FingerprintError: If an encoder's weights are not those it was trained with; both values are named.
        """
        config, tensors = read_adaptor(Path(folder))
        shape = {name: value for name, value in config.fusion.items() if name != "kind"}
        fusion = build_fusion(CrossConfig.from_json(shape))
        fusion.load_state_dict(tensors)
        adaptor = cls(
            fusion,
            image=config.image,
            text=config.text,
            layout=config.layout,
            image_encoder=image_encoder,
            text_encoder=text_encoder,
        ).eval()
        return adaptor.load_encoders() if load_encoders else adaptor

    def _device(self) -> torch.device:
        return next(self.fusion.parameters()).device

    def _loaded(self, encoder: Encoder | None, side: str) -> Encoder:
        if encoder is None:
            raise InputError(
                sentence(side, expected="Tokens", got="raw data and no encoder", fix="Call load_encoders() first.")
            )
        return encoder


def _shape(
    image: EncoderRecord,
    text: EncoderRecord,
    grid: tuple[int, ...],
    prefix: int,
    sizes: tuple[int, int, int, float],
    *,
    faithful: bool,
) -> CrossConfig:
    if faithful:
        return CrossConfig.released(image.width, text.width)
    width, layers, heads, dropout = sizes
    return CrossConfig(
        image_width=image.width,
        text_width=text.width,
        width=width,
        layers=layers,
        heads=heads,
        dropout=dropout,
        image_grid=(grid[-2], grid[-1]),
        image_prefix=prefix,
    )


def trainable_parameters(module: nn.Module) -> int:
    """Number of parameters of ``module`` that training changes."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _frozen(encoder: ImageEncoder | TextEncoder) -> contextlib.AbstractContextManager[object]:
    """No graph through an encoder in which nothing trains."""
    trains = any(parameter.requires_grad for parameter in encoder.module.parameters())
    return contextlib.nullcontext() if trains else torch.no_grad()


def _example_tokens(encoder: ImageEncoder, record: EncoderRecord, layout: str) -> Tokens:
    """Encode one black image, to learn the grid and the number of prefix tokens."""
    assert record.preprocessing is not None  # an image record always has them
    with torch.no_grad():
        black = torch.zeros(1, 3, *record.preprocessing.image_size_px)
        return arrange_image(encoder(black), Layout.parse(layout))


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
