"""Random numbers that belong to an item, not to its place in a batch or to a process."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_STEP, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685  # 64 bits, read as signed


def item_draws(items: Int[Tensor, " batch"], count: int, *, seed: int) -> Float[Tensor, "batch count"]:
    """Draw ``count`` numbers in [0, 1) for every item: a pure function of (seed, item, position).

    Batches and processes may be cut in any way, on any device: an item's numbers stay the same. SplitMix64 (Steele,
    Lea, Flood 2014, "Fast splittable pseudorandom number generators") of seed, item and position in turn, with 24 bits
    kept.

    Args:
        items: Numbers of the items, for example rows of a bank.
        count: Numbers per item.
        seed: Any whole number.

    Example:
        >>> draws = item_draws(torch.tensor([4, 9]), 3, seed=0)
        >>> torch.equal(draws[1:], item_draws(torch.tensor([9]), 3, seed=0))
        True
    """
    start = _mixed(torch.tensor((seed + 2**63) % 2**64 - 2**63, device=items.device))
    of_item = _mixed(start ^ items.long())[:, None]
    mixed = _mixed(of_item ^ torch.arange(count, device=items.device))
    return (mixed & (2**24 - 1)).float() / 2**24


def _mixed(state: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    state = state + _STEP
    state = (state ^ _shifted(state, 30)) * _FIRST
    state = (state ^ _shifted(state, 27)) * _SECOND
    return state ^ _shifted(state, 31)


def _shifted(state: Int[Tensor, "*any"], bits: int) -> Int[Tensor, "*any"]:
    """Shift right without keeping the sign, which torch keeps."""
    return (state >> bits) & (2 ** (64 - bits) - 1)


def step_seed(seed: int, step: int) -> int:
    """One number per (seed, step), for torch's generators.

    Example:
        >>> step_seed(0, 1) != step_seed(1, 0)
        True
    """
    return (seed * 1_000_003 + step) % 2**63
