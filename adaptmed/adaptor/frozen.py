"""The frozen half of an Adaptor: two encoders, or the records of them, and how their Tokens are laid out."""

import contextlib
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from adaptmed.adaptor.records import EncoderRecord, record_image, record_text
from adaptmed.bank.layout import Layout, arrange_image, arrange_text
from adaptmed.encoders import load_image_encoder, load_text_encoder
from adaptmed.errors import FingerprintError, InputError, sentence
from adaptmed.types import ImageEncoder, Preprocessing, TextEncoder, Tokens

if TYPE_CHECKING:
    from adaptmed.lora import LoRA

Side = Literal["image", "text"]
SIDES: tuple[Side, ...] = ("image", "text")

Images = Tokens | Float[Tensor, "batch 3 height width_px"] | Sequence[str | Path | np.ndarray | Image.Image]
Texts = Tokens | Sequence[str]
Encoder = TypeVar("Encoder", ImageEncoder, TextEncoder)
_WANTED = {
    "image": (
        "files, arrays or Pillow images",
        "a file, an array or a Pillow image",
        "Pass arrays (height, width[, 3]), or one Tensor (batch, 3, height, width) of normalised pixels.",
    ),
    "text": ("strings", "a string", "Leave rows without text out, or give the empty string."),
}


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
        self.lora_folders: dict[Side, Path] = {}
        self.checked: set[Side] = set()

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
        """Load the image encoder alone at its recorded input size, as :meth:`load` does.

        Raises:
            InputError: If an input that is not square was recorded and is not the model's own.
        """
        if self.image is None:
            self.image = _load_at(self.image_record.name, self._facts().image_size_px)
        self._check("image", self.image, self.image_record)
        return self

    def load_text(self) -> Self:
        """Load the text encoder alone, as :meth:`load` does; embedding prompts needs no more."""
        if self.text is None:
            self.text = load_text_encoder(self.text_record.name)
        self._check("text", self.text, self.text_record)
        return self

    def find_lora(self, folder: Path) -> None:
        """Say where the recorded LoRA stands: in ``image_lora`` and ``text_lora`` of a saved adaptor or a bank."""
        records: dict[Side, EncoderRecord] = {"image": self.image_record, "text": self.text_record}
        self.lora_folders = {side: folder / f"{side}_lora" for side in SIDES if records[side].lora is not None}

    def attach_lora(self, side: Side, lora: "LoRA", *, seed: int = 0) -> None:
        """Put fresh LoRA inside one encoder; it is recorded when the adaptor is saved.

        Raises:
            InputError: The encoder is not loaded, has no layers of a role, or has LoRA already.
        """
        from adaptmed.lora import attach

        attach(self._encoder(side), lora, seed=seed)
        self.checked.add(side)

    def merge_lora(self) -> None:
        """Add LoRA to the weights of both encoders, whose modules are then the libraries' plain ones."""
        from adaptmed.lora import merge

        for encoder in self._tuned().values():
            merge(encoder)

    def unmerge_lora(self) -> None:
        """Take LoRA out of the weights again; they are as they were, bit for bit."""
        from adaptmed.lora import unmerge

        for encoder in self._tuned().values():
            unmerge(encoder)

    def save_lora(self, folder: Path) -> None:
        """Write ``image_lora`` and ``text_lora`` into a folder, for the sides that have LoRA."""
        tuned = self._tuned()
        for side in SIDES:
            if side in tuned:
                from adaptmed.lora import save

                save(tuned[side], folder / f"{side}_lora")
            elif side in self.lora_folders:
                shutil.copytree(self.lora_folders[side], folder / f"{side}_lora")

    def current_record(self, side: Side) -> EncoderRecord:
        """The record of one encoder with the LoRA it has now.

        Raises:
            InputError: LoRA is merged into the weights, so that they are not the pretrained ones.
        """
        record = self.image_record if side == "image" else self.text_record
        tuned = self._tuned().get(side)
        if tuned is None:
            return record
        if tuned.lora.merged is not None:
            fix = "Call unmerge_lora() first."
            raise InputError(sentence(f"{side}_lora", expected="LoRA beside the weights", got="merged", fix=fix))
        return replace(record, lora=tuned.lora.digest())

    def lora_parameters(self) -> list[nn.Parameter]:
        """The LoRA tensors of both encoders."""
        return [parameter for encoder in self._tuned().values() for parameter in encoder.lora.parameters()]

    def image_tokens(self, images: Images, device: torch.device) -> Tokens:
        """Encode images and lay their Tokens out; Tokens pass as they are.

        Args:
            images: Tokens, normalised pixels, or a list of files, of Pillow images or of arrays (height, width[, 3]).
            device: Where the Tokens are wanted; the encoder works where it is.

        Raises:
            InputError: If an image cannot be read, the list is empty or none, or the encoder is not loaded.
        """
        if isinstance(images, Tokens):
            return images
        encoder = _loaded(self.image, "images")
        pixels = images if isinstance(images, Tensor) else self._pixels(images)
        with _without_graph(encoder):
            tokens = encoder(pixels.to(_device_of(encoder)))
        return arrange_image(tokens, Layout.parse(self.layout)).to(device)

    def text_tokens(self, texts: Texts, device: torch.device) -> Tokens:
        """Encode texts; Tokens pass as they are.

        Args:
            texts: Tokens or a list of strings.
            device: Where the Tokens are wanted; the encoder works where it is.

        Raises:
            InputError: If the list is empty or none, or the encoder is not loaded.
        """
        if isinstance(texts, Tokens):
            return texts
        encoder = _loaded(self.text, "texts")
        found = encoder.tokenize(_listed(texts, "text", (str,)), self.text_record.max_tokens)
        own = _device_of(encoder)
        with _without_graph(encoder):
            tokens = encoder(found.input_ids.to(own), found.valid.to(own))
        return arrange_text(tokens, Layout.parse(self.layout)).to(device)

    def example_image_tokens(self) -> Tokens:
        """Tokens of one black image where the image encoder is, to learn the grid and the number of prefix tokens."""
        device = _device_of(_loaded(self.image, "images"))
        return self.image_tokens(torch.zeros(1, 3, *self._facts().image_size_px), device)

    def _encoder(self, side: Side) -> Any:
        return _loaded(self.image, "images") if side == "image" else _loaded(self.text, "texts")

    def _tuned(self) -> dict[Side, Any]:
        """The loaded encoders that have LoRA."""
        there: dict[Side, Any] = {"image": self.image, "text": self.text}
        return {side: encoder for side, encoder in there.items() if getattr(encoder, "lora", None) is not None}

    def _check(self, side: Side, encoder: Any, record: EncoderRecord) -> None:
        """Check that an encoder is the recorded one, and put its saved LoRA inside."""
        _check_same(f"{side} encoder", record.name, "fingerprint", record.fingerprint, encoder.fingerprint())
        if side in self.checked:
            return  # LoRA was right when it was put there; by now it may have been trained
        self.checked.add(side)
        if record.lora is not None and getattr(encoder, "lora", None) is None:
            from adaptmed.lora import load

            load(encoder, self.lora_folders[side])
        found = None if getattr(encoder, "lora", None) is None else encoder.lora.digest()
        _check_same(f"{side} encoder", record.name, "LoRA", record.lora, found)

    def _pixels(
        self, images: Sequence[str | Path | np.ndarray | Image.Image]
    ) -> Float[Tensor, "batch 3 height width_px"]:
        from adaptmed.data.images import as_array, prepare

        items = _listed(images, "image", (str, Path, np.ndarray, Image.Image))
        return torch.stack([prepare(as_array(item), self._facts()) for item in items])

    def _facts(self) -> Preprocessing:
        facts = self.image_record.preprocessing
        assert facts is not None  # an image record always has them
        return facts


