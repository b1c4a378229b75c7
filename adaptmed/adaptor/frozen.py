"""The frozen half of an Adaptor: its encoders, or the records of them, and how their Tokens are laid out."""

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from torch import Tensor, nn

from adaptmed.adaptor.inputs import Images, Texts, listed, pixels_of
from adaptmed.adaptor.records import EncoderRecord, record_image, record_text
from adaptmed.bank.layout import Layout, arrange_image, arrange_text
from adaptmed.encoders import load_image_encoder, load_text_encoder
from adaptmed.errors import FingerprintError, InputError, sentence
from adaptmed.types import ImageEncoder, Side, TextEncoder, Tokens

if TYPE_CHECKING:
    from adaptmed.lora import LoRA

SIDES: tuple[Side, ...] = ("image", "text")

Encoder = TypeVar("Encoder", ImageEncoder, TextEncoder)


class FrozenEncoders(nn.Module):
    """Frozen encoders that may be loaded later: without them only Tokens are taken, as a bank gives them.

    Args:
        image: Record of the image encoder.
        text: Record of the text encoder; ``None`` where images are all there is.
        layout: How image Tokens are laid out before the fusion: ``gridN``, ``all`` or ``pooled``.
    """

    def __init__(self, image: EncoderRecord, text: EncoderRecord | None, layout: str) -> None:
        super().__init__()
        self.image_record = image
        self.text_record = text
        self.layout = layout
        self.image: ImageEncoder | None = None
        self.text: TextEncoder | None = None
        self.lora_folders: dict[Side, Path] = {}
        self.checked: set[Side] = set()

    @classmethod
    def of(cls, image: str | ImageEncoder, text: str | TextEncoder | None, layout: str) -> Self:
        """Load encoders by name, or take them as they are, and record them."""
        image_encoder = load_image_encoder(image) if isinstance(image, str) else image
        text_encoder = load_text_encoder(text) if isinstance(text, str) else text
        text_record = None if text_encoder is None else record_text(text_encoder)
        frozen = cls(record_image(image_encoder), text_record, layout)
        frozen.image, frozen.text = image_encoder, text_encoder
        return frozen

    @property
    def records(self) -> dict[Side, EncoderRecord]:
        """The records of the encoders there are, by side, images first."""
        images: dict[Side, EncoderRecord] = {"image": self.image_record}
        return images if self.text_record is None else images | {"text": self.text_record}

    def record_of(self, side: Side, name: str | None = None) -> EncoderRecord:
        """Return the record of one encoder.

        Args:
            side: Which one.
            name: What asks for it, named in the error; the side itself when left out.

        Raises:
            InputError: It is the text encoder, and there is none.
        """
        found = self.records.get(side)
        if found is None:
            fix = "Leave texts out, or make the adaptor with a text encoder."
            expected, got = "an adaptor that has a text encoder", "one of images alone"
            raise InputError(sentence(name or side, expected=expected, got=got, fix=fix))
        return found

    @property
    def widths(self) -> tuple[int, int | None]:
        """Widths of the image and the text Tokens; ``None`` without a text encoder."""
        return self.image_record.width, None if self.text_record is None else self.text_record.width

    @property
    def parameters_count(self) -> int:
        """Frozen parameters of the encoders, loaded or not."""
        return sum(record.parameters for record in self.records.values())

    def load(self) -> Self:
        """Load the encoders by their recorded names, unless they are there, and check their fingerprints.

        Raises:
            FingerprintError: If the weights found are not those recorded; both values are named.
        """
        for side in self.records:
            self._load(side)
        return self

    def load_image(self) -> ImageEncoder:
        """Load the image encoder alone at its recorded input size, as :meth:`load` does, and return it.

        Raises:
            InputError: If an input that is not square was recorded and is not the model's own.
        """
        if self.image is None:
            self.image = _load_at(self.image_record.name, self.image_record.inputs.image_size_px)
        self._check("image", self.image, self.image_record)
        return self.image

    def load_text(self) -> TextEncoder:
        """Load the text encoder alone, as :meth:`load` does, and return it; embedding prompts needs no more.

        Raises:
            InputError: If there is none.
        """
        record = self.record_of("text")
        if self.text is None:
            self.text = load_text_encoder(record.name)
        self._check("text", self.text, record)
        return self.text

    def find_lora(self, folder: Path) -> None:
        """Say where the recorded LoRA stands: in ``image_lora`` and ``text_lora`` of a saved adaptor or a bank."""
        tuned = [side for side, record in self.records.items() if record.lora is not None]
        self.lora_folders = {side: folder / f"{side}_lora" for side in tuned}

    def attach_lora(self, side: Side, lora: "LoRA", *, seed: int = 0) -> None:
        """Load one encoder unless it is there, and put fresh LoRA inside; it is recorded when the adaptor is saved.

        Raises:
            InputError: The encoder has no layers of a role or has LoRA already, or there is no text encoder.
            FingerprintError: If the weights found are not those recorded.
        """
        from adaptmed.lora import attach

        self.record_of(side, f"{side}_lora")
        attach(self._load(side), lora, seed=seed)

    def merge_lora(self) -> None:
        """Add LoRA to the weights of the encoders, whose modules are then the libraries' plain ones."""
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
            InputError: LoRA is merged into the weights, so that they are not the pretrained ones, or there is no such
                encoder.
        """
        record = self.record_of(side)
        tuned = self._tuned().get(side)
        if tuned is None:
            return record
        if tuned.lora.merged is not None:
            fix = "Call unmerge_lora() first."
            raise InputError(sentence(f"{side}_lora", expected="LoRA beside the weights", got="merged", fix=fix))
        return replace(record, lora=tuned.lora.digest())

    def lora_parameters(self) -> list[nn.Parameter]:
        """The LoRA tensors of the encoders."""
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
        pixels = images if isinstance(images, Tensor) else pixels_of(images, self.image_record.inputs)
        with _without_graph(encoder):
            tokens = encoder(pixels.to(_device_of(encoder)))
        return arrange_image(tokens, Layout.parse(self.layout)).to(device)

    def text_tokens(self, texts: Texts, device: torch.device) -> Tokens:
        """Encode texts; Tokens pass as they are.

        Args:
            texts: Tokens or a list of strings.
            device: Where the Tokens are wanted; the encoder works where it is.

        Raises:
            InputError: If the list is empty or none, or the encoder is not loaded, or there is none.
        """
        record = self.record_of("text", "texts")
        if isinstance(texts, Tokens):
            return texts
        encoder = _loaded(self.text, "texts")
        found = encoder.tokenize(listed(texts, "text", (str,)), record.max_tokens)
        own = _device_of(encoder)
        with _without_graph(encoder):
            tokens = encoder(found.input_ids.to(own), found.valid.to(own))
        return arrange_text(tokens, Layout.parse(self.layout)).to(device)

    def example_image_tokens(self) -> Tokens:
        """Tokens of one black image where the image encoder is, to learn the grid and the number of prefix tokens."""
        device = _device_of(_loaded(self.image, "images"))
        return self.image_tokens(torch.zeros(1, 3, *self.image_record.inputs.image_size_px), device)

    def _load(self, side: Side) -> Any:
        return self.load_image() if side == "image" else self.load_text()

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
