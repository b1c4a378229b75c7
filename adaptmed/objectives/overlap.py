"""Objectives for masks: how much prediction and truth overlap, beside how right each pixel is.

Masks hold class numbers, 0 for background and -1 where not labelled, which counts for nothing. Logits with one class
say foreground against background (sigmoid); with more, classes exclude each other (softmax) and class 0 is background.
Background enters the pixel terms, never Dice. Everything is computed in float32 or better.
"""

import torch
from jaxtyping import Float, Int
from monai.losses import DiceLoss
from monai.losses.focal_loss import sigmoid_focal_loss, softmax_focal_loss
from torch import Tensor
from torch.nn import functional

from adaptmed.errors import InputError, sentence

NOT_LABELLED = -1
_CERTAIN = 1e4
"""A logit whose probability is exactly 1, and 0 with a minus."""
SMOOTH = 1e-5
"""Added above and below the Dice ratio, which is then 1 where truth and prediction are both empty."""


def dice_loss(
    logits: Float[Tensor, "batch class *size"],
    mask: Int[Tensor, "items *sides"],
    *,
    pooled: bool = False,
    present: bool = False,
    smooth: float = SMOOTH,
) -> Float[Tensor, ""]:
    """One minus soft Dice, the mean over foreground classes and over items that are labelled somewhere.

    Args:
        logits: One per class and pixel.
        mask: Class numbers; -1 where not labelled.
        pooled: Take one Dice over all items of the batch instead of one per item: steadier where masks are small or
            often empty, but the loss of an item then depends on its batch.
        present: With ``pooled``: leave out classes that no mask of the batch holds. Their Dice only says that nothing
            should be predicted, which cross-entropy says as well, and drowns the classes that are there.
        smooth: Added to numerator and denominator, in pixels.

    Returns:
        A number in [0, 1]; 0 with a graph where nothing is labelled.

    Raises:
        InputError: Mask and logits are of different sizes.

    Example:
        >>> round(dice_loss(torch.zeros(1, 1, 1, 2), torch.tensor([[[1, 0]]])).item(), 4)  # 1 - 2 * 0.5 / (1 + 1)
        0.5

    References:
        Milletari et al. 2016, arXiv:1606.04797; sums instead of their sums of squares.
    """
    _check(logits, mask)
    dice = DiceLoss(**_reading(logits), batch=pooled, reduction="none", smooth_nr=smooth, smooth_dr=smooth)
    terms = dice(_precise(logits), mask[:, None]).flatten(1)
    if pooled and present:
        there = torch.stack([(mask == number).any() for number in _foreground(logits)])
        return torch.where(there, terms.flatten(), 0.0).sum() / there.sum().clamp(min=1)
    if pooled:
        return terms.mean()
    labelled = (mask != NOT_LABELLED).flatten(1).any(1)
    return terms.mean(1).sum() / labelled.sum().clamp(min=1)  # an item without any label has exactly 0


def overlap_error(logits: Float[Tensor, "batch class *size"], mask: Int[Tensor, "items *sides"]) -> Float[Tensor, ""]:
    """One minus the Dice of what is predicted, over the whole batch and the classes in it: what training is judged by.

    Args:
        logits: One per class and pixel; the class with the highest one is predicted.
        mask: Class numbers; -1 where not labelled.

    Returns:
        A number in [0, 1]; 0 where no mask of the batch holds a class.

    Raises:
        InputError: Mask and logits are of different sizes.

    Example:
        >>> mask = torch.tensor([[[1, 1, 0, 0]]])
        >>> round(overlap_error(torch.tensor([[[[5.0, -1, -1, -1]]]]), mask).item(), 4)  # 1 - 2 * 1 / (1 + 2)
        0.3333
    """
    alone = logits.shape[1] == 1
    highest = logits > 0 if alone else logits == logits.max(dim=1, keepdim=True).values
    return dice_loss(torch.where(highest, _CERTAIN, -_CERTAIN), mask, pooled=True, present=True)


def pixel_cross_entropy(
    logits: Float[Tensor, "batch class *size"], mask: Int[Tensor, "items *sides"], *, balance: float = 0.0
) -> Float[Tensor, ""]:
    """Cross-entropy, the mean over labelled pixels of the whole batch.

    Args:
        logits: One per class and pixel.
        mask: Class numbers; -1 where not labelled.
        balance: As in `focal_loss`.

    Returns:
        Nats; 0 with a graph where nothing is labelled.

    Raises:
        InputError: Mask and logits are of different sizes.
    """
    return focal_loss(logits, mask, gamma=0.0, balance=balance)


