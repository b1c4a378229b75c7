"""Padding is not computed: a batch of texts is cut into groups of similar length."""

from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from adaptmed.types import Tokens


def by_length(tokens: Tokens, *, group: int = 32) -> list[tuple[Int[Tensor, " n"], Tokens]]:
    """Cut a padded batch into groups of similar length, each trimmed to its own longest item.

    Args:
        tokens: Padded anywhere; only what follows every valid token is cut.
        group: Items per group; a batch no larger than this stays one group, trimmed.

    Returns:
        Row numbers and Tokens of every group; every row once.

    Example:
        >>> valid = torch.tensor([[True, True, True], [True, False, False]])
        >>> groups = by_length(Tokens(torch.zeros(2, 3, 1), valid, torch.zeros(2, 1)), group=1)
        >>> [(rows.tolist(), part.values.shape[1]) for rows, part in groups]
        [([1], 1), ([0], 3)]
    """
    token = torch.arange(1, tokens.valid.shape[1] + 1, device=tokens.valid.device)
    lengths = (tokens.valid * token).amax(1)  # up to the last valid token, wherever the padding is
    groups = []
    for rows in lengths.argsort(stable=True).split(group):
        longest = max(1, int(lengths[rows].max()))
        part = tokens.select(rows)
        groups.append((rows, replace(part, values=part.values[:, :longest], valid=part.valid[:, :longest])))
    return groups
