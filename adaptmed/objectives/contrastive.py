"""InfoNCE between image embeddings and text embeddings."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from adaptmed.errors import InputError, sentence


def info_nce(
    image: Float[Tensor, "batch width"],
    text: Float[Tensor, "texts width"],
    *,
    scale: Float[Tensor, ""] | float,
    weight_image_to_text: float = 0.25,
    text_group: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    r"""Find each image's text among the batch's texts, and each text's image among its images.

    .. math:: L = w \, \ell_{image \to text} + (1 - w) \, \ell_{text \to image}

    where each term is the cross-entropy of cosine similarities × ``scale`` against the pairs. Both embeddings must
    come from **one modality alone**: embeddings that have seen the other side solve this on pure noise.

    Args:
        image: L2-normalised embeddings of the images alone.
        text: L2-normalised embeddings of the texts alone, of the same pairs.
        scale: 1 / temperature, positive.
        weight_image_to_text: :math:`w` in [0, 1]. The paper's released code puts 0.75 on text → image, hence 0.25
            here; ConVIRT (arXiv:2010.00747) puts 0.75 on image → text. Which the paper means is not known.
        text_group: Equal numbers mean identical texts: such items are positives of each other, the target is spread
            evenly over them (the paper counts them as negatives). -1 means the item has no text: it is left out.
            ``None`` takes every text as different.

    Returns:
        The mean over items; 0 with a graph when no item has a text. A batch of one gives 0.

    Raises:
        InputError: If the batch sizes differ or the weight is not in [0, 1].

    Example:
        >>> eye = torch.eye(2)
        >>> round(info_nce(eye, eye, scale=1.0).item(), 4)  # log(1 + e) - 1
        0.3133
        >>> round(info_nce(eye, eye, scale=1.0, text_group=torch.tensor([7, 7])).item(), 4)  # half of each
        0.8133

    References:
        Qin et al. 2024, arXiv:2401.01179; van den Oord et al. 2018, arXiv:1807.03748.
    """
    if len(image) != len(text):
        raise InputError(
            sentence("text", expected=f"{len(image)} embeddings, one per image", got=len(text), fix="Pass pairs.")
        )
    if not 0 <= weight_image_to_text <= 1:
        raise InputError(
            sentence("weight_image_to_text", expected="a weight in [0, 1]", got=weight_image_to_text, fix="Try 0.25.")
        )
    if text_group is None:
        text_group = torch.arange(len(image), device=image.device)
    keep = text_group >= 0
    if not keep.any():
        return (image.sum() + text.sum()) * 0.0
    image, text, text_group = image[keep], text[keep], text_group[keep]
    similarity = scale * image @ text.T  # (image, text)
    same = (text_group[:, None] == text_group[None, :]).to(similarity.dtype)
    target = same / same.sum(1, keepdim=True)  # symmetric: a group's rows and columns have the same sums
    image_to_text = functional.cross_entropy(similarity, target)
    text_to_image = functional.cross_entropy(similarity.T, target)
    return weight_image_to_text * image_to_text + (1 - weight_image_to_text) * text_to_image
