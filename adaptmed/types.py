"""The nouns that rooms exchange: Tokens, Fused, Batch, Preprocessing, and the Protocols of the two kinds of encoder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Side = Literal["image", "text"]
Role = Literal["attention", "mlp"]
Fit = Literal["crop", "pad", "squash"]


@dataclass(frozen=True)
class Tokens:
    """What an encoder gives for a batch of images or texts.

    Attributes:
        values: Token features; the first ``prefix`` tokens stand outside the grid (CLS, registers), the rest are the
            grid in row-major order.
        valid: False at padding. Images have no padding.
        pooled: The vector the model itself would use for the whole image or text.
        grid: ``(height, width)`` in tokens of an image, ``(depth, height, width)`` of a volume, ``None`` for text.
        prefix: How many leading tokens stand outside the grid; 0 for text.

    Example:
        >>> tokens = Tokens(torch.zeros(2, 5, 3), torch.ones(2, 5, dtype=torch.bool), torch.zeros(2, 3), (2, 2), 1)
        >>> tokens.select(torch.tensor([1])).values.shape
        torch.Size([1, 5, 3])
    """

    values: Float[Tensor, "batch token width"]
    valid: Bool[Tensor, "batch token"]
    pooled: Float[Tensor, "batch width"]
    grid: tuple[int, ...] | None = None
    prefix: int = 0

    def __len__(self) -> int:
        return self.values.shape[0]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Return the same Tokens on another device, the values and the pooled vector in ``dtype`` when given."""
        return replace(
            self,
            values=self.values.to(device, dtype, non_blocking=True),
            valid=self.valid.to(device, non_blocking=True),
            pooled=self.pooled.to(device, dtype, non_blocking=True),
        )

    def select(self, rows: Int[Tensor, " n"]) -> Self:
        """Return the Tokens of the items ``rows``, in that order."""
        return replace(self, values=self.values[rows], valid=self.valid[rows], pooled=self.pooled[rows])


@dataclass(frozen=True)
class Fused:
    """What a fusion gives for a batch of images, texts or pairs.

    ``image_embedding`` and ``text_embedding`` are always of one modality alone: an image's embedding does not change
    with the text beside it, nor the reverse (no pair leak). Only ``image``, ``text`` and ``joint`` have seen both.

    Attributes:
        image: Image Tokens fused with the text, or of the image alone when there is no text; ``None`` without image.
        text: Text Tokens fused with the image, or of the text alone; ``None`` without text.
        joint: One vector for the pair; ``None`` unless both modalities are there.
        image_embedding: Embedding of the image alone, L2-normalised.
        text_embedding: Embedding of the text alone, L2-normalised.
    """

    image: Tokens | None
    text: Tokens | None
    joint: Float[Tensor, "batch joint_width"] | None
    image_embedding: Float[Tensor, "batch width"] | None
    text_embedding: Float[Tensor, "batch width"] | None


@dataclass(frozen=True)
class TokenIds:
    """Tokenised texts.

    Attributes:
        input_ids: Word ids, padded on the right.
        valid: False at padding.
        truncated: True where a text was longer than allowed and lost its end.
    """

    input_ids: Int[Tensor, "batch token"]
    valid: Bool[Tensor, "batch token"]
    truncated: Bool[Tensor, " batch"]


