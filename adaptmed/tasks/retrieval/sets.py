"""Retrieval between images and texts by their embeddings.

Only a trained fusion puts both modalities into one space: the frozen encoders' own features live in two unrelated
ones, so that retrieval has no frozen arm.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from adaptmed.errors import InputError, sentence


@dataclass(frozen=True)
class RetrievalSets:
    """Both sides of a retrieval, with the group that says which image and which text belong together.

    ``adaptmed.metrics.retrieval`` takes them as queries and gallery one way, exchanged the other way.

    Attributes:
        images: One embedding per image that has a text.
        image_group: The text each image came with.
        texts: One embedding per distinct text.
        text_group: The number of each text; no two are equal.
    """

    images: Float[np.ndarray, "n width"]
    image_group: Int[np.ndarray, " n"]
    texts: Float[np.ndarray, "m width"]
    text_group: Int[np.ndarray, " m"]


def retrieve(
    images: Float[Tensor, "n width"], texts: Float[Tensor, "n width"], text_group: Int[Tensor, "_"]
) -> RetrievalSets:
    """Prepare retrieval both ways; several images may share a text, which stands once in the gallery.

    Args:
        images: Image embeddings of rows of a bank.
        texts: Text embeddings of the same rows.
        text_group: Equal numbers mean identical texts; -1 where a row has no text, which leaves the row out.

    Returns:
        The images that have a text, and the distinct texts.

    Raises:
        InputError: The lengths differ, or no row has a text.

    Example:
        >>> import torch
        >>> sets = retrieve(torch.eye(3), torch.ones(3, 3), torch.tensor([4, -1, 4]))
        >>> sets.image_group.tolist(), sets.text_group.tolist()
        ([4, 4], [4])
    """
    if not len(images) == len(texts) == len(text_group):
        got = f"{len(images)}, {len(texts)} and {len(text_group)}"
        fix = "Embed the same rows on both sides."
        raise InputError(sentence("images, texts, text_group", expected="equal lengths", got=got, fix=fix))
    groups = text_group.cpu().numpy()
    kept = np.flatnonzero(groups >= 0)
    if not len(kept):
        fix = "Use a bank of image-text pairs."
        raise InputError(sentence("text_group", expected="a row with a text", got="none", fix=fix))
    distinct, first = np.unique(groups[kept], return_index=True)
    image_array, text_array = images.detach().cpu().numpy(), texts.detach().cpu().numpy()
    return RetrievalSets(image_array[kept], groups[kept], text_array[kept[first]], distinct)
