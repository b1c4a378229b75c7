"""UMD's reconstruction of features: a student that sees masked inputs predicts what its teacher makes of whole ones.

Zhang et al. 2024, "Unified Multi-modal Diagnostic Framework with Reconstruction Pre-training and Heterogeneity-combat
Tuning", arXiv:2404.06057. The heads that make the predictions are in ``adaptmed.pretext.feature``.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from adaptmed.objectives.masked import squared_difference


def image_feature_loss(
    predicted: Float[Tensor, "batch token width"],
    target: Float[Tensor, "batch token width"],
    hidden: Bool[Tensor, "batch token"],
    *,
    faithful: bool = False,
) -> Float[Tensor, ""]:
    r"""Compare predicted features of the hidden patches with the teacher's (L_FeaMIM).

    .. math:: \frac{1}{|M|} \sum_{i \in M} \frac{1}{D} \lVert \hat h_i - \mathrm{sg}(h^T_i) \rVert^2

    where M are the hidden patches and sg stops the gradient. The formula is the released one; there the prediction is
    a bare mask token and the target passes a trained layer (``adaptmed.pretext.feature.released_image_features``), so
    that no gradient reaches what the student sees. Here it is a decoder's output.

    Args:
        predicted: By the student, of every patch.
        target: By the teacher, from the whole image.
        hidden: True where the student did not see the patch.
        faithful: Let the gradient into the target, as the released code does.

    Returns:
        0 with a graph where nothing is hidden.

    Example:
        >>> hidden = torch.tensor([[True, False]])
        >>> image_feature_loss(torch.zeros(1, 2, 4), torch.tensor([[[1.0], [9.0]]]).expand(1, 2, 4), hidden)
        tensor(1.)
    """
    return squared_difference(predicted, target if faithful else target.detach(), hidden)


def text_feature_loss(
    predicted: Float[Tensor, "batch token width"],
    target: Float[Tensor, "batch token width"],
    valid: Bool[Tensor, "batch token"],
    *,
    faithful: bool = False,
) -> Float[Tensor, ""]:
    r"""Compare predicted features of a text's tokens, hidden or not, with the teacher's (L_FeaMLM).

    .. math:: \frac{1}{|V|} \sum_{i \in V} \frac{1}{D} \lVert P(h^S_i) - \mathrm{sg}(h^T_i) \rVert^2

    where V are the tokens that are no padding. The released code compares :math:`P(h^S)` with :math:`P(h^T)`, lets
    the gradient into both, and counts padding, so that P = 0 solves it and the loss depends on the batch's padding.

    Args:
        predicted: By the student, of every token.
        target: By the teacher, from the whole text.
        valid: False at padding.
        faithful: Count padding and let the gradient into the target, as the released code does.

    Returns:
        0 with a graph where there is no token.

    Example:
        >>> valid = torch.tensor([[True, False]])
        >>> predicted, target = torch.zeros(1, 2, 4), torch.tensor([[[2.0], [0.0]]]).expand(1, 2, 4)
        >>> text_feature_loss(predicted, target, valid), text_feature_loss(predicted, target, valid, faithful=True)
        (tensor(4.), tensor(2.))
    """
    if faithful:
        return squared_difference(predicted, target, torch.ones_like(valid))
    return squared_difference(predicted, target.detach(), valid)