def focal_loss(
    logits: Float[Tensor, "batch class *size"],
    mask: Int[Tensor, "items *sides"],
    *,
    gamma: float = 2.0,
    balance: float = 0.0,
) -> Float[Tensor, ""]:
    r"""Cross-entropy in which what is right already weighs less, the mean over labelled pixels of the whole batch.

    .. math:: -(1 - p)^\gamma \log p

    with the probability :math:`p` of the true class.

    Args:
        logits: One per class and pixel.
        mask: Class numbers; -1 where not labelled.
        gamma: 0 (plain cross-entropy) or at least 1.
        balance: Pixels of a class weigh as its share among the labelled pixels of the batch to the power of minus this:
            0 counts every pixel alike, 1 every class. Weights are scaled to a mean of 1 over labelled pixels.

    Returns:
        Nats; 0 with a graph where nothing is labelled.

    Raises:
        InputError: Mask and logits are of different sizes.

    Example:
        >>> round(focal_loss(torch.zeros(1, 1, 1, 1), torch.tensor([[[1]]])).item(), 4)  # 0.5 ** 2 * log 2
        0.1733

    References:
        Lin et al. 2017, arXiv:1708.02002, without their balancing factor.
    """
    _check(logits, mask)
    labelled = mask != NOT_LABELLED
    target = torch.where(labelled, mask, 0).long()
    precise = _precise(logits)
    if logits.shape[1] == 1:
        losses = sigmoid_focal_loss(precise[:, 0], target.to(precise.dtype), gamma)
    else:
        classes = functional.one_hot(target, logits.shape[1]).movedim(-1, 1)
        losses = softmax_focal_loss(precise, classes, gamma).sum(1)
    weights = labelled if balance == 0 else torch.where(labelled, _balancing(target, labelled, balance), 0.0)
    return torch.where(labelled, losses * weights, 0.0).sum() / weights.sum().clamp(min=SMOOTH)


def dice_cross_entropy(
    logits: Float[Tensor, "batch class *size"],
    mask: Int[Tensor, "items *sides"],
    *,
    dice_weight: float = 1.0,
    cross_entropy_weight: float = 1.0,
    pooled: bool = False,
    present: bool = False,
    balance: float = 0.0,
) -> Float[Tensor, ""]:
    """Dice and cross-entropy, by default at equal weight as in PUMIT and nnU-Net.

    Args:
        logits: One per class and pixel.
        mask: Class numbers; -1 where not labelled.
        dice_weight: Of `dice_loss`.
        cross_entropy_weight: Of `pixel_cross_entropy`.
        pooled: One Dice over the whole batch.
        present: With ``pooled``: Dice of the classes alone that a mask of the batch holds.
        balance: As in `focal_loss`.

    Returns:
        The weighted sum; 0 with a graph where nothing is labelled.

    Raises:
        InputError: Mask and logits are of different sizes.
    """
    dice = dice_loss(logits, mask, pooled=pooled, present=present)
    return dice_weight * dice + cross_entropy_weight * pixel_cross_entropy(logits, mask, balance=balance)


def dice_focal(
    logits: Float[Tensor, "batch class *size"],
    mask: Int[Tensor, "items *sides"],
    *,
    dice_weight: float = 1.0,
    focal_weight: float = 1.0,
    gamma: float = 2.0,
    pooled: bool = False,
    present: bool = False,
    balance: float = 0.0,
) -> Float[Tensor, ""]:
    """Dice and focal loss.

    Args:
        logits: One per class and pixel.
        mask: Class numbers; -1 where not labelled.
        dice_weight: Of `dice_loss`.
        focal_weight: Of `focal_loss`.
        gamma: Of `focal_loss`.
        pooled: One Dice over the whole batch.
        present: With ``pooled``: Dice of the classes alone that a mask of the batch holds.
        balance: As in `focal_loss`.

    Returns:
        The weighted sum; 0 with a graph where nothing is labelled.

    Raises:
        InputError: Mask and logits are of different sizes.
    """
    dice = dice_loss(logits, mask, pooled=pooled, present=present)
    return dice_weight * dice + focal_weight * focal_loss(logits, mask, gamma=gamma, balance=balance)


def paper_dice_focal(
    logits: Float[Tensor, "batch class *size"], mask: Int[Tensor, "items *sides"]
) -> Float[Tensor, ""]:
    """The loss of the Adaptor paper's segmentation (arXiv 2401.01179), taken from MGCA: 10 focal − log Dice.

    Focal loss with gamma 2; soft Dice over the whole batch with 1 pixel added above and below. The paper has one class;
    with more, Dice is averaged over foreground classes before the logarithm.

    Args:
        logits: One per class and pixel.
        mask: Class numbers; -1 where not labelled.

    Returns:
        The weighted sum; 0 with a graph where nothing is labelled.

    Raises:
        InputError: Mask and logits are of different sizes.
    """
    dice = 1 - dice_loss(logits, mask, pooled=True, smooth=1.0)
    return 10 * focal_loss(logits, mask, gamma=2.0) - dice.log()


def _balancing(target: Tensor, labelled: Tensor, balance: float) -> Tensor:
    """The weight of every pixel by how rare its class is."""
    counts = torch.bincount(target[labelled], minlength=1)
    weights = torch.where(counts > 0, (counts.sum() / counts.clamp(min=1)) ** balance, 0.0)
    return weights[target.clamp(max=len(counts) - 1)]


def _foreground(logits: Tensor) -> range:
    """Class numbers that Dice is taken over."""
    return range(1, max(2, logits.shape[1]))


def _precise(logits: Tensor) -> Tensor:
    """Sums over pixels leave the range of half precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _reading(logits: Tensor) -> dict[str, bool | int]:
    """How MONAI is to read the logits and the mask."""
    several = logits.shape[1] > 1
    options = {"sigmoid": not several, "softmax": several, "to_onehot_y": several, "include_background": not several}
    return {**options, "ignore_index": NOT_LABELLED}


def _check(logits: Tensor, mask: Tensor) -> None:
    expected = (len(logits), *logits.shape[2:])
    if mask.shape != expected:
        fix = "Bring mask and image to one size before the loss."
        raise InputError(sentence("mask", expected=f"shape {expected}", got=tuple(mask.shape), fix=fix))
