"""Padding is not computed: valid tokens move together, and a batch of texts is cut into groups of similar length."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from adaptmed.types import Tokens


def compact(
    values: Float[Tensor, "batch token width"], valid: Bool[Tensor, "batch token"]
) -> tuple[Float[Tensor, "batch kept width"], Bool[Tensor, "batch kept"]]:
    """Move every item's valid tokens to the front, in their order, and cut what no item needs; at least one stays.

    Example:
        >>> values, valid = compact(torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[True, False, True]]))
        >>> values.flatten().tolist(), valid.tolist()
        ([1.0, 3.0], [[True, True]])
    """
    longest = max(1, int(valid.sum(1).max())) if len(valid) else 1
    order = (~valid).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
    return values.gather(1, order[:, :, None].expand(-1, -1, values.shape[2])), valid.gather(1, order)


def restore(
    kept: Float[Tensor, "batch kept width"], valid: Bool[Tensor, "batch token"]
) -> Float[Tensor, "batch token width"]:
    """Move tokens that :func:`compact` moved to the front back to where they are valid; zeros stand at padding.

    Args:
        kept: As ``compact`` gave it, or computed from that token by token.
        valid: The mask that ``compact`` was given.

    Example:
        >>> restore(torch.tensor([[[1.0], [3.0]]]), torch.tensor([[True, False, True]])).flatten().tolist()
        [1.0, 0.0, 3.0]
    """
    place = (valid.cumsum(1) - 1).clamp(min=0)
    return kept.gather(1, place[:, :, None].expand(-1, -1, kept.shape[2])).masked_fill(~valid[:, :, None], 0.0)


def by_length(tokens: Tokens, *, group: int = 32) -> list[tuple[Int[Tensor, " n"], Tokens]]:
    """Cut a padded batch into groups of similar length, each without the padding that none of its items needs.

    Args:
        tokens: Padded anywhere; the order of the valid tokens is kept.
        group: Items per group; a batch no larger than this stays one group.

    Returns:
        Row numbers and Tokens of every group; every row once.

    Example:
        >>> valid = torch.tensor([[True, True, True], [True, False, False]])
        >>> groups = by_length(Tokens(torch.zeros(2, 3, 1), valid, torch.zeros(2, 1)), group=1)
        >>> [(rows.tolist(), part.values.shape[1]) for rows, part in groups]
        [([1], 1), ([0], 3)]
    """
    groups = []
    for rows in tokens.valid.sum(1).argsort(stable=True).split(group):
        part = tokens.select(rows)
        values, valid = compact(part.values, part.valid)
        groups.append((rows, replace(part, values=values, valid=valid)))
    return groups


def embed_by_length(
    embed: Callable[[Tokens], Float[Tensor, "_ width"]], tokens: Tokens, *, group: int = 32
) -> Float[Tensor, "batch width"]:
    """Embed a padded batch in groups of similar length; the rows come back in their order.

    Args:
        embed: One vector per item, which other items do not change.
        tokens: Padded anywhere.
        group: Items per group.

    Example:
        >>> valid = torch.tensor([[True, True, True], [True, False, False]])
        >>> tokens = Tokens(torch.ones(2, 3, 1), valid, torch.zeros(2, 1))
        >>> embed_by_length(lambda part: part.values.sum(1), tokens, group=1).tolist()
        [[3.0], [1.0]]
    """
    groups = by_length(tokens, group=group)
    return torch.cat([embed(part) for _, part in groups])[torch.cat([rows for rows, _ in groups]).argsort()]
