r"""The ``cross`` fusion of the Adaptor paper, token by token: layers shared between modalities, images and texts alone.

Reference: Qin, Liu, Cheng, Guo, Arcucci 2024, "Freeze the backbones", arXiv:2401.01179.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from adaptmed.errors import InputError, sentence
from adaptmed.fusion.config import MAX_LOG_SCALE, CrossConfig
from adaptmed.layers.attention import Block
from adaptmed.layers.padding import compact, embed_by_length
from adaptmed.layers.pooling import masked_mean
from adaptmed.layers.positions import GridPositions
from adaptmed.layers.standardise import Standardise
from adaptmed.types import Fused, Tokens


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

    Args:
        config: Shape of the fusion; ``faithful`` must be False.
    """

    def __init__(self, config: CrossConfig) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.image_standardise = Standardise(config.image_width)
        self.text_standardise = Standardise(config.text_width)
        self.image_project = nn.Linear(config.image_width, config.width)
        self.text_project = nn.Linear(config.text_width, config.width)
        self.positions = GridPositions(config.width, config.image_grid, config.image_prefix)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.image_out = nn.Linear(config.width, config.width)
        self.text_out = nn.Linear(config.width, config.width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def scale(self) -> Float[Tensor, ""]:
        """Factor on cosine similarities, 1 / temperature, never above 100."""
        return self.log_scale.clamp(max=MAX_LOG_SCALE).exp()

    def embed_image(self, image: Tokens) -> Float[Tensor, "batch width"]:
        """Embed images alone, L2-normalised."""
        return self._embed(self.image_out, *self._alone(self._enter_image(image), image))

    def embed_text(self, text: Tokens) -> Float[Tensor, "batch width"]:
        """Embed texts alone, L2-normalised; an item without any valid token gets the same constant as every other."""
        if not len(text):
            return text.values.new_zeros(0, self.width, dtype=torch.float32)
        return embed_by_length(
            lambda part: self._embed(self.text_out, *self._alone(self._enter_text(part), part)), text
        )

    def fuse(self, image: Tokens, text: Tokens) -> tuple[Tokens, Tokens, Float[Tensor, "batch joint_width"]]:
        """Let the two sides of each pair read each other.

        Returns:
            Image Tokens and text Tokens that have seen the other side, and the joint vector of width 2 × ``width``.
        """
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
            InputError: If both are missing or their batch sizes differ.
        """
        check_pair(image, text)
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


def check_pair(image: Tokens | None, text: Tokens | None) -> None:
    """Refuse an empty call and pairs whose two sides do not belong together.

    Raises:
        InputError: If both are missing or their batch sizes differ.
    """
    if image is None and text is None:
        raise InputError(sentence("image, text", expected="at least one of them", got="neither", fix="Pass one."))
    if image is not None and text is not None and len(image) != len(text):
        raise InputError(
            sentence(
                "text",
                expected=f"as many texts as images ({len(image)})",
                got=len(text),
                fix="Give one text per image, or leave one side out.",
            )
        )
