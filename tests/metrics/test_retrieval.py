from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptmed.errors import InputError
from adaptmed.metrics import retrieval as module
from adaptmed.metrics.retrieval import (
    chance_recall,
    first_places,
    first_positive_ranks,
    retrieval,
    weighted_median_rank,
    weighted_recall,
)


def slow_rank(query, gallery, group, groups):
    cosine = [float(query @ item) / (np.linalg.norm(query) * np.linalg.norm(item)) for item in gallery]
    right = [value for value, other in zip(cosine, groups, strict=True) if other == group]
    if not right:
        return -1
    return 1 + sum(o != group and v >= max(right) - 1e-6 for v, o in zip(cosine, groups, strict=True))


@given(seed=st.integers(0, 10_000), m=st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_ranks_equal_a_plain_loop(seed, m):
    random = np.random.default_rng(seed)
    queries, gallery = random.integers(-2, 3, (7, 3)) + 0.5, random.integers(-2, 3, (m, 3)) + 0.5
    groups, others = random.integers(0, 4, 7), random.integers(0, 4, m)
    ranks = first_positive_ranks(queries, gallery, groups, others)
    assert ranks.tolist() == [slow_rank(q, gallery, g, others) for q, g in zip(queries, groups, strict=True)]
    order = random.permutation(m)
    assert (first_positive_ranks(queries, gallery[order], groups, others[order]) == ranks).all()


def test_constant_embeddings_do_not_win():
    scores = retrieval(np.ones((50, 8)), np.ones((50, 8)), np.arange(50), np.arange(50))
    assert scores == {"R@1": 0, "R@5": 0, "R@10": 0, "median_rank": 50, "n_queries": 50, "n_gallery": 50}
    assert (first_positive_ranks(np.zeros((3, 2)), np.zeros((3, 2)), np.arange(3), np.arange(3)) == 3).all()


def test_any_of_several_positives_counts():
    gallery = np.array([[0.0, 1], [1, 0.1], [1, 0]])
    assert first_positive_ranks(np.array([[1.0, 0]]), gallery, np.array(["a"]), np.array(["a", "b", "a"])) == [1]


def test_queries_without_a_positive_are_left_out():
    scores = retrieval(np.eye(3), np.eye(3), np.array([0, 1, 9]), np.array([0, 1, 2]))
    assert (scores["R@1"], scores["n_queries"], scores["n_gallery"]) == (1.0, 2, 3)
    assert np.isnan(retrieval(np.eye(2), np.eye(2), np.array([8, 9]), np.array([0, 1]))["median_rank"])


def test_chunks_do_not_show(monkeypatch):
    random = np.random.default_rng(0)
    queries, gallery, groups = random.normal(size=(40, 6)), random.normal(size=(40, 6)), random.integers(0, 9, 40)
    whole = first_positive_ranks(queries, gallery, groups, groups)
    monkeypatch.setattr(module, "CHUNK", 7)
    assert (first_positive_ranks(queries, gallery, groups, groups) == whole).all()


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_weighted_forms_equal_repetition(seed):
    random = np.random.default_rng(seed)
    ranks, weights = random.integers(1, 9, 11), random.integers(0, 3, (4, 11))
    weights[:, 0] += 1
    for row, recall, median in zip(
        weights, weighted_recall(ranks, weights, k=3), weighted_median_rank(ranks, weights), strict=True
    ):
        repeated = ranks.repeat(row)
        assert recall == pytest.approx((repeated <= 3).mean())
        assert median == np.median(repeated)


def test_bad_embeddings_are_refused():
    with pytest.raises(InputError, match=r"`queries`: expected finite embeddings.*1 values not finite"):
        retrieval(np.array([[np.nan, 1]]), np.eye(2), np.array([0]), np.arange(2))
    with pytest.raises(InputError, match="embeddings of one width, but got 2 and 3"):
        retrieval(np.eye(2), np.eye(3), np.arange(2), np.arange(3))


@given(seed=st.integers(0, 10_000), m=st.integers(1, 12), k=st.integers(1, 14))
@settings(max_examples=60, deadline=None)
def test_first_places_are_a_sorted_gallery_whose_first_right_item_stands_at_its_rank(seed, m, k):
    random = np.random.default_rng(seed)
    queries, gallery = random.integers(-2, 3, (7, 3)) + 0.5, random.integers(-2, 3, (m, 3)) + 0.5
    groups, others = random.integers(0, 4, 7), random.integers(0, 4, m)
    places = first_places(queries, gallery, groups, others, k=k)
    assert places.shape == (7, min(k, m))
    ranks = first_positive_ranks(queries, gallery, groups, others)
    for query, group, found, rank in zip(queries, groups, places, ranks, strict=True):
        cosine = gallery @ query / np.linalg.norm(gallery, axis=1) / np.linalg.norm(query)
        assert len(set(found)) == len(found)
        assert (np.diff(cosine[found]) < 1e-5).all()
        assert cosine[found].min() > np.delete(cosine, found).max(initial=-2) - 1e-5
        right = np.flatnonzero(others[found] == group)
        assert (right[0] + 1 == rank) if len(right) else (rank == -1 or rank > k)


def test_first_places_do_not_prefer_the_right_item_of_a_tie():
    assert first_places(np.ones((3, 2)), np.ones((3, 2)), np.arange(3), np.arange(3), k=2).tolist() == [
        [1, 2],
        [0, 2],
        [0, 1],
    ]
    with pytest.raises(InputError, match="`k`: expected at least 1, but got 0"):
        first_places(np.eye(2), np.eye(2), np.arange(2), np.arange(2), k=0)


@pytest.mark.parametrize("k", [1, 2, 4, 5, 9])
def test_chance_is_the_mean_over_all_orders(k):
    for positives in range(6):
        orders = list(permutations([True] * positives + [False] * (5 - positives)))
        expected = np.mean([any(order[:k]) for order in orders])
        assert chance_recall(np.array([positives]), 5, k=k) == pytest.approx(expected)