@dataclass(frozen=True)
class Batch:
    """What a training step reads: the Tokens of image-text pairs and what else the bank holds of them.

    Attributes:
        rows: Row numbers in the bank, the identity of the items.
        ids: Row ids as printed in messages.
        image: Image Tokens, or ``None``.
        text: Text Tokens, or ``None``.
        text_group: Equal numbers mean identical texts; -1 where there is no text.
        input_ids: Word ids of the texts, padded on the right, or ``None``.
        ids_valid: False at padding of ``input_ids``.
        pixels: Normalised images, when an encoder is trained in the loop or pixels are predicted, or ``None``.
        masked_image: Image Tokens of a stored masked view, whose hidden cells are not valid, or ``None``.
        labels: NaN where not labelled, when a method asks for them, or ``None``.
        patient_group: Equal numbers mean the same patient, when a method asks for them, or ``None``.
    """

    rows: Int[Tensor, " batch"]
    ids: tuple[str, ...]
    image: Tokens | None
    text: Tokens | None
    text_group: Int[Tensor, " batch"]
    input_ids: Int[Tensor, "batch id"] | None = None
    ids_valid: Bool[Tensor, "batch id"] | None = None
    pixels: Float[Tensor, "batch 3 height width_px"] | None = None
    masked_image: Tokens | None = None
    labels: Float[Tensor, "batch label"] | None = None
    patient_group: Int[Tensor, " batch"] | None = None

    def __len__(self) -> int:
        return self.rows.shape[0]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Return the same batch on another device."""
        return replace(
            self,
            rows=self.rows.to(device),
            image=None if self.image is None else self.image.to(device, dtype),
            text=None if self.text is None else self.text.to(device, dtype),
            text_group=self.text_group.to(device),
            input_ids=None if self.input_ids is None else self.input_ids.to(device),
            ids_valid=None if self.ids_valid is None else self.ids_valid.to(device),
            pixels=None if self.pixels is None else self.pixels.to(device, non_blocking=True),
            masked_image=None if self.masked_image is None else self.masked_image.to(device, dtype),
            labels=None if self.labels is None else self.labels.to(device),
            patient_group=None if self.patient_group is None else self.patient_group.to(device),
        )


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes an encoder's input; read from the model's own facts, never retyped.

    Attributes:
        image_size_px: ``(height, width)`` of the input.
        mean: Per channel, of values in [0, 1].
        std: Per channel, of values in [0, 1].
        interpolation: Resampling filter.
        crop_fraction: With ``fit="crop"``: the shorter side becomes ``size / crop_fraction`` before the centre crop.
        fit: ``crop`` (shorter side, centre crop), ``pad`` (longer side, zero padding) or ``squash`` (aspect is lost).
    """

    image_size_px: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"
    crop_fraction: float = 1.0
    fit: Fit = "crop"


@runtime_checkable
class ImageEncoder(Protocol):
    """A frozen pretrained image network with its preprocessing facts.

    Attributes:
        name: The full name it is loaded by, ``source:model``.
        width: Width of its tokens.
        preprocessing: Its own input facts.
        roles: Which of the library's layer names serve each role, as suffixes relative to ``module``.
    """

    name: str
    width: int
    preprocessing: Preprocessing
    roles: Mapping[Role, tuple[str, ...]]

    @property
    def module(self) -> nn.Module:
        """The library's own module, unwrapped."""
        ...

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The network's blocks (or stages) in the order data passes them."""
        ...

    def __call__(self, pixels: Float[Tensor, "batch 3 height width_px"]) -> Tokens:
        """Encode normalised pixels of any size the network can take."""
        ...

    def taps(
        self, pixels: Float[Tensor, "batch 3 height width_px"], count: int = 4
    ) -> list[Float[Tensor, "batch channel row column"]]:
        """Return ``count`` feature maps, shallow to deep."""
        ...

    def fingerprint(self) -> str:
        """Return the sha256 over the frozen weights."""
        ...


@runtime_checkable
class TextEncoder(Protocol):
    """A frozen pretrained text network with its tokenizer.

    Attributes:
        name: The full name it is loaded by, ``source:model``.
        width: Width of its tokens.
        max_tokens: The longest input it can take.
        roles: Which of the library's layer names serve each role, as suffixes relative to ``module``.
    """

    name: str
    width: int
    max_tokens: int
    roles: Mapping[Role, tuple[str, ...]]

    @property
    def module(self) -> nn.Module:
        """The library's own module, unwrapped."""
        ...

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The network's blocks in the order data passes them."""
        ...

    def tokenize(self, texts: Sequence[str], max_tokens: int | None = None) -> TokenIds:
        """Turn texts into word ids, padded to the longest text of this call."""
        ...

    def __call__(self, input_ids: Int[Tensor, "batch token"], valid: Bool[Tensor, "batch token"]) -> Tokens:
        """Encode word ids."""
        ...

    def taps(
        self, input_ids: Int[Tensor, "batch token"], valid: Bool[Tensor, "batch token"], count: int = 4
    ) -> list[Float[Tensor, "batch token width"]]:
        """Return the token features after ``count`` blocks, shallow to deep."""
        ...

    def fingerprint(self) -> str:
        """Return the sha256 over the frozen weights."""
        ...
