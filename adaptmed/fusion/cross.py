r"""The ``cross`` fusion of the Adaptor paper, token by token: layers shared between modalities, images and texts alone.

Reference: Qin, Liu, Cheng, Guo, Arcucci 2024, "Freeze the backbones", arXiv:2401.01179.
"""

import math
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from adaptmed.errors import InputError, sentence
from adaptmed.fusion.base import check_sides, require_texts
from adaptmed.fusion.config import MAX_LOG_SCALE, CrossConfig, side_widths
from adaptmed.layers.attention import Block
from adaptmed.layers.padding import compact, embed_by_length
from adaptmed.layers.pooling import masked_mean
from adaptmed.layers.positions import GridPositions
from adaptmed.layers.standardise import Standardise
from adaptmed.types import Fused, Side, Tokens


class CrossFusion(nn.Module):
    """Layers shared between modalities that read one modality alone or across a pair, on whole token sequences.

    Alone, a stream passes every layer as self-attention; its valid tokens are averaged into the embedding that is
    contrasted and probed. In a pair, ``image <- layer(query=image, read=text)`` and ``text <- layer(query=text,
    read=image)`` are computed side by side with the same weights, both from the previous layer's values; the pair's
    ``joint`` vector is the two averages side by side, image first.

    Deviations from the paper's released code, on purpose: whole token sequences instead of one pooled token (over
    one key attention is constant, so nothing crossed); the stream that is updated asks the queries (released: it
    gives keys and values); a pair is updated in parallel (released: text reads the already updated image); pre-norm
    GELU layers; standardised inputs and learned, interpolated image positions; no attention across the batch.
    ``ReleasedCrossFusion`` is the released arrangement.

    Without a ``text_width`` it has no text parts and no trained temperature, because there is nothing to contrast with.

    Args:
        config: Shape of the fusion; ``faithful`` must be False.
    """

    has_streams: ClassVar[bool] = False
    image_standardise: Standardise
    text_standardise: Standardise
    image_project: nn.Linear
    text_project: nn.Linear
    image_out: nn.Linear
    text_out: nn.Linear
    log_scale: Tensor

    def __init__(self, config: CrossConfig) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        widths = side_widths(config)
        for side, width in widths.items():  # part by part, not side by side: seeds and optimisers follow this order
            self.add_module(f"{side}_standardise", Standardise(width))
        for side, width in widths.items():
            self.add_module(f"{side}_project", nn.Linear(width, config.width))
        self.positions = GridPositions(config.width, config.image_grid, config.image_prefix)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        for side in widths:
            self.add_module(f"{side}_out", nn.Linear(config.width, config.width))
        start = torch.tensor(math.log(1 / 0.07))
        if self.reads_texts:
            self.log_scale = nn.Parameter(start)
        else:
            self.register_buffer("log_scale", start)

    @property
    def reads_texts(self) -> bool:
        """Whether it has text parts."""
        return self.config.text_width is not None

    @property
    def standardisers(self) -> dict[Side, Standardise]:
        """The layers that standardise image and text Tokens."""
        images: dict[Side, Standardise] = {"image": self.image_standardise}
        return images | {"text": self.text_standardise} if self.reads_texts else images

    def scale(self) -> Float[Tensor, ""]:
        """Factor on cosine similarities, 1 / temperature, never above 100."""
        return self.log_scale.clamp(max=MAX_LOG_SCALE).exp()

    def embed_image(self, image: Tokens) -> Float[Tensor, "batch width"]:
        """Embed images alone, L2-normalised."""
        return self._embed(self.image_out, *self._alone(self._enter_image(image), image))

    def embed_text(self, text: Tokens) -> Float[Tensor, "batch width"]:
        """Embed texts alone, L2-normalised; an item without any valid token gets the same constant as every other.

        Raises:
            InputError: If it is a fusion of images alone.
        """
        require_texts(self)
        if not len(text):
            return text.values.new_zeros(0, self.width, dtype=torch.float32)
        return embed_by_length(
            lambda part: self._embed(self.text_out, *self._alone(self._enter_text(part), part)), text
        )

    def fuse(self, image: Tokens, text: Tokens) -> tuple[Tokens, Tokens, Float[Tensor, "batch joint_width"]]:
        """Let the two sides of each pair read each other.

        Returns:
            Image Tokens and text Tokens that have seen the other side, and the joint vector of width 2 × ``width``.

        Raises:
            InputError: If it is a fusion of images alone.
        """
        require_texts(self)
        x, y = self._enter_image(image), self._enter_text(text)
        for block in self.blocks:
            x, y = block(x, y, _padding(text)), block(y, x, _padding(image))
        fused_image, fused_text = self._tokens(self.norm(x), image), self._tokens(self.norm(y), text)
        return fused_image, fused_text, torch.cat([fused_image.pooled, fused_text.pooled], dim=1)

    def forward(self, image: Tokens | None = None, text: Tokens | None = None) -> Fused:
        """Fuse pairs, or carry one modality alone when the other is missing.

        Args:
            image: Image Tokens, or ``None``.
            text: Text Tokens of the same items, or ``None``.

        Raises:
            InputError: If both are missing, their batch sizes differ, or a text is given to a fusion of images alone.
        """
        check_sides(self, image, text)
        image_embedding = None if image is None else self.embed_image(image)
        text_embedding = None if text is None else self.embed_text(text)
        if image is not None and text is not None:
            return Fused(*self.fuse(image, text), image_embedding, text_embedding)
        return Fused(
            None if image is None else self._tokens(self._read(self._enter_image(image), _padding(image)), image),
            None if text is None else self._tokens(self._read(self._enter_text(text), _padding(text)), text),
            None,
            image_embedding,
            text_embedding,
        )

    def _enter_image(self, image: Tokens) -> Float[Tensor, "batch token width"]:
        grid = image.grid or (1, 1)
        if image.prefix != self.config.image_prefix or len(grid) != 2:
            raise InputError(
                sentence(
                    "image",
                    expected=f"Tokens with {self.config.image_prefix} prefix token(s) and a (height, width) grid",
                    got=f"{image.prefix} prefix token(s) and grid {image.grid}",
                    fix="Use the encoder and bank layout this fusion was made for.",
                )
            )
        return self.image_project(self.image_standardise(image.values)) + self.positions((grid[0], grid[1]))

    def _enter_text(self, text: Tokens) -> Float[Tensor, "batch token width"]:
        values = text.values.masked_fill(~text.valid[..., None], 0.0)  # whatever stands at padding, NaN included
        return self.text_project(self.text_standardise(values))

    def _alone(
        self, x: Float[Tensor, "batch token width"], tokens: Tokens
    ) -> tuple[Float[Tensor, "batch kept width"], Bool[Tensor, "batch kept"]]:
        """Pass one modality through the layers; what is padding is not computed."""
        valid = tokens.valid
        if not bool(valid.all()):
            x, valid = compact(x, valid)
        return self._read(x, None if bool(valid.all()) else valid), valid

    def _read(
        self, x: Float[Tensor, "batch token width"], valid: Bool[Tensor, "batch token"] | None
    ) -> Float[Tensor, "batch token width"]:
        for block in self.blocks:
            x = block(x, None, valid)
        return self.norm(x)

    def _tokens(self, x: Float[Tensor, "batch token width"], source: Tokens) -> Tokens:
        return Tokens(x, source.valid, masked_mean(x, source.valid), source.grid, source.prefix)

    def _embed(
        self, out: nn.Module, x: Float[Tensor, "batch token width"], valid: Bool[Tensor, "batch token"]
    ) -> Float[Tensor, "batch width"]:
        return functional.normalize(out(masked_mean(x, valid)), dim=-1)


def _padding(tokens: Tokens) -> Tensor | None:
    """Images have no padding unless a row lacks its image, and without a mask the attention kernel is faster."""
    return None if tokens.grid is not None and bool(tokens.valid.all()) else tokens.valid
