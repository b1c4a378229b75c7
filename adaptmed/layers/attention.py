"""Attention between token sequences of any two modalities, with key padding that stays invisible."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional


def attend(
    query: Float[Tensor, "batch head query_token head_width"],
    key: Float[Tensor, "batch head token head_width"],
    value: Float[Tensor, "batch head token head_width"],
    valid: Bool[Tensor, "batch token"] | None,
) -> Float[Tensor, "batch head query_token head_width"]:
    """Scaled dot-product attention in which padded keys do not exist.

    An item whose keys are all padding (its other modality is missing) receives zeros, never NaN.

    Args:
        query: Queries.
        key: Keys.
        value: Values.
        valid: False at padded keys; ``None`` when there is no padding, which is faster.

    Example:
        >>> q = torch.ones(1, 1, 2, 4)
        >>> attend(q, q, q, torch.tensor([[True, False]])).allclose(q)
        True
        >>> attend(q, q, q, torch.tensor([[False, False]])).abs().sum().item()
        0.0
    """
    if valid is None:
        return _attention(query, key, value)
    anything = valid.any(1, keepdim=True)
    mask = (valid | ~anything)[:, None, None, :]  # an all-padding row attends to padding and is zeroed below
    return _attention(query, key, value, mask) * anything[:, :, None, None]


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Torch's fused kernel; on the CPU in fp32, because its backward pass in bf16 takes two to four times as long."""
    if query.device.type != "cpu" or query.dtype != torch.bfloat16:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    with torch.autocast("cpu", enabled=False):
        query32, key32, value32 = query.float(), key.float(), value.float()
        return functional.scaled_dot_product_attention(query32, key32, value32, attn_mask=mask).to(query.dtype)


class Attention(nn.Module):
    """Multi-head attention from one token sequence to another, or to itself.

    Attention weights are never dropped: on the CPU that would forgo the fused kernel, and the residual branch around
    this module has dropout of its own.

    Args:
        width: Width of the tokens on both sides; a multiple of ``heads``.
        heads: Number of heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "batch query_token width"],
        context: Float[Tensor, "batch token width"],
        valid: Bool[Tensor, "batch token"] | None = None,
    ) -> Float[Tensor, "batch query_token width"]:
        """Let every token of ``x`` read the valid tokens of ``context``."""
        query = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (batch, head, query_token, head_width)
        key, value = self.key_value(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = attend(query, key, value, valid)
        return self.out(out.transpose(1, 2).flatten(2))


def feed_forward(width: int, expansion: int = 4) -> nn.Sequential:
    """Build the feed-forward part of a layer: up to ``expansion`` × ``width``, GELU, and down again."""
    return nn.Sequential(nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width))


class Block(nn.Module):
    """A pre-norm transformer layer that works as self-attention or, given a context, as cross-attention.

    Args:
        width: Width of the tokens.
        heads: Number of attention heads.
        dropout: Dropout on both residual branches during training.
        expansion: Hidden width of the feed-forward part as a multiple of ``width``.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, expansion: int = 4) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = feed_forward(width, expansion)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch query_token width"],
        context: Float[Tensor, "batch token width"] | None = None,
        valid: Bool[Tensor, "batch token"] | None = None,
    ) -> Float[Tensor, "batch query_token width"]:
        """Update ``x`` from itself, or from ``context`` when there is one.

        Args:
            x: Tokens to update.
            context: Tokens to read; ``None`` means ``x`` itself.
            valid: False at padded tokens of what is read.
        """
        query = self.norm_attention(x)
        read = query if context is None else self.norm_attention(context)
        x = x + self.dropout(self.attention(query, read, valid))
        return x + self.dropout(self.mlp(self.norm_mlp(x)))


class CoBlock(nn.Module):
    """A post-norm layer of one modality, as in BERT: it reads itself, then the other modality, then feeds forward.

    Args:
        width: Width of the tokens of both modalities.
        heads: Number of attention heads.
        dropout: Dropout on the three residual branches during training.
        expansion: Hidden width of the feed-forward part as a multiple of ``width``.
        crosses: False leaves the cross step out, where there is no other modality.
    """

    def __init__(
        self, width: int, heads: int, dropout: float = 0.0, expansion: int = 4, *, crosses: bool = True
    ) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.norm_attention = nn.LayerNorm(width, eps=1e-12)
        if crosses:
            self.cross = Attention(width, heads)
            self.norm_cross = nn.LayerNorm(width, eps=1e-12)
        self.mlp = feed_forward(width, expansion)
        self.norm_mlp = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch query_token width"],
        context: Float[Tensor, "batch token width"] | None = None,
        *,
        valid: Bool[Tensor, "batch query_token"] | None = None,
        context_valid: Bool[Tensor, "batch token"] | None = None,
    ) -> Float[Tensor, "batch query_token width"]:
        """Update ``x``; without a context, and for every item whose context is all padding, the cross step is skipped.

        Args:
            x: Tokens to update.
            context: Tokens of the other modality.
            valid: False at padded tokens of ``x``.
            context_valid: False at padded tokens of ``context``.
        """
        x = self.norm_attention(x + self.dropout(self.attention(x, x, valid)))
        if context is not None:
            crossed = self.norm_cross(x + self.dropout(self.cross(x, context, context_valid)))
            x = crossed if context_valid is None else torch.where(context_valid.any(1)[:, None, None], crossed, x)
        return self.norm_mlp(x + self.dropout(self.mlp(x)))
