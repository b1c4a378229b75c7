"""Passes that see a part of an image: the other patches are left out before the encoder's first block."""

import math
from dataclasses import replace

from jaxtyping import Float, Int
from torch import Tensor, nn

from adaptmed.encoders.base import Entrance
from adaptmed.errors import InputError, sentence
from adaptmed.layers.places import put_back, token_places
from adaptmed.types import ImageEncoder, Tokens


def drops_patches(encoder: ImageEncoder) -> bool:
    """Say whether an encoder can leave patches out, as :func:`masked_tokens` asks it to.

    Transformers of plain patches can: timm's ViT, DINOv2, SigLIP and EVA, open_clip's own ViT, ViT, DINOv2, CLIP and
    SigLIP of transformers. A CNN, a hierarchical transformer (Swin) or a transformer on a CNN's maps cannot.
    """
    return getattr(encoder, "entrance", None) is not None


def patch_grid(encoder: ImageEncoder, size_px: tuple[int, int]) -> tuple[int, int]:
    """Return how many patches of an image of ``(height, width)`` the encoder sees along each side.

    Raises:
        InputError: The encoder cannot leave patches out.
    """
    patch_px = _entrance(encoder).patch_px
    return size_px[0] // patch_px[0], size_px[1] // patch_px[1]


def masked_tokens(
    encoder: ImageEncoder, pixels: Float[Tensor, "batch 3 height width_px"], kept: Int[Tensor, "batch kept"]
) -> Tokens:
    """Encode images of which only some patches are seen; nothing of the others can be read from what comes back.

    The patches get their positions, then all but the kept ones are left out: the blocks compute the prefix and the kept
    patches alone. LoRA inside the encoder gets its gradients.

    Args:
        encoder: One that :func:`drops_patches`.
        pixels: Normalised images.
        kept: Places in the patch grid that are seen, row by row, in rising order; at least one, equally many per image.

    Returns:
        Tokens with the prefix and the grid of ``encoder(pixels)``. Hidden patches are zero and not valid. ``pooled`` is
        the encoder's own pooling of what it saw: its CLS token, or the mean of the kept patches.

    Raises:
        InputError: The encoder cannot leave patches out, or ``kept`` does not name places of its grid.

    Example:
        >>> import torch
        >>> from adaptmed.encoders import load_image_encoder
        >>> encoder = load_image_encoder("bundled:dinov2-small", image_size_px=56)
        >>> tokens = masked_tokens(encoder, torch.zeros(1, 3, 56, 56), torch.tensor([[0, 5]]))
        >>> tokens.grid, tokens.valid.sum().item()
        ((4, 4), 3)

    References:
        He et al. 2022, arXiv:2111.06377.
    """
    entrance = _entrance(encoder)
    _check_places(kept, len(pixels), patch_grid(encoder, (pixels.shape[2], pixels.shape[3])))
    kept = kept.to(pixels.device)

    def leave_out(_layer: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, None]) -> object:
        hidden = output if isinstance(output, Tensor) else output[0]
        seen = _gathered(hidden, kept, entrance.prefix)
        return seen if isinstance(output, Tensor) else (seen, kept)

    hook = encoder.module.get_submodule(entrance.module).register_forward_hook(leave_out)
    try:
        tokens = encoder(pixels)
    finally:
        hook.remove()
    assert tokens.values.shape[1] == entrance.prefix + kept.shape[1], "the patches were left out"
    assert tokens.grid is not None, "an image encoder's Tokens have a grid"
    values, valid = put_back(tokens.values, kept, prefix=tokens.prefix, cells=math.prod(tokens.grid))
    return replace(tokens, values=values, valid=valid)


def _gathered(
    hidden: Float[Tensor, "batch token width"], kept: Int[Tensor, "batch kept"], prefix: int
) -> Float[Tensor, "batch seen width"]:
    """Return the prefix and the kept patches."""
    return hidden.gather(1, token_places(kept, prefix)[..., None].expand(-1, -1, hidden.shape[2]))


def _check_places(kept: Int[Tensor, "batch kept"], images: int, grid: tuple[int, int]) -> None:
    if kept.ndim != 2 or len(kept) != images or kept.shape[1] == 0:
        fix = "Pass for every image at least one place, equally many for all."
        expected = f"shape ({images}, at least 1)"
        raise InputError(sentence("kept", expected=expected, got=tuple(kept.shape), fix=fix))
    if bool((kept[:, :1] < 0).any() | (kept.diff(dim=1) <= 0).any()):
        fix = "Sort them; every place stands once."
        raise InputError(sentence("kept", expected="places from 0 in rising order", got="others", fix=fix))
    if int(kept.max()) >= grid[0] * grid[1]:
        expected, fix = f"places below {grid[0] * grid[1]}", "Choose the places for this very image size."
        raise InputError(sentence("kept", expected=expected, got=int(kept.max()), fix=fix))


def _entrance(encoder: ImageEncoder) -> Entrance:
    entrance: Entrance | None = getattr(encoder, "entrance", None)
    if entrance is not None:
        return entrance
    fix = (
        "Use a vision transformer, for example bundled:dinov2-small; a CNN can only have its outputs hidden, from "
        "which hidden patches can be read in part; tasks.masked_images.masked_outputs does that."
    )
    expected = "an encoder that can leave patches out before its first block"
    raise InputError(sentence("encoder", expected=expected, got=encoder.name, fix=fix))
