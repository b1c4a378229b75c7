"""What is written down of a frozen encoder, so that it is found again and another one is noticed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptmed.bank import Bank
from adaptmed.errors import InputError, sentence
from adaptmed.fusion.base import Capabilities
from adaptmed.types import ImageEncoder, Preprocessing, TextEncoder

DEFAULT_MAX_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class EncoderRecord:
    """What must be known of a frozen encoder to find it again and to notice when it is another one.

    Attributes:
        name: The full name it is loaded by, ``source:model``.
        fingerprint: sha256 over its frozen weights.
        width: Width of its tokens.
        parameters: Number of frozen parameters.
        preprocessing: Input facts of an image encoder; ``None`` for text.
        max_tokens: Longest text it was given; ``None`` for images.
        lora: sha256 over the LoRA inside it; ``None`` where there is none.
    """

    name: str
    fingerprint: str
    width: int
    parameters: int
    preprocessing: Preprocessing | None = None
    max_tokens: int | None = None
    lora: str | None = None

    @property
    def inputs(self) -> Preprocessing:
        """Input facts of an image encoder.

        Raises:
            InputError: It is the record of a text encoder, or a file holds none.
        """
        if self.preprocessing is None:
            expected, fix = "the record of an image encoder", "Copy or save the adaptor again."
            raise InputError(sentence(self.name, expected=expected, got="one without input facts", fix=fix))
        return self.preprocessing


def record_image(encoder: ImageEncoder) -> EncoderRecord:
    """Record an image encoder, with the LoRA inside it."""
    parameters, lora = inside(encoder)
    return EncoderRecord(
        name=encoder.name,
        fingerprint=encoder.fingerprint(),
        width=encoder.width,
        parameters=parameters,
        lora=lora,
        preprocessing=encoder.preprocessing,
    )


def record_text(encoder: TextEncoder, max_tokens: int = DEFAULT_MAX_TOKENS) -> EncoderRecord:
    """Record a text encoder, with the longest text it will be given and the LoRA inside it."""
    parameters, lora = inside(encoder)
    return EncoderRecord(
        name=encoder.name,
        fingerprint=encoder.fingerprint(),
        width=encoder.width,
        parameters=parameters,
        lora=lora,
        max_tokens=min(max_tokens, encoder.max_tokens),
    )


def records_of(bank: Bank) -> tuple[EncoderRecord, EncoderRecord | None]:
    """The records of the image and the text encoder that a bank was made with; ``None`` where it holds no texts.

    Raises:
        BankError: If the bank holds no images.
    """
    images = bank.images
    image = EncoderRecord(
        name=images.name,
        fingerprint=images.fingerprint,
        width=images.width,
        parameters=images.parameters,
        preprocessing=images.preprocessing,
        lora=images.lora,
    )
    if not bank.holds_texts:
        return image, None
    texts = bank.texts
    text = EncoderRecord(
        name=texts.name,
        fingerprint=texts.fingerprint,
        width=texts.width,
        parameters=texts.parameters,
        max_tokens=texts.max_tokens,
        lora=texts.lora,
    )
    return image, text


def require_same_sides(fusion: Capabilities, text: EncoderRecord | None) -> None:
    """Refuse a fusion that reads texts on an image encoder alone, and the reverse.

    Raises:
        InputError: If it is so.
    """
    words = {True: "images and texts", False: "images alone"}
    if fusion.reads_texts != (text is not None):
        fix = "Build the fusion for the widths of these encoders."
        expected, got = f"a fusion of {words[text is not None]}, as its encoders are", words[fusion.reads_texts]
        raise InputError(sentence("fusion", expected=expected, got=f"one of {got}", fix=fix))


def inside(encoder: ImageEncoder | TextEncoder) -> tuple[int, str | None]:
    """Return the number of an encoder's frozen parameters, and the digest of its LoRA, ``None`` without."""
    every = sum(parameter.numel() for parameter in encoder.module.parameters())
    lora = getattr(encoder, "lora", None)
    if lora is None:
        return every, None
    return every - sum(parameter.numel() for parameter in lora.parameters()), lora.digest()


def keep_lora(encoder: ImageEncoder | TextEncoder | None, folder: Path) -> None:
    """Write an encoder's LoRA beside the shards, so that an adaptor trained on them can be used on raw data."""
    tuned: Any = encoder
    if getattr(tuned, "lora", None) is not None and not folder.exists():
        from adaptmed.lora import save

        save(tuned, folder)
