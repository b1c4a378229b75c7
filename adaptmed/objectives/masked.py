"""Masked modelling: the words and the pixels that were hidden before the encoder."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from adaptmed.errors import InputError, sentence
from adaptmed.objectives.supervised import masked_cross_entropy


def masked_word_loss(logits: Float[Tensor, "*place word"], targets: Int[Tensor, "*place"]) -> Float[Tensor, ""]:
    """Cross-entropy of the hidden words, the mean over all of them, whichever text they stand in.

    Give the logits of the hidden places alone where you can: those of every place take ``batch × token × word``.

    Args:
        logits: One per word of the vocabulary.
        targets: Ids to predict; -1 where nothing is to be predicted.

    Returns:
        Nats; 0 with a graph where nothing is to be predicted.

    Example:
        >>> masked_word_loss(torch.zeros(1, 2, 4), torch.tensor([[3, -1]]))  # log 4
        tensor(1.3863)

    References:
        Devlin et al. 2019, arXiv:1810.04805; Chen et al. 2022 (M3AE), arXiv:2209.07098.
    """
    return masked_cross_entropy(logits.flatten(0, -2), targets.flatten())


def patchify(
    pixels: Float[Tensor, "batch channel height width_px"], patch_px: int
) -> Float[Tensor, "batch token value"]:
    """Cut images into square patches, row by row; within a patch row by row, the channels of a pixel together.

    Raises:
        InputError: If a side is no multiple of the patch.

    Example:
        >>> patchify(torch.arange(8.0).reshape(1, 1, 2, 4), 2).tolist()
        [[[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]]
    """
    if pixels.shape[2] % patch_px or pixels.shape[3] % patch_px:
        got = f"{pixels.shape[2]} x {pixels.shape[3]}"
        fix = "Use an image size that the patch divides."
        raise InputError(sentence("pixels", expected=f"sides that are multiples of {patch_px} px", got=got, fix=fix))
    patches = pixels.unfold(2, patch_px, patch_px).unfold(3, patch_px, patch_px)  # (batch, channel, h, w, p, q)
    return patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


def normalise(patches: Float[Tensor, "batch token value"]) -> Float[Tensor, "batch token value"]:
    r"""Standardise every patch with its own mean and unbiased variance.

    .. math:: (x - \bar x) / \sqrt{\mathrm{var}(x) + 10^{-6}}

    A patch of one colour becomes zeros. Computed in float32 or better.

    Example:
        >>> normalise(torch.tensor([[[0.0, 2.0], [5.0, 5.0]]])).tolist()
        [[[-0.70710..., 0.70710...], [0.0, 0.0]]]
    """
    patches = patches.to(torch.promote_types(patches.dtype, torch.float32))
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def masked_patch_loss(
    predicted: Float[Tensor, "batch token value"],
    patches: Float[Tensor, "batch token value"],
    hidden: Bool[Tensor, "batch token"],
) -> Float[Tensor, ""]:
    """Mean squared error between predictions and standardised patches, over the hidden patches alone.

    Args:
        predicted: Of every patch.
        patches: Pixels as :func:`patchify` cuts them.
        hidden: True where the encoder did not see the patch.

    Returns:
        The mean over a patch's values, then over hidden patches; 0 with a graph where none is hidden.

    Example:
        >>> patches = torch.tensor([[[-1.0, 0.0, 1.0]]])
        >>> masked_patch_loss(torch.zeros(1, 1, 3), patches, torch.tensor([[True]]))  # (1 + 0 + 1) / 3
        tensor(0.6667)

    References:
        He et al. 2022 (MAE), arXiv:2111.06377; Chen et al. 2022 (M3AE), arXiv:2209.07098.
    """
    return squared_difference(predicted, normalise(patches), hidden)


def squared_difference(
    predicted: Float[Tensor, "batch token value"],
    target: Float[Tensor, "batch token value"],
    counted: Bool[Tensor, "batch token"],
) -> Float[Tensor, ""]:
    """Squared difference, the mean over a token's values, then over the tokens that are counted.

    Returns:
        In float32 or better; 0 with a graph where no token is counted. Tokens that are not counted may hold anything.
    """
    wide = torch.promote_types(predicted.dtype, torch.float32)
    difference = torch.where(counted[..., None], predicted.to(wide) - target.to(wide), 0.0)
    return difference.square().mean(-1).sum() / counted.sum().clamp(min=1)
