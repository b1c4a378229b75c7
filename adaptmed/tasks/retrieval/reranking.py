"""Retrieval in two steps: the embeddings choose a few candidates, and the matching head reads each as a pair.

An embedding has seen one side alone; the joint vector of a pair has seen both, at the price of one pass of the fusion
per pair. So only the first ``k`` candidates of a query are read, and only among themselves they change places.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from rich.progress import track
from torch import nn

from adaptmed.bank import Bank
from adaptmed.errors import InputError, sentence
from adaptmed.fusion import Fusion
from adaptmed.pretext.matching import MatchingHead
from adaptmed.types import Tokens

BATCH = 128
"""Pairs that are fused at a time."""


def pair_logits(
    fusion: Fusion,
    head: MatchingHead,
    bank: Bank,
    image_rows: Int[np.ndarray, " pair"],
    text_rows: Int[np.ndarray, "_"],
    *,
    batch_size: int = BATCH,
    progress: bool = False,
) -> Float[np.ndarray, " pair"]:
    """Ask the matching head about pairs of one row's image and another row's text.

    Args:
        fusion: Used in evaluation mode, on the device where it is; its mode is put back afterwards.
        head: Trained beside it, on the same device; likewise.
        bank: Where the Tokens are.
        image_rows: Whose image.
        text_rows: Whose text, as many.
        batch_size: Pairs at a time; within a batch each image and each text is read once.
        progress: Show a progress bar.

    Returns:
        One logit per pair, float32; above 0 says "matched".

    Raises:
        InputError: The lengths differ, or a logit is not finite.
    """
    if len(image_rows) != len(text_rows):
        got, fix = f"{len(image_rows)} and {len(text_rows)}", "Name one text for every image."
        raise InputError(sentence("image_rows, text_rows", expected="equal lengths", got=got, fix=fix))
    device, logits = next(fusion.parameters()).device, np.empty(len(image_rows), dtype=np.float32)
    starts = track(range(0, len(logits), batch_size), "Matching pairs", disable=not progress, transient=True)
    with _judging(fusion, head), torch.inference_mode():
        for start in starts:
            part = slice(start, start + batch_size)
            image = _read(bank.image_tokens, image_rows[part], device)
            text = _read(bank.text_tokens, text_rows[part], device)
            logits[part] = head(fusion.fuse(image, text)[2]).float().cpu().numpy()
    if not np.isfinite(logits).all():
        got = f"{int((~np.isfinite(logits)).sum())} that are not"
        fix = "Pass --precision fp32, or look for the epoch where the run's loss went wrong."
        raise InputError(sentence("matching logits", expected="finite numbers", got=got, fix=fix))
    return logits


def pair_logits_both_ways(
    fusion: Fusion,
    head: MatchingHead,
    bank: Bank,
    rows: tuple[Int[np.ndarray, " image"], Int[np.ndarray, " text"]],
    first: tuple[Int[np.ndarray, "image k_text"], Int[np.ndarray, "text k_image"]],
    *,
    batch_size: int = BATCH,
    progress: bool = False,
) -> tuple[Float[np.ndarray, "image k_text"], Float[np.ndarray, "text k_image"]]:
    """Ask the matching head about the candidates of both directions; a pair that stands in both is fused once.

    Args:
        fusion: As of :func:`pair_logits`, and so are the others that are not named here.
        head: Likewise.
        bank: Likewise.
        rows: The row of every image, and one row of every distinct text.
        first: For every image its candidates among the texts, and for every text its candidates among the images, as
            places in ``rows``.
        batch_size: Pairs at a time.
        progress: Show a progress bar.

    Returns:
        One logit per candidate, for images and for texts.
    """
    (image_rows, text_rows), (texts, images) = rows, first
    pairs = [
        np.arange(len(image_rows))[:, None] * len(text_rows) + texts,
        images * len(text_rows) + np.arange(len(text_rows))[:, None],
    ]
    distinct, places = np.unique(np.concatenate([part.ravel() for part in pairs]), return_inverse=True)
    image, text = np.divmod(distinct, len(text_rows))
    asked = image_rows[image], text_rows[text]
    logits = pair_logits(fusion, head, bank, *asked, batch_size=batch_size, progress=progress)[places]
    of_images, of_texts = logits[: pairs[0].size], logits[pairs[0].size :]
    return of_images.reshape(pairs[0].shape), of_texts.reshape(pairs[1].shape)


def rerank(first: Shaped[np.ndarray, "query k"], logits: Float[np.ndarray, "query k"]) -> Shaped[np.ndarray, "query k"]:
    """Sort each query's candidates by their logit; equal ones keep the order they came in.

    Args:
        first: Candidates of each query, or anything known of them, best first.
        logits: Of the matching head.

    Example:
        >>> rerank(np.array([[7, 3, 5]]), np.array([[0.5, 2.0, 0.5]])).tolist()
        [[3, 7, 5]]
    """
    return np.take_along_axis(first, np.argsort(-logits, axis=1, kind="stable"), axis=1)


def reranked_ranks(
    ranks: Int[np.ndarray, " query"],
    right: Bool[np.ndarray, "query k"],
    logits: Float[np.ndarray, "query k"],
) -> Int[np.ndarray, " query"]:
    """Place, from 1, of each query's best-placed right answer once its first ``k`` candidates are sorted by logit.

    Args:
        ranks: The places before, of ``adaptmed.metrics.retrieval.first_positive_ranks``; what stands behind the
            candidates keeps them.
        right: Whether each candidate, in the order of ``first_places``, is a right answer.
        logits: Of the matching head.

    Example:
        >>> reranked_ranks(np.array([2, 9]), np.array([[False, True], [False, False]]), np.array([[0.0, 1], [1, 0]]))
        array([1, 9])
    """
    sorted_right = rerank(right, logits)
    return np.where(sorted_right.any(axis=1), sorted_right.argmax(axis=1) + 1, ranks)


def _read(read: Callable[..., Tokens], rows: Int[np.ndarray, " pair"], device: torch.device) -> Tokens:
    distinct, places = np.unique(rows, return_inverse=True)
    return read(distinct, dtype=torch.float32).to(device).select(torch.from_numpy(places).to(device))


@contextmanager
def _judging(*modules: nn.Module) -> Iterator[None]:
    modes = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)
