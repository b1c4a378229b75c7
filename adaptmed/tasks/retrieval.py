"""Retrieval between images and texts by their embeddings.

Only a trained fusion puts both modalities into one space: the frozen encoders' own features live in two unrelated
ones, so that retrieval has no frozen arm.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from adaptmed.bank import Bank
from adaptmed.errors import InputError, sentence
from adaptmed.fusion import Fusion


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


def embed_rows(
    fusion: Fusion,
    bank: Bank,
    rows: Int[np.ndarray, " n"],
    *,
    modality: Literal["image", "text"],
    batch_size: int = 256,
) -> Float[Tensor, "n width"]:
    """Embed rows of a bank, each modality alone.

    Texts are read batch by batch, so that each batch is padded only to its own longest text.

    Args:
        fusion: Used in evaluation mode, on the device where it is; its mode is put back afterwards.
        bank: Where the Tokens are.
        rows: Row numbers.
        modality: Which side.
        batch_size: Rows at a time.

    Returns:
        L2-normalised embeddings in the order of ``rows``, float32, on the CPU; a normal tensor that may enter a graph.

    Raises:
        InputError: There is no row.
    """
    if not len(rows):
        raise InputError(sentence("rows", expected="at least one", got="none", fix="Choose rows of the bank."))
    read, embed = (
        (bank.image_tokens, fusion.embed_image) if modality == "image" else (bank.text_tokens, fusion.embed_text)
    )
    device = next(fusion.parameters()).device
    parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    training = fusion.training
    fusion.eval()
    try:
        with torch.inference_mode():
            embeddings = [embed(read(part, dtype=torch.float32).to(device)).float().cpu() for part in parts]
    finally:
        fusion.train(training)
    return torch.cat(embeddings)


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
