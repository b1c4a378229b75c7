"""Masked passes of images: cells of a bank's layout are hidden before the encoder, or of CNNs behind it."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from adaptmed.bank import Layout
from adaptmed.bank.layout import arrange_image
from adaptmed.encoders import masked_tokens, patch_grid
from adaptmed.errors import InputError, sentence
from adaptmed.pretext.masking import hidden_patches, kept_patches
from adaptmed.types import ImageEncoder, Tokens


def cell_grid(grid: tuple[int, int], layout: Layout) -> tuple[int, int]:
    """Return the grid of cells that a layout makes of a grid of patches, when each cell is a whole block of patches.

    Only then a hidden cell is hidden: a patch that two cells share would tell each of them of the other.

    Args:
        grid: Patches along each side, ``(height, width)``.
        layout: With ``all`` every patch is a cell.

    Raises:
        InputError: Cells would share patches, or the layout keeps no cells (``pooled``).

    Example:
        >>> cell_grid((14, 14), Layout("grid", 7)), cell_grid((14, 14), Layout("all"))
        ((7, 7), (14, 14))
    """
    if layout.kind == "pooled":
        fix = "Use --layout grid or --layout all."
        raise InputError(sentence("layout", expected="a grid of cells to hide", got="pooled", fix=fix))
    if layout.kind == "all":
        return grid
    if not _is_whole(grid, layout.size):
        sides = [side for side in range(1, max(grid) + 1) if _is_whole(grid, side)]
        best = next((side for side in reversed(sides) if 1 < side < layout.size), sides[-1])
        expected = f"a side that divides {grid[0]} x {grid[1]} patches ({', '.join(map(str, sides))})"
        raise InputError(sentence("grid", expected=expected, got=layout.size, fix=f"Pass --grid {best}."))
    return min(grid[0], layout.size), min(grid[1], layout.size)


def whole_cells(grid: tuple[int, int], *, largest: int = 8) -> Layout:
    """Return the finest layout up to ``largest`` whose cells are whole blocks of patches.

    Raises:
        InputError: Nothing but one cell divides the grid.

    Example:
        >>> [whole_cells((side, side)).size for side in (14, 16, 24)]
        [7, 8, 8]
    """
    side = next(side for side in range(largest, 0, -1) if _is_whole(grid, side))
    if side == 1 and max(grid) > 1:
        fix = "Use another --image-size-px, or --layout all."
        expected = f"a grid of patches that a side of 2 to {largest} divides"
        raise InputError(sentence("image_size_px", expected=expected, got=f"{grid[0]} x {grid[1]}", fix=fix))
    return Layout("grid", side)


def kept_cells(encoder: ImageEncoder, layout: Layout, *, ratio: float) -> int:
    """Return how many cells of the encoder's own image size a ratio leaves.

    Raises:
        InputError: The encoder cannot leave patches out, cells are no whole blocks, or the ratio leaves no cell.
    """
    cells = cell_grid(patch_grid(encoder, encoder.preprocessing.image_size_px), layout)
    return kept_patches(torch.zeros(1, dtype=torch.long), cells, seed=0, ratio=ratio).shape[1]


def _is_whole(grid: Sequence[int], side: int) -> bool:
    return all(patches % min(patches, side) == 0 for patches in grid)


def masked_image_tokens(
    encoder: ImageEncoder,
    pixels: Float[Tensor, "batch 3 height width_px"],
    layout: Layout,
    *,
    items: Int[Tensor, " batch"],
    seed: int,
    ratio: float = 0.75,
) -> tuple[Tokens, Int[Tensor, "batch kept"]]:
    """Encode images of which a share of the cells is hidden before the encoder.

    The choice depends on seed and item alone: not on the batch or its process.

    Args:
        encoder: One that leaves patches out (``encoders.drops_patches``).
        pixels: Normalised images.
        layout: Its cells are whole blocks of the encoder's patches.
        items: Number of every item.
        seed: Of this step.
        ratio: Share of the cells that is hidden, in [0, 1).

    Returns:
        Tokens of the layout, ``(batch, prefix + cells, width)``: hidden cells are zero and not valid, the others the
        mean of their patches. And the places of the kept cells, row by row, in rising order.

    Raises:
        InputError: The encoder cannot leave patches out, cells are no whole blocks, or the ratio leaves no cell.
    """
    grid = patch_grid(encoder, (pixels.shape[2], pixels.shape[3]))
    cells = cell_grid(grid, layout)
    kept = kept_patches(items, cells, seed=seed, ratio=ratio)
    tokens = arrange_image(masked_tokens(encoder, pixels, _patches_of(kept, cells, grid)), layout)
    kept = kept.to(pixels.device)
    return _only_kept(tokens, kept, cells[0] * cells[1]), kept


def _patches_of(
    kept: Int[Tensor, "batch kept"], cells: tuple[int, int], grid: tuple[int, int]
) -> Int[Tensor, "batch patch"]:
    """Return the places of the patches that kept cells are made of, in rising order."""
    rows, columns = (torch.arange(grid[side], device=kept.device) // (grid[side] // cells[side]) for side in (0, 1))
    cell_of_patch = (rows[:, None] * cells[1] + columns).flatten()
    hidden = hidden_patches(kept, cells[0] * cells[1])[:, cell_of_patch]
    count = kept.shape[1] * (grid[0] // cells[0]) * (grid[1] // cells[1])
    return hidden.byte().argsort(dim=1, stable=True)[:, :count]


def _only_kept(tokens: Tokens, kept: Int[Tensor, "batch kept"], cells: int) -> Tokens:
    """Make everything but the prefix and the kept cells zero and not valid."""
    prefix = tokens.valid.new_ones(len(kept), tokens.prefix)
    seen = torch.cat([prefix, ~hidden_patches(kept, cells)], dim=1)
    return replace(tokens, values=tokens.values.masked_fill(~seen[..., None], 0.0), valid=tokens.valid & seen)


def masked_outputs(
    tokens: Tokens, *, items: Int[Tensor, " batch"], seed: int, ratio: float = 0.75
) -> tuple[Tokens, Int[Tensor, "batch kept"]]:
    """Hide a share of an encoder's output tokens: an ablation, and the only form of masking that CNNs have.

    **This leaks.** The encoder has seen the whole image, so every token that is kept, and the prefix most of all, holds
    something of the tokens that are hidden: neighbours share a receptive field, a transformer's tokens have looked at
    each other. A word that is hidden behind its encoder is read from its neighbours with accuracy 1.000. What is
    learned here is in part to read that back. Where the encoder can leave patches out, use :func:`masked_image_tokens`.

    Args:
        tokens: Image Tokens of a grid.
        items: Number of every item.
        seed: Of this step.
        ratio: Share of the grid that is hidden, in [0, 1).

    Returns:
        Tokens whose hidden places are zero and not valid, with the mean of the kept places as ``pooled``; and the
        kept places, row by row, in rising order.

    Raises:
        InputError: The Tokens have no grid, or the ratio leaves no place.
    """
    if tokens.grid is None:
        fix = "Hide words with pretext.masking.mask_words, before the encoder."
        raise InputError(sentence("tokens", expected="Tokens of images", got="Tokens without a grid", fix=fix))
    kept = kept_patches(items, tokens.grid, seed=seed, ratio=ratio).to(tokens.values.device)
    hidden = _only_kept(tokens, kept, tokens.values.shape[1] - tokens.prefix)
    pooled = hidden.values[:, tokens.prefix :].sum(1) / kept.shape[1]
    return replace(hidden, pooled=pooled), kept
