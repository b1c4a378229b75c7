"""The ``cross`` fusion exactly as the Adaptor paper's released code arranges it: one pooled token per modality.

Kept to reproduce the paper's parameter counts and behaviour; ``CrossFusion`` is the default.
"""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from adaptmed.fusion.base import check_sides
from adaptmed.fusion.config import MAX_LOG_SCALE, CrossConfig, side_widths
from adaptmed.layers.standardise import Standardise
from adaptmed.types import Fused, Side, Tokens

FEED_FORWARD_WIDTH = 2048


class ReleasedLayer(nn.Module):
    """Post-norm layer whose updated stream gives keys and values while the other stream asks the queries."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.norm_attention = nn.LayerNorm(width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, FEED_FORWARD_WIDTH),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(FEED_FORWARD_WIDTH, width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, source: Float[Tensor, "batch 1 width"], query: Float[Tensor, "batch 1 width"]
    ) -> Float[Tensor, "batch 1 width"]:
        """Update ``source``; with one key the softmax is 1, so the result does not depend on ``query``."""
        attended = self.attention(query, source, source, need_weights=False)[0]
        x = self.norm_attention(source + self.dropout(attended))
        return self.norm_mlp(x + self.dropout(self.mlp(x)))


class ReleasedCrossFusion(nn.Module):
    """One pooled token per modality through layers shared between modalities.

    Bias-free projections, L2-normalised; per layer ``image <- f(image, query=text)``, then ``text <- f(text,
    query=image)`` with the updated image; embeddings are token 0, L2-normalised. Because attention over a single key
    is constant, no information crosses between modalities here: the paired outputs equal those of each modality
    alone. 12,011,009 / 11,912,705 / 12,207,617 trainable parameters for image widths 512 / 384 / 768.

    The released code clamps no temperature; this does at 100, which its initial value 1 / 0.07 is far from. Its
    attention across the batch for two-dimensional input is not reproduced: it is a fault, not an arrangement.

    Args:
        config: Shape of the fusion, usually ``CrossConfig.released(image_width)``.
    """

    reads_texts: ClassVar[bool] = True
    has_streams: ClassVar[bool] = False
    standardisers: ClassVar[dict[Side, Standardise]] = {}
    image_project: nn.Linear
    text_project: nn.Linear

    def __init__(self, config: CrossConfig) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        for side, width in side_widths(config).items():
            self.add_module(f"{side}_project", nn.Linear(width, config.width, bias=False))
        self.layers = nn.ModuleList(
            ReleasedLayer(config.width, config.heads, config.dropout) for _ in range(config.layers)
        )
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def scale(self) -> Float[Tensor, ""]:
        """Factor on cosine similarities, 1 / temperature, never above 100."""
        return self.log_scale.clamp(max=MAX_LOG_SCALE).exp()

    def embed_image(self, image: Tokens) -> Float[Tensor, "batch width"]:
        """Embed images alone (the layers in self-attention mode), L2-normalised."""
        return self._alone(self._enter(self.image_project, image))

    def embed_text(self, text: Tokens) -> Float[Tensor, "batch width"]:
        """Embed texts alone, L2-normalised."""
        return self._alone(self._enter(self.text_project, text))

    def fuse(self, image: Tokens, text: Tokens) -> tuple[Tokens, Tokens, Float[Tensor, "batch joint_width"]]:
        """Pass a pair through the layers in the released order; returns both streams and their joint vector."""
        x, y = self._enter(self.image_project, image), self._enter(self.text_project, text)
        for layer in self.layers:
            x = layer(x, y)
            y = layer(y, x)
        return _one_token(x), _one_token(y), torch.cat([x[:, 0], y[:, 0]], dim=1)

    def forward(self, image: Tokens | None = None, text: Tokens | None = None) -> Fused:
        """Fuse pairs, or carry one modality alone when the other is missing.

        Raises:
            InputError: If both are missing or their batch sizes differ.
        """
        check_sides(self, image, text)
        image_embedding = None if image is None else self.embed_image(image)
        text_embedding = None if text is None else self.embed_text(text)
        if image is not None and text is not None:
            return Fused(*self.fuse(image, text), image_embedding, text_embedding)
        return Fused(
            None if image_embedding is None else _one_token(image_embedding[:, None]),
            None if text_embedding is None else _one_token(text_embedding[:, None]),
            None,
            image_embedding,
            text_embedding,
        )

    def _enter(self, project: nn.Module, tokens: Tokens) -> Float[Tensor, "batch 1 width"]:
        return functional.normalize(project(tokens.pooled.to(self.log_scale.dtype)), dim=-1)[:, None]

    def _alone(self, x: Float[Tensor, "batch 1 width"]) -> Float[Tensor, "batch width"]:
        for layer in self.layers:
            x = layer(x, x)
        return functional.normalize(x[:, 0], dim=-1)


def _one_token(x: Float[Tensor, "batch 1 width"]) -> Tokens:
    return Tokens(x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device), x[:, 0], None, 0)
