"""What a classifier may read of an image: the fusion's embedding, and the plain pooled path around the fusion."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from adaptmed.bank import Bank
from adaptmed.errors import InputError, sentence
from adaptmed.fusion import Fusion
from adaptmed.types import Tokens

EMBEDDING, BESIDE = "embedding", "embedding + CLS + mean"


def pooled_path(tokens: Tokens) -> tuple[Float[Tensor, "batch width"], Float[Tensor, "batch width"]]:
    """CLS (or, where there is none, the encoder's own pool) and the mean of the grid, both as the encoder gave them."""
    first = tokens.values[:, 0] if tokens.prefix else tokens.pooled
    return first, tokens.values[:, tokens.prefix :].mean(dim=1)


def image_features(fusion: Fusion | None, tokens: Tokens, variant: str) -> Float[Tensor, "batch features"]:
    """The features of one batch, through which a fusion, or the encoder before it, can be trained.

    Args:
        fusion: Its embedding of the image alone; ``None`` when the variant reads the encoder's Tokens alone.
        tokens: Image Tokens.
        variant: ``embedding``, ``CLS`` and ``mean``, or several of them: ``embedding + CLS + mean``.
    """
    first, mean = pooled_path(tokens)
    parts = {"CLS": first, "mean": mean}
    if fusion is not None:
        parts[EMBEDDING] = fusion.embed_image(tokens)
    return torch.cat([parts[name] for name in variant.split(" + ")], dim=1)


def frozen_variants(bank: Bank, rows: Int[np.ndarray, " n"]) -> dict[str, Float[np.ndarray, "n _"]]:
    """What a frozen encoder offers a probe: CLS (or the model's own pool), the mean of its grid, and both.

    Every variant exists in every layout; where two are the same (a CNN pools by the mean) the probe is unaffected.
    """
    parts = np.array_split(rows, max(1, len(rows) // 512))
    pooled = [pooled_path(bank.image_tokens(part, dtype=torch.float32)) for part in parts]
    first, mean = (torch.cat(side).numpy() for side in zip(*pooled, strict=True))
    return {"CLS": first, "mean": mean, "CLS + mean": np.concatenate([first, mean], axis=1)}


def adaptor_variants(fusion: Fusion, bank: Bank, rows: Int[np.ndarray, " n"]) -> dict[str, Float[np.ndarray, "n _"]]:
    """What an adaptor offers a probe: its embedding, and its embedding beside CLS and mean of the frozen tokens.

    With many labels the plain pooled path holds what reports do not say.
    """
    embedding, frozen = embed_images(fusion, bank, rows), frozen_variants(bank, rows)["CLS + mean"]
    return {EMBEDDING: embedding, BESIDE: np.concatenate([embedding, frozen], axis=1)}


def embed_images(fusion: Fusion, bank: Bank, rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n width"]:
    """Embeddings of images alone, as numpy."""
    return embed_rows(fusion, bank, rows, modality="image").numpy()


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
