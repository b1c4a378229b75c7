"""Retrieval: at which place the first right answer stands."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int, Real, Shaped

from adaptmed.errors import InputError, sentence

TOLERANCE = 1e-6  # cosines closer than float32 can tell apart count as equal
CHUNK = 1024


def first_positive_ranks(
    queries: Real[np.ndarray, "n width"],
    gallery: Real[np.ndarray, "m gallery_width"],
    query_group: Shaped[np.ndarray, " n"],
    gallery_group: Shaped[np.ndarray, " m"],
) -> Int[np.ndarray, " n"]:
    """Place, from 1, of each query's best-placed positive in the gallery, by cosine similarity.

    Several gallery items may be right: all that share the query's group (an identical report, say). Ties are resolved
    against the model: a wrong item of equal similarity stands before the right one, so constant embeddings do not win.

    Args:
        queries: Embeddings; they are L2-normalised here.
        gallery: Embeddings of the other side; a query is compared with all of them.
        query_group: What each query belongs to.
        gallery_group: What each gallery item belongs to.

    Returns:
        Ranks in [1, m]; -1 where the gallery holds no positive of a query.

    Raises:
        InputError: An embedding is not finite, or the shapes do not fit.

    Example:
        >>> first_positive_ranks(np.eye(2), np.array([[0.0, 1], [1, 1]]), np.array([0, 1]), np.array([0, 1]))
        array([2, 2])
    """
    ranks = np.empty(len(queries), dtype=np.int64)
    for rows, similarity, right_answer in _compared(queries, gallery, query_group, gallery_group):
        best = np.where(right_answer, similarity, -np.inf).max(axis=1, initial=-np.inf)
        before = ~right_answer & (similarity >= best[:, None] - TOLERANCE)
        ranks[rows] = np.where(right_answer.any(1), before.sum(1) + 1, -1)
    return ranks


def first_places(
    queries: Real[np.ndarray, "n width"],
    gallery: Real[np.ndarray, "m gallery_width"],
    query_group: Shaped[np.ndarray, " n"],
    gallery_group: Shaped[np.ndarray, " m"],
    *,
    k: int,
) -> Int[np.ndarray, "n _"]:
    """Gallery items in the first ``k`` places of each query, best first, by cosine similarity.

    Ties are resolved as :func:`first_positive_ranks` resolves them, so that the first right item of a row stands in the
    place that it says.

    Args:
        queries: Embeddings; they are L2-normalised here.
        gallery: Embeddings of the other side.
        query_group: What each query belongs to.
        gallery_group: What each gallery item belongs to.
        k: At least 1; a gallery with fewer items gives all of them.

    Raises:
        InputError: An embedding is not finite, the shapes do not fit, or ``k`` is below 1.

    Example:
        >>> first_places(np.eye(2), np.array([[0.0, 1], [1, 1]]), np.array([0, 1]), np.array([0, 1]), k=1).tolist()
        [[1], [0]]
    """
    if k < 1:
        raise InputError(sentence("k", expected="at least 1", got=k, fix="Raise it."))
    places = np.empty((len(queries), min(k, len(gallery))), dtype=np.int64)
    for rows, similarity, right_answer in _compared(queries, gallery, query_group, gallery_group):
        lowered = np.where(right_answer, similarity - TOLERANCE, similarity)
        places[rows] = np.lexsort((right_answer, -lowered), axis=1)[:, :k]
    return places


def chance_recall(positives: Int[np.ndarray, " n"], gallery: int, *, k: int) -> Float[np.ndarray, " n"]:
    """Probability of a right answer among the first ``k`` when the gallery is put into a random order.

    Args:
        positives: How many right answers each query has in the gallery.
        gallery: Items in the gallery.
        k: Length of the list looked at.

    Example:
        >>> chance_recall(np.array([1, 2, 0]), 4, k=2).round(3).tolist()
        [0.5, 0.833, 0.0]
    """
    drawn = np.arange(min(k, gallery))
    missed = (gallery - positives[:, None] - drawn).clip(min=0) / (gallery - drawn)
    return 1 - missed.prod(axis=1)


def weighted_recall(
    ranks: Int[np.ndarray, " n"], weights: Real[np.ndarray, "replicate n"], *, k: int
) -> Float[np.ndarray, " replicate"]:
    """Recall at k: share of queries with a positive among the first k; queries without any positive are left out.

    Args:
        ranks: What `first_positive_ranks` gives.
        weights: How often each query counts in each replicate.
        k: Length of the list looked at.

    Returns:
        Values in [0, 1]; NaN where a replicate holds no query.
    """
    weights = np.asarray(weights, dtype=np.float64)[:, ranks > 0]
    total = weights.sum(1)
    hits = weights @ (ranks[ranks > 0] <= k)
    return np.divide(hits, total, out=np.full(len(total), np.nan), where=total > 0)


def weighted_median_rank(
    ranks: Int[np.ndarray, " n"], weights: Real[np.ndarray, "replicate n"]
) -> Float[np.ndarray, " replicate"]:
    """Median rank: the mean of the lower and the upper median of the weighted ranks; NaN without a query."""
    ranks, weights = ranks[ranks > 0], np.asarray(weights, dtype=np.float64)[:, ranks > 0]
    if not len(ranks):
        return np.full(len(weights), np.nan)
    order = np.argsort(ranks, kind="stable")
    sums = np.cumsum(weights[:, order], axis=1)
    half = sums[:, -1:] / 2
    lower, upper = (sums < half).sum(1), (sums <= half).sum(1).clip(max=len(ranks) - 1)
    return np.where(sums[:, -1] > 0, (ranks[order][lower] + ranks[order][upper]) / 2, np.nan)


def retrieval(
    queries: Real[np.ndarray, "n width"],
    gallery: Real[np.ndarray, "m gallery_width"],
    query_group: Shaped[np.ndarray, " n"],
    gallery_group: Shaped[np.ndarray, " m"],
    *,
    ks: tuple[int, ...] = (1, 5, 10),
) -> dict[str, float]:
    """Judge one direction of retrieval.

    Args:
        queries: Embeddings that ask.
        gallery: Embeddings that are looked through.
        query_group: What each query belongs to; equal groups are right answers.
        gallery_group: What each gallery item belongs to.
        ks: Lengths of the lists looked at.

    Returns:
        ``R@k`` for each k, ``median_rank`` of the best positive, ``n_queries`` (those with a positive) and
        ``n_gallery``. NaN when no query has a positive.

    Example:
        >>> retrieval(np.eye(3), np.eye(3), np.arange(3), np.arange(3), ks=(1,))
        {'R@1': 1.0, 'median_rank': 1.0, 'n_queries': 3, 'n_gallery': 3}
    """
    ranks = first_positive_ranks(queries, gallery, query_group, gallery_group)
    once = np.ones((1, len(ranks)))
    return {
        **{f"R@{k}": float(weighted_recall(ranks, once, k=k)[0]) for k in ks},
        "median_rank": float(weighted_median_rank(ranks, once)[0]),
        "n_queries": int((ranks > 0).sum()),
        "n_gallery": len(gallery),
    }


def _compared(
    queries: Real[np.ndarray, "n width"],
    gallery: Real[np.ndarray, "m gallery_width"],
    query_group: Shaped[np.ndarray, " n"],
    gallery_group: Shaped[np.ndarray, " m"],
) -> Iterator[tuple[slice, Float[np.ndarray, "row m"], Bool[np.ndarray, "row m"]]]:
    """Cosines of some queries at a time with the whole gallery, and which of them are right answers."""
    left, right = _unit(queries, query_group, "queries"), _unit(gallery, gallery_group, "gallery")
    if left.shape[1] != right.shape[1]:
        raise InputError(
            sentence(
                "queries, gallery",
                expected="embeddings of one width",
                got=f"{left.shape[1]} and {right.shape[1]}",
                fix="Compare embeddings of one shared space.",
            )
        )
    for start in range(0, len(left), CHUNK):
        rows = slice(start, start + CHUNK)
        yield rows, left[rows] @ right.T, np.asarray(query_group)[rows, None] == np.asarray(gallery_group)


def _unit(
    embeddings: Real[np.ndarray, "n width"], group: Shaped[np.ndarray, " n"], name: str
) -> Float[np.ndarray, "n width"]:
    if embeddings.ndim != 2 or len(embeddings) != len(group) or not np.isfinite(embeddings).all():
        raise InputError(
            sentence(
                name,
                expected=f"finite embeddings (n, width) for {len(group)} items",
                got=f"shape {embeddings.shape}, {int((~np.isfinite(embeddings)).sum())} values not finite",
                fix="Check the embeddings and their groups.",
            )
        )
    values = embeddings.astype(np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