def _listed(found: object, kind: Literal["image", "text"], types: tuple[type, ...]) -> list[Any]:
    """Return the items of a list of images or texts; a single one, an empty list and other items are refused."""
    some, one, fix = _WANTED[kind]
    if isinstance(found, (bytes, *types)) or not isinstance(found, Iterable):
        got = f"a single {type(found).__name__}"
        raise InputError(sentence(f"{kind}s", expected=f"a list of {some}", got=got, fix=f"Pass a list: [{kind}]."))
    items = list(found)
    if not items:
        raise InputError(sentence(f"{kind}s", expected="at least one of them", got="none", fix="Pass a list of some."))
    for index, item in enumerate(items):
        if not isinstance(item, types):
            raise InputError(sentence(f"{kind}s[{index}]", expected=one, got=type(item).__name__, fix=fix))
    return items


def _load_at(name: str, size_px: tuple[int, int]) -> ImageEncoder:
    """Load an image encoder at an input size; one that is not square must be the model's own."""
    if size_px[0] == size_px[1]:
        return load_image_encoder(name, image_size_px=size_px[0])
    encoder = load_image_encoder(name, image_size_px=None)
    found = encoder.preprocessing.image_size_px
    if found != size_px:
        expected, got = (f"{height} × {width}" for height, width in (size_px, found))
        fix = "Build the encoder at that size yourself, and pass it as image_encoder."
        raise InputError(sentence(name, expected=f"an input of {expected}", got=got, fix=fix))
    return encoder


def _device_of(encoder: ImageEncoder | TextEncoder) -> torch.device:
    """Where an encoder's weights are; the CPU where it has none."""
    parameter = next(encoder.module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _without_graph(encoder: ImageEncoder | TextEncoder) -> contextlib.AbstractContextManager[object]:
    """No graph through an encoder in which nothing trains."""
    trains = any(parameter.requires_grad for parameter in encoder.module.parameters())
    return contextlib.nullcontext() if trains else torch.no_grad()


def _loaded(encoder: Encoder | None, side: str) -> Encoder:
    if encoder is None:
        fix = "Call load_encoders() first."
        raise InputError(sentence(side, expected="Tokens", got="raw data and no encoder in memory", fix=fix))
    return encoder


def _check_same(which: str, name: str, what: str, recorded: str | None, found: str | None) -> None:
    if found != recorded:
        raise FingerprintError(
            sentence(
                which,
                expected=f"{name} with {what} {recorded}",
                got=f"weights with {what} {found}",
                fix="Load the encoder this adaptor was trained with (check its name and revision).",
            )
        )
